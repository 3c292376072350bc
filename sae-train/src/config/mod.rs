//! The training config: read from TOML, completed from the preset, checked once.
//!
//! Every message names the key, the value and the remedy, and is printed before anything is written.

mod error;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sae_data::{ActivationData, DataConfig};
use sae_model::config::{ConceptInit, PreBiasInit, ProjectionInit};
use sae_model::loss::Loss;
use sae_model::{Architecture, Preset, SaeConfig, SparseValue};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::nonfinite::OnNonFinite;

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
    /// Where `architecture = "attention"` starts from.
    #[serde(default = "default_preset")]
    pub(crate) preset: Preset,
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
    pub(crate) query_projection: Option<bool>,
    pub(crate) key_projection: Option<bool>,
    pub(crate) value_projection: Option<bool>,
    pub(crate) pre_bias: Option<bool>,
    pub(crate) encoder_bias: Option<bool>,
    /// Whether the rows of the dictionary are kept at length one.
    pub(crate) unit_norm_decoder: Option<bool>,
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
    /// Steps of linear warm-up.
    pub(crate) warmup_steps: Option<usize>,
    /// Part of the steps, at the end, over which the learning rate falls linearly to zero.
    pub(crate) decay_fraction: Option<f64>,
    pub(crate) beta_1: Option<f64>,
    pub(crate) beta_2: Option<f64>,
    /// Latents with a running firing frequency above this are not selected in training, whatever their score, nor by
    /// the auxiliary loss (the released code: 0.1); 1 leaves none out.
    pub(crate) frequency_cutoff: Option<f64>,
    /// Weight of the sparsity penalty (relu, attention_relu, gated: L1; jumprelu: L0).
    pub(crate) sparsity_coefficient: Option<f64>,
    /// Steps over which that weight rises linearly from zero.
    pub(crate) sparsity_warmup_steps: Option<usize>,
    /// Weight of the auxiliary reconstruction (topk, batch_topk: of what is left over, by dead latents; gated:
    /// of the input, by the gates).
    pub(crate) aux_coefficient: Option<f64>,
    /// Dead latents that the auxiliary reconstruction of topk and batch_topk may use.
    pub(crate) aux_k: Option<usize>,
    /// Steps without firing after which a latent counts as dead in the progress lines.
    #[serde(default = "default_dead_window")]
    pub(crate) dead_window: usize,
    /// Steps between two validations.
    #[serde(default = "default_validate_every")]
    pub(crate) validate_every: usize,
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
}

