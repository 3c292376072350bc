//! Why an encoding ended early: each reason has its own exit code.

use std::io;
use std::path::Path;

use sae_run::atomic_file::is_full;

/// The reason, as an error to print.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The model, the data or an option cannot be used.
    Wrong(anyhow::Error),
    /// The codes could not be written; whole shards stay.
    Unwritten(anyhow::Error),
    /// A signal came; whole shards stay.
    Stopped {
        /// Number of the signal.
        signal: i32,
        /// Words to print.
        message: String,
    },
}

impl Failure {
    /// The exit code: 2, 1, or 128 and the number of the signal.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 2,
            Self::Unwritten(_) => 1,
            Self::Stopped { signal, .. } => 128 + *signal as u8,
        }
    }

    /// The failure of writing `path`.
    pub(crate) fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |error| {
            let (what, remedy) = match is_full(&error) {
                true => ("the disk is full", "make room"),
                false => ("it cannot be written", "see to that"),
            };
            Self::Unwritten(anyhow::anyhow!(
                "{}: {what} ({error}); {remedy} and start the same command again: it continues after the last whole shard",
                path.display()
            ))
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Wrong(error.into())
    }
}
