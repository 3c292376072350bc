//! The ways in which activation data can be wrong. Messages name the file, the place and what to change in the data;
//! the options of a program are for the program to name.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::source::formats;

/// Why a data set cannot be read or written. The underlying cause, if there is one, is the error's `source`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages explain the fields
#[non_exhaustive]
pub enum DataError {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: the file is empty; export it again, or check that the copy is complete", path.display())]
    Empty { path: PathBuf },
    #[error("{}: no activation data in a known format ({reason}); known are {}", path.display(), formats())]
    NotRecognised { path: PathBuf, reason: String },
    /// The program was built without the reader of this format.
    #[error("{}: {format} files are read only by programs built with the feature \"{feature}\" of sae-data", path.display())]
    NotCompiled {
        path: PathBuf,
        format: &'static str,
        feature: &'static str,
    },
    /// The bytes contradict the format, or end too early.
    #[error("{}: damaged {format} file, at byte {offset}: {reason}; export it again, or check that the copy is complete", path.display())]
    Damaged {
        path: PathBuf,
        format: &'static str,
        offset: u64,
        reason: String,
    },
    /// A valid file of a kind that is not read.
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
    #[error("{}: several {noun}s could be the activations ({available}); name one", path.display())]
    Ambiguous {
        path: PathBuf,
        noun: &'static str,
        available: String,
    },
    #[error("{}: \"{name}\" has shape {shape:?}; activations are [rows, width] or [examples, tokens, width], with no size of zero", path.display())]
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
    #[error("{}: row {row} has {len} values, the rows before it have {width}; all rows must have the same width", path.display())]
    Ragged {
        path: PathBuf,
        row: usize,
        len: usize,
        width: usize,
    },
    #[error("{}: \"{name}\" contains nulls (near row {row}); remove these rows, every activation needs a value", path.display())]
    Null {
        path: PathBuf,
        name: String,
        row: usize,
    },
    #[error("{}: {what} {here}, but {} has {there}; all files of a data set must agree, export them in the same way or open them one by one", path.display(), first.display())]
    Mixed {
        path: PathBuf,
        first: PathBuf,
        what: &'static str,
        here: String,
        there: String,
    },
    #[error("{}: {labels} labels for {rows} rows{}; there must be one label per row, or one per example", path.display(), in_examples(*examples))]
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
    /// A value that the element type of a conversion cannot hold.
    #[error("row {row}, column {column} is {value}, too large for {element}; use {remedy}")]
    TooLarge {
        row: usize,
        column: usize,
        value: f32,
        element: String,
        remedy: &'static str,
    },
    /// A file is no longer the one that was opened.
    #[error("{}: changed while in use: {was} bytes when it was opened, now {now}; put the file back as it was", path.display())]
    Changed {
        path: PathBuf,
        was: u64,
        now: String,
    },
    #[error("{}: its checksum is not the one in {}; export it again, or check that the copy is complete", path.display(), index.display())]
    Checksum { path: PathBuf, index: PathBuf },
    /// An option that does not fit this data set; `key` is its name in [`Options`](crate::Options) or
    /// [`DataConfig`](crate::DataConfig).
    #[error("{key} = {value}: {remedy}")]
    Option {
        key: &'static str,
        value: String,
        remedy: String,
    },
    /// A file about the rows without one entry per row or per document.
    #[error("{}: {entries} {what} for {rows} rows{}; there must be one per row{}", path.display(), in_documents(*documents), or_per_document(*documents))]
    Meanings {
        path: PathBuf,
        what: &'static str,
        entries: usize,
        rows: usize,
        documents: Option<usize>,
    },
    /// A line of a file of texts.
    #[error("{}, line {line}: {reason}; each line is an object such as {{\"text\": \"...\"}}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    /// The destination of a conversion.
    #[error("{}: {reason}", path.display())]
    Destination { path: PathBuf, reason: String },
}

fn in_examples(examples: Option<usize>) -> String {
    examples.map_or(String::new(), |n| format!(" in {n} examples"))
}

fn in_documents(documents: Option<usize>) -> String {
    documents.map_or(String::new(), |n| format!(" in {n} documents"))
}

fn or_per_document(documents: Option<usize>) -> &'static str {
    documents.map_or("", |_| ", or one per document")
}

impl DataError {
    /// The feature of `sae-data` that this program lacks to read the data.
    pub fn missing_feature(&self) -> Option<&'static str> {
        match self {
            Self::NotCompiled { feature, .. } => Some(feature),
            _ => None,
        }
    }

    /// Turns an I/O error at `path` into a [`DataError`].
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }

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

    pub(crate) fn not_recognised(path: &Path, reason: impl Into<String>) -> Self {
        Self::NotRecognised {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn option(
        key: &'static str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Option {
            key,
            value: value.into(),
            remedy: remedy.into(),
        }
    }

    /// Fails unless a file has the same `what` as the first file of its data set.
    pub(crate) fn agree<T: PartialEq + Display>(
        what: &'static str,
        (path, here): (&Path, T),
        (first, there): (&Path, T),
    ) -> Result<(), Self> {
        if here == there {
            return Ok(());
        }
        Err(Self::Mixed {
            path: path.into(),
            first: first.into(),
            what,
            here: here.to_string(),
            there: there.to_string(),
        })
    }
}

/// A key of `[data]` with a value that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value}: {remedy}")]
pub struct DataConfigError {
    /// The key, `data.train` for example.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub remedy: String,
    /// The feature of `sae-data` that this program lacks to read the data, if that is the reason.
    pub missing_feature: Option<&'static str>,
}

impl DataConfigError {
    pub(crate) fn invalid(key: &str, value: impl Display, remedy: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: value.to_string(),
            remedy: remedy.into(),
            missing_feature: None,
        }
    }

    /// The error of `key`, whose value is the path `path`.
    pub(crate) fn about(key: &str, path: &Path, remedy: impl Into<String>) -> Self {
        Self::invalid(key, quoted(path), remedy)
    }

    /// The error of opening `path`, the value of `key`.
    pub(crate) fn new(key: &str, path: &Path, error: DataError) -> Self {
        let missing_feature = error.missing_feature();
        let remedy = match &error {
            DataError::Option { key, value, remedy } => {
                return Self::invalid(&format!("data.{key}"), value, remedy);
            }
            DataError::Io {
                path: missing,
                source,
            } if source.kind() == io::ErrorKind::NotFound && missing == path => {
                "no such file; check the path (it is relative to the current directory)".into()
            }
            error => {
                let mut message = error.to_string();
                if let Some(source) = error.source() {
                    message += &format!(": {source}");
                }
                if let DataError::Ambiguous { .. } = error {
                    message += " with data.tensor";
                }
                let about_itself = format!("{}: ", path.display());
                let rest = message.strip_prefix(&about_itself);
                rest.unwrap_or(&message).to_string()
            }
        };
        Self {
            missing_feature,
            ..Self::about(key, path, remedy)
        }
    }
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
