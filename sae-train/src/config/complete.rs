//! From the config as written to the run: what the architecture's recipe and the data imply for keys that are not given.

use sae_data::{ActivationData, Statistics};
use sae_model::loss::{Coefficient, Coefficients, RunSize};
use sae_model::recipe::{Recipe, pre_bias_lr};
use sae_model::{AnyArchitecture, Architecture, SaeConfig};
use serde_json::Map;
use toml::{Table, Value};

use super::{Config, ConfigError, ModelConfig, invalid, keys};

/// A run's numbers, none of them left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) model: SaeConfig,
    pub(crate) recipe: Recipe,
    /// Factor on the learning rate for the pre-bias.
    pub(crate) pre_bias_lr: f64,
    pub(crate) coefficients: Coefficients,
}

/// What defaults depend on of the training rows, those of huge norm left aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataScale {
    /// Width d.
    pub(crate) d_in: usize,
    /// `sigma^2 = mean ||x - mean(x)||^2`.
    pub(crate) variance: f64,
    /// `||mean(x)|| / sigma`.
    pub(crate) mean_over_sigma: f64,
}

impl DataScale {
    /// Of some data of width `d_in` that nobody has looked at yet: for questions that its numbers have no part in.
    pub(crate) fn unknown(d_in: usize) -> Self {
        Self {
            d_in,
            variance: 1.0,
            mean_over_sigma: f64::INFINITY,
        }
    }

    pub(crate) fn of(typical: &Statistics) -> Self {
        Self {
            d_in: typical.mean.len(),
            variance: typical.variance,
            mean_over_sigma: typical.mean_over_sigma(),
        }
    }
}

impl Config {
    /// What is trained, on data like this, and how.
    ///
    /// # Errors
    /// If a switch or a coefficient has a value that it cannot have; whether it has does not depend on the data.
    pub(crate) fn resolve(&self, data: DataScale) -> Result<Resolved, ConfigError> {
        let DataScale { d_in, variance, .. } = data;
        let model = self.sae_config(data)?;
        let usual = model.architecture.recipe(self.training.steps, d_in);
        let t = &self.training;
        let recipe = Recipe {
            loss: t.loss.unwrap_or(usual.loss),
            lr: t.lr.unwrap_or(usual.lr),
            projection_lr: t.projection_lr.unwrap_or(usual.projection_lr),
            warmup_steps: t.warmup_steps.unwrap_or(usual.warmup_steps),
            decay_fraction: t.decay_fraction.unwrap_or(usual.decay_fraction),
            beta_1: t.beta_1.unwrap_or(usual.beta_1),
            beta_2: t.beta_2.unwrap_or(usual.beta_2),
            frequency_cutoff: t.frequency_cutoff.unwrap_or(usual.frequency_cutoff),
        };
        Ok(Resolved {
            coefficients: self.coefficients(&model)?,
            pre_bias_lr: match model.pre_bias {
                true => t.pre_bias_lr.unwrap_or(pre_bias_lr(d_in, variance)),
                false => 1.0,
            },
            recipe,
            model,
        })
    }

    /// The architecture with the switches that were written.
    fn architecture(&self) -> Result<AnyArchitecture, ConfigError> {
        let name = &self.model.architecture;
        let Some(mut architecture) = AnyArchitecture::named(name) else {
            let all = AnyArchitecture::all();
            let all: Vec<String> = all.iter().map(|a| format!("`{}`", a.name())).collect();
            let remedy = format!(
                "there is no such architecture; there are {}",
                all.join(", ")
            );
            return Err(invalid("model.architecture", format!("{name:?}"), remedy));
        };
        let own = architecture.switches();
        let mut given: Vec<_> = self
            .model
            .own
            .iter()
            .filter(|(key, _)| own.contains_key(*key))
            .collect();
        given.sort_by_key(|(key, _)| *key != "preset"); // the others depart from it
        for (key, value) in given {
            let wrong = |error: serde_json::Error| {
                invalid(&format!("model.{key}"), value, error.to_string())
            };
            let switch =
                Map::from_iter([(key.clone(), serde_json::to_value(value).map_err(wrong)?)]);
            architecture = architecture.with(switch).map_err(wrong)?;
        }
        Ok(architecture)
    }

    /// The model for activations like these.
    fn sae_config(&self, data: DataScale) -> Result<SaeConfig, ConfigError> {
        let (m, DataScale { d_in, variance, .. }) = (&self.model, data);
        let mut config = SaeConfig::new(self.architecture()?, d_in, m.n_latents);
        let set = |field: &mut bool, value: Option<bool>| *field = value.unwrap_or(*field);
        set(&mut config.query_projection, m.query_projection);
        set(&mut config.key_projection, m.key_projection);
        set(&mut config.value_projection, m.value_projection);
        config.pre_bias = self.pre_bias(&config.architecture, data);
        set(&mut config.encoder_bias, m.encoder_bias);
        set(&mut config.unit_norm_decoder, m.unit_norm_decoder);
        config.scale = m.scale.unwrap_or(config.scale);
        config.norm_exponent = m.norm_exponent.unwrap_or(config.norm_exponent);
        config.norm_range = m.norm_range.or(config.norm_range);
        let usual = config.architecture.input_scale(d_in, variance);
        config.input_scale = m.input_scale.unwrap_or(usual);
        config.init.concepts = m.init_concepts.unwrap_or(config.init.concepts);
        config.init.projections = m.init_projections.unwrap_or(config.init.projections);
        config.init.pre_bias = m.init_pre_bias.unwrap_or(config.init.pre_bias);
        Ok(config)
    }

