//! One variant per way a dictionary of another program can be wrong, and one per reason why a model of ours does not fit into
//! a format.

use std::io;
use std::path::{Path, PathBuf};

use sae_model::config::InvalidConfig;
use safetensors::{Dtype, SafeTensorError};

/// A dictionary that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForeignError {
    #[error("{}: it cannot be read; see that it is there and may be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: not a dictionary that this program knows ({found}); name a directory of SAELens (cfg.json and \
         sae_weights.safetensors), of sparsify (cfg.json and sae.safetensors), or a run or saved model of ours",
        path.display()
    )]
    NotRecognised { path: PathBuf, found: String },
    #[error(
        "{}: a pickle, which can run any code when it is opened, so this program opens none; \
         python -m dynamic_sae import {} RUN reads it with torch's weights_only loader",
        path.display(),
        dir.display()
    )]
    Pickle { path: PathBuf, dir: PathBuf },
    #[error("{}: not a JSON object; copy or save the dictionary again", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: {key}: {problem}", path.display())]
    Key {
        path: PathBuf,
        key: String,
        problem: String,
    },
    #[error("{}: not a whole safetensors file; copy or save the dictionary again", path.display())]
    Safetensors {
        path: PathBuf,
        source: SafeTensorError,
    },
    #[error("{}: tensor \"{name}\" is missing; save the dictionary again with the program that made it", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: tensor \"{name}\" is not part of such a dictionary; what it would change is not known", path.display())]
    Unexpected { path: PathBuf, name: String },
    #[error(
        "{}: tensor \"{name}\" is {dtype:?} {shape:?}; expected {expected:?} in F32, F16, BF16 or F64, as cfg.json says",
        path.display()
    )]
    WrongTensor {
        path: PathBuf,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("{}: tensor \"{name}\" has {value} at position {position} as float32; a dictionary must be finite", path.display())]
    NonFinite {
        path: PathBuf,
        name: String,
        position: usize,
        value: f32,
    },
    #[error("{}: it describes a model that cannot be", path.display())]
    Config {
        path: PathBuf,
        source: InvalidConfig,
    },
    #[error(
        "{}: the model that was made of it does not do what it does (x_hat differs by {difference:.1e} of its length on most \
         rows of a test); this is a mistake of this program: please report it",
        path.display()
    )]
    Different { path: PathBuf, difference: f64 },
}

impl ForeignError {
    /// Says which file an error is about.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }
}

/// Why a format cannot hold a model exactly.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("it refines the latents by {steps} steps at inference, and {format} cannot")]
    Refined { steps: usize, format: &'static str },
    #[error(
        "it divides rows by a power of their norm (norm_exponent = {exponent}{}), and {format} cannot",
        if *.range { ", or norm_range" } else { "" }
    )]
    Norm {
        exponent: f64,
        range: bool,
        format: &'static str,
    },
    #[error("{format} has no selection like {architecture}")]
    Selection {
        architecture: String,
        format: &'static str,
    },
    #[error("its threshold of latent {latent} is {value}, and {format} has no negative thresholds")]
    Negative {
        latent: usize,
        value: f32,
        format: &'static str,
    },
}
