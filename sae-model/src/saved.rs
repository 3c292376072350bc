//! A saved model: a directory of two files that any safetensors reader understands, and their checksums
//! ([`sae_run::sealed`]). A copy without checksums loads, a copy that contradicts them does not.
//!
//! `cfg.json`, UTF-8 JSON, is the object
//!
//! ```json
//! {"format": "sae-attention", "format_version": 2, "seed": 0, "model": { ... every field of SaeConfig ... }}
//! ```
//!
//! `sae.safetensors` holds little-endian float32 tensors, row-major, in the row-vector convention (`x W`):
//!
//! | name       | shape    | present if            |
//! |------------|----------|-----------------------|
//! | `concepts` | `[M, d]` | always                |
//! | `w_q`      | `[d, d]` | `query_projection`    |
//! | `w_k`      | `[d, d]` | `key_projection`      |
//! | `w_v`      | `[d, d]` | `value_projection`    |
//! | `pre_bias` | `[d]`    | `pre_bias`            |
//! | `encoder`  | `[M, d]` | the architecture is not attention |
//! | `encoder_bias`    | `[M]` | `encoder_bias`   |
//! | `thresholds`      | `[M]` | `jumprelu`       |
//! | `magnitude_scale` | `[M]` | `gated`          |
//! | `magnitude_bias`  | `[M]` | `gated`          |
//! | `batch_threshold` | `[1]` | `batch_topk`     |
//!
//! JumpReLU models saved before thresholds were trained themselves have `log_thresholds` in their place, and load.
//!
//! The same parameters always give the same bytes. A tensor that is missing, unexpected, of another shape
//! or of another type, or that has NaN or infinity, is an error; nothing is guessed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use sae_run::sealed::{self, SealError};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::config::{Architecture, InvalidConfig, SaeConfig};
use crate::sae::Sae;

/// Value of `format` in `cfg.json`.
pub const FORMAT: &str = "sae-attention";
/// Value of `format_version` in `cfg.json` that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 2;
/// Name of the architecture's file.
pub const CONFIG_FILE: &str = "cfg.json";
/// Name of the parameters' file.
pub const WEIGHTS_FILE: &str = "sae.safetensors";

/// Logarithms of JumpReLU's thresholds, which were the trained parameter before.
const LOG_THRESHOLDS: &str = "log_thresholds";

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
    #[error("{}: format \"{format}\" version {version}; this build reads \"{FORMAT}\" version {FORMAT_VERSION}", path.display())]
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
    Missing { path: PathBuf, name: &'static str },
    #[error("{}: tensor \"{name}\" is not part of the model that cfg.json describes", path.display())]
    Unexpected { path: PathBuf, name: String },
    #[error("{}: tensor \"{name}\" is {dtype:?} {shape:?}; expected F32 {expected:?}", path.display())]
    WrongTensor {
        path: PathBuf,
        name: &'static str,
        dtype: Dtype,
        shape: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("{}: tensor \"{name}\" has {value} at position {position}; a model must be finite: train it again with a smaller learning rate, or export it again", path.display())]
    NonFinite {
        path: PathBuf,
        name: &'static str,
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
    let staging = sealed::staging(dir)?;
    let written = write(sae, seed, &staging).and_then(|()| Ok(sealed::seal(&staging, dir)?));
    if written.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    written
}

/// Writes the two files into `dir`.
fn write(sae: &Sae, seed: u64, dir: &Path) -> Result<(), SavedModelError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SavedModelError::Io { path, source }
    };
    let weights = dir.join(WEIGHTS_FILE);
    fs::write(&weights, to_bytes(sae, &weights)?).map_err(io(&weights))?;
    let config = SavedConfig {
        format: FORMAT.into(),
        format_version: FORMAT_VERSION,
        seed,
        model: sae.config().clone(),
    };
    let path = dir.join(CONFIG_FILE);
    let mut json = serde_json::to_vec_pretty(&config).expect("a config is plain data");
    json.push(b'\n');
    fs::write(&path, &json).map_err(io(&path))
}