    /// Whether the model has a pre-bias: who sets one of its keys wants one, where there may be one.
    fn pre_bias(&self, architecture: &AnyArchitecture, data: DataScale) -> bool {
        let usual = |ratio| architecture.pre_bias(ratio);
        let asked = self.model.init_pre_bias.is_some() || self.training.pre_bias_lr.is_some();
        let unless_told = usual(data.mean_over_sigma) || (asked && usual(f64::INFINITY));
        self.model.pre_bias.unwrap_or(unless_told)
    }

    /// The coefficients of the architecture's terms of the loss.
    fn coefficients(&self, model: &SaeConfig) -> Result<Coefficients, ConfigError> {
        let run = RunSize {
            steps: self.training.steps,
            n_latents: self.model.n_latents,
        };
        let mut all = Coefficients::default();
        for coefficient in model.architecture.coefficients() {
            let value = match self.training.own.get(coefficient.name) {
                Some(written) => number(coefficient, written, &run)?,
                None => (coefficient.default)(&run),
            };
            all = all.with(coefficient.name, value);
        }
        Ok(all)
    }

    /// The config with every default written out, for these training activations and the typical ones among them.
    /// Its paths are absolute, so that it means the same wherever it is read.
    pub(crate) fn written_out(
        &self,
        resolved: &Resolved,
        train: &ActivationData,
        check_rows: usize,
    ) -> Self {
        let mut config = self.with_defaults(resolved);
        config.data = config.data.absolute();
        config.data.check_rows = Some(check_rows);
        let runs_dir = std::path::absolute(&config.runs_dir);
        config.runs_dir = runs_dir.unwrap_or(config.runs_dir);
        let plan = config.data.streaming(self.seed).plan(train);
        config.data.block_rows = Some(plan.block_rows());
        config
    }

    pub(super) fn with_defaults(&self, resolved: &Resolved) -> Self {
        let Resolved {
            model: sae, recipe, ..
        } = resolved;
        let mut config = self.clone();
        config.model = ModelConfig {
            architecture: sae.architecture.name().into(),
            n_latents: sae.n_latents,
            scale: Some(sae.scale),
            norm_exponent: Some(sae.norm_exponent),
            input_scale: Some(sae.input_scale),
            norm_range: sae.norm_range,
            query_projection: Some(sae.query_projection),
            key_projection: Some(sae.key_projection),
            value_projection: Some(sae.value_projection),
            pre_bias: Some(sae.pre_bias),
            encoder_bias: Some(sae.encoder_bias),
            unit_norm_decoder: Some(sae.unit_norm_decoder),
            init_concepts: Some(sae.init.concepts),
            init_projections: Some(sae.init.projections),
            init_pre_bias: Some(sae.init.pre_bias),
            own: Table::try_from(sae.architecture.switches()).expect("switches are plain values"),
        };
        let training = &mut config.training;
        training.loss = Some(recipe.loss);
        training.lr = Some(recipe.lr);
        training.projection_lr = Some(recipe.projection_lr);
        training.pre_bias_lr = Some(resolved.pre_bias_lr);
        training.warmup_steps = Some(recipe.warmup_steps);
        training.decay_fraction = Some(recipe.decay_fraction);
        training.beta_1 = Some(recipe.beta_1);
        training.beta_2 = Some(recipe.beta_2);
        training.frequency_cutoff = Some(recipe.frequency_cutoff);
        training.checkpoint_every = Some(training.checkpoint_every());
        let coefficients = sae.architecture.coefficients().iter();
        let written = |c: &Coefficient| {
            (
                c.name.to_string(),
                as_toml(c, resolved.coefficients.get(c.name)),
            )
        };
        training.own = coefficients.map(written).collect();
        keys::without_unused(&config, sae)
    }
}

/// The value of a coefficient, as it was written.
fn number(coefficient: &Coefficient, written: &Value, run: &RunSize) -> Result<f64, ConfigError> {
    let wrong = |remedy: &str| invalid(&format!("training.{}", coefficient.name), written, remedy);
    let value = match written {
        Value::Integer(value) => *value as f64,
        Value::Float(value) if !coefficient.is_count => *value,
        _ if coefficient.is_count => return Err(wrong("must be a whole number")),
        _ => return Err(wrong("must be a number")),
    };
    match (coefficient.check)(value, run) {
        Some(remedy) => Err(wrong(remedy)),
        None => Ok(value),
    }
}

fn as_toml(coefficient: &Coefficient, value: f64) -> Value {
    match coefficient.is_count {
        true => Value::Integer(value as i64),
        false => Value::Float(value),
    }
}
