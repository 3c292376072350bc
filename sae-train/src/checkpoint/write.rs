//! Writes checkpoints. Burn hands over three records, each on a thread of its own; the last one seals the checkpoint.
//!
//! The records of a GPU are promises: their bytes are fetched when they are read, and a step taken in the meantime
//! changes Adam's moments under them. So training waits until all bytes are fetched, but not until they are on disk.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burn::train::checkpoint::{
    Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
};
use burn::train::metric::store::EventStoreClient;
use sae_model::saved::CONFIG_FILE;
use sae_run::sealed;

use super::{Checkpoints, POSITION, Position};
use crate::failure::{Failure, Outcome};

/// Number of records in a checkpoint.
const PARTS: usize = 3;

/// Puts checkpoints together while training goes on.
#[derive(Debug)]
pub(crate) struct Writer {
    checkpoints: Checkpoints,
    /// The content of `cfg.json`.
    config: Vec<u8>,
    /// Unfinished checkpoints, by step.
    pending: Mutex<HashMap<usize, Pending>>,
    /// Notified when a record has been fetched.
    fetched: Condvar,
    /// True if records are promises.
    on_gpu: bool,
    /// Nanoseconds for which checkpoints have held training up.
    held_up: AtomicU64,
    outcome: Arc<Outcome>,
}

#[derive(Debug)]
struct Pending {
    staging: PathBuf,
    missing: usize,
    /// Number of records whose bytes are not fetched yet.
    promised: usize,
    failed: bool,
}

impl Writer {
    /// `config` is the content of `cfg.json` ([`saved::config_file`](sae_model::saved::config_file)).
    pub(crate) fn new(
        checkpoints: Checkpoints,
        config: Vec<u8>,
        on_gpu: bool,
        outcome: Arc<Outcome>,
    ) -> Self {
        Self {
            checkpoints,
            config,
            pending: Mutex::default(),
            fetched: Condvar::new(),
            on_gpu,
            held_up: AtomicU64::new(0),
            outcome,
        }
    }

    /// Begins the checkpoint of `position`, in a directory that has another name until it is whole; its records follow through [`Part`].
    pub(crate) fn begin(&self, position: &Position) -> Result<PathBuf, Failure> {
        let target = self.checkpoints.path(position.step);
        let staging = sealed::staging(&target).map_err(|error| seal_failure(&target, error))?;
        let mut json = serde_json::to_vec_pretty(position).expect("a position is plain data");
        json.push(b'\n');
        for (name, content) in [(POSITION, &json), (CONFIG_FILE, &self.config)] {
            let path = staging.join(name);
            if let Err(error) = fs::write(&path, content) {
                let _ = fs::remove_dir_all(&staging);
                return Err(Failure::write(&path)(error));
            }
        }
        let pending = Pending {
            staging: staging.clone(),
            missing: PARTS,
            promised: if self.on_gpu { PARTS } else { 0 },
            failed: false,
        };
        self.pending().insert(position.step, pending);
        Ok(staging)
    }

    /// Notes that a checkpoint held training up for `time`.
    pub(crate) fn add_time(&self, time: Duration) {
        self.held_up
            .fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The time for which checkpoints have held training up.
    pub(crate) fn held_up(&self) -> Duration {
        Duration::from_nanos(self.held_up.load(Ordering::Relaxed))
    }

    /// Waits until the records of `step` are fetched, so that training may change the tensors behind them.
    pub(crate) fn wait_until_fetched(&self, step: usize) {
        let promised =
            |all: &mut HashMap<usize, Pending>| all.get(&step).is_some_and(|p| p.promised > 0);
        drop(self.fetched.wait_while(self.pending(), promised));
    }

    /// Writes a record to `path`.
    fn save<R: Checkpoint>(
        &self,
        step: usize,
        record: R,
        path: PathBuf,
    ) -> Result<(), CheckpointerError> {
        if !self.on_gpu {
            return record.save(path); // streams, without a copy in memory
        }
        let bytes = record.checkpoint_into_bytes();
        if let Some(pending) = self.pending().get_mut(&step) {
            pending.promised -= 1;
        }
        self.fetched.notify_all();
        let bytes = bytes.map_err(CheckpointerError::Record)?;
        fs::write(path, &bytes[..]).map_err(CheckpointerError::IOError)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<usize, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one record with `save`; seals the checkpoint if it was the last.
    fn write(
        &self,
        step: usize,
        name: &str,
        save: impl FnOnce(PathBuf) -> Result<(), CheckpointerError>,
    ) -> Result<(), Failure> {
        let Some(staging) = self.pending().get(&step).map(|p| p.staging.clone()) else {
            return Ok(()); // it has failed already
        };
        let path = staging.join(name);
        let saved =
            save(path.clone()).map_err(|error| Failure::write_message(&path, &error.to_string()));
        let whole = {
            let mut all = self.pending();
            let Some(pending) = all.get_mut(&step) else {
                return saved;
            };
            pending.missing -= 1;
            pending.failed |= saved.is_err();
            match (pending.missing, pending.failed) {
                (0, failed) => {
                    all.remove(&step);
                    Some(!failed)
                }
                _ => None,
            }
        };
        let done = match whole {
            Some(true) => saved.and_then(|()| self.seal(&staging, step)),
            _ => saved,
        };
        // The last record of a checkpoint that failed may itself be good.
        if whole == Some(false) || (whole.is_some() && done.is_err()) {
            let _ = fs::remove_dir_all(&staging);
        }
        done
    }

    fn seal(&self, staging: &Path, step: usize) -> Result<(), Failure> {
        let target = self.checkpoints.path(step);
        sealed::seal(staging, &target).map_err(|error| seal_failure(&target, error))?;
        tracing::debug!(step, "checkpoint");
        self.checkpoints.prune()
    }
}

impl Drop for Writer {
    /// Removes unfinished checkpoints, which are of no use.
    fn drop(&mut self) {
        for (_, pending) in self.pending().drain() {
            let _ = fs::remove_dir_all(pending.staging);
        }
    }
}

fn seal_failure(target: &Path, error: sealed::SealError) -> Failure {
    match error {
        sealed::SealError::Io { path, source } => Failure::Write { path, source },
        other => Failure::write(target)(std::io::Error::other(other)),
    }
}

/// One record of a checkpoint, as Burn's learner saves it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) writer: Arc<Writer>,
}

impl<R: Checkpoint> Checkpointer<R> for Part {
    fn save(&self, step: usize, record: R) -> Result<(), CheckpointerError> {
        let written = self
            .writer
            .write(step, self.name, |path| self.writer.save(step, record, path));
        written.map_err(|failure| {
            let message = failure.to_string();
            self.writer.outcome.fail(failure);
            CheckpointerError::Unknown(message)
        })
    }

    fn delete(&self, _step: usize) -> Result<(), CheckpointerError> {
        Ok(()) // `Checkpoints::prune` does this
    }

    fn restore(&self, _step: usize) -> Result<R, CheckpointerError> {
        let message = "checkpoints are restored before training starts";
        Err(CheckpointerError::Unknown(message.into()))
    }
}

/// Saves whenever it is asked; the training loop decides when.
pub(crate) struct Always;

impl CheckpointingStrategy for Always {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}
