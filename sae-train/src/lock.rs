//! One process a run directory: the lock goes with the process, however it ends.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::output;

/// Name of the file that is locked; what it says is for the message only.
pub(crate) const LOCK_FILE: &str = "lock";

/// How long a holder that was killed may take to die: the system lets go of its files after its memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this it is said that there is something to wait for.
const SILENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to write in a run directory, held by the system's file lock.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of the run directory `run`, which must exist; waits for a holder that is about to end.
    pub(crate) fn take(run: &Path) -> Result<Self, Failure> {
        let path = run.join(LOCK_FILE);
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
                        output::complain(format!("waiting for {holder} to let go of {run}"));
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

/// Who holds the lock, as far as the file tells.
fn holder(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(100).read_to_string(&mut text); // only for a message
    }
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
        let first = RunLock::take(dir.path()).unwrap();
        let taken = std::thread::scope(|scope| {
            let second = scope.spawn(|| RunLock::take(dir.path()));
            std::thread::sleep(Duration::from_millis(1500));
            drop(first);
            second.join().unwrap()
        });
        let _second = taken.unwrap();
        let failure = RunLock::take(dir.path()).unwrap_err();
        let id = format!("in use by process {}", std::process::id());
        assert!(failure.to_string().contains(&id), "{failure}");
    }
}
