//! Every way an activation file can be wrong, each with its remedy.

use std::io;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensorError};

/// Why a data set cannot be read. The cause underneath, where there is one, is the
/// error's `source`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
pub enum DataError {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a valid safetensors file; export it again, or check that the copy is complete", path.display())]
    Safetensors {
        path: PathBuf,
        source: SafeTensorError,
    },
    #[error("{}: there is no tensor \"{name}\"; the file has {available}", path.display())]
    NoTensor {
        path: PathBuf,
        name: String,
        available: String,
    },
    #[error("{}: no tensor of shape [rows, width] in f32, f16 or bf16; the file has {available}", path.display())]
    NoActivations { path: PathBuf, available: String },
    #[error("{}: several tensors could be the activations ({available}); name one with data.tensor", path.display())]
    Ambiguous { path: PathBuf, available: String },
    #[error("{}: tensor \"{name}\" has shape {shape:?}; activations are two-dimensional, [rows, width], with at least one row and column", path.display())]
    Shape {
        path: PathBuf,
        name: String,
        shape: Vec<usize>,
    },
    #[error("{}: tensor \"{name}\" is {dtype:?}; {expected} can be read", path.display())]
    Dtype {
        path: PathBuf,
        name: String,
        dtype: Dtype,
        expected: &'static str,
    },
    #[error("{}: \"{name}\" has {labels} labels for {rows} rows; there must be one a row", path.display())]
    LabelCount {
        path: PathBuf,
        name: String,
        labels: usize,
        rows: usize,
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
}
