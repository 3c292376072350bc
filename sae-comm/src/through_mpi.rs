//! The processes that an MPI launcher has started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};

use crate::{Comm, CommError};

/// MPI's world.
pub(crate) struct Mpi {
    rank: usize,
    ranks: usize,
    sent: AtomicU64,
    /// Nanoseconds in calls.
    spent: AtomicU64,
    /// Held during every call: MPI is asked to expect calls of one thread at a time.
    turn: Mutex<()>,
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.ranks)
    }
}

impl Mpi {
    /// Starts MPI.
    pub(crate) fn start() -> Result<Self, CommError> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = started.ok_or(CommError::Refused("it has been started"))?;
        if threading < Threading::Serialized {
            let why = "it cannot be called from several threads, one at a time";
            return Err(CommError::Refused(why));
        }
        let world = universe.world();
        Ok(Self {
            rank: world.rank() as usize,
            ranks: world.size() as usize,
            sent: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            turn: Mutex::new(()),
            _universe: universe,
        })
    }

    /// The world, and the right to call it, as long as the second is kept. MPI's handle of the world is the same everywhere.
    fn world(&self) -> (SimpleCommunicator, Turn<'_>) {
        let turn = Turn {
            _lock: self.turn.lock().unwrap_or_else(PoisonError::into_inner),
            began: Instant::now(),
            spent: &self.spent,
        };
        (SimpleCommunicator::world(), turn)
    }

    fn count(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn gather_all<T: Equivalence + Clone + Default>(&self, own: &[T]) -> Vec<Vec<T>> {
        let (world, _turn) = self.world();
        let mut lengths = vec![0u64; self.ranks];
        world.all_gather_into(&(own.len() as u64), &mut lengths[..]);
        let (counts, displacements) = laid_out(&lengths);
        let own = with_address(own.len(), own);
        let mut all = with_address(total(&lengths), &[]);
        all.resize(total(&lengths), T::default());
        {
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &displacements[..]);
            world.all_gather_varcount_into(&own[..], &mut parts);
        }
        self.count((self.ranks - 1) * size_of_val(&own[..]));
        cut(all, &lengths)
    }
}

/// The right to call MPI; it counts the time that it is held.
struct Turn<'a> {
    _lock: MutexGuard<'a, ()>,
    began: Instant,
    spent: &'a AtomicU64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let nanoseconds = self.began.elapsed().as_nanos() as u64;
        self.spent.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// MPI's counts and displacements of parts of these lengths, one behind the other.
///
/// # Panics
/// If there are 2^31 elements or more: MPI counts in 32 bits.
fn laid_out(lengths: &[u64]) -> (Vec<i32>, Vec<i32>) {
    let mut displacements = Vec::with_capacity(lengths.len());
    let mut at = 0u64;
    let narrow = |n: u64| i32::try_from(n).expect("a message of fewer than 2^31 numbers");
    for length in lengths {
        displacements.push(narrow(at));
        at += length;
    }
    narrow(at);
    (lengths.iter().map(|n| narrow(*n)).collect(), displacements)
}

/// A copy of `values` that has memory even if it is empty: the address that Rust gives an empty list of bytes is 1, which to Open MPI
/// means another thing (`MPI_IN_PLACE`).
fn with_address<T: Clone>(length: usize, values: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity(length + 1);
    copy.extend_from_slice(values);
    copy
}

fn total(lengths: &[u64]) -> usize {
    lengths.iter().sum::<u64>() as usize
}

/// Parts of these lengths.
fn cut<T: Clone>(all: Vec<T>, lengths: &[u64]) -> Vec<Vec<T>> {
    let mut rest = &all[..];
    let parts = lengths.iter().map(|length| {
        let (part, behind) = rest.split_at(*length as usize);
        rest = behind;
        part.to_vec()
    });
    parts.collect()
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&self, messages: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        assert_eq!(messages.len(), self.ranks, "one message per process");
        let lengths: Vec<u64> = messages.iter().map(|m| m.len() as u64).collect();
        let out = messages.concat();
        drop(messages);
        let (world, _turn) = self.world();
        let mut from = vec![0u64; self.ranks];
        world.all_to_all_into(&lengths[..], &mut from[..]);
        let (counts, displacements) = laid_out(&lengths);
        let (counts_in, displacements_in) = laid_out(&from);
        let mut all = vec![0.0f32; total(&from)];
        {
            let send = Partition::new(&out[..], &counts[..], &displacements[..]);
            let mut receive =
                PartitionMut::new(&mut all[..], &counts_in[..], &displacements_in[..]);
            world.all_to_all_varcount_into(&send, &mut receive);
        }
        let to_others = out.len() - lengths[self.rank] as usize;
        self.count(to_others * size_of::<f32>());
        cut(all, &from)
    }

    fn gather(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        self.gather_all(numbers)
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.gather_all(bytes)
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let (world, _turn) = self.world();
        let root = world.process_at_rank(0);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        if self.rank == 0 {
            self.count((self.ranks - 1) * bytes.len());
        } else {
            bytes = vec![0; length as usize];
        }
        if length > 0 {
            root.broadcast_into(&mut bytes[..]);
        }
        bytes
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    fn abort(&self, code: u8) -> ! {
        SimpleCommunicator::world().abort(i32::from(code))
    }
}
