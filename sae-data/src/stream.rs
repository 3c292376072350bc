//! Prepares batches ahead of time: several threads read a window, and its batches are sent in a defined order.
//!
//! Every row of a window has a known place in a known batch. So each block is read into a small buffer that stays in the
//! processor's cache, and its rows are converted from there directly into their batches: a window is stored only as the
//! batches made from it. At most two windows are in memory, one in use and one being filled.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use burn::tensor::TensorData;

use crate::data::ActivationData;
use crate::error::DataError;
use crate::pool::{Buffer, Pool};
use crate::window::{StreamingPlan, Window};

/// The batches to stream.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) data: ActivationData,
    pub(crate) windows: StreamingPlan,
    pub(crate) batch: usize,
    pub(crate) workers: usize,
    pub(crate) pool: Pool,
    /// Number of positions; the last batch ends here.
    pub(crate) end: u64,
}

/// Batches that are being prepared.
#[derive(Debug)]
pub(crate) struct Stream {
    batches: Receiver<Result<TensorData, DataError>>,
    stop: Arc<AtomicBool>,
}

impl Stream {
    /// Starts to prepare the batches with these numbers, which must ascend.
    pub(crate) fn start(job: Job, numbers: impl Iterator<Item = u64> + Send + 'static) -> Self {
        let ahead = (job.windows.window_rows() / job.batch).max(2);
        let (sender, batches) = sync_channel(ahead);
        let stop = Arc::new(AtomicBool::new(false));
        let filler = Filler {
            job,
            sender,
            stop: stop.clone(),
        };
        thread::spawn(move || filler.run(numbers));
        Self { batches, stop }
    }

    /// The next batch; `None` when there are no more.
    pub(crate) fn next(&self) -> Option<Result<TensorData, DataError>> {
        self.batches.recv().ok()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A batch that is being filled.
struct Filling {
    /// Position of its first row.
    start: u64,
    rows: usize,
    values: Buffer,
}

impl Filling {
    fn end(&self) -> u64 {
        self.start + self.rows as u64
    }
}

struct Filler {
    job: Job,
    sender: SyncSender<Result<TensorData, DataError>>,
    stop: Arc<AtomicBool>,
}

impl Filler {
    fn run(self, numbers: impl Iterator<Item = u64>) {
        let mut numbers = numbers.peekable();
        let mut filling: VecDeque<Filling> = VecDeque::new();
        let mut position = None;
        let mut scratch = vec![Vec::new(); self.job.workers.max(1)];
        loop {
            let next = numbers.peek().map(|number| number * self.job.batch as u64);
            let Some(at) = filling
                .front()
                .map_or(next, |_| position)
                .filter(|at| *at < self.job.end)
            else {
                return;
            };
            let window = self.job.windows.at(at);
            let end = window.positions.end;
            if let Err(error) = self.begin(&mut numbers, end, &mut filling) {
                return self.fail(error);
            }
            if let Err(error) = self.fill(&window, filling.make_contiguous(), &mut scratch) {
                return self.fail(error);
            }
            while let Some(batch) = filling.pop_front_if(|batch| batch.end() <= end) {
                let width = self.job.data.width();
                let tensor = self.job.pool.lend(batch.values, batch.rows, width);
                if self.sender.send(Ok(tensor)).is_err() {
                    return; // the consumer has stopped early
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            position = Some(end);
        }
    }

    /// Gets buffers for the batches that start before position `end`.
    fn begin(
        &self,
        numbers: &mut Peekable<impl Iterator<Item = u64>>,
        end: u64,
        filling: &mut VecDeque<Filling>,
    ) -> Result<(), DataError> {
        let batch = self.job.batch as u64;
        while let Some(number) = numbers.next_if(|number| number * batch < end) {
            let start = number * batch;
            let rows = self.job.end.saturating_sub(start).min(batch) as usize;
            if rows > 0 {
                let values = self.job.pool.take(rows * self.job.data.width());
                filling.push_back(Filling {
                    start,
                    rows,
                    values: values.map_err(DataError::io(self.job.data.path()))?,
                });
            }
        }
        Ok(())
    }

    fn fail(&self, error: DataError) {
        let _ = self.sender.send(Err(error)); // fails only if the consumer is gone
    }

    /// Reads the rows of a window into their batches.
    fn fill(
        &self,
        window: &Window,
        batches: &mut [Filling],
        scratch: &mut [Vec<u8>],
    ) -> Result<(), DataError> {
        let _span = tracing::trace_span!("fill", start = window.positions.start).entered();
        let order = packed(window, scratch.len());
        let mut places = self.places(window, batches, &order);
        let mut rest = &mut places[..];
        let mut blocks = Vec::with_capacity(window.blocks.len());
        for block in &window.blocks {
            let (now, later) = rest.split_at_mut(block.len());
            blocks.push((block.clone(), now));
            rest = later;
        }
        let blocks = Mutex::new(blocks.into_iter());
        let failed = Mutex::new(None);
        thread::scope(|scope| {
            for scratch in scratch {
                scope.spawn(|| {
                    loop {
                        let next = locked(&blocks).next(); // not in a `while let`, which would keep the lock
                        let Some((rows, places)) = next else { return };
                        if self.stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if places.iter().all(Option::is_none) {
                            continue; // none of its rows is in a batch of this stream
                        }
                        if let Err(error) = self.job.data.read_rows(rows, scratch, places) {
                            locked(&failed).get_or_insert(error);
                            return;
                        }
                    }
                });
            }
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    /// The place of each packed row of a window, if it has one.
    fn places<'a>(
        &self,
        window: &Window,
        batches: &'a mut [Filling],
        order: &[usize],
    ) -> Vec<Option<&'a mut [f32]>> {
        let mut places = Vec::new();
        places.resize_with(order.len(), || None);
        for batch in batches {
            let first = batch.start;
            for (i, place) in batch
                .values
                .chunks_exact_mut(self.job.data.width())
                .enumerate()
            {
                let position = first + i as u64;
                if window.positions.contains(&position) {
                    places[order[(position - window.positions.start) as usize]] = Some(place);
                }
            }
        }
        places
    }
}

/// The packed row at each position of a window, computed by several threads.
fn packed(window: &Window, workers: usize) -> Vec<usize> {
    let mut order = vec![0; (window.positions.end - window.positions.start) as usize];
    let share = order.len().div_ceil(workers);
    thread::scope(|scope| {
        for (worker, part) in order.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (i, packed) in part.iter_mut().enumerate() {
                    *packed = window.packed(worker * share + i);
                }
            });
        }
    });
    order
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
