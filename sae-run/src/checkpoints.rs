//! Where a run keeps its checkpoints, and which one is meant by "best" and "newest".
//!
//! ```text
//! checkpoint/step-00000300/  checkpoint.json  which run, which step, held-out FVU, ...
//!                            cfg.json         what the model is made of, as in a saved model
//!                            model.bpk        its parameters and the counters of training
//!                            ...              the rest of what the next step depends on
//!                            BLAKE3SUMS       checksums (sealed)
//! ```
//!
//! Reading takes no lock: a checkpoint is whole under its name, and a run in progress goes on. It may remove a checkpoint
//! that is being read; [`RunDir::with_checkpoint`] then looks again.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::sealed::{self, SealError};
use crate::{RunDir, read_text};

/// Name of the file that says which run and which step a checkpoint is of.
pub const POSITION_FILE: &str = "checkpoint.json";
/// Name of the file of parameters.
pub const MODEL_FILE: &str = "model.bpk";
/// Value of `format` in `checkpoint.json`.
pub const FORMAT: &str = "sae-train-checkpoint";
/// Value of `format_version` in `checkpoint.json`.
pub const FORMAT_VERSION: u32 = 1;
/// Longer than any `checkpoint.json` of ours.
const MAX_POSITION_BYTES: u64 = 1 << 20;
/// Times that a checkpoint is looked for when the one that was found goes away.
const ATTEMPTS: usize = 10;

/// A checkpoint of a run, whole when it was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its directory.
    pub path: PathBuf,
    /// Number of steps done.
    pub step: usize,
    /// FVU of the held-out rows that validations look at, if this step was validated.
    pub held_out_fvu: Option<f64>,
}

/// A choice among the checkpoints of a run, written `best`, `newest` or as the number of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with the least held-out FVU; of equals, the newest.
    Best,
    /// That of the last step.
    Newest,
    /// That of this step.
    Step(usize),
}

/// A checkpoint that was asked for and is not there, or not whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are what the messages say
pub enum CheckpointError {
    #[error("{}: there are no checkpoints", dir.display())]
    None { dir: PathBuf },
    #[error("{}: there is no checkpoint of step {step}; there are those of steps {}", dir.display(), list(there))]
    NoSuchStep {
        dir: PathBuf,
        step: usize,
        there: Vec<usize>,
    },
    #[error("{}: no checkpoint is of a validated step, so none is the best; there are those of steps {}", dir.display(), list(there))]
    NotValidated { dir: PathBuf, there: Vec<usize> },
    #[error("{}: no such checkpoint is whole ({problems})", dir.display())]
    Damaged { dir: PathBuf, problems: String },
}

/// A text that is neither `best` nor `newest` nor a number.
#[derive(Debug, thiserror::Error)]
#[error("must be best, newest or the number of a step")]
pub struct NotAChoice;

/// The part that every `checkpoint.json` has.
#[derive(Deserialize)]
struct Head {
    format: String,
    format_version: u32,
    step: usize,
}

/// The part of `checkpoint.json` that decides which checkpoint is the best.
#[derive(Deserialize)]
struct Position {
    held_out_fvu: Option<f64>,
}

impl FromStr for Which {
    type Err = NotAChoice;

    fn from_str(text: &str) -> Result<Self, NotAChoice> {
        match text {
            "best" => Ok(Self::Best),
            "newest" => Ok(Self::Newest),
            step => step.parse().map(Self::Step).map_err(|_| NotAChoice),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("best"),
            Self::Newest => f.write_str("newest"),
            Self::Step(step) => write!(f, "{step}"),
        }
    }
}

/// The name of the checkpoint of `step` within the directory of checkpoints.
pub fn name_of(step: usize) -> String {
    format!("step-{step:08}")
}

/// The name of the file that process `rank` of several writes where one process writes `name`, which ends in an extension:
/// `model.bpk`, then `model-1.bpk`.
pub fn part_of(name: &str, rank: usize) -> String {
    match (rank, name.rsplit_once('.')) {
        (0, _) | (_, None) => name.into(),
        (rank, Some((stem, extension))) => format!("{stem}-{rank}.{extension}"),
    }
}

/// The steps of the checkpoints in the directory `dir`, newest first.
pub fn steps(dir: &Path) -> Vec<usize> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let step = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (name == name_of(step)).then_some(step)
    };
    let mut steps: Vec<usize> = entries.filter_map(step).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    steps
}

/// The step with the least FVU among steps that are in order, newest first; of equals, the newest.
pub fn best(steps: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    let best = steps.reduce(|best, other| if other.1 < best.1 { other } else { best });
    best.map(|(step, _)| step)
}

impl RunDir {
    /// Does `read` with the checkpoint that is meant. If the run removes it in the meantime, looks for one again.
    ///
    /// # Errors
    /// Those of `read`, and [`CheckpointError`] if there is no such checkpoint.
    pub fn with_checkpoint<T, E: From<CheckpointError>>(
        &self,
        which: Which,
        mut read: impl FnMut(&Checkpoint) -> Result<T, E>,
    ) -> Result<T, E> {
        let dir = self.checkpoints();
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let before = steps(&dir);
            let found = match self.checkpoint(which) {
                Err(CheckpointError::Damaged { .. }) if left > 0 && steps(&dir) != before => {
                    continue;
                }
                found => found?,
            };
            match read(&found) {
                Err(_) if left > 0 && !found.path.exists() => {}
                done => return done,
            }
        }
    }

    /// The checkpoint that is meant. Ones that are not whole are passed over, unless it is asked for by its step.
    fn checkpoint(&self, which: Which) -> Result<Checkpoint, CheckpointError> {
        let dir = self.checkpoints();
        let mut there = steps(&dir);
        let all = there.clone();
        if all.is_empty() {
            return Err(CheckpointError::None { dir });
        }
        let mut problems = Vec::new();
        if let Which::Step(step) = which {
            there.retain(|other| *other == step);
            if there.is_empty() {
                let there = all;
                return Err(CheckpointError::NoSuchStep { dir, step, there });
            }
        }
        while let Some(step) = next(&dir, which, &there) {
            match look(&dir, step) {
                Ok(found) => return Ok(found),
                Err(problem) => problems.push(problem),
            }
            there.retain(|other| *other != step);
        }
        if problems.is_empty() {
            let there = all;
            return Err(CheckpointError::NotValidated { dir, there });
        }
        let problems = problems.join("; ");
        Err(CheckpointError::Damaged { dir, problems })
    }
}

