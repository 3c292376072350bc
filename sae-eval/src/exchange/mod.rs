//! `sae-eval export` and `sae-eval import`: our models as dictionaries of other programs, and theirs as runs of ours
//! (docs/INTEROP.md).
//!
//! Other people's tools read SAELens' and sparsify's files, and other people's dictionaries are in them. What is exchanged is
//! what a dictionary does, not how it was trained: `folded.rs` is the form in which both sides say that, and one file per
//! format says how it is written down. A model that a format cannot hold is refused, or replaced by the nearest that it can
//! hold (`approximate.rs`), and then certificate.json says what that changes on held-out rows.

mod approximate;
mod certificate;
mod cfg;
mod error;
mod export;
mod folded;
mod import;
mod origin;
mod placed;
mod plain;
mod saelens;
mod sparsify;
mod tensors;
#[cfg(test)]
mod tests;

pub(crate) use export::ExportArguments;
pub(crate) use import::ImportArguments;

/// Why nothing was written.
enum Failure {
    /// The model, the dictionary, the data or an option is wrong.
    Wrong(anyhow::Error),
    /// The result could not be written.
    Unwritten(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Wrong(error.into())
    }
}

/// Runs `sae-eval export`; returns the exit code.
pub(crate) fn export_main(arguments: &ExportArguments) -> u8 {
    exit_code(export::export(arguments))
}

/// Runs `sae-eval import`; returns the exit code.
pub(crate) fn import_main(arguments: &ImportArguments) -> u8 {
    exit_code(import::import(arguments))
}

fn exit_code(done: Result<(), Failure>) -> u8 {
    let (code, error) = match done {
        Ok(()) => return 0,
        Err(Failure::Wrong(error)) => (2, error),
        Err(Failure::Unwritten(error)) => (1, error),
    };
    eprintln!("error: {error:#}{}", crate::cli::remedy(&error));
    code
}
