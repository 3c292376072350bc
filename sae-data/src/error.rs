//! Every way activation data can be wrong, each with its remedy.

use std::io;
use std::path::{Path, PathBuf};

/// Why a data set cannot be read or written. The cause underneath, where there is one, is the error's
/// `source`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
pub enum DataError {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: the file is empty; export it again, or check that the copy is complete", path.display())]
    Empty { path: PathBuf },
    #[error("{}: no activation data that this program knows ({reason}); it reads .npy, .safetensors, Arrow (SAELens, datasets), Parquet, saev shards, and directories of these", path.display())]
    NotRecognised { path: PathBuf, reason: String },
    /// The bytes contradict the format, or end too early.
    #[error("{}: damaged {format} file, at byte {offset}: {reason}; export it again, or check that the copy is complete", path.display())]
    Damaged {
        path: PathBuf,
        format: &'static str,
        offset: u64,
        reason: String,
    },
    /// A valid file, of a kind that cannot be read.
    #[error("{}: {what} cannot be read; {remedy}", path.display())]
    Unsupported {
        path: PathBuf,
        what: String,
        remedy: String,
    },
    #[error("{}: there is no {noun} \"{name}\"; the file has {available}", path.display())]
    NoTensor {
        path: PathBuf,
        noun: &'static str,
        name: String,
        available: String,
    },
    #[error("{}: no {noun} of activations, [rows, width] or [examples, tokens, width] in floats; the file has {available}", path.display())]
    NoActivations {
        path: PathBuf,
        noun: &'static str,
        available: String,
    },
    #[error("{}: several {noun}s could be the activations ({available}); name one with data.tensor (sae-data: --tensor)", path.display())]
    Ambiguous {
        path: PathBuf,
        noun: &'static str,
        available: String,
    },
    #[error("{}: \"{name}\" has shape {shape:?}; activations are [rows, width] or [examples, tokens, width], with at least one of each", path.display())]
    Shape {
        path: PathBuf,
        name: String,
        shape: Vec<usize>,
    },
    #[error("{}: \"{name}\" is {dtype}; {expected} can be read", path.display())]
    Dtype {
        path: PathBuf,
        name: String,
        dtype: String,
        expected: &'static str,
    },
    #[error("{}: row {row} has {len} values, the rows before it {width}; all must have the same width", path.display())]
    Ragged {
        path: PathBuf,
        row: usize,
        len: usize,
        width: usize,
    },
    #[error("{}: there are nulls in \"{name}\" (near row {row}); remove these rows, activations have values everywhere", path.display())]
    Null {
        path: PathBuf,
        name: String,
        row: usize,
    },
    #[error("{}: {what} {here}, but {} has {there}; one data set has one of it, export them in the same way or open them one by one", path.display(), first.display())]
    Mixed {
        path: PathBuf,
        first: PathBuf,
        what: &'static str,
        here: String,
        there: String,
    },
    #[error("{}: {labels} labels for {rows} rows{}; there must be one a row, or one an example", path.display(), in_examples(*examples))]
    LabelCount {
        path: PathBuf,
        labels: usize,
        rows: usize,
        examples: Option<usize>,
    },
    #[error("{}: row {row} has label {label}; labels count from 0", path.display())]
    Label {
        path: PathBuf,
        row: usize,
        label: i64,
    },
    #[error("{}: document ids must be grouped, but id {id} at row {row} follows a larger one; sort the rows by document", path.display())]
    Documents { path: PathBuf, row: usize, id: i64 },
    #[error("{}: row {row}, column {column} is {value}; remove such rows, training cannot use them", path.display())]
    NonFinite {
        path: PathBuf,
        row: usize,
        column: usize,
        value: f32,
    },
    /// What was there when the data set was opened is not there any more.
    #[error("{}: changed while in use: {was} bytes when it was opened, now {now}; put the file back as it was, and continue with --resume", path.display())]
    Changed {
        path: PathBuf,
        was: u64,
        now: String,
    },
    #[error("{}: its checksum is not the one in {}; export it again, or check that the copy is complete", path.display(), index.display())]
    Checksum { path: PathBuf, index: PathBuf },
    /// An option that this data set cannot have.
    #[error("{key} = {value}: {remedy}")]
    Option {
        key: &'static str,
        value: String,
        remedy: String,
    },
    /// The destination of a conversion.
    #[error("{}: {reason}", path.display())]
    Destination { path: PathBuf, reason: String },
}

fn in_examples(examples: Option<usize>) -> String {
    examples.map_or(String::new(), |n| format!(" in {n} examples"))
}

impl DataError {
    /// Turns an I/O error at `path` into a [`DataError`].
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }

    /// Shorthand for [`DataError::Damaged`].
    pub(crate) fn damaged(
        path: &Path,
        format: &'static str,
        offset: u64,
        reason: impl Into<String>,
    ) -> Self {
        Self::Damaged {
            path: path.into(),
            format,
            offset,
            reason: reason.into(),
        }
    }

    /// Shorthand for [`DataError::Unsupported`].
    pub(crate) fn unsupported(
        path: &Path,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            path: path.into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}
