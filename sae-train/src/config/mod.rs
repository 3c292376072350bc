//! The training config: read from TOML, completed from the preset, checked once.
//!
//! Every message names the key, the value and the remedy, and is printed before anything is written.

mod check;
mod complete;
mod error;
mod keys;
mod set;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sae_data::DataConfig;
use sae_model::config::{ConceptInit, PreBiasInit, ProjectionInit};
use sae_model::loss::Loss;
use sae_model::{Architecture, Preset, SparseValue};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::collapse::OnCollapse;
use crate::nonfinite::OnNonFinite;

pub(crate) use complete::DataScale;
use error::explain;
pub(crate) use error::{ConfigError, invalid};

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

/// `[model]`: the architecture (for attention, its preset), and what departs from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelConfig {
    #[serde(default)]
    pub(crate) architecture: Architecture,
    /// Where `architecture = "attention"` starts from; see [`ModelConfig::preset`].
    pub(crate) preset: Option<Preset>,
    /// Number of latents M.
    pub(crate) n_latents: usize,
    /// Active latents a row, for topk and batch_topk.
    pub(crate) k: Option<usize>,
    /// Width of the rectangle through which the thresholds of jumprelu learn.
    pub(crate) bandwidth: Option<f64>,
    pub(crate) value: Option<SparseValue>,
    pub(crate) scale: Option<f64>,
    /// p of `n = s (||x0|| / s)^p`, which inputs are divided by: 1 for queries of length one.
    pub(crate) norm_exponent: Option<f64>,
    /// s of the same. Default: see [`Architecture::input_scale`].
    pub(crate) input_scale: Option<f64>,
    /// R: beyond norms of `s / R` and `s R`, p is 1.
    pub(crate) norm_range: Option<f64>,
    pub(crate) query_projection: Option<bool>,
    pub(crate) key_projection: Option<bool>,
    pub(crate) value_projection: Option<bool>,
    pub(crate) pre_bias: Option<bool>,
    pub(crate) encoder_bias: Option<bool>,
    /// Whether the rows of the dictionary are kept at length one.
    pub(crate) unit_norm_decoder: Option<bool>,
    /// Steps by which inference refines the values of the selected latents.
    pub(crate) refinement: Option<usize>,
    pub(crate) init_concepts: Option<ConceptInit>,
    pub(crate) init_projections: Option<ProjectionInit>,
    pub(crate) init_pre_bias: Option<PreBiasInit>,
}

/// `[training]`: the recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainingConfig {
    /// Optimizer steps.
    pub(crate) steps: usize,
    /// Rows a step.
    pub(crate) batch_size: usize,
    pub(crate) loss: Option<Loss>,
    /// Peak learning rate of Adam.
    pub(crate) lr: Option<f64>,
    /// Factor on `lr` for W_Q, W_K and W_V. Default: see `projection_lr` in `complete.rs`.
    pub(crate) projection_lr: Option<f64>,
    /// Factor on `lr` for the pre-bias. Default: see `pre_bias_lr` in `complete.rs`.
    pub(crate) pre_bias_lr: Option<f64>,
    /// Steps of linear warm-up.
    pub(crate) warmup_steps: Option<usize>,
    /// Part of the steps, at the end, over which the learning rate falls linearly to zero.
    pub(crate) decay_fraction: Option<f64>,
    pub(crate) beta_1: Option<f64>,
    pub(crate) beta_2: Option<f64>,
    /// Latents with a running firing frequency above this are not selected in training, whatever their score, nor by
    /// the auxiliary loss (the released code: 0.1); 1 leaves none out.
    pub(crate) frequency_cutoff: Option<f64>,
    /// Weight of the sparsity penalty (relu, attention_relu, gated: L1; jumprelu: the distance of L0 from `target_l0`).
    pub(crate) sparsity_coefficient: Option<f64>,
    /// Steps over which that weight rises linearly from zero.
    pub(crate) sparsity_warmup_steps: Option<usize>,
    /// Active latents per row that the penalty of jumprelu aims at.
    pub(crate) target_l0: Option<f64>,
    /// Weight of the auxiliary reconstruction (topk, batch_topk: of what is left over, by dead latents; gated:
    /// of the input, by the gates).
    pub(crate) aux_coefficient: Option<f64>,
    /// Dead latents that the auxiliary reconstruction of topk and batch_topk may use.
    pub(crate) aux_k: Option<usize>,
    /// Steps without firing after which a latent counts as dead: in the progress lines, and for the auxiliary
    /// reconstruction of topk and batch_topk.
    #[serde(default = "default_dead_window")]
    pub(crate) dead_window: usize,
    /// Steps between two validations.
    #[serde(default = "default_validate_every")]
    pub(crate) validate_every: usize,
    /// Held-out rows, evenly spread and always the same, that a validation looks at; 0 for all. The whole set is
    /// looked at when training ends.
    #[serde(default = "default_validate_rows")]
    pub(crate) validate_rows: usize,
    /// Steps between two progress lines.
    #[serde(default = "default_log_every")]
    pub(crate) log_every: usize,
    /// Steps between two checkpoints. Default: `validate_every`.
    pub(crate) checkpoint_every: Option<usize>,
    /// Minutes after the last checkpoint after which another is written, whatever the step; 0 for none.
    #[serde(default = "default_checkpoint_minutes")]
    pub(crate) checkpoint_minutes: f64,
    /// Newest checkpoints kept; the one with the least held-out FVU is kept, too.
    #[serde(default = "default_keep_checkpoints")]
    pub(crate) keep_checkpoints: usize,
    /// What to do about a step whose loss or gradients are not finite: `stop` or `skip`.
    #[serde(default)]
    pub(crate) on_nonfinite: OnNonFinite,
    /// What to do about a run that has collapsed: `stop` or `go_on`.
    #[serde(default)]
    pub(crate) on_collapse: OnCollapse,
}

fn default_runs_dir() -> PathBuf {
    "runs".into()
}
fn default_device() -> String {
    "cpu".into()
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
        let mut config: Self = serde_path_to_error::deserialize(Value::Table(table.clone()))
            .map_err(|error| explain(&table, &error))?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        config.run = config.run.or(stem.map(String::from));
        // Any width will do here: only switches are looked at.
        let model = config.sae_config(DataScale::unknown(1));
        keys::check_used(&table, &model)?;
        config.complete();
        config.check()?;
        Ok(keys::without_unused(&config, &model))
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

impl ModelConfig {
    /// Where attention starts from; the default preset for the other architectures, which have none.
    pub(crate) fn preset(&self) -> Preset {
        self.preset.unwrap_or(Preset::Default)
    }

    /// In words: `attention (default preset)`, `topk (k = 32)`.
    pub(crate) fn describe(&self) -> String {
        let name = keys::name(self.architecture);
        match self.k {
            _ if self.architecture == Architecture::Attention => {
                format!("{name} ({:?} preset)", self.preset()).to_lowercase()
            }
            Some(k) if self.architecture.has_k() => format!("{name} (k = {k})"),
            _ => name,
        }
    }
}

impl TrainingConfig {
    /// Peak learning rate; [`Config::load`] has completed it.
    pub(crate) fn lr(&self) -> f64 {
        self.lr.unwrap_or_default()
    }

    /// Steps of a virtual epoch: between two validations, and no more than there are.
    pub(crate) fn epoch_steps(&self) -> usize {
        self.validate_every.min(self.steps)
    }

    /// Steps between two checkpoints; [`Config::load`] has completed it.
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
