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
    /// The file holds no activations, or not in a form that is read.
    #[error("{}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("{}: several {noun}s could be the activations ({available}); name one", path.display())]
    Ambiguous {
        path: PathBuf,
        noun: &'static str,
        available: String,
    },
    #[error("{}: row {row} has label {label}; labels count from 0", path.display())]
    Label {
        path: PathBuf,
        row: usize,
        label: i64,
    },
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
        let (path, reason) = (path.into(), reason.into());
        Self::Damaged {
            path,
            format,
            offset,
            reason,
        }
    }

    pub(crate) fn unusable(path: &Path, reason: impl Into<String>) -> Self {
        let (path, reason) = (path.into(), reason.into());
        Self::Unusable { path, reason }
    }

    /// The error of a valid file of a kind that is not read.
    pub(crate) fn unsupported(path: &Path, what: impl Display, remedy: impl Display) -> Self {
        Self::unusable(path, format!("{what} cannot be read; {remedy}"))
    }

    /// The error of a tensor whose type is not one of those that are `expected`.
    pub(crate) fn wrong_type(path: &Path, name: &str, is: impl Display, expected: &str) -> Self {
        let reason = format!("\"{name}\" is {is}; {expected} can be read");
        Self::unusable(path, reason)
    }

    pub(crate) fn not_recognised(path: &Path, reason: impl Display) -> Self {
        let known = formats();
        let reason = format!("no activation data in a known format ({reason}); known are {known}");
        Self::unusable(path, reason)
    }

    pub(crate) fn label_count(
        path: &Path,
        labels: impl Display,
        rows: usize,
        examples: Option<usize>,
    ) -> Self {
        let examples = examples.map_or(String::new(), |n| format!(" in {n} examples"));
        let reason = format!(
            "{labels} labels for {rows} rows{examples}; there must be one label per row, or one per example"
        );
        Self::unusable(path, reason)
    }

    /// The error of row `row`, which has `len` values.
    pub(crate) fn ragged(path: &Path, row: usize, len: usize, width: usize) -> Self {
        let reason = format!(
            "row {row} has {len} values, the rows before it have {width}; all rows must have the same width"
        );
        Self::unusable(path, reason)
    }

    /// The error of nulls in the column `name`, near row `row`.
    pub(crate) fn null(path: &Path, name: &str, row: usize) -> Self {
        let reason = format!(
            "\"{name}\" contains nulls (near row {row}); remove these rows, every activation needs a value"
        );
        Self::unusable(path, reason)
    }

    pub(crate) fn option(
        key: &'static str,
        value: impl Display,
        remedy: impl Into<String>,
    ) -> Self {
        let (value, remedy) = (value.to_string(), remedy.into());
        Self::Option { key, value, remedy }
    }

    /// Fails unless a file has the same `what` as the first file of its data set.
    pub(crate) fn agree<T: PartialEq + Display>(
        what: &str,
        (path, here): (&Path, T),
        (first, there): (&Path, T),
    ) -> Result<(), Self> {
        if here == there {
            return Ok(());
        }
        let reason = format!(
            "{what} {here}, but {} has {there}; all files of a data set must agree, export them in the same way or \
             open them one by one",
            first.display()
        );
        Err(Self::unusable(path, reason))
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
    /// The mistake, and what to do.
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
        Self::invalid(key, format!("{:?}", path.to_string_lossy()), remedy)
    }

    /// Turns errors of the data at `path`, the value of `key`, into errors of the config.
    pub(crate) fn of(key: &str, path: &Path) -> impl Fn(DataError) -> Self + Copy {
        move |error| {
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
                missing_feature: error.missing_feature(),
                ..Self::about(key, path, remedy)
            }
        }
    }
}
