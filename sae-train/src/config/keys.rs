//! Keys that only some models know. One that does nothing is an error as the user writes it, and is not written
//! out with a run: a table for both.

use sae_model::{Architecture, SaeConfig};
use toml::{Table, Value};

use super::{Config, ConfigError, invalid};

/// Who has a use for a key.
enum Use {
    /// These architectures.
    Architectures(fn(Architecture) -> bool),
    /// Models with something that can be switched; in words.
    Models(fn(&SaeConfig) -> bool, &'static str),
}

/// Keys that not every model has a use for.
const TABLE: [(&str, Use); 14] = [
    (
        "model.preset",
        Use::Architectures(|a| a == Architecture::Attention),
    ),
    ("model.k", Use::Architectures(Architecture::has_k)),
    (
        "model.bandwidth",
        Use::Architectures(|a| a == Architecture::JumpRelu),
    ),
    (
        "model.value",
        Use::Architectures(Architecture::is_sparsemax),
    ),
    (
        "model.refinement",
        Use::Architectures(Architecture::can_refine),
    ),
    (
        "model.init_projections",
        Use::Models(has_projection, A_PROJECTION),
    ),
    (
        "training.projection_lr",
        Use::Models(has_projection, A_PROJECTION),
    ),
    (
        "training.pre_bias_lr",
        Use::Models(|m| m.pre_bias, "pre_bias"),
    ),
    (
        "model.init_pre_bias",
        Use::Models(|m| m.pre_bias, "pre_bias"),
    ),
    (
        "training.sparsity_coefficient",
        Use::Architectures(Architecture::has_penalty),
    ),
    (
        "training.sparsity_warmup_steps",
        Use::Architectures(Architecture::has_penalty),
    ),
    (
        "training.target_l0",
        Use::Architectures(|a| a == Architecture::JumpRelu),
    ),
    (
        "training.aux_coefficient",
        Use::Architectures(|a| a.has_k() || a == Architecture::Gated),
    ),
    ("training.aux_k", Use::Architectures(Architecture::has_k)),
];

/// What a model with [`has_projection`] has, in words.
const A_PROJECTION: &str = "query_projection, key_projection or value_projection";

fn has_projection(model: &SaeConfig) -> bool {
    model.query_projection || model.key_projection || model.value_projection
}

impl Use {
    fn is_by(&self, model: &SaeConfig) -> bool {
        match self {
            Self::Architectures(known) => known(model.architecture),
            Self::Models(known, _) => known(model),
        }
    }

    /// What is wrong with a key that `model` has no use for.
    fn remedy(&self, model: &SaeConfig) -> String {
        match self {
            Self::Architectures(known) => {
                let known: Vec<String> = Architecture::ALL
                    .into_iter()
                    .filter(|a| known(*a))
                    .map(name)
                    .collect();
                let architecture = name(model.architecture);
                format!(
                    "model.architecture = \"{architecture}\" has no use for this key; remove it (it is for {})",
                    known.join(", ")
                )
            }
            Self::Models(_, with) => {
                format!(
                    "this model has no use for this key; remove it (it is for a model with {with})"
                )
            }
        }
    }
}

/// An architecture as configs write it.
pub(super) fn name(architecture: Architecture) -> String {
    let value = Value::try_from(architecture).ok();
    let text = value.as_ref().and_then(Value::as_str);
    text.unwrap_or_default().to_string()
}

/// The table that `key` stands in, and its name there.
fn place(key: &str) -> (&str, &str) {
    key.split_once('.').unwrap_or(("", key))
}

/// Fails if `written`, the config as the user wrote it, has a key that `model` does nothing with.
pub(super) fn check_used(written: &Table, model: &SaeConfig) -> Result<(), ConfigError> {
    for (key, usage) in &TABLE {
        let (section, name) = place(key);
        let value = written.get(section).and_then(|section| section.get(name));
        if let Some(value) = value.filter(|_| !usage.is_by(model)) {
            return Err(invalid(key, value, usage.remedy(model)));
        }
    }
    Ok(())
}

/// `config` without the keys that `model` does nothing with.
pub(super) fn without_unused(config: &Config, model: &SaeConfig) -> Config {
    let mut table = config.to_table();
    for (key, _) in TABLE.iter().filter(|(_, usage)| !usage.is_by(model)) {
        let (section, name) = place(key);
        if let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) {
            section.remove(name);
        }
    }
    Value::Table(table)
        .try_into()
        .expect("only optional keys are in the table")
}