fn default_runs_dir() -> PathBuf {
    "runs".into()
}
fn default_device() -> String {
    "cpu".into()
}
fn default_preset() -> Preset {
    Preset::Default
}
fn default_dead_window() -> usize {
    100
}
fn default_validate_every() -> usize {
    100
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
            apply_override(&mut table, argument)?;
        }
        if let Some(device) = device {
            table.insert("device".into(), device.into());
        }
        let mut config: Self = serde_path_to_error::deserialize(Value::Table(table.clone()))
            .map_err(|error| explain(&table, &error))?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        config.run = config.run.or(stem.map(String::from));
        config.complete();
        config.check()?;
        Ok(config)
    }

    /// Writes out what the architecture and the preset imply for training.
    fn complete(&mut self) {
        let (architecture, steps) = (self.model.architecture, self.training.steps);
        // (loss, lr, warm-up steps, decay fraction, beta_1, beta_2, frequency cutoff)
        let (loss, lr, warmup, decay, beta_1, beta_2, cutoff) =
            match (architecture, self.model.preset) {
                (Architecture::Attention, Preset::Paper) => {
                    (Loss::Mse, 3e-4, 0, 0.0, 0.9, 0.99, 1.0)
                }
                (Architecture::Attention, Preset::Released) => {
                    (Loss::NormWeighted, 4e-4, 500, 0.0, 0.9, 0.999, 0.1)
                }
                (Architecture::Attention | Architecture::MlpSparsemax, _) => {
                    (Loss::Fvu, 6e-3, 150, 0.5, 0.9, 0.99, 1.0)
                }
                _ => (Loss::Fvu, 4e-3, 150, 0.5, 0.9, 0.999, 1.0),
            };
        let penalty = match architecture {
            Architecture::Relu | Architecture::AttentionRelu => 2.0,
            Architecture::Gated => 4.0,
            Architecture::JumpRelu => 0.1,
            _ => 0.0,
        };
        let auxiliary = match architecture {
            Architecture::TopK | Architecture::BatchTopK => 1.0 / 32.0,
            Architecture::Gated => 1.0,
            _ => 0.0,
        };
        let training = &mut self.training;
        training.loss.get_or_insert(loss);
        training.lr.get_or_insert(lr);
        training.warmup_steps.get_or_insert(warmup);
        training.decay_fraction.get_or_insert(decay);
        training.beta_1.get_or_insert(beta_1);
        training.beta_2.get_or_insert(beta_2);
        training.frequency_cutoff.get_or_insert(cutoff);
        training.sparsity_coefficient.get_or_insert(penalty);
        training.sparsity_warmup_steps.get_or_insert(steps / 10);
        training.aux_coefficient.get_or_insert(auxiliary);
        training.aux_k.get_or_insert(256);
        training
            .checkpoint_every
            .get_or_insert(training.validate_every);
    }

    /// Checks everything that does not need the data.
    fn check(&self) -> Result<(), ConfigError> {
        let run = self.run_name();
        if run.is_empty() || run == "." || run == ".." || run.contains(['/', '\\']) {
            return Err(invalid(
                "run",
                format!("{run:?}"),
                "a run's name is one directory name, such as \"quickstart\"",
            ));
        }
        let t = &self.training;
        for (key, value) in [
            ("training.steps", t.steps),
            ("training.batch_size", t.batch_size),
            ("training.validate_every", t.validate_every),
            ("training.log_every", t.log_every),
            ("training.dead_window", t.dead_window),
            ("training.keep_checkpoints", t.keep_checkpoints),
            ("training.checkpoint_every", t.checkpoint_every()),
        ] {
            if value == 0 {
                return Err(invalid(key, 0, "must be at least 1"));
            }
        }
        if !(t.lr() > 0.0 && t.lr().is_finite()) {
            return Err(invalid(
                "training.lr",
                t.lr(),
                "the learning rate must be a positive number, such as 1e-3",
            ));
        }
        if !(0.0..=1e6).contains(&t.checkpoint_minutes) {
            return Err(invalid(
                "training.checkpoint_minutes",
                t.checkpoint_minutes,
                "must be zero (none) or a number of minutes",
            ));
        }
        let part = 0.0..=1.0;
        for (key, value) in [
            ("training.decay_fraction", t.decay_fraction),
            ("training.frequency_cutoff", t.frequency_cutoff),
        ] {
            if value.is_some_and(|value| !part.contains(&value)) {
                return Err(invalid(
                    key,
                    value.unwrap_or_default(),
                    "must lie between 0 and 1",
                ));
            }
        }
        for (key, value) in [
            ("training.sparsity_coefficient", t.sparsity_coefficient),
            ("training.aux_coefficient", t.aux_coefficient),
        ] {
            if value.is_some_and(|value| !(value.is_finite() && value >= 0.0)) {
                let value = value.unwrap_or_default();
                return Err(invalid(key, value, "must be zero or a positive number"));
            }
        }
        for (key, value) in [("training.beta_1", t.beta_1), ("training.beta_2", t.beta_2)] {
            if value.is_some_and(|value| !(0.0..1.0).contains(&value)) {
                return Err(invalid(
                    key,
                    value.unwrap_or_default(),
                    "must be at least 0 and below 1",
                ));
            }
        }
        // Any width will do here: the switches and the number of latents are what is checked.
        self.sae_config(1, 1.0)
            .validate()
            .map_err(|error| invalid(&format!("model.{}", error.key), error.value, error.remedy))
    }

    /// Name of the run.
    pub(crate) fn run_name(&self) -> &str {
        self.run.as_deref().unwrap_or_default()
    }

    /// The run's directory.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.runs_dir.join(self.run_name())
    }

    /// The model for activations of width `d_in` and variance `mean ||x - mean(x)||^2`.
    pub(crate) fn sae_config(&self, d_in: usize, variance: f64) -> SaeConfig {
        let m = &self.model;
        let mut config = m.architecture.config(m.preset, d_in, m.n_latents);
        let set = |field: &mut bool, value: Option<bool>| *field = value.unwrap_or(*field);
        set(&mut config.query_projection, m.query_projection);
        set(&mut config.key_projection, m.key_projection);
        set(&mut config.value_projection, m.value_projection);
        set(&mut config.pre_bias, m.pre_bias);
        set(&mut config.encoder_bias, m.encoder_bias);
        set(&mut config.unit_norm_decoder, m.unit_norm_decoder);
        config.k = m.k.or(config.k);
        config.bandwidth = m.bandwidth.or(config.bandwidth);
        config.value = m.value.unwrap_or(config.value);
        config.scale = m.scale.unwrap_or(config.scale);
        config.norm_exponent = m.norm_exponent.unwrap_or(config.norm_exponent);
        let usual = m.architecture.input_scale(m.preset, d_in, variance);
        config.input_scale = m.input_scale.unwrap_or(usual);
        config.init.concepts = m.init_concepts.unwrap_or(config.init.concepts);
        config.init.projections = m.init_projections.unwrap_or(config.init.projections);
        config.init.pre_bias = m.init_pre_bias.unwrap_or(config.init.pre_bias);
        config
    }

    /// The config with every default written out, for these training activations and their variance.
    pub(crate) fn resolved(&self, train: &ActivationData, variance: f64) -> Self {
        let mut config = self.resolved_model(train.width(), variance);
        let plan = config.data.streaming(self.seed).plan(train);
        config.data.block_rows = Some(plan.block_rows());
        config
    }

    fn resolved_model(&self, d_in: usize, variance: f64) -> Self {
        let sae = self.sae_config(d_in, variance);
        let mut config = self.clone();
        config.model = ModelConfig {
            architecture: self.model.architecture,
            preset: self.model.preset,
            n_latents: sae.n_latents,
            k: sae.k,
            bandwidth: sae.bandwidth,
            value: Some(sae.value),
            scale: Some(sae.scale),
            norm_exponent: Some(sae.norm_exponent),
            input_scale: Some(sae.input_scale),
            query_projection: Some(sae.query_projection),
            key_projection: Some(sae.key_projection),
            value_projection: Some(sae.value_projection),
            pre_bias: Some(sae.pre_bias),
            encoder_bias: Some(sae.encoder_bias),
            unit_norm_decoder: Some(sae.unit_norm_decoder),
            init_concepts: Some(sae.init.concepts),
            init_projections: Some(sae.init.projections),
            init_pre_bias: Some(sae.init.pre_bias),
        };
        config
    }

    /// As TOML.
    pub(crate) fn to_table(&self) -> Table {
        Table::try_from(self).expect("a config is plain data")
    }
}

