//! Why a run ends early: one variant and one exit code per kind of fault, so that scripts can tell them apart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sae_data::config::DataConfigError;
use sae_model::saved::SavedModelError;
use sae_run::FileError;
use sae_run::atomic_file::is_full;
use sae_run::sealed::SealError;

/// A fault with an exit code of its own. Everything else exits with 1, or with 2 while nothing has been written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "--resume: the config differs from the one that {} was started with: {differences}; restore these \
         values, or start another run with --set run=NAME (these keys may change: {free})",
        run.display()
    )]
    ConfigChanged {
        run: PathBuf,
        differences: String,
        free: String,
    },
    #[error(
        "--resume: {key} is not the data that the run was started with ({difference}); put the data back, or \
         start another run with --set run=NAME"
    )]
    DataChanged {
        key: &'static str,
        difference: String,
    },
    #[error("--resume: {0}; or pass its new place with --set")]
    DataMissing(String),
    #[error(
        "{reason}; training stopped at step {step}, with a checkpoint; put the data back and continue with --resume"
    )]
    DataLost { step: usize, reason: String },
    #[error(
        "run directory {} is in use by {holder}; wait for it, stop it, or start another run with --set run=NAME",
        run.display()
    )]
    Locked { run: PathBuf, holder: String },
    #[error("cannot write {}{}", path.display(), remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{}: no checkpoint can be used ({problems}); restore one from a copy, or move the directory away to start \
         from the beginning",
        dir.display()
    )]
    NoCheckpoint { dir: PathBuf, problems: String },
    #[error(
        "--resume: the run in {} has ended after {from} steps and has no checkpoint to go on from to {to}; put one back from a \
         copy, or train its model further in another run with --from {} --set run=NAME",
        run.display(),
        run.display()
    )]
    NothingToRaise {
        run: PathBuf,
        from: usize,
        to: usize,
    },
    #[error("{0}")]
    NonFinite(String),
    #[error("{0}")]
    Collapsed(String),
    /// An error of Burn's trainer.
    #[error("training failed: {0}")]
    Burn(String),
    #[error("{what} at step {step} of {steps}; a checkpoint is kept, continue with --resume")]
    Stopped {
        what: &'static str,
        step: usize,
        steps: usize,
        code: u8,
    },
    /// Of a run over several processes: another says what is wrong. This one ends with code 0, because a launcher kills the others,
    /// before they have spoken, when the first ends with another code.
    #[error("another process has failed")]
    Elsewhere,
    /// Of a sweep: what is wrong with each run has been said.
    #[error("{what}")]
    Sweep { what: String, code: u8 },
}

/// The remedy for a failed write.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => " (make room on the disk, then continue with --resume)",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            " (make the run directory writable, or set runs_dir to one that is)"
        }
        _ => "",
    }
}

impl From<FileError> for Failure {
    fn from(FileError { path, source }: FileError) -> Self {
        Self::Write { path, source }
    }
}

impl Failure {
    /// For `map_err` where `path` is written.
    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Write { path, source }
    }

    /// For errors that have lost their [`io::Error`]: takes its number from the message.
    pub(crate) fn write_message(path: &Path, message: &str) -> Self {
        let number = message.rsplit_once("(os error ").and_then(|(_, rest)| {
            let digits = rest.split(')').next()?;
            digits.parse().ok()
        });
        let source = number.map_or_else(|| io::Error::other(message), io::Error::from_raw_os_error);
        Self::write(path)(source)
    }

    /// For a model that cannot be saved; I/O errors get an exit code of their own.
    pub(crate) fn saving(model: &Path, error: SavedModelError) -> anyhow::Error {
        match error {
            SavedModelError::Io { path, source }
            | SavedModelError::Seal(SealError::Io { path, source }) => {
                Self::Write { path, source }.into()
            }
            other => anyhow::Error::new(other).context(format!("saving {}", model.display())),
        }
    }

    /// The process's exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::ConfigChanged { .. } => 3,
            Self::DataChanged { .. } => 4,
            Self::DataLost { .. } | Self::DataMissing(_) => 5,
            Self::Locked { .. } => 6,
            Self::Write { source, .. } if is_full(source) => 7,
            Self::Write { .. } => 8,
            Self::NoCheckpoint { .. } | Self::NothingToRaise { .. } => 9,
            Self::NonFinite(_) => 10,
            Self::Collapsed(_) => 11,
            Self::Burn(_) => 1,
            Self::Elsewhere => 0,
            Self::Stopped { code, .. } | Self::Sweep { code, .. } => *code,
        }
    }
}

/// The exit codes, as `--help` lists them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    trained
  1    any other error
  2    the config, the data or the device cannot be used; nothing has been written
  3    --resume: the config differs from the run's in a key that may not change
  4    --resume: the data is not what the run was started with
  5    the data can no longer be read
  6    another process works in the run directory
  7    the disk, or a quota, is full
  8    the run directory cannot be written
  9    --resume: there is no checkpoint that the run can go on from
  10   NaN or infinity
  11   the run has collapsed: hardly any latent is active, most are dead, or FVU stays above 1
  12   a sweep: several runs have failed, with different codes; if they have the same, it is that
  130  stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (the terminal is gone); a checkpoint is kept
  141  the reader of standard output has gone (`| head`); a checkpoint is kept";

/// The first failure of a run; any thread may report it.
#[derive(Debug, Default)]
pub(crate) struct Outcome(Mutex<Option<Failure>>);

impl Outcome {
    pub(crate) fn fail(&self, failure: Failure) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::error!("{}", chain(&failure));
            *first = Some(failure);
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.is_some()
    }

    pub(crate) fn take(&self) -> Option<Failure> {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.take()
    }
}

/// The exit code of an error that has one of its own.
pub(crate) fn code_of(error: &anyhow::Error) -> Option<u8> {
    let mut causes = error.chain();
    let known = causes.find_map(|cause| cause.downcast_ref::<Failure>());
    known.map(Failure::code)
}

/// An error and its causes, with the remedy.
pub(crate) fn message(error: &anyhow::Error) -> String {
    chain(&**error) + &remedy_for_data(error)
}

/// The build option to add if the data cannot be read because a feature is missing; empty otherwise.
fn remedy_for_data(error: &anyhow::Error) -> String {
    let data = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<DataConfigError>());
    let feature = data.and_then(|error| error.missing_feature);
    feature.map_or(String::new(), |feature| {
        format!("; start this program with cargo run -p sae-train --features {feature}")
    })
}

/// An error and its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text += &format!(": {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_by_its_number() {
        let message = "Record I/O error: cannot write: No space left on device (os error 28)";
        let failure = Failure::write_message(Path::new("x"), message);
        assert_eq!(failure.code(), 7);
        let text = chain(&failure);
        assert!(
            text.contains("cannot write x (make room on the disk") && text.contains("os error 28"),
            "{text}"
        );
        let failure = Failure::write_message(Path::new("x"), "cannot say");
        assert_eq!(failure.code(), 8);
    }
}
