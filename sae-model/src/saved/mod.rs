//! A saved model: a directory of two files that any safetensors reader understands, and their checksums
//! ([`sae_run::sealed`]). A copy without checksums loads, a copy that contradicts them does not.
//!
//! `cfg.json`, UTF-8 JSON, is the object
//!
//! ```json
//! {"format": "sae-attention", "format_version": 3, "seed": 0, "model": { ... every field of SaeConfig ... }}
//! ```
//!
//! in which `model.architecture` is an object: `{"name": "topk", "k": 32, "refinement": 0}`.
//!
//! `sae.safetensors` holds little-endian float32 tensors, row-major, in the row-vector convention (`x W`): those of the
//! [parameter table](crate::parameters::table) of the model, by name.
//!
//! | name    | shape    | present if         | |
//! |---------|----------|--------------------|-|
//! | `W_dec` | `[M, d]` | always             | the dictionary |
//! | `W_Q`   | `[d, d]` | `query_projection` | |
//! | `W_K`   | `[d, d]` | `key_projection`   | |
//! | `W_V`   | `[d, d]` | `value_projection` | |
//! | `b_dec` | `[d]`    | `pre_bias`         | |
//! | `W_enc` | `[M, d]` | the encoder is not the dictionary | |
//! | `b_enc` | `[M]`    | `encoder_bias`     | of `gated`: `b_gate` |
//! | `threshold` | `[M]` or `[1]` | `jumprelu` (`[M]`), `batch_topk` or `matryoshka` (`[1]`) | |
//! | `r_mag`, `b_mag` | `[M]` | `gated`      | |
//!
//! Version 2 has other names and loads, too (`v2.rs`).
//!
//! The same parameters always give the same bytes. A tensor that is missing, unexpected, of another shape
//! or of another type, or that has NaN or infinity, is an error; nothing is guessed.

mod checkpoint;
mod v2;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sae_run::checkpoints::CheckpointError;
use sae_run::sealed::{self, SealError};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};

use crate::config::{InvalidConfig, SaeConfig};
use crate::parameters::table;
use crate::sae::Sae;

pub use checkpoint::load_checkpoint;

/// Value of `format` in `cfg.json`.
pub const FORMAT: &str = "sae-attention";
/// Value of `format_version` in `cfg.json` that this crate writes; it reads the one before, too.
pub const FORMAT_VERSION: u32 = 3;
/// Name of the architecture's file.
pub const CONFIG_FILE: &str = "cfg.json";
/// Name of the parameters' file.
pub const WEIGHTS_FILE: &str = "sae.safetensors";

/// The content of `cfg.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedConfig {
    /// [`FORMAT`].
    pub format: String,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Seed that the parameters were initialised from.
    pub seed: u64,
    /// The architecture.
    pub model: SaeConfig,
}

/// The part of `cfg.json` that every version has.
#[derive(Deserialize)]
struct Header {
    format: String,
    format_version: u32,
}

/// One variant per way a saved model can be wrong. The cause underneath, where there is one, is the
/// error's `source`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are what the messages say
#[non_exhaustive]
pub enum SavedModelError {
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The files are not what was saved.
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("{}: not a valid cfg.json", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: format \"{format}\" version {version}; this build reads \"{FORMAT}\" version {FORMAT_VERSION} and 2", path.display())]
    Format {
        path: PathBuf,
        format: String,
        version: u32,
    },
    #[error("{}", path.display())]
    Config {
        path: PathBuf,
        source: InvalidConfig,
    },
    #[error("{}: not a valid safetensors file", path.display())]
    Safetensors {
        path: PathBuf,
        source: SafeTensorError,
    },
    #[error("{}: tensor \"{name}\" is missing, though cfg.json asks for it", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("{}: tensor \"{name}\" is not part of the model that cfg.json describes", path.display())]
    Unexpected { path: PathBuf, name: String },
    #[error("{}: tensor \"{name}\" is {dtype:?} {shape:?}; expected F32 {expected:?}", path.display())]
    WrongTensor {
        path: PathBuf,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        expected: Vec<usize>,
    },
    /// The parameters of a checkpoint are not a record that Burn wrote.
    #[error("{}: not a record of this model ({reason})", path.display())]
    Record { path: PathBuf, reason: String },
    /// The checkpoint that is meant is not there.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: tensor \"{name}\" has {value} at position {position}; a model must be finite: train it again with a smaller learning rate, or export it again", path.display())]
    NonFinite {
        path: PathBuf,
        name: String,
        position: usize,
        value: f32,
    },
}

