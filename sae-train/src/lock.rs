//! One process a run directory: the lock goes with the process, however it ends.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::failure::Failure;

/// Name of the file that is locked; what it says is for the message only.
pub(crate) const LOCK_FILE: &str = "lock";

/// The right to write in a run directory, held by the system's file lock.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of the run directory `run`, which must exist.
    pub(crate) fn take(run: &Path) -> Result<Self, Failure> {
        let path = run.join(LOCK_FILE);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut file = options.open(&path).map_err(Failure::write(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = (&mut file).take(100).read_to_string(&mut holder); // only for the message
                let holder = match holder.trim() {
                    "" => "another process".into(),
                    holder => holder.to_string(),
                };
                let run = run.to_path_buf();
                return Err(Failure::Locked { run, holder });
            }
            Err(TryLockError::Error(source)) => return Err(Failure::Write { path, source }),
        }
        file.set_len(0)
            .and_then(|()| write!(file, "process {}", std::process::id()))
            .map_err(Failure::write(&path))?;
        Ok(Self { _file: file })
    }
}