impl ModelConfig {
    /// In words: `attention (default preset)`, `topk (k = 32)`.
    pub(crate) fn describe(&self) -> String {
        let name = toml::Value::try_from(self.architecture)
            .ok()
            .and_then(|name| name.as_str().map(String::from))
            .unwrap_or_default();
        match self.k {
            _ if self.architecture == Architecture::Attention => {
                format!("{name} ({:?} preset)", self.preset).to_lowercase()
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

/// Applies `a.b=value`, where the value is TOML, or a string where it is not.
fn apply_override(table: &mut Table, argument: &str) -> Result<(), ConfigError> {
    let wrong = |remedy: &str| ConfigError::Set {
        argument: argument.into(),
        remedy: remedy.into(),
    };
    let (path, text) = argument
        .split_once('=')
        .ok_or_else(|| wrong("write key=value, for example --set training.lr=1e-3"))?;
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| text.into());
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty());
    let last = last.ok_or_else(|| wrong("the key is empty; write key=value"))?;
    let mut target = table;
    for key in keys {
        target = target
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| wrong("the key names something inside a plain value"))?;
    }
    target.insert(last.into(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
        [data]
        train = 'a.safetensors'
        held_out = 'b.safetensors'
        [model]
        n_latents = 64
        [training]
        steps = 10
        batch_size = 4
    ";

    fn load(text: &str, set: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small.toml");
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Config::load(&path, &set, None)
    }

    #[test]
    fn resolved_configs_read_back_as_themselves() {
        for preset in ["paper", "released", "default"] {
            let config = load(MINIMAL, &[&format!("model.preset={preset}")]).unwrap();
            let resolved = config.resolved_model(24, 3.0);
            let text = toml::to_string(&resolved).unwrap();
            let again = load(&text, &[]).unwrap();
            assert_eq!(again, resolved);
            assert_eq!(again.sae_config(24, 5.0), config.sae_config(24, 3.0));
            assert_eq!(config.run_name(), "small");
        }
    }

    #[test]
    fn messages_name_key_value_and_remedy() {
        for (set, expected) in [
            (
                "training.lrr=1",
                "training.lrr = 1: there is no such key; known here:",
            ),
            (
                "trainning.lr=1",
                "trainning = { ... }: there is no such key",
            ),
            (
                "training.lr=fast",
                "training.lr = \"fast\": invalid type: string \"fast\", expected f64",
            ),
            (
                "training.lr=-1",
                "training.lr = -1: the learning rate must be a positive number",
            ),
            ("training.steps=-5", "training.steps = -5: invalid value"),
            (
                "training.batch_size=0",
                "training.batch_size = 0: must be at least 1",
            ),
            (
                "model.n_latents=0",
                "model.n_latents = 0: a dictionary needs at least one latent",
            ),
            (
                "model.preset=best",
                "model.preset = \"best\": unknown variant `best`, expected one of",
            ),
            (
                "model.scale=0",
                "model.scale = 0: the score scale must be a positive number",
            ),
            (
                "training.decay_fraction=2",
                "training.decay_fraction = 2: must lie between 0 and 1",
            ),
            (
                "run=../../etc",
                "run = \"../../etc\": a run's name is one directory name",
            ),
            ("training.lr", "--set training.lr: write key=value"),
        ] {
            let message = load(MINIMAL, &[set]).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{set}: {message}");
        }
        let message = load(&MINIMAL.replace("steps = 10", ""), &[])
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("training.steps: missing; add it"),
            "{message}"
        );
    }
}
