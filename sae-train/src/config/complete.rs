//! From the config as written to the run: what the architecture's recipe and the data imply for keys that are not given.

use sae_data::{ActivationData, Statistics};
use sae_model::loss::{Coefficient, Coefficients, RunSize};
use sae_model::recipe::{Recipe, pre_bias_lr};
use sae_model::{AnyArchitecture, Architecture, SaeConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Map;
use toml::{Table, Value};

use super::keys::{self, KEYS};
use super::{Config, ConfigError, invalid};

/// A run's numbers, none of them left out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) model: SaeConfig,
    pub(crate) recipe: Recipe,
    /// Factor on the learning rate for the pre-bias.
    pub(crate) pre_bias_lr: f64,
    pub(crate) coefficients: Coefficients,
}

/// The numbers of the training rows, those of huge norm left aside, on which defaults depend.
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

    fn of(typical: &Statistics) -> Self {
        Self {
            d_in: typical.mean.len(),
            variance: typical.variance,
            mean_over_sigma: typical.mean_over_sigma(),
        }
    }
}

impl Config {
    /// The model for data like this, and how it is trained.
    ///
    /// # Errors
    /// If a switch or a coefficient has a value that it cannot have; whether it has does not depend on the data.
    pub(crate) fn resolve(&self, data: DataScale) -> Result<Resolved, ConfigError> {
        let model = self.sae_config(data)?;
        let DataScale { d_in, variance, .. } = data;
        let recipe = model.architecture.recipe(self.training.steps, d_in);
        Ok(Resolved {
            coefficients: self.coefficients(&model)?,
            pre_bias_lr: match (model.pre_bias, self.training.pre_bias_lr) {
                (true, written) => written.unwrap_or(pre_bias_lr(d_in, variance)),
                (false, _) => 1.0,
            },
            recipe: departing("training", recipe, &self.training.recipe)?,
            model,
        })
    }

    /// [`Config::resolve`] for training rows with these statistics.
    ///
    /// # Errors
    /// Also if the data imply a number that no model can have: rows without variance imply an `input_scale` of zero.
    pub(crate) fn resolve_for(&self, typical: &Statistics) -> Result<Resolved, ConfigError> {
        let resolved = self.resolve(DataScale::of(typical))?;
        resolved.check_model()?;
        Ok(resolved)
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
            .switches
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
        if let Some(fixed) = &self.fixed {
            fixed.check(&self.model.switches)?;
            return Ok(fixed.model.clone());
        }
        let mut usual = SaeConfig::new(self.architecture()?, data.d_in, self.model.n_latents);
        usual.input_scale = usual.architecture.input_scale(data.d_in, data.variance);
        usual.pre_bias = self.usual_pre_bias(&usual.architecture, data);
        departing("model", usual, &self.model.switches)
    }

    /// Whether the model has a pre-bias if nothing is said: who sets one of its keys wants one, where there may be one.
    fn usual_pre_bias(&self, architecture: &AnyArchitecture, data: DataScale) -> bool {
        let usual = |ratio| architecture.pre_bias(ratio);
        let asked = self.model.switches.contains_key("init_pre_bias")
            || self.training.pre_bias_lr.is_some();
        usual(data.mean_over_sigma) || (asked && usual(f64::INFINITY))
    }

    /// The coefficients of the architecture's terms of the loss.
    fn coefficients(&self, model: &SaeConfig) -> Result<Coefficients, ConfigError> {
        let run = RunSize {
            steps: self.training.steps,
            n_latents: self.model.n_latents,
        };
        let mut all = Coefficients::default();
        for coefficient in model.architecture.coefficients() {
            let value = match self.training.recipe.get(coefficient.name) {
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
        config.eval = config.eval.map(|eval| eval.absolute());
        config.data.check_rows = Some(check_rows);
        let runs_dir = std::path::absolute(&config.runs_dir);
        config.runs_dir = runs_dir.unwrap_or(config.runs_dir);
        let plan = config.data.streaming(self.seed).plan(train);
        config.data.block_rows = Some(plan.block_rows());
        config
    }

    pub(super) fn with_defaults(&self, resolved: &Resolved) -> Self {
        let Resolved { model, recipe, .. } = resolved;
        let mut config = self.clone();
        let mut switches = common(&flat(model));
        switches.retain(|name, _| name != "architecture" && name != "n_latents");
        switches.extend(as_table(&model.architecture.switches()));
        config.model.switches = switches;
        let training = &mut config.training;
        training.recipe = common(&flat(recipe));
        training.pre_bias_lr = Some(resolved.pre_bias_lr);
        training.checkpoint_every = Some(training.checkpoint_every());
        for c in model.architecture.coefficients() {
            let value = as_toml(c, resolved.coefficients.get(c.name));
            training.recipe.insert(c.name.into(), value);
        }
        keys::without_unused(&config, model)
    }
}

/// `usual` with the keys of a config's section that belong to it.
fn departing<T: Serialize + DeserializeOwned>(
    section: &str,
    usual: T,
    written: &Table,
) -> Result<T, ConfigError> {
    let mut departing = usual;
    for (name, value) in common(written) {
        let mut all = flat(&departing);
        all.insert(name.clone(), value.clone());
        departing = nested(all).try_into().map_err(|error: toml::de::Error| {
            invalid(&format!("{section}.{name}"), value, error.message().trim())
        })?;
    }
    Ok(departing)
}

/// The keys that belong to no architecture.
fn common(table: &Table) -> Table {
    let is_common = |name: &str| KEYS.iter().any(|key| key.name == name);
    let all = table.iter().filter(|(name, _)| is_common(name));
    all.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

pub(super) fn as_table(of: &impl Serialize) -> Table {
    Table::try_from(of).expect("a config is plain data")
}

/// As keys of a config's section: `init.concepts` is `init_concepts` there.
pub(super) fn flat(of: &impl Serialize) -> Table {
    let mut flat = as_table(of);
    if let Some(Value::Table(init)) = flat.remove("init") {
        flat.extend(
            init.into_iter()
                .map(|(name, value)| (format!("init_{name}"), value)),
        );
    }
    flat
}

/// The inverse of [`flat`].
fn nested(flat: Table) -> Table {
    let mut nested = Table::new();
    let mut init = Table::new();
    for (name, value) in flat {
        match name.strip_prefix("init_") {
            Some(name) => init.insert(name.into(), value),
            None => nested.insert(name, value),
        };
    }
    if !init.is_empty() {
        nested.insert("init".into(), Value::Table(init));
    }
    nested
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