/// Saves a model as the directory `dir`, whole or not at all; `seed` is recorded for provenance. What was there
/// is replaced.
///
/// # Errors
/// [`SavedModelError::Io`], [`SavedModelError::Seal`] or [`SavedModelError::Safetensors`].
pub fn save(sae: &Sae, seed: u64, dir: &Path) -> Result<(), SavedModelError> {
    write(sae.config(), seed, dir, |weights| {
        fs::write(weights, to_bytes(sae, weights)?).map_err(io(weights))
    })
}

/// Saves a model whose parameters come one after the other, by name and whole, as little-endian float32: in memory there is one at a
/// time. The files are those of [`save`].
///
/// # Errors
/// As [`save`].
pub fn save_collected(
    model: &SaeConfig,
    seed: u64,
    dir: &Path,
    collected: impl Fn(&str) -> Vec<u8>,
) -> Result<(), SavedModelError> {
    let views = table(model).into_iter().map(|parameter| {
        let (name, shape) = (parameter.name, parameter.shape.dims(model));
        let collected = &collected;
        let to_come = ToCome {
            name,
            shape,
            collected,
        };
        (name, to_come)
    });
    write(model, seed, dir, |weights| {
        // The library makes a file that nobody else may read; this one is as any other.
        fs::write(weights, b"").map_err(io(weights))?;
        let usual = fs::metadata(weights).map_err(io(weights))?.permissions();
        safetensors::serialize_to_file(views, metadata(), weights).map_err(|error| {
            let path = weights.into();
            match error {
                SafeTensorError::IoError(source) => SavedModelError::Io { path, source },
                source => SavedModelError::Safetensors { path, source },
            }
        })?;
        fs::set_permissions(weights, usual).map_err(io(weights))
    })
}

/// A parameter that is not here before it is written.
struct ToCome<'a, F> {
    name: &'static str,
    shape: Vec<usize>,
    collected: &'a F,
}

impl<F: Fn(&str) -> Vec<u8>> View for ToCome<'_, F> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.collected)(self.name))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// What torch's loaders look for.
fn metadata() -> Option<HashMap<String, String>> {
    Some(HashMap::from([("format".to_string(), "pt".to_string())]))
}

/// Says which file an error is about.
fn io(path: &Path) -> impl FnOnce(io::Error) -> SavedModelError + use<> {
    let path = path.to_path_buf();
    move |source| SavedModelError::Io { path, source }
}

/// Writes the two files, `weights` the one of parameters, whole or not at all.
fn write(
    model: &SaeConfig,
    seed: u64,
    dir: &Path,
    weights: impl FnOnce(&Path) -> Result<(), SavedModelError>,
) -> Result<(), SavedModelError> {
    let staging = sealed::staging(dir)?;
    let path = staging.join(CONFIG_FILE);
    let written = weights(&staging.join(WEIGHTS_FILE))
        .and_then(|()| fs::write(&path, config_file(model, seed)).map_err(io(&path)))
        .and_then(|()| Ok(sealed::seal(&staging, dir)?));
    if written.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    written
}

/// The content of `cfg.json` of a model that is made of `model`; `seed` is recorded for provenance.
pub fn config_file(model: &SaeConfig, seed: u64) -> Vec<u8> {
    let config = SavedConfig {
        format: FORMAT.into(),
        format_version: FORMAT_VERSION,
        seed,
        model: model.clone(),
    };
    let mut json = serde_json::to_vec_pretty(&config).expect("a config is plain data");
    json.push(b'\n');
    json
}

fn to_bytes(sae: &Sae, path: &Path) -> Result<Vec<u8>, SavedModelError> {
    let tensors = sae.parameters.to_data();
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, data)| {
            let shape = data.shape().to_vec();
            TensorView::new(Dtype::F32, shape, data.bytes()).map(|view| (*name, view))
        })
        .collect();
    views
        .and_then(|views| safetensors::serialize(views, metadata()))
        .map_err(|source| SavedModelError::Safetensors {
            path: path.into(),
            source,
        })
}

