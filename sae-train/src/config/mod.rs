//! The training config: read from TOML, completed from the preset, checked once.
//!
//! Every message names the key, the value and the remedy, and is printed before anything is written.

mod check;
mod complete;
mod document;
mod error;
mod fixed;
mod keys;
mod set;
mod sweep;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sae_data::{DataConfig, EvalConfig};
use sae_model::ops::Precision;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::collapse::OnCollapse;
use crate::nonfinite::OnNonFinite;

pub(crate) use complete::{DataScale, Resolved};
pub(crate) use document::commented;
pub use error::ConfigError;
pub(crate) use error::invalid;
pub(crate) use fixed::Fixed;
pub(crate) use sweep::{Sweep, Variant};

/// A whole run, as written; [`Resolved`] is what it comes to. The run directory holds it with every key written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the run; its directory is `<runs_dir>/<run>`. Default: the config's file name.
    pub(crate) run: Option<String>,
    /// Where run directories are made.
    pub(crate) runs_dir: PathBuf,
    /// Every random choice derives from it.
    pub(crate) seed: u64,
    /// The name of a device (`sae_model::device`).
    pub(crate) device: String,
    /// Of the product that looks for candidates on a GPU.
    pub(crate) precision: Precision,
    pub(crate) data: DataConfig,
    pub(crate) model: ModelConfig,
    pub(crate) training: TrainingConfig,
    /// Kept for the evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<EvalConfig>,
    /// The model that the run starts from; it decides what the config does not name.
    #[serde(skip)]
    pub(crate) fixed: Option<Fixed>,
}

/// A config as it was written, with its overrides.
pub(crate) struct Written {
    table: Table,
    /// Name of a run without one.
    name: Option<String>,
    /// The keys that were overridden.
    set: Vec<String>,
}

/// `[model]`: the architecture, and what departs from its usual model. [`keys::KEYS`] says what each key means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelConfig {
    pub(crate) architecture: String,
    pub(crate) n_latents: usize,
    /// The switches of [`SaeConfig`](sae_model::SaeConfig) and of the architecture that were written.
    #[serde(flatten)]
    pub(crate) switches: Table,
}

/// In which precision the gradient of a part of a batch is handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartGradients {
    #[default]
    F32,
    /// What rounding takes away is added to the part's next gradient.
    Bf16,
}

impl PartGradients {
    fn is_default(&self) -> bool {
        *self == Self::F32
    }
}

/// `[training]`: what departs from the recipe. [`keys::KEYS`] says what each key means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingConfig {
    pub(crate) steps: usize,
    pub(crate) batch_size: usize,
    /// Left out where it is one, as configs were before there were parts.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) shards: usize,
    /// Left out where it is one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) latent_shards: usize,
    /// Left out where it is the default.
    #[serde(default, skip_serializing_if = "PartGradients::is_default")]
    pub(crate) part_gradients: PartGradients,
    pub(crate) pre_bias_lr: Option<f64>,
    pub(crate) dead_window: usize,
    pub(crate) validate_every: usize,
    pub(crate) validate_rows: usize,
    pub(crate) log_every: usize,
    pub(crate) checkpoint_every: Option<usize>,
    pub(crate) checkpoint_minutes: f64,
    pub(crate) keep_checkpoints: usize,
    pub(crate) on_nonfinite: OnNonFinite,
    pub(crate) on_collapse: OnCollapse,
    /// The numbers of [`Recipe`](sae_model::recipe::Recipe) and the coefficients of the architecture that were written.
    #[serde(flatten)]
    pub(crate) recipe: Table,
}

impl Written {
    /// Reads `path` and applies `--set key=value` overrides and `--device`.
    pub(crate) fn read(
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
        let set = set.iter().map(|set| set::apply_override(&mut table, set));
        let set = set.collect::<Result<_, _>>()?;
        if let Some(device) = device {
            table.insert("device".into(), device.into());
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        Ok(Self {
            table,
            name: stem.map(String::from),
            set,
        })
    }

    /// The same, on this device.
    pub(crate) fn set_device(&mut self, name: &str) {
        self.table.insert("device".into(), name.into());
    }

    /// The same, with the latents spread over so many processes.
    pub(crate) fn spread_latents(&mut self, processes: usize) {
        let training = self.table.entry("training").or_insert(Table::new().into());
        if let Some(training) = training.as_table_mut() {
            training.insert("latent_shards".into(), (processes as i64).into());
        }
    }

    /// The run's directory, as far as the config is right.
    pub(crate) fn run_dir(&self) -> PathBuf {
        let text = |key: &str| self.table.get(key).and_then(Value::as_str);
        let name = text("run").or(self.name.as_deref()).unwrap_or_default();
        Path::new(text("runs_dir").unwrap_or("runs")).join(name)
    }

    /// Completes and checks the values that can be checked without looking at the data.
    pub(crate) fn complete(&self, fixed: Option<Fixed>) -> Result<Config, ConfigError> {
        Config::of_table(&self.table, self.name.as_deref(), fixed)
    }
}

impl Config {
    /// Reads, completes and checks a config.
    #[cfg(test)]
    pub(crate) fn load(
        path: &Path,
        set: &[String],
        device: Option<&str>,
    ) -> Result<Self, ConfigError> {
        Written::read(path, set, device)?.complete(None)
    }

    /// Completes and checks a config; `name` is that of a run without one.
    pub(crate) fn of_table(
        table: &Table,
        name: Option<&str>,
        fixed: Option<Fixed>,
    ) -> Result<Self, ConfigError> {
        let completed = fixed.as_ref().map(|fixed| fixed.completed(table));
        let completed = completed.transpose()?;
        let table = completed.as_ref().unwrap_or(table);
        keys::check_names(table)?;
        let complete = Value::Table(keys::with_defaults(table));
        let mut config: Self = serde_path_to_error::deserialize(complete)
            .map_err(|error| error::wrong_type(table, &error))?;
        config.run = config.run.or(name.map(String::from));
        config.fixed = fixed;
        // The data has no part in what is checked here.
        let resolved = config.resolve(DataScale::unknown(1))?;
        keys::check_used(table, &resolved.model)?;
        config.check(&resolved)?;
        Ok(config)
    }

    /// The same with another number of steps.
    pub(crate) fn with_steps(&self, steps: usize) -> Self {
        let mut config = self.clone();
        config.training.steps = steps;
        config
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

fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

impl TrainingConfig {
    /// Steps of a virtual epoch: between two validations, and no more than there are.
    pub(crate) fn epoch_steps(&self) -> usize {
        self.validate_every.min(self.steps)
    }

    /// Number of rows without firing after which a latent counts as dead.
    pub(crate) fn dead_rows(&self) -> usize {
        self.dead_window.saturating_mul(self.batch_size)
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
