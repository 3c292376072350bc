//! The section `[data]` of a config, for training and evaluation.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::{ActivationData, LEAST};
pub use crate::error::DataConfigError;
use crate::error::DataError;
use crate::limit::MaxNorm;
use crate::loader::Streaming;
use crate::source::Options;

/// The data to train and evaluate on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// File or directory of the training activations.
    pub train: PathBuf,
    /// Held-out data: a path, or a part of `train`. Default: a tenth of `train`.
    #[serde(default)]
    pub held_out: HeldOut,
    /// Name of the activation tensor or column. Default: the only candidate.
    pub tensor: Option<String>,
    /// Number of the layer, for saev shards with several layers.
    pub layer: Option<i64>,
    /// Leave out position 0 of each example.
    #[serde(default)]
    pub drop_first_token: bool,
    /// Largest `||x||` of rows for training, validation and evaluation; other rows are left out.
    #[serde(default)]
    pub max_norm: MaxNorm,
    /// File of labels for `train`, one per row or one per example, if the data has no labels itself.
    pub labels: Option<PathBuf>,
    /// File of labels for a held-out path.
    pub held_out_labels: Option<PathBuf>,
    /// Memory for rows that are shuffled or wait for training, in MiB.
    #[serde(default = "default_window_mb")]
    pub window_mb: usize,
    /// Rows that are read together. Default: 1 MiB of float32, or four pages of Parquet if these are larger.
    pub block_rows: Option<usize>,
    /// Seed of the order of training. Default: the seed of the run. With one order, runs of several seeds share their batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_seed: Option<u64>,
    /// Number of reading threads. Default: the number of processors, at most four.
    pub workers: Option<usize>,
    /// Number of evenly spread rows per side that are checked before training; 0 for all. Default: all rows if no side is
    /// larger than 4 GiB as float32, otherwise 1 GiB per side.
    pub check_rows: Option<usize>,
    /// Class embeddings `[classes, d]` for top-n classification; used by `sae-eval`.
    pub class_embeddings: Option<PathBuf>,
    /// JSON list of class names; used by `sae-eval`.
    pub class_names: Option<PathBuf>,
    /// Concepts `[G, d]` of which synthetic data was made; used by `sae-eval`.
    pub true_concepts: Option<PathBuf>,
    /// Strength of each concept in each row of a held-out path `[rows, G]`; used by `sae-eval`.
    pub true_codes: Option<PathBuf>,
}

fn default_window_mb() -> usize {
    Streaming::default().window_mb
}

/// The data that is held out of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a path, { fraction = 0.1, seed = 0 } or { rows = [start, end] }"
)]
#[non_exhaustive]
pub enum HeldOut {
    /// A separate data set.
    Path(PathBuf),
    /// About this fraction of the training data, in whole documents if there are any.
    Fraction {
        /// Between 0 and 1.
        fraction: f64,
        /// Chooses the rows. It is not the seed of the run, so that runs with different seeds are evaluated on the same rows.
        #[serde(default)]
        seed: u64,
    },
    /// These rows of the training data, in whole documents if there are any.
    Rows {
        /// First row, and the row after the last.
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
    /// Training data.
    pub train: ActivationData,
    /// Held-out data.
    pub held_out: ActivationData,
}

/// Largest size of a side, as float32, of which all rows are checked by default.
const CHECK_ALL: usize = 4 << 30;
/// Size of the sample of a larger side.
const CHECK_SAMPLE: usize = 1 << 30;
/// Largest window, in MiB: 16 TiB.
const MAX_WINDOW_MB: usize = 1 << 24;
/// Largest number of reading threads.
const MAX_WORKERS: usize = 1024;

impl DataConfig {
    /// The data at `train`, with every key at its default.
    pub fn of(train: impl Into<PathBuf>) -> Self {
        Self {
            train: train.into(),
            held_out: HeldOut::default(),
            tensor: None,
            layer: None,
            drop_first_token: false,
            max_norm: MaxNorm::default(),
            labels: None,
            held_out_labels: None,
            window_mb: default_window_mb(),
            block_rows: None,
            order_seed: None,
            workers: None,
            check_rows: None,
            class_embeddings: None,
            class_names: None,
            true_concepts: None,
            true_codes: None,
        }
    }