/// The parameters of rank one by name.
fn vectors(sae: &Sae) -> [(&'static str, &Option<Param<Tensor<1>>>); 6] {
    [
        ("pre_bias", &sae.pre_bias),
        ("encoder_bias", &sae.encoder_bias),
        ("thresholds", &sae.thresholds),
        ("magnitude_scale", &sae.magnitude_scale),
        ("magnitude_bias", &sae.magnitude_bias),
        ("batch_threshold", &sae.batch_threshold),
    ]
}

fn to_bytes(sae: &Sae, path: &Path) -> Result<Vec<u8>, SavedModelError> {
    let mut tensors: Vec<(&str, TensorData)> = vec![("concepts", sae.concepts.val().into_data())];
    for (name, projection) in [("w_q", &sae.w_q), ("w_k", &sae.w_k), ("w_v", &sae.w_v)] {
        tensors.extend(projection.as_ref().map(|p| (name, p.val().into_data())));
    }
    tensors.extend(
        sae.encoder
            .as_ref()
            .map(|p| ("encoder", p.val().into_data())),
    );
    for (name, vector) in vectors(sae) {
        tensors.extend(vector.as_ref().map(|p| (name, p.val().into_data())));
    }
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, data)| {
            let shape = data.shape().to_vec();
            TensorView::new(Dtype::F32, shape, data.bytes()).map(|view| (*name, view))
        })
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]); // what torch's loaders look for
    views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
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
    let bytes = fs::read(&path).map_err(|source| SavedModelError::Io {
        path: path.clone(),
        source,
    })?;
    let json = |source| SavedModelError::Json {
        path: path.clone(),
        source,
    };
    // The version first: another one may have other fields.
    let header: Header = serde_json::from_slice(&bytes).map_err(json)?;
    if header.format != FORMAT || header.format_version != FORMAT_VERSION {
        return Err(SavedModelError::Format {
            path,
            format: header.format,
            version: header.format_version,
        });
    }
    let config: SavedConfig = serde_json::from_slice(&bytes).map_err(json)?;
    match config.model.validate() {
        Ok(()) => Ok(config),
        Err(source) => Err(SavedModelError::Config { path, source }),
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
    let config = load_config(dir)?.model;
    let path = dir.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).map_err(|source| SavedModelError::Io {
        path: path.clone(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| SavedModelError::Safetensors {
        path: path.clone(),
        source,
    })?;
    let (m, d) = (config.n_latents, config.d_in);
    let reader = Reader { file, path: &path };
    let architecture = config.architecture;
    let is = |other| architecture == other;
    let matrix = |name, shape: [usize; 2], wanted| {
        let tensor = reader.tensor(name, shape, wanted, device)?;
        Ok::<_, SavedModelError>(tensor.map(Param::from_tensor))
    };
    let vector = |name, len: usize, wanted| {
        let tensor = reader.tensor(name, [len], wanted, device)?;
        Ok::<_, SavedModelError>(tensor.map(Param::from_tensor))
    };
    let concepts = matrix("concepts", [m, d], true)?;
    let sae = Sae {
        concepts: concepts.expect("a wanted tensor is present or an error"),
        w_q: matrix("w_q", [d, d], config.query_projection)?,
        w_k: matrix("w_k", [d, d], config.key_projection)?,
        w_v: matrix("w_v", [d, d], config.value_projection)?,
        pre_bias: vector("pre_bias", d, config.pre_bias)?,
        encoder: matrix("encoder", [m, d], !architecture.is_attention())?,
        encoder_bias: vector("encoder_bias", m, config.encoder_bias)?,
        thresholds: reader.thresholds(m, is(Architecture::JumpRelu), device)?,
        magnitude_scale: vector("magnitude_scale", m, is(Architecture::Gated))?,
        magnitude_bias: vector("magnitude_bias", m, is(Architecture::Gated))?,
        batch_threshold: vector("batch_threshold", 1, is(Architecture::BatchTopK))?,
        config,
    };
    reader.reject_strangers()?;
    Ok(sae)
}

struct Reader<'a> {
    file: SafeTensors<'a>,
    path: &'a Path,
}

impl Reader<'_> {
    /// JumpReLU's thresholds `[M]`, which models saved before the thresholds themselves were trained keep as logarithms.
    fn thresholds(
        &self,
        m: usize,
        wanted: bool,
        device: &Device,
    ) -> Result<Option<Param<Tensor<1>>>, SavedModelError> {
        let logarithms = self.file.tensor(LOG_THRESHOLDS).is_ok();
        if logarithms && self.file.tensor("thresholds").is_ok() {
            return Err(SavedModelError::Unexpected {
                path: self.path.into(),
                name: LOG_THRESHOLDS.into(),
            });
        }
        let name = if logarithms {
            LOG_THRESHOLDS
        } else {
            "thresholds"
        };
        let tensor = self.tensor(name, [m], wanted, device)?;
        let tensor = tensor.map(|tensor| if logarithms { tensor.exp() } else { tensor });
        Ok(tensor.map(Param::from_tensor))
    }

    /// The tensor `name`, if the model wants it.
    fn tensor<const D: usize>(
        &self,
        name: &'static str,
        shape: [usize; D],
        wanted: bool,
        device: &Device,
    ) -> Result<Option<Tensor<D>>, SavedModelError> {
        let path = || self.path.to_path_buf();
        match self.file.tensor(name) {
            Ok(_) if !wanted => Err(SavedModelError::Unexpected {
                path: path(),
                name: name.into(),
            }),
            Err(_) if !wanted => Ok(None),
            Err(_) => Err(SavedModelError::Missing { path: path(), name }),
            Ok(view) if view.dtype() != Dtype::F32 || view.shape() != shape => {
                Err(SavedModelError::WrongTensor {
                    path: path(),
                    name,
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    expected: shape.to_vec(),
                })
            }
            Ok(view) => {
                let (words, _) = view.data().as_chunks::<4>();
                let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
                if let Some(position) = values.iter().position(|value| !value.is_finite()) {
                    return Err(SavedModelError::NonFinite {
                        path: path(),
                        name,
                        position,
                        value: values[position],
                    });
                }
                Ok(Some(Tensor::from_data(
                    TensorData::new(values, shape),
                    device,
                )))
            }
        }
    }

    /// Fails on a tensor that no saved model has.
    fn reject_strangers(&self) -> Result<(), SavedModelError> {
        const KNOWN: [&str; 12] = [
            "concepts",
            "w_q",
            "w_k",
            "w_v",
            "encoder",
            "pre_bias",
            "encoder_bias",
            "thresholds",
            LOG_THRESHOLDS,
            "magnitude_scale",
            "magnitude_bias",
            "batch_threshold",
        ];
        match self
            .file
            .names()
            .into_iter()
            .find(|name| !KNOWN.contains(name))
        {
            Some(name) => Err(SavedModelError::Unexpected {
                path: self.path.into(),
                name: name.to_string(),
            }),
            None => Ok(()),
        }
    }
}
