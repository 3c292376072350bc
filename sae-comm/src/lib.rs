//! Moves bytes between the processes of a training run.
//!
//! A run over several processes must give the same bytes whatever their number is. MPI promises that all ranks get the same result of
//! a reduction, but not in which order it adds. So nothing is added here: messages are moved, and whoever receives them adds them in
//! an order of its own.
//!
//! [`Local`] is a run of one process. With feature `mpi`, [`world`] gives the processes that `mpirun` or Slurm has started.
//! [`threads()`] are several in one process, for tests.

mod threads;
#[cfg(feature = "mpi")]
mod through_mpi;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use threads::threads;

/// The processes of a run, which all call the same methods in the same order.
///
/// The methods return when the messages have arrived. A process that dies ends the others: MPI's launcher kills them.
pub trait Comm: Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn ranks(&self) -> usize;

    /// Sends `messages[r]` to process r, and returns what each has sent here.
    ///
    /// # Panics
    /// If there is not one message per process.
    fn exchange(&self, messages: Vec<Vec<f32>>) -> Vec<Vec<f32>>;

    /// The numbers of every process, at every process.
    fn gather(&self, numbers: &[f32]) -> Vec<Vec<f32>>;

    /// The bytes of every process, at every process.
    fn gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// The bytes of process 0, at every process; those of the others are ignored.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Number of bytes that this process has sent to others; none where all are in one.
    fn sent(&self) -> u64 {
        0
    }

    /// The time that this process has spent in exchanges, waiting for others included; none where all are in one.
    fn spent(&self) -> Duration {
        Duration::ZERO
    }

    /// Ends all processes at once, with this exit code.
    fn abort(&self, code: u8) -> ! {
        std::process::exit(i32::from(code))
    }
}

/// The reason why the other processes cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// The program is built without feature `mpi`.
    #[error("this program is built without MPI")]
    NotCompiled,
    /// MPI is there, and refuses to start.
    #[error("MPI does not start: {0}")]
    Refused(&'static str),
}

/// The processes that have been started together, by `mpirun`, `srun` or alone.
///
/// # Errors
/// [`CommError`] without feature `mpi`, or if MPI does not start; it starts once per process.
pub fn world() -> Result<Arc<dyn Comm>, CommError> {
    #[cfg(feature = "mpi")]
    return through_mpi::Mpi::start().map(|mpi| Arc::new(mpi) as Arc<dyn Comm>);
    #[cfg(not(feature = "mpi"))]
    Err(CommError::NotCompiled)
}

/// One process: every message goes to itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Comm for Local {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn exchange(&self, messages: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        assert_eq!(messages.len(), 1, "one message per process");
        messages
    }

    fn gather(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        vec![numbers.to_vec()]
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_hears_itself() {
        let comm = Local;
        assert_eq!(comm.exchange(vec![vec![1.0, 2.0]]), [[1.0, 2.0]]);
        assert_eq!(comm.gather(&[3.0]), [[3.0]]);
        assert_eq!(comm.gather_bytes(b"a"), [b"a"]);
        assert_eq!(comm.broadcast(b"b".to_vec()), b"b");
        assert_eq!((comm.rank(), comm.ranks(), comm.sent()), (0, 1, 0));
        assert_eq!(comm.spent(), Duration::ZERO);
    }
}
