//! Checkpoints: everything that the next step depends on, whole or absent.
//!
//! ```text
//! checkpoint/step-00000300/  model.bpk        parameters and the counters of the learner  } Burn's
//!                            optimizer.bpk    Adam's moments and times                    } records
//!                            scheduler.bpk    the schedule's step                         }
//!                            checkpoint.json  which run, which step, where metrics.jsonl stood
//!                            cfg.json         what the model is made of, so that model.bpk can be read as a model
//!                            BLAKE3SUMS       checksums of the five (sae_run::sealed)
//! ```
//!
//! A checkpoint is written under the name `step-00000300.tmp`, synced, sealed and renamed. The loader's position is the
//! step: its order is a function of (seed, position). The newest `training.keep_checkpoints` are kept, and the one with
//! the least held-out FVU.
//!
//! Where the latents are spread over processes, process r writes its own into `model-r.bpk` and `optimizer-r.bpk` beside those of
//! process 0. Where the gradients of parts are rounded, `rounding-p.f32` has what was taken away from those of part p: little-endian
//! float32, for every trained parameter in the order of the learner's.

mod read;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use sae_run::checkpoints::{
    FORMAT, FORMAT_VERSION, POSITION_FILE as POSITION, best, name_of, part_of, read_position, steps,
};
use sae_run::{Raise, sealed};
use serde::{Deserialize, Serialize};

use crate::collapse::Streak;
use crate::failure::{Failure, chain};

pub(crate) use read::{RestoreError, restore};
pub(crate) use write::{Always, Part, Writer};

/// Names of Burn's records within a checkpoint.
pub(crate) const MODEL: &str = sae_run::checkpoints::MODEL_FILE;
pub(crate) const OPTIMIZER: &str = "optimizer.bpk";
pub(crate) const SCHEDULER: &str = "scheduler.bpk";
/// Damaged checkpoints are moved aside under this name.
const DAMAGED: &str = "damaged-";

/// The name of the file with what rounding has taken away from the gradients of a part.
pub(crate) fn rounding_of(part: usize) -> String {
    format!("rounding-{part}.f32")
}

/// Where a run stands: the content of `checkpoint.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    format: String,
    format_version: u32,
    /// Identity of the run (`identity` in `run.rs`).
    run: String,
    /// Number of steps done.
    pub(crate) step: usize,
    /// Held-out FVU at this step; absent if it has not been validated.
    pub(crate) held_out_fvu: Option<f64>,
    /// True if the validation due at this step is done.
    pub(crate) validated: bool,
    /// Where `metrics.jsonl` stood.
    pub(crate) metrics: MetricsPosition,
    /// How long the numbers had looked like collapse.
    #[serde(default)]
    pub(crate) streak: Streak,
}

/// Where `metrics.jsonl` stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetricsPosition {
    /// Length of the file.
    pub(crate) bytes: u64,
    /// BLAKE3 of these bytes.
    pub(crate) blake3: String,
    /// Seconds of training so far.
    pub(crate) seconds: f64,
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    dir: PathBuf,
    /// Identity of the run (`identity` in `run.rs`).
    run: String,
    /// The changes of its number of steps: checkpoints up to each have another identity.
    raised: Vec<Raise>,
    /// Number of newest checkpoints to keep.
    keep: usize,
    /// Processes over which the latents are spread.
    processes: usize,
    /// Parts of a batch whose gradients are rounded.
    rounded: usize,
}

/// The result of [`Checkpoints::look`].
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The newest whole checkpoint.
    pub(crate) newest: Option<Position>,
    /// Newer checkpoints, and why they cannot be used.
    pub(crate) damaged: Vec<(PathBuf, String)>,
}

impl Checkpoints {
    pub(crate) fn new(dir: PathBuf, run: String, keep: usize) -> Self {
        Self {
            dir,
            run,
            raised: Vec::new(),
            keep,
            processes: 1,
            rounded: 0,
        }
    }

    /// The same, of a run whose latents are spread over so many processes.
    pub(crate) fn spread_over(self, processes: usize) -> Self {
        Self { processes, ..self }
    }

    /// The same, of a run that rounds the gradients of so many parts.
    pub(crate) fn rounded(self, parts: usize) -> Self {
        Self {
            rounded: parts,
            ..self
        }
    }

    /// The same, of a run whose number of steps was changed.
    pub(crate) fn raised(self, raised: Vec<Raise>) -> Self {
        Self { raised, ..self }
    }

    /// Identity of the run.
    pub(crate) fn identity(&self) -> &str {
        &self.run
    }

    /// Directory of the checkpoint of `step`.
    pub(crate) fn path(&self, step: usize) -> PathBuf {
        self.dir.join(name_of(step))
    }

