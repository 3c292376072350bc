//! `--set key=value`.

use toml::{Table, Value};

use super::ConfigError;

/// Keys whose value is a string: `2024`, `true`, `1e3` and `2024-01-01` mean what stands there.
const STRINGS: [&str; 15] = [
    "run",
    "runs_dir",
    "device",
    "data.train",
    "data.tensor",
    "data.labels",
    "data.held_out_labels",
    "data.class_embeddings",
    "data.class_names",
    "data.true_concepts",
    "data.true_codes",
    "eval.tail.file",
    "eval.tail.data",
    "eval.tail.ranked_on",
    "eval.tail.class_embeddings",
];

/// Applies `a.b=value`, where the value is TOML, or a string where it is not; returns the key.
pub(super) fn apply_override(table: &mut Table, argument: &str) -> Result<String, ConfigError> {
    let wrong = |remedy: &str| ConfigError::Set {
        argument: argument.into(),
        remedy: remedy.into(),
    };
    let (path, text) = argument
        .split_once('=')
        .ok_or_else(|| wrong("write key=value, for example --set training.lr=1e-3"))?;
    let path = path.trim();
    let value = match toml_value(text).unwrap_or_else(|| text.into()) {
        value @ Value::String(_) => value,
        _ if STRINGS.contains(&path) => text.trim().into(),
        other => other,
    };
    insert(table, path, value).map_err(wrong)?;
    Ok(path.into())
}

/// A text as a value of TOML, if it is one.
pub(super) fn toml_value(text: &str) -> Option<Value> {
    let mut parsed = format!("v = {text}").parse::<Table>().ok()?;
    parsed.remove("v")
}

/// Puts a value at a dotted key.
///
/// # Errors
/// The remedy for a key where nothing can be put.
pub(super) fn insert(table: &mut Table, path: &str, value: Value) -> Result<(), &'static str> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty());
    let last = last.ok_or("the key is empty; write key=value")?;
    let mut target = table;
    for key in keys {
        target = target
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or("the key names something inside a plain value")?;
    }
    target.insert(last.into(), value);
    Ok(())
}