/// Reads `cfg.json` of a saved model.
///
/// # Errors
/// [`SavedModelError`] if it cannot be read, is of another format or version, or describes no model.
pub fn load_config(dir: &Path) -> Result<SavedConfig, SavedModelError> {
    let path = dir.join(CONFIG_FILE);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let json = |source| SavedModelError::Json {
        path: path.clone(),
        source,
    };
    // The version first: another one has other fields.
    let header: Header = serde_json::from_slice(&bytes).map_err(json)?;
    let mut config: SavedConfig = match (header.format.as_str(), header.format_version) {
        (FORMAT, FORMAT_VERSION) => serde_json::from_slice(&bytes),
        (FORMAT, v2::VERSION) => v2::config(&bytes),
        _ => {
            return Err(SavedModelError::Format {
                path,
                format: header.format,
                version: header.format_version,
            });
        }
    }
    .map_err(json)?;
    as_written(&mut config.model, &String::from_utf8_lossy(&bytes));
    match config.model.validate() {
        Ok(()) => Ok(config),
        Err(source) => Err(SavedModelError::Config { path, source }),
    }
}

/// Corrects numbers that serde_json has read one unit in the last place off: a model that is loaded and saved again is the
/// same to the last bit.
fn as_written(model: &mut SaeConfig, text: &str) {
    let number = |name: &str| {
        let rest = text.split_once(&format!("\"{name}\""))?.1;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit() && !"+-.eE".contains(c))?;
        rest[..end].parse::<f64>().ok()
    };
    let read = [
        ("scale", Some(&mut model.scale)),
        ("norm_exponent", Some(&mut model.norm_exponent)),
        ("input_scale", Some(&mut model.input_scale)),
        ("norm_range", model.norm_range.as_mut()),
    ];
    for (name, read) in read {
        if let (Some(read), Some(written)) = (read, number(name))
            && (*read - written).abs() <= 2.0 * f64::EPSILON * written.abs()
        {
            *read = written;
        }
    }
}

/// Loads a saved model to a device.
///
/// # Errors
/// [`SavedModelError`], one variant per way the files can be wrong.
pub fn load(dir: &Path, device: &Device) -> Result<Sae, SavedModelError> {
    if dir.join(sealed::SUMS_FILE).exists() {
        sealed::verify(dir)?;
    }
    let SavedConfig {
        format_version,
        model: config,
        ..
    } = load_config(dir)?;
    let path = dir.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| SavedModelError::Safetensors {
        path: path.clone(),
        source,
    })?;
    let reader = Reader {
        file,
        path: &path,
        read: RefCell::default(),
    };
    let sae = Sae::with_values(&config, device, |parameter, dims| {
        if format_version == v2::VERSION {
            v2::values(&reader, &config, parameter.name, dims)
        } else {
            reader.values(parameter.name, dims)
        }
    })?;
    reader.reject_strangers()?;
    Ok(sae)
}

/// The float32 values of the tensor `name`, if they are finite.
fn finite(bytes: &[u8], path: &Path, name: &str) -> Result<Vec<f32>, SavedModelError> {
    let (words, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(position) => Err(SavedModelError::NonFinite {
            path: path.into(),
            name: name.into(),
            position,
            value: values[position],
        }),
    }
}

struct Reader<'a> {
    file: SafeTensors<'a>,
    path: &'a Path,
    /// Names of the tensors that were read.
    read: RefCell<BTreeSet<String>>,
}

impl Reader<'_> {
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// The values of a tensor of this name and shape.
    fn values(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, SavedModelError> {
        let (path, name) = (|| self.path.to_path_buf(), name.to_string());
        let Ok(view) = self.file.tensor(&name) else {
            return Err(SavedModelError::Missing { path: path(), name });
        };
        if view.dtype() != Dtype::F32 || view.shape() != dims {
            return Err(SavedModelError::WrongTensor {
                path: path(),
                name,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                expected: dims.to_vec(),
            });
        }
        let values = finite(view.data(), self.path, &name)?;
        self.read.borrow_mut().insert(name);
        Ok(values)
    }

    /// Fails on a tensor that the model does not have.
    fn reject_strangers(&self) -> Result<(), SavedModelError> {
        let read = self.read.borrow();
        let stranger = self
            .file
            .names()
            .into_iter()
            .find(|name| !read.contains(*name));
        match stranger {
            Some(name) => Err(SavedModelError::Unexpected {
                path: self.path.into(),
                name: name.to_string(),
            }),
            None => Ok(()),
        }
    }
}
