//! The training config: read from TOML, completed from the preset, checked once.
//!
//! Every message names the key, the value and the remedy, and is printed before anything is written.

mod check;
mod complete;
mod document;
mod error;
mod keys;
mod set;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sae_data::DataConfig;
use sae_model::config::{ConceptInit, PreBiasInit, ProjectionInit};
use sae_model::loss::Loss;
use sae_model::{AnyArchitecture, Architecture};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::collapse::OnCollapse;
use crate::nonfinite::OnNonFinite;

pub(crate) use complete::{DataScale, Resolved};
pub(crate) use document::commented;
pub use error::ConfigError;
pub(crate) use error::invalid;

/// A whole run. Optional keys take the preset's value; the run directory holds them written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the run; its directory is `<runs_dir>/<run>`. Default: the config's file name.
    pub(crate) run: Option<String>,
    /// Where run directories are made.
    #[serde(default = "default_runs_dir")]
    pub(crate) runs_dir: PathBuf,
    /// Every random choice derives from it.
    #[serde(default)]
    pub(crate) seed: u64,
    /// `cpu`, `ndarray`, `wgpu` or `wgpu:N`.
    #[serde(default = "default_device")]
    pub(crate) device: String,
    pub(crate) data: DataConfig,
    pub(crate) model: ModelConfig,
    pub(crate) training: TrainingConfig,
}

/// `[model]`: the architecture, and what departs from its usual model. [`keys::KEYS`] says what each key means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelConfig {
    #[serde(default = "default_architecture")]
    pub(crate) architecture: String,
    pub(crate) n_latents: usize,
    pub(crate) scale: Option<f64>,
    pub(crate) norm_exponent: Option<f64>,
    pub(crate) input_scale: Option<f64>,
    pub(crate) norm_range: Option<f64>,
    pub(crate) query_projection: Option<bool>,
    pub(crate) key_projection: Option<bool>,
    pub(crate) value_projection: Option<bool>,
    pub(crate) pre_bias: Option<bool>,
    pub(crate) encoder_bias: Option<bool>,
    pub(crate) unit_norm_decoder: Option<bool>,
    pub(crate) init_concepts: Option<ConceptInit>,
    pub(crate) init_projections: Option<ProjectionInit>,
    pub(crate) init_pre_bias: Option<PreBiasInit>,
    /// The architecture's own switches.
    #[serde(flatten)]
    pub(crate) own: Table,
}

/// `[training]`: what departs from the recipe. [`keys::KEYS`] says what each key means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingConfig {
    pub(crate) steps: usize,
    pub(crate) batch_size: usize,
    pub(crate) loss: Option<Loss>,
    pub(crate) lr: Option<f64>,
    pub(crate) projection_lr: Option<f64>,
    pub(crate) pre_bias_lr: Option<f64>,
    pub(crate) warmup_steps: Option<usize>,
    pub(crate) decay_fraction: Option<f64>,
    pub(crate) beta_1: Option<f64>,
    pub(crate) beta_2: Option<f64>,
    pub(crate) frequency_cutoff: Option<f64>,
    #[serde(default = "default_dead_window")]
    pub(crate) dead_window: usize,
    #[serde(default = "default_validate_every")]
    pub(crate) validate_every: usize,
    #[serde(default = "default_validate_rows")]
    pub(crate) validate_rows: usize,
    #[serde(default = "default_log_every")]
    pub(crate) log_every: usize,
    pub(crate) checkpoint_every: Option<usize>,
    #[serde(default = "default_checkpoint_minutes")]
    pub(crate) checkpoint_minutes: f64,
    #[serde(default = "default_keep_checkpoints")]
    pub(crate) keep_checkpoints: usize,
    #[serde(default)]
    pub(crate) on_nonfinite: OnNonFinite,
    #[serde(default)]
    pub(crate) on_collapse: OnCollapse,
    /// The coefficients of the architecture's terms of the loss.
    #[serde(flatten)]
    pub(crate) own: Table,
}

fn default_runs_dir() -> PathBuf {
    "runs".into()
}
fn default_device() -> String {
    "cpu".into()
}
fn default_architecture() -> String {
    AnyArchitecture::default().name().into()
}
fn default_dead_window() -> usize {
    100
}
fn default_validate_every() -> usize {
    100
}
fn default_validate_rows() -> usize {
    16_384
}
fn default_log_every() -> usize {
    20
}
fn default_checkpoint_minutes() -> f64 {
    10.0
}
fn default_keep_checkpoints() -> usize {
    2
}

impl Config {
    /// Reads `path`, applies `--set key=value` overrides and `--device`, completes and checks the values
    /// that can be checked without looking at the data.
    pub(crate) fn load(
        path: &Path,
        set: &[String],
        device: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io {
            path: path.into(),
            source,
        })?;
        let mut table: Table = text.parse().map_err(|source| ConfigError::Toml {
            path: path.into(),
            source,
        })?;
        for argument in set {
            set::apply_override(&mut table, argument)?;
        }
        if let Some(device) = device {
            table.insert("device".into(), device.into());
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        Self::of_table(&table, stem)
    }

    /// Completes and checks a config; `name` is that of a run without one.
    pub(crate) fn of_table(table: &Table, name: Option<&str>) -> Result<Self, ConfigError> {
        keys::check_names(table)?;
        let mut config: Self = serde_path_to_error::deserialize(Value::Table(table.clone()))
            .map_err(|error| error::wrong_type(table, &error))?;
        config.run = config.run.or(name.map(String::from));
        // The data has no part in what is checked here.
        let resolved = config.resolve(DataScale::unknown(1))?;
        keys::check_used(table, &resolved.model)?;
        config.check(&resolved)?;
        Ok(config)
    }

    /// Name of the run.
    pub(crate) fn run_name(&self) -> &str {
        self.run.as_deref().unwrap_or_default()
    }

    /// The run's directory.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.runs_dir.join(self.run_name())
    }

    /// As TOML.
    pub(crate) fn to_table(&self) -> Table {
        Table::try_from(self).expect("a config is plain data")
    }
}

impl TrainingConfig {
    /// Steps of a virtual epoch: between two validations, and no more than there are.
    pub(crate) fn epoch_steps(&self) -> usize {
        self.validate_every.min(self.steps)
    }

    /// Steps between two checkpoints.
    pub(crate) fn checkpoint_every(&self) -> usize {
        self.checkpoint_every.unwrap_or(self.validate_every)
    }

    /// Time after which a checkpoint is due.
    pub(crate) fn checkpoint_interval(&self) -> Option<Duration> {
        let minutes = self.checkpoint_minutes;
        (minutes > 0.0).then(|| Duration::from_secs_f64(60.0 * minutes))
    }
}

#[cfg(test)]
mod tests;