    /// Opens both sides, which never overlap.
    ///
    /// # Errors
    /// [`DataConfigError`] with the key whose value cannot be used.
    pub fn open(&self) -> Result<Split, DataConfigError> {
        self.check()?;
        let options = Options {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: self.labels.clone(),
        };
        let about_train = DataConfigError::of("data.train", &self.train);
        let train = ActivationData::open(&self.train, &options).map_err(about_train)?;
        let (train, held_out) = match &self.held_out {
            HeldOut::Path(path) => {
                check_rows("data.train", &self.train, &train)?;
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

    /// Opens rows that belong to neither side, as these are opened. `tensor` and `labels` take the place of the config's;
    /// `key` is what an error calls `path`.
    ///
    /// # Errors
    /// [`DataConfigError`] of `key` if the rows cannot be read, or there is only one.
    pub fn open_other(
        &self,
        key: &str,
        path: &Path,
        tensor: Option<&str>,
        labels: Option<&Path>,
    ) -> Result<ActivationData, DataConfigError> {
        let options = Options {
            tensor: tensor.map(String::from).or(self.tensor.clone()),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: labels.map(PathBuf::from),
        };
        let data = match tensor {
            Some(_) => ActivationData::open(path, &options),
            None => open_alike(path, &options),
        };
        let data = data.map_err(DataConfigError::of(key, path))?;
        check_rows(key, path, &data)?;
        Ok(data)
    }

    /// Refuses numbers out of range, and keys that apply to nothing.
    fn check(&self) -> Result<(), DataConfigError> {
        for (key, value, most) in [
            ("data.window_mb", Some(self.window_mb), MAX_WINDOW_MB),
            ("data.block_rows", self.block_rows, usize::MAX),
            ("data.workers", self.workers, MAX_WORKERS),
        ] {
            match value {
                Some(0) => return Err(DataConfigError::invalid(key, 0, "must be at least 1")),
                Some(value) if value > most => {
                    let remedy = format!("must be at most {most}");
                    return Err(DataConfigError::invalid(key, value, remedy));
                }
                _ => {}
            }
        }
        let about = |key, path: &Path, remedy| Err(DataConfigError::about(key, path, remedy));
        let cut = !matches!(self.held_out, HeldOut::Path(_));
        if let (Some(path), true) = (&self.held_out_labels, cut) {
            let remedy = "what is held out is a part of data.train, and so are its labels; leave it out, or give data.labels";
            return about("data.held_out_labels", path, remedy);
        }
        if let (Some(path), None) = (&self.class_names, &self.class_embeddings) {
            let remedy =
                "there are no classes to name; give data.class_embeddings, too, or leave it out";
            return about("data.class_names", path, remedy);
        }
        Ok(())
    }

    /// `check_rows`, or its default for the two sides of `split`: about how many rows of each are checked before training;
    /// 0 for all.
    pub fn resolved_check_rows(&self, split: &Split) -> usize {
        let most = split.train.rows().max(split.held_out.rows());
        self.check_rows
            .unwrap_or_else(|| default_check_rows(most, split.train.width()))
    }

    /// The rows of `split` within `max_norm`, and the limit as a number, from the training side. Takes one pass over all rows,
    /// unless there is no limit. `progress` is called with the number of rows after each step.
    ///
    /// # Errors
    /// [`DataConfigError`] if the rows cannot be read, or fewer than two rows of a side are left.
    pub fn within_max_norm(
        &self,
        split: Split,
        mut progress: impl FnMut(usize),
    ) -> Result<(Split, MaxNorm), DataConfigError> {
        const KEY: &str = "data.max_norm";
        let limit = self.max_norm.resolved(&split.train);
        let limit = limit.map_err(DataConfigError::of(KEY, split.train.path()))?;
        let Some(norm) = limit.number() else {
            return Ok((split, limit));
        };
        let mut side = |data: &ActivationData| {
            let within = data.within(norm, &mut progress);
            let within = within.map_err(DataConfigError::of(KEY, data.path()))?;
            if within.rows() < LEAST {
                let remedy = format!(
                    "{} of {} rows of {} have a norm above {norm}, and at least {LEAST} are needed; choose a larger \
                     limit, or \"none\"",
                    data.rows() - within.rows(),
                    data.rows(),
                    data.path().display(),
                );
                return Err(DataConfigError::invalid(KEY, self.max_norm, remedy));
            }
            Ok(within)
        };
        let (train, held_out) = (side(&split.train)?, side(&split.held_out)?);
        Ok((Split { train, held_out }, limit))
    }

    /// The same config with absolute paths, which is valid in any directory.
    pub fn absolute(&self) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let each = |path: &Option<PathBuf>| path.as_deref().map(absolute);
        Self {
            train: absolute(&self.train),
            held_out: match &self.held_out {
                HeldOut::Path(path) => HeldOut::Path(absolute(path)),
                part => part.clone(),
            },
            labels: each(&self.labels),
            held_out_labels: each(&self.held_out_labels),
            class_embeddings: each(&self.class_embeddings),
            class_names: each(&self.class_names),
            true_concepts: each(&self.true_concepts),
            true_codes: each(&self.true_codes),
            ..self.clone()
        }
    }

    /// How to stream the training side of a run with this seed.
    pub fn streaming(&self, seed: u64) -> Streaming {
        Streaming {
            window_mb: self.window_mb,
            block_rows: self.block_rows,
            workers: self.workers.unwrap_or_else(default_workers),
            seed: self.order_seed.unwrap_or(seed),
        }
    }
}

/// Default of `check_rows` for `rows` rows of this width; 0 for all.
pub fn default_check_rows(rows: usize, width: usize) -> usize {
    let row = 4 * width.max(1);
    match rows > CHECK_ALL / row {
        true => (CHECK_SAMPLE / row).max(1),
        false => 0,
    }
}

/// The number of processors, at most four: more threads do not read faster from one disk.
pub fn default_workers() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4)
}

/// Reads the matrix of `key`, whose rows must be as wide as the activations: its values and number of rows.
pub(crate) fn matrix(
    key: &str,
    path: &Path,
    split: &Split,
) -> Result<(Vec<f32>, usize), DataConfigError> {
    let about = DataConfigError::of(key, path);
    let data = ActivationData::open(path, &Options::default()).map_err(about)?;
    if data.width() != split.train.width() {
        let remedy = format!(
            "it has width {}, the activations {}; both must come from the same place",
            data.width(),
            split.train.width()
        );
        return Err(DataConfigError::about(key, path, remedy));
    }
    let blocks: Result<Vec<_>, _> = data.blocks(data.rows()).collect();
    Ok((blocks.map_err(about)?.concat(), data.rows()))
}

/// Fails unless there are rows enough to have a variance.
fn check_rows(key: &str, path: &Path, data: &ActivationData) -> Result<(), DataConfigError> {
    if data.rows() < LEAST {
        let remedy = "it has one row, which has no variance to explain; use more data";
        return Err(DataConfigError::about(key, path, remedy));
    }
    Ok(())
}

/// Opens data with the options of other data. The tensor or layer that was chosen there may not apply to this format.
fn open_alike(path: &Path, options: &Options) -> Result<ActivationData, DataError> {
    let without = match ActivationData::open(path, options) {
        Err(DataError::Option { key: "tensor", .. }) => Options {
            tensor: None,
            ..options.clone()
        },
        Err(DataError::Option { key: "layer", .. }) => Options {
            layer: None,
            ..options.clone()
        },
        opened => return opened,
    };
    open_alike(path, &without)
}

/// Opens a held-out data set that belongs to `train`.
fn open_held_out(
    train: &ActivationData,
    path: &Path,
    options: &Options,
) -> Result<ActivationData, DataConfigError> {
    const KEY: &str = "data.held_out";
    let held_out = open_alike(path, options);
    let held_out = held_out.map_err(DataConfigError::of(KEY, path))?;
    let wrong = |remedy: String| DataConfigError::about(KEY, path, remedy);
    check_rows(KEY, path, &held_out)?;
    if held_out.shares_files(train) {
        return Err(wrong(
            "shares files with data.train, so the model would be evaluated on its training data; hold out a part of it with { fraction = 0.1 }".into(),
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
