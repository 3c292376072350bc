//! The `[data]` section of a config: training and evaluation read the same.

use std::error::Error;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::ActivationData;
use crate::error::DataError;
use crate::loader::Streaming;
use crate::source::Options;

/// What to train and evaluate on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// File or directory of the training activations.
    pub train: PathBuf,
    /// What is held out: a path, or a part of `train`. Default: a tenth of `train`.
    #[serde(default)]
    pub held_out: HeldOut,
    /// Name of the activation tensor or column. Default: the only one that can be.
    pub tensor: Option<String>,
    /// The layer, where saev shards have several.
    pub layer: Option<i64>,
    /// Leave out position 0 of each example.
    #[serde(default)]
    pub drop_first_token: bool,
    /// File of labels for `train`, one a row or one an example, where the data has none of its own.
    pub labels: Option<PathBuf>,
    /// The same for a held-out path.
    pub held_out_labels: Option<PathBuf>,
    /// Memory for rows that are shuffled or wait, in MiB.
    #[serde(default = "default_window_mb")]
    pub window_mb: usize,
    /// Rows that are read together. Default: 1 MiB of them as float32, or a row group of Parquet.
    pub block_rows: Option<usize>,
    /// Threads that read. Default: the processors, four at most.
    pub workers: Option<usize>,
    /// Rows, evenly spread, that are checked before training. Default: all of them.
    pub check_rows: Option<usize>,
    /// Class embeddings `[classes, d]` for top-n classification; used by `sae-eval`.
    pub class_embeddings: Option<PathBuf>,
    /// JSON list of class names; used by `sae-eval`.
    pub class_names: Option<PathBuf>,
}

fn default_window_mb() -> usize {
    512
}

/// What is held out of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a path, { fraction = 0.1 } or { rows = [start, end] }"
)]
pub enum HeldOut {
    /// A data set of its own.
    Path(PathBuf),
    /// About this fraction of the training data, in whole documents where there are any.
    Fraction {
        /// Between 0 and 1.
        fraction: f64,
        /// Which rows: not the seed of the run, so that runs of several seeds are judged on the same.
        #[serde(default)]
        seed: u64,
    },
    /// These rows of the training data, in whole documents where there are any.
    Rows {
        /// First row, and the one behind the last.
        rows: [usize; 2],
    },
}

impl Default for HeldOut {
    fn default() -> Self {
        Self::Fraction {
            fraction: 0.1,
            seed: 0,
        }
    }
}

/// The two sides of a data set.
#[derive(Clone, Debug)]
pub struct Split {
    /// What is trained on.
    pub train: ActivationData,
    /// What is held out.
    pub held_out: ActivationData,
}

/// A key of `[data]` whose value does not do.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value}: {remedy}")]
pub struct DataConfigError {
    /// The key, `data.train` for example.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to do.
    pub remedy: String,
}

impl DataConfigError {
    /// The error of opening `path`, which `key` names.
    fn new(key: &'static str, path: &Path, error: DataError) -> Self {
        let value = format!("{:?}", path.display().to_string());
        let remedy = match &error {
            DataError::Option { key, value, remedy } => {
                let (value, remedy) = (value.clone(), remedy.clone());
                return Self { key, value, remedy };
            }
            DataError::Io {
                path: missing,
                source,
            } if source.kind() == ErrorKind::NotFound && missing == path => {
                "no such file; check the path (it is relative to the current directory)".into()
            }
            error => {
                let message = match error.source() {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                };
                let about_itself = format!("{}: ", path.display());
                message
                    .strip_prefix(&about_itself)
                    .unwrap_or(&message)
                    .to_string()
            }
        };
        Self { key, value, remedy }
    }
}

impl DataConfig {
    /// Opens both sides, which never overlap.
    ///
    /// # Errors
    /// What is wrong, and with which key.
    pub fn open(&self) -> Result<Split, DataConfigError> {
        self.check()?;
        let options = Options {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: self.labels.clone(),
        };
        let about_train = |error| DataConfigError::new("data.train", &self.train, error);
        let train = ActivationData::open(&self.train, &options).map_err(about_train)?;
        let (train, held_out) = match &self.held_out {
            HeldOut::Path(path) => {
                let labels = self.held_out_labels.clone();
                let held_out = open_held_out(&train, path, &Options { labels, ..options })?;
                (train, held_out)
            }
            HeldOut::Fraction { fraction, seed } => train
                .split_fraction(*fraction, *seed)
                .map_err(about_train)?,
            HeldOut::Rows { rows } => train.split_rows(rows[0]..rows[1]).map_err(about_train)?,
        };
        Ok(Split { train, held_out })
    }

    fn check(&self) -> Result<(), DataConfigError> {
        for (key, value) in [
            ("data.window_mb", Some(self.window_mb)),
            ("data.block_rows", self.block_rows),
            ("data.workers", self.workers),
            ("data.check_rows", self.check_rows),
        ] {
            if value == Some(0) {
                let (value, remedy) = ("0".into(), "must be at least 1".into());
                return Err(DataConfigError { key, value, remedy });
            }
        }
        Ok(())
    }

    /// How the training side is streamed under the run's seed.
    pub fn streaming(&self, seed: u64) -> Streaming {
        Streaming {
            window_mb: self.window_mb,
            block_rows: self.block_rows,
            workers: self.workers.unwrap_or_else(default_workers),
            seed,
        }
    }
}

/// The processors, four at most: more do not read faster from one disk.
pub fn default_workers() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4)
}

/// Opens a held-out data set that goes with `train`.
fn open_held_out(
    train: &ActivationData,
    path: &Path,
    options: &Options,
) -> Result<ActivationData, DataConfigError> {
    const KEY: &str = "data.held_out";
    let held_out = ActivationData::open(path, options)
        .map_err(|error| DataConfigError::new(KEY, path, error))?;
    let wrong = |remedy: String| DataConfigError {
        key: KEY,
        value: format!("{:?}", path.display().to_string()),
        remedy,
    };
    if held_out.shares_files(train) {
        return Err(wrong(
            "shares files with data.train, so what is learned would be judged on itself; hold out a part of it with { fraction = 0.1 }".into(),
        ));
    }
    if held_out.width() != train.width() {
        return Err(wrong(format!(
            "its activations have width {}, those of data.train have width {}; both must come from the same place",
            held_out.width(),
            train.width()
        )));
    }
    Ok(held_out)
}
