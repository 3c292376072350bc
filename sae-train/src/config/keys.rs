//! Every key of a config, once: what it means, its default, and which models know it.
//!
//! The messages about unknown, missing and idle keys, `sae-train --init` and docs/CONFIG.md come from this table, to which
//! each architecture adds its own switches (of `[model]`) and coefficients (of `[training]`).

use sae_model::device::NAMES;
use sae_model::{AnyArchitecture, Architecture, SaeConfig};
use toml::{Table, Value};

use super::{Config, ConfigError, error::lookup, invalid};

/// One key.
pub(crate) struct Key {
    /// The table that it stands in; empty for the top.
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    /// Its default, as TOML or in words.
    pub(crate) default: Default,
    pub(crate) meaning: &'static str,
    /// The models that have a use for it, where not all have one.
    pub(crate) needs: Option<Needs>,
}

/// The value of a key that is left out.
pub(crate) enum Default {
    /// There is none: an example.
    Required(&'static str),
    /// As TOML.
    Is(&'static str),
    /// In words.
    Follows(&'static str),
    /// The architecture's recipe, or its usual model, has it.
    Recipe,
}

/// The part that a model must have for a key to do something.
pub(crate) struct Needs {
    has: fn(&SaeConfig) -> bool,
    words: &'static str,
}

use Default::{Follows, Is, Recipe, Required};

const fn key(
    section: &'static str,
    name: &'static str,
    default: Default,
    meaning: &'static str,
) -> Key {
    Key {
        section,
        name,
        default,
        meaning,
        needs: None,
    }
}

const A_PROJECTION: Needs = Needs {
    has: |m| m.query_projection || m.key_projection || m.value_projection,
    words: "query_projection, key_projection or value_projection",
};
const A_PRE_BIAS: Needs = Needs {
    has: |m| m.pre_bias,
    words: "pre_bias",
};

impl Key {
    /// The same, for models that have something.
    const fn needing(self, needs: Needs) -> Self {
        Self {
            needs: Some(needs),
            ..self
        }
    }
}

/// All keys but those that belong to one architecture.
#[rustfmt::skip] // one line per key
pub(crate) const KEYS: [Key; 66] = [
    key("", "run", Follows("the name of the config file"), "name of the run; its directory is <runs_dir>/<run>"),
    key("", "runs_dir", Is("\"runs\""), "where run directories are made"),
    key("", "seed", Is("0"), "every random choice derives from it"),
    key("", "device", Is("\"cpu\""), NAMES),
    key("", "precision", Is("\"f32\""), "numbers of the product that looks for candidates on a GPU: f32, tf32 or bf16; changes the speed and no code"),
    key("data", "train", Required("\"activations.safetensors\""), "file or directory of the training activations"),
    key("data", "held_out", Is("{ fraction = 0.1 }"), "what is held out: a path, { fraction = 0.1, seed = 0 } or { rows = [start, end] }"),
    key("data", "tensor", Follows("the only one that can be"), "name of the activation tensor or column"),
    key("data", "layer", Follows("the only one"), "the layer, where saev shards have several"),
    key("data", "drop_first_token", Is("false"), "leave out position 0 of each example"),
    key("data", "max_norm", Is("\"10x median\""), "norm above which rows are left out: a number, \"10x median\" or \"none\""),
    key("data", "labels", Follows("those of the data, if any"), "file of labels for train, one per row or one per example"),
    key("data", "held_out_labels", Follows("those of the data, if any"), "the same for a held-out path"),
    key("data", "window_mb", Is("512"), "memory for rows that are shuffled or wait, in MiB"),
    key("data", "block_rows", Follows("1 MiB of float32, or four pages of Parquet"), "rows that are read together"),
    key("data", "order_seed", Follows("seed"), "seed of the order of training rows; with one order, runs of several seeds share their batches"),
    key("data", "workers", Follows("the processors, four at most"), "threads that read"),
    key("data", "check_rows", Follows("all of up to 4 GiB, else 1 GiB"), "rows of each side that are checked before training; 0 for all"),
    key("data", "class_embeddings", Follows("none"), "class embeddings [classes, d] for top-n classification"),
    key("data", "class_names", Follows("none"), "JSON list of class names"),
    key("data", "true_concepts", Follows("none"), "concepts [G, d] that the data was made of, where they are known"),
    key("data", "true_codes", Follows("none"), "strength of each true concept in each held-out row [rows, G]"),
    key("model", "architecture", Is("\"attention\""), "how latents come from scores"),
    key("model", "n_latents", Required("4096"), "number of latents M, the rows of the dictionary"),
    key("model", "scale", Recipe, "factor t on the scores; larger makes sparsemax sparser"),
    key("model", "norm_exponent", Recipe, "p of n = s (||x0|| / s)^p, by which inputs are divided; 1 for queries of length one"),
    key("model", "input_scale", Follows("the data"), "s of the same"),
    key("model", "norm_range", Recipe, "R: beyond norms of s / R and s R, p is 1"),
    key("model", "query_projection", Recipe, "whether there is a W_Q [d, d]"),
    key("model", "key_projection", Recipe, "whether there is a W_K [d, d]"),
    key("model", "value_projection", Recipe, "whether there is a W_V [d, d]"),
    key("model", "pre_bias", Follows("the architecture and the data"), "whether there is a b_dec [d], subtracted from the input and added to the output"),
    key("model", "encoder_bias", Recipe, "whether there is a b_enc [M], added to the scores"),
    key("model", "unit_norm_decoder", Recipe, "whether training keeps the rows of W_dec at length one"),
    key("model", "init_concepts", Recipe, "how W_dec starts: unit or kaiming"),
    key("model", "init_projections", Recipe, "how W_Q, W_K and W_V start: identity or kaiming").needing(A_PROJECTION),
    key("model", "init_pre_bias", Is("\"mean\""), "where b_dec starts: mean (of the data) or zero").needing(A_PRE_BIAS),
    key("training", "steps", Required("2000"), "optimizer steps"),
    key("training", "batch_size", Required("1024"), "rows per step"),
    key("training", "shards", Is("1"), "equal parts of a batch, taken one after the other or by several processes; their gradients are added up in one order"),
    key("training", "latent_shards", Is("1"), "processes over which the latents are spread, each with its rows of the dictionary and their moments: --shard latents"),
    key("training", "part_gradients", Is("\"f32\""), "how parts hand their gradients on: f32, or bf16, where what rounding takes away is added to the next"),
    key("training", "loss", Recipe, "the reconstruction loss: mse, fvu or norm_weighted"),
    key("training", "lr", Recipe, "peak learning rate of Adam"),
    key("training", "projection_lr", Follows("2 / sqrt(d), at most 1"), "factor on lr for W_Q, W_K and W_V").needing(A_PROJECTION),
    key("training", "pre_bias_lr", Follows("the root mean square of a number of a centred row"), "factor on lr for b_dec").needing(A_PRE_BIAS),
    key("training", "warmup_steps", Recipe, "steps of linear warm-up"),
    key("training", "decay_fraction", Recipe, "part of the steps, at the end, over which lr falls linearly to zero"),
    key("training", "beta_1", Recipe, "Adam's beta_1"),
    key("training", "beta_2", Recipe, "Adam's beta_2"),
    key("training", "frequency_cutoff", Recipe, "latents that fire on a larger part of the rows are not selected in training; 1 leaves none out"),
    key("training", "dead_window", Is("100"), "steps without firing after which a latent counts as dead"),
    key("training", "validate_every", Is("100"), "steps between two validations"),
    key("training", "validate_rows", Is("16384"), "held-out rows that a validation looks at; 0 for all"),
    key("training", "log_every", Is("20"), "steps between two progress lines"),
    key("training", "checkpoint_every", Follows("validate_every"), "steps between two checkpoints"),
    key("training", "checkpoint_minutes", Is("10.0"), "minutes after which another checkpoint is written, whatever the step; 0 for none"),
    key("training", "keep_checkpoints", Is("2"), "newest checkpoints kept, beside the one with the least held-out FVU"),
    key("training", "on_nonfinite", Is("\"stop\""), "a step whose loss or gradients are not finite: stop or skip"),
    key("training", "on_collapse", Is("\"stop\""), "a run that has collapsed: stop or go_on"),
    key(TAIL, "file", Follows("none"), "the rest of the model from the layer on, an ONNX file: what it makes of reconstructions is in the report"),
    key(TAIL, "data", Follows("those held out"), "documents for it: activations of all tokens from position 0 on"),
    key(TAIL, "ranked_on", Follows("train"), "labelled activations on which the latents of a class are ranked for it"),
    key(TAIL, "class_embeddings", Follows("none"), "class embeddings [classes, e], where it gives embeddings"),
    key(TAIL, "documents", Follows("all"), "only the first so many documents"),
    key(TAIL, "max_norm", Is("\"none\""), "norm above which its rows stay as they are: a number, \"10x median\" or \"none\""),
];

const TAIL: &str = "eval.tail";

/// Sections of a config.
pub(super) const SECTIONS: [&str; 4] = ["data", "model", "training", TAIL];

/// A section of a config as it is written; `eval.tail` is a table within `eval`.
fn section_of<'a>(written: &'a Table, section: &str) -> Option<&'a Table> {
    let mut parts = section.split('.');
    let first = written.get(parts.next()?)?.as_table();
    parts.fold(first, |table, name| table?.get(name)?.as_table())
}

impl Key {
    /// Whether a model has a use for it.
    pub(super) fn is_for(&self, model: &SaeConfig) -> bool {
        self.needs.as_ref().is_none_or(|needs| (needs.has)(model))
    }