    /// The position to be saved at `step`.
    pub(crate) fn position(
        &self,
        step: usize,
        validated: bool,
        held_out_fvu: Option<f64>,
        metrics: MetricsPosition,
        streak: Streak,
    ) -> Position {
        Position {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            run: self.run.clone(),
            step,
            held_out_fvu,
            validated,
            metrics,
            streak,
        }
    }

    /// Steps of the existing checkpoints, newest first.
    fn steps(&self) -> Vec<usize> {
        steps(&self.dir)
    }

    /// Looks for the newest checkpoint that is whole. Changes nothing.
    ///
    /// # Errors
    /// [`Failure::NoCheckpoint`] if there are checkpoints and none is whole.
    pub(crate) fn look(&self) -> Result<Found, Failure> {
        let mut found = Found::default();
        for step in self.steps() {
            match self.check(step) {
                Ok(position) => {
                    found.newest = Some(position);
                    return Ok(found);
                }
                Err(problem) => found.damaged.push((self.path(step), problem)),
            }
        }
        if found.damaged.is_empty() {
            return Ok(found);
        }
        let problems: Vec<String> = found.damaged.into_iter().map(|(_, what)| what).collect();
        Err(Failure::NoCheckpoint {
            dir: self.dir.clone(),
            problems: problems.join("; "),
        })
    }

    /// The position of the checkpoint of `step`, if every byte is as it was written and the run goes on from there as it did.
    fn check(&self, step: usize) -> Result<Position, String> {
        let dir = self.path(step);
        sealed::verify(&dir).map_err(|error| chain(&error))?;
        let position = self.read(step)?;
        if let Some(last) = self.raised.last().filter(|last| step < last.at) {
            let (at, from, to) = (last.at, last.from, last.to);
            return Err(format!(
                "{}: the run was raised from {from} to {to} steps at step {at}, after this one",
                dir.display()
            ));
        }
        let of_all =
            (0..self.processes).flat_map(|rank| [MODEL, OPTIMIZER].map(|n| part_of(n, rank)));
        let rounded = (0..self.rounded).map(rounding_of);
        for name in of_all.chain(rounded).chain([SCHEDULER.into()]) {
            if !dir.join(&name).is_file() {
                return Err(format!("{}: it is missing", dir.join(name).display()));
            }
        }
        Ok(position)
    }

    /// Whether a checkpoint is of this run, before or after its number of steps was changed.
    fn owns(&self, position: &Position) -> bool {
        let (run, step) = (&position.run, position.step);
        let mut before = self.raised.iter();
        *run == self.run || before.any(|raise| *run == raise.run && step <= raise.at)
    }

    /// Reads `checkpoint.json` of `step`.
    fn read(&self, step: usize) -> Result<Position, String> {
        let position = read_position(&self.dir, step)?;
        if !self.owns(&position) {
            let path = self.path(step).join(POSITION);
            return Err(format!("{}: it belongs to another run", path.display()));
        }
        Ok(position)
    }

    /// Prepares to continue: removes half-written checkpoints of a dead process, and moves `damaged` ones aside.
    pub(crate) fn tidy(&self, damaged: &[(PathBuf, String)]) -> Result<(), Failure> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(sealed::STAGING_SUFFIX) {
                fs::remove_dir_all(&path).map_err(Failure::write(&path))?;
            }
        }
        for (path, problem) in damaged {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = (0..)
                .map(|i| self.dir.join(format!("{DAMAGED}{name}-{i}")))
                .find(|aside| !aside.exists())
                .expect("there are enough numbers");
            tracing::warn!(
                "{problem}; the checkpoint before it is used, this one is moved to {}",
                aside.display()
            );
            fs::rename(path, &aside).map_err(Failure::write(path))?;
        }
        Ok(())
    }

    /// Removes the checkpoints that need not be kept.
    fn prune(&self) -> Result<(), Failure> {
        let steps = self.steps();
        let fvu = |step: &usize| self.read(*step).ok()?.held_out_fvu;
        let best = best(steps.iter().filter_map(|step| Some((*step, fvu(step)?))));
        for step in steps.into_iter().skip(self.keep) {
            if best != Some(step) {
                remove(&self.path(step))?;
            }
        }
        Ok(())
    }
}

/// Removes a checkpoint so that no part of it is ever found under its name.
fn remove(dir: &Path) -> Result<(), Failure> {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".removed");
    name.push(sealed::STAGING_SUFFIX);
    let aside = dir.with_file_name(name);
    fs::rename(dir, &aside)
        .and_then(|()| fs::remove_dir_all(&aside))
        .map_err(Failure::write(dir))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
