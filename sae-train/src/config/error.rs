//! What can be wrong with a config, and how it is said: the key, the value and the remedy.

use std::path::PathBuf;

use toml::{Table, Value};

/// A config that cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("config {}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("config {}: not valid TOML", path.display())]
    Toml {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("--set {argument}: {remedy}")]
    Set { argument: String, remedy: String },
    /// A value that the run cannot have.
    #[error("{key} = {value}: {remedy}")]
    Invalid {
        key: String,
        value: String,
        remedy: String,
    },
    #[error("{key}: missing; {remedy}")]
    Missing { key: String, remedy: String },
}

/// Shorthand for [`ConfigError::Invalid`].
pub(crate) fn invalid(key: &str, value: impl ToString, remedy: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        key: key.into(),
        value: value.to_string(),
        remedy: remedy.into(),
    }
}

/// Turns serde's complaint into key, value and remedy.
pub(super) fn explain(
    table: &Table,
    error: &serde_path_to_error::Error<toml::de::Error>,
) -> ConfigError {
    let message = error.inner().message().trim().to_string();
    let parent = match error.path().to_string() {
        path if path == "." => String::new(),
        path => path,
    };
    let inside = |field: &str| match parent.rsplit_once('.') {
        _ if parent.is_empty() => field.to_string(),
        // for an unknown key the path already ends in it
        Some((_, last)) if last == field => parent.clone(),
        None if parent == field => parent.clone(),
        _ => format!("{parent}.{field}"),
    };
    let quoted = message.split('`').nth(1).unwrap_or_default();
    if message.starts_with("unknown field") {
        let key = inside(quoted);
        let known = message
            .split_once("expected")
            .map_or("", |(_, known)| known.trim());
        return invalid(
            &key,
            lookup(table, &key),
            format!("there is no such key; known here: {known}"),
        );
    }
    if message.starts_with("missing field") {
        let key = inside(quoted);
        return ConfigError::Missing {
            remedy: format!("add it to the config, or pass --set {key}=..."),
            key,
        };
    }
    invalid(&parent, lookup(table, &parent), message)
}

/// The value at a dotted path, as TOML.
fn lookup(table: &Table, path: &str) -> String {
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| table.get(key));
    let found = keys.try_fold(first, |value, key| value.map(|value| value.get(key)));
    found
        .flatten()
        .map_or("(none)".into(), |value| match value {
            Value::Table(_) => "{ ... }".into(),
            value => value.to_string(),
        })
}