    /// `training.lr`
    pub(crate) fn path(&self) -> String {
        match self.section {
            "" => self.name.into(),
            section => format!("{section}.{}", self.name),
        }
    }
}

/// The keys of a section that belong to an architecture.
fn own_names(architecture: &AnyArchitecture, section: &str) -> Vec<String> {
    let coefficients = || {
        architecture
            .coefficients()
            .iter()
            .map(|own| own.name.into())
    };
    match section {
        "model" => architecture.switches().keys().cloned().collect(),
        "training" => coefficients().collect(),
        _ => Vec::new(),
    }
}

/// Whether an architecture has this key of its own.
fn owns(architecture: &AnyArchitecture, section: &str, name: &str) -> bool {
    own_names(architecture, section)
        .iter()
        .any(|own| own == name)
}

/// The architecture that is asked for, where there is one of this name.
fn architecture_of(written: &Table) -> Option<AnyArchitecture> {
    let name = written
        .get("model")
        .and_then(|model| model.get("architecture"));
    match name {
        Some(name) => AnyArchitecture::named(name.as_str()?),
        None => Some(AnyArchitecture::default()),
    }
}

/// `written` with the defaults that do not depend on the model or the data; `[data]` and `[eval.tail]` have their own.
pub(super) fn with_defaults(written: &Table) -> Table {
    let mut table = written.clone();
    for key in KEYS
        .iter()
        .filter(|key| ![TAIL, "data"].contains(&key.section) && key.needs.is_none())
    {
        let Is(default) = key.default else { continue };
        let section = match key.section {
            "" => Some(&mut table),
            name => table.get_mut(name).and_then(Value::as_table_mut),
        };
        if let Some(section) = section {
            let default = || default.parse().expect("defaults are TOML");
            section.entry(key.name).or_insert_with(default);
        }
    }
    table
}

/// Fails if `written`, the config as the user wrote it, has a key that does not exist or lacks one that must be there.
pub(super) fn check_names(written: &Table) -> Result<(), ConfigError> {
    let begins = |section: &str, name: &str| section.split('.').next() == Some(name);
    for (name, value) in written {
        match value.as_table() {
            Some(table) if SECTIONS.iter().any(|section| begins(section, name)) => {
                check_section(written, name, table)?;
            }
            _ => check_name(written, "", name)?,
        }
    }
    let required = KEYS.iter().filter(|key| matches!(key.default, Required(_)));
    for key in required {
        let section = section_of(written, key.section);
        if section.is_none_or(|section| !section.contains_key(key.name)) {
            let key = key.path();
            return Err(ConfigError::Missing {
                remedy: format!("add it to the config, or pass --set {key}=..."),
                key,
            });
        }
    }
    Ok(())
}

/// Checks the names in a section, and in the sections within it.
fn check_section(written: &Table, section: &str, table: &Table) -> Result<(), ConfigError> {
    for (name, value) in table {
        let inner = format!("{section}.{name}");
        match value
            .as_table()
            .filter(|_| SECTIONS.contains(&inner.as_str()))
        {
            Some(table) => check_section(written, &inner, table)?,
            None => check_name(written, section, name)?,
        }
    }
    Ok(())
}

fn check_name(written: &Table, section: &str, name: &str) -> Result<(), ConfigError> {
    let known: Vec<&Key> = KEYS.iter().filter(|key| key.section == section).collect();
    let all = AnyArchitecture::all();
    if known.iter().any(|key| key.name == name) || all.iter().any(|a| owns(a, section, name)) {
        return Ok(());
    }
    let path = match section {
        "" => name.to_string(),
        section => format!("{section}.{name}"),
    };
    let own = architecture_of(written).map(|own| own_names(&own, section));
    let names = known.iter().map(|key| key.name.to_string());
    let within = SECTIONS
        .iter()
        .filter_map(|other| other.strip_prefix(section)?.strip_prefix('.'));
    let names = names
        .chain(within.map(String::from))
        .chain(own.unwrap_or_default());
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let remedy = format!("there is no such key; known here: {}", names.join(", "));
    Err(invalid(&path, lookup(written, &path), remedy))
}

/// Fails if `written` has a key that `model` does nothing with.
pub(super) fn check_used(written: &Table, model: &SaeConfig) -> Result<(), ConfigError> {
    for section in ["model", "training"] {
        let Some(table) = written.get(section).and_then(Value::as_table) else {
            continue;
        };
        for (name, value) in table {
            if let Some(remedy) = idle(section, name, model) {
                return Err(invalid(&format!("{section}.{name}"), value, remedy));
            }
        }
    }
    Ok(())
}

/// The remedy for a key that `model` has no use for.
fn idle(section: &str, name: &str, model: &SaeConfig) -> Option<String> {
    let known = KEYS
        .iter()
        .find(|key| key.section == section && key.name == name);
    if let Some(key) = known {
        let needs = key.needs.as_ref().filter(|needs| !(needs.has)(model))?;
        let with = needs.words;
        return Some(format!(
            "this model has no use for this key; remove it (it is for a model with {with})"
        ));
    }
    let architecture = &model.architecture;
    if owns(architecture, section, name) {
        return None;
    }
    let all = AnyArchitecture::all();
    let others = all.iter().filter(|other| owns(other, section, name));
    let others: Vec<&str> = others.map(Architecture::name).collect();
    Some(format!(
        "model.architecture = \"{}\" has no use for this key; remove it (it is for {})",
        architecture.name(),
        others.join(", ")
    ))
}

/// `config` without the keys that `model` does nothing with.
pub(super) fn without_unused(config: &Config, model: &SaeConfig) -> Config {
    let mut table = config.to_table();
    let idle = KEYS.iter().filter(|key| !key.is_for(model));
    for key in idle {
        if let Some(section) = table.get_mut(key.section).and_then(Value::as_table_mut) {
            section.remove(key.name);
        }
    }
    let unchecked = Value::Table(table).try_into();
    unchecked.expect("only optional keys need something")
}
