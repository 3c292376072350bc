//! The model that a config must agree with if its run starts from a saved one.

use std::path::PathBuf;

use sae_model::{Architecture, SaeConfig};
use toml::{Table, Value};

use super::complete::{as_table, flat};
use super::keys::KEYS;
use super::{ConfigError, invalid};

/// The model that a run starts from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fixed {
    pub(crate) model: SaeConfig,
    /// Where it lies, if it is a file.
    pub(crate) path: Option<PathBuf>,
}

impl Fixed {
    /// `written` with the architecture and the number of latents of the model.
    ///
    /// # Errors
    /// If it names others.
    pub(super) fn completed(&self, written: &Table) -> Result<Table, ConfigError> {
        let mut table = written.clone();
        let section = table.entry("model").or_insert_with(|| Table::new().into());
        let Some(section) = section.as_table_mut() else {
            return Ok(table); // an error that is found later
        };
        let own = [
            ("architecture", Value::from(self.model.architecture.name())),
            ("n_latents", Value::from(self.model.n_latents as i64)),
        ];
        for (key, theirs) in own {
            let ours = section.entry(key).or_insert_with(|| theirs.clone());
            if !same(ours, &theirs) {
                return Err(self.contradicts(key, ours, &theirs.to_string()));
            }
        }
        Ok(table)
    }

    /// Fails if one of the switches that were written is not the model's.
    pub(super) fn check(&self, switches: &Table) -> Result<(), ConfigError> {
        let mut all = flat(&self.model);
        all.extend(as_table(&self.model.architecture.switches()));
        for (key, ours) in switches {
            let known = || KEYS.iter().any(|k| k.section == "model" && k.name == key);
            match all.get(key) {
                Some(theirs) if same(ours, theirs) => {}
                Some(theirs) => return Err(self.contradicts(key, ours, &theirs.to_string())),
                None if known() => return Err(self.contradicts(key, ours, "none")),
                None => {} // a key of another architecture: an error that is found later
            }
        }
        Ok(())
    }

    /// Fails if the activations of `path` do not have the width that the model takes.
    pub(crate) fn check_width(
        &self,
        path: &std::path::Path,
        width: usize,
    ) -> Result<(), ConfigError> {
        let d_in = self.model.d_in;
        if width == d_in {
            return Ok(());
        }
        let remedy = format!(
            "its activations have width {width}, {} takes width {d_in}; use data of the same layer",
            self.name()
        );
        Err(invalid(
            "data.train",
            format!("{:?}", path.display().to_string()),
            remedy,
        ))
    }

    fn contradicts(&self, key: &str, ours: &Value, theirs: &str) -> ConfigError {
        let remedy = format!(
            "{} has {theirs}; remove this key, or start from another model",
            self.name()
        );
        invalid(&format!("model.{key}"), ours, remedy)
    }

    fn name(&self) -> String {
        match &self.path {
            Some(path) => format!("the model to start from, {},", path.display()),
            None => "the model to start from".into(),
        }
    }
}

/// Whether two values are the same; 1 and 1.0 are.
fn same(ours: &Value, theirs: &Value) -> bool {
    let number = |value: &Value| match value {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    };
    match (number(ours), number(theirs)) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => ours == theirs,
    }
}
