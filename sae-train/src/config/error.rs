//! The mistakes that a config can have. Messages name the key, the value and the remedy.

use std::path::PathBuf;

use toml::{Table, Value};

/// A config that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields are what the messages say
pub enum ConfigError {
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
    #[error("--sweep {argument}: {remedy}")]
    Sweep { argument: String, remedy: String },
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

/// A value that is not of its key's type.
pub(super) fn wrong_type(
    table: &Table,
    error: &serde_path_to_error::Error<toml::de::Error>,
) -> ConfigError {
    let key = error.path().to_string();
    invalid(&key, lookup(table, &key), error.inner().message().trim())
}

/// The value at a dotted path, as TOML.
pub(super) fn lookup(table: &Table, path: &str) -> String {
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