/// The first of these steps to look at.
fn next(dir: &Path, which: Which, there: &[usize]) -> Option<usize> {
    match which {
        Which::Newest | Which::Step(_) => there.first().copied(),
        Which::Best => {
            let fvu = |step: &usize| {
                let position: Position = read_position(dir, *step).ok()?;
                Some((*step, position.held_out_fvu?))
            };
            best(there.iter().filter_map(fvu))
        }
    }
}

/// The checkpoint of `step`, if every byte is as it was written.
fn look(dir: &Path, step: usize) -> Result<Checkpoint, String> {
    let path = dir.join(name_of(step));
    sealed::verify(&path).map_err(|error| match error {
        SealError::Io { path, source } => format!("{}: {source}", path.display()),
        error => error.to_string(),
    })?;
    let position: Position = read_position(dir, step)?;
    Ok(Checkpoint {
        path,
        step,
        held_out_fvu: position.held_out_fvu,
    })
}

/// The `checkpoint.json` of `step` within the directory of checkpoints, if it is of this format, version and step.
///
/// # Errors
/// Why it cannot be used, in words that name the file.
pub fn read_position<T: DeserializeOwned>(dir: &Path, step: usize) -> Result<T, String> {
    let path = dir.join(name_of(step)).join(POSITION_FILE);
    let wrong = |what: String| format!("{}: {what}", path.display());
    let text = read_text(&path, MAX_POSITION_BYTES).map_err(|error| wrong(error.to_string()))?;
    let parsed = serde_json::from_str(&text);
    let head: Head = parsed.map_err(|error| wrong(error.to_string()))?;
    if head.format != FORMAT || head.format_version != FORMAT_VERSION {
        let (format, version) = (head.format, head.format_version);
        return Err(wrong(format!("format \"{format}\" version {version}")));
    }
    if head.step != step {
        return Err(wrong(format!("it is of step {}", head.step)));
    }
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}

fn list(steps: &[usize]) -> String {
    let steps: Vec<String> = steps.iter().map(usize::to_string).collect();
    steps.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(run: &RunDir, step: usize, fvu: Option<f64>) -> PathBuf {
        let target = run.checkpoints().join(name_of(step));
        let staging = sealed::staging(&target).unwrap();
        let fvu = fvu.map_or("null".into(), |fvu| fvu.to_string());
        let text = format!(
            r#"{{"format": "{FORMAT}", "format_version": 1, "run": "x", "step": {step}, "held_out_fvu": {fvu}}}"#
        );
        fs::write(staging.join(POSITION_FILE), text).unwrap();
        fs::write(staging.join(MODEL_FILE), "parameters").unwrap();
        sealed::seal(&staging, &target).unwrap();
        target
    }

    fn step(run: &RunDir, which: Which) -> Result<usize, String> {
        run.with_checkpoint(which, |found| Ok::<_, CheckpointError>(found.step))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for which in [Which::Best, Which::Newest, Which::Step(300)] {
            assert_eq!(which.to_string().parse::<Which>().unwrap(), which);
        }
        for wrong in ["", "worst", "-1", "3.0"] {
            assert!(wrong.parse::<Which>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_best_the_newest_and_one_by_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let message = step(&run, Which::Best).unwrap_err();
        assert!(message.contains("there are no checkpoints"), "{message}");
        save(&run, 50, None);
        let message = step(&run, Which::Best).unwrap_err();
        assert!(message.contains("none is the best"), "{message}");
        for (at, fvu) in [(100, 0.3), (200, 0.2), (300, 0.2), (400, 0.5)] {
            save(&run, at, Some(fvu));
        }
        assert_eq!(step(&run, Which::Best), Ok(300));
        assert_eq!(step(&run, Which::Newest), Ok(400));
        assert_eq!(step(&run, Which::Step(100)), Ok(100));
        let message = step(&run, Which::Step(7)).unwrap_err();
        assert!(
            message.contains("of steps 400, 300, 200, 100, 50"),
            "{message}"
        );
    }

    #[test]
    fn damaged_ones_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        save(&run, 100, Some(0.3));
        let path = save(&run, 200, Some(0.2));
        fs::write(path.join(MODEL_FILE), "x").unwrap();
        assert_eq!(step(&run, Which::Best), Ok(100));
        assert_eq!(step(&run, Which::Newest), Ok(100));
        let message = step(&run, Which::Step(200)).unwrap_err();
        assert!(message.contains("model.bpk: its BLAKE3"), "{message}");
    }

    #[test]
    fn one_that_the_run_removes_is_looked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        save(&run, 100, None);
        let path = save(&run, 200, None);
        let read = run.with_checkpoint(Which::Newest, |found| {
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
                return Err(CheckpointError::None { dir: path.clone() });
            }
            Ok(found.step)
        });
        assert_eq!(read.unwrap(), 100);
    }
}
