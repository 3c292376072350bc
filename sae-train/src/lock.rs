//! One process per run directory. The system releases the lock when the process ends, however it ends.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use sae_run::{RunDir, read_text};

use crate::failure::Failure;
use crate::output;

/// Longest wait for a killed holder to die: the system releases its files after its memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time after which a message says which process we wait for.
const SILENCE: Duration = Duration::from_secs(1);
/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to write in a run directory, held by the system's file lock.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of the run directory `dir`, which must exist; waits for a holder that is about to end. The text
    /// in the file is only for messages.
    pub(crate) fn take(dir: &RunDir) -> Result<Self, Failure> {
        let (run, path) = (dir.path(), dir.lock());
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(&path).map_err(Failure::write(&path))?;
        let (started, mut told) = (Instant::now(), false);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                    if !told && started.elapsed() > SILENCE {
                        let (run, holder) = (run.display(), holder(&path));
                        output::complain(format!("waiting for {holder} to release {run}"));
                        told = true;
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let (run, holder) = (run.to_path_buf(), holder(&path));
                    return Err(Failure::Locked { run, holder });
                }
                Err(TryLockError::Error(source)) => return Err(Failure::Write { path, source }),
            }
        }
        file.set_len(0)
            .and_then(|()| write!(file, "process {}", std::process::id()))
            .map_err(Failure::write(&path))?;
        Ok(Self { _file: file })
    }
}

/// The holder of the lock, as the file names it.
fn holder(path: &Path) -> String {
    let text = read_text(path, 1 << 20).unwrap_or_default(); // only for a message
    match text.trim() {
        "" => "another process".into(),
        holder => holder.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_is_about_to_end_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let first = RunLock::take(&run).unwrap();
        let taken = std::thread::scope(|scope| {
            let second = scope.spawn(|| RunLock::take(&run));
            std::thread::sleep(Duration::from_millis(1500));
            drop(first);
            second.join().unwrap()
        });
        let _second = taken.unwrap();
        let failure = RunLock::take(&run).unwrap_err();
        let id = format!("in use by process {}", std::process::id());
        assert!(failure.to_string().contains(&id), "{failure}");
    }
}
