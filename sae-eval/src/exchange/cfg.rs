//! `cfg.json` of a foreign dictionary: keys of a JSON object, each asked for by name and type.

use std::path::{Path, PathBuf};

use sae_run::read_text;
use serde_json::{Map, Value};

use super::error::ForeignError;

/// Longer than any `cfg.json`.
const MAX_BYTES: u64 = 16 << 20;

/// The object in a `cfg.json`.
#[derive(Clone, Debug)]
pub(super) struct Cfg {
    path: PathBuf,
    keys: Map<String, Value>,
}

impl Cfg {
    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, ForeignError> {
        let text = read_text(path, MAX_BYTES).map_err(ForeignError::io(path))?;
        let keys = serde_json::from_str(&text).map_err(|source| ForeignError::Json {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            keys,
        })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of a key; null is none.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// The object of a key, as keys of their own; empty where there is none.
    pub(super) fn object(&self, key: &str) -> Self {
        let own = self.get(key).and_then(Value::as_object).cloned();
        Self {
            path: self.path.clone(),
            keys: own.unwrap_or_default(),
        }
    }

    /// All keys.
    pub(super) fn keys(&self) -> &Map<String, Value> {
        &self.keys
    }

    /// An error about a key.
    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> ForeignError {
        ForeignError::Key {
            path: self.path.clone(),
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// A value that this program cannot take over, and why.
    pub(super) fn refused(&self, key: &str, value: &str, why: &str) -> ForeignError {
        self.wrong(key, format!("\"{value}\" cannot be taken over: {why}"))
    }

    /// A whole number above 0 that a size can be.
    pub(super) fn count(&self, key: &str) -> Result<usize, ForeignError> {
        match self.get(key) {
            None => Err(self.wrong(key, "it is missing; a whole number above 0 is needed")),
            Some(value) => {
                let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
                number
                    .filter(|n| (1..=u32::MAX as usize).contains(n))
                    .ok_or_else(|| {
                        self.wrong(key, format!("{value} is not a whole number above 0"))
                    })
            }
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<f64, ForeignError> {
        match self.get(key) {
            None => Err(self.wrong(key, "it is missing; a number is needed")),
            Some(value) => {
                let number = value.as_f64().filter(|n| n.is_finite());
                number.ok_or_else(|| self.wrong(key, format!("{value} is not a number")))
            }
        }
    }

    /// A truth value, `usual` where there is none.
    pub(super) fn flag(&self, key: &str, usual: bool) -> Result<bool, ForeignError> {
        match self.get(key) {
            None => Ok(usual),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(key, format!("{value} is neither true nor false"))),
        }
    }

    /// A text, `usual` where there is none.
    pub(super) fn text(&self, key: &str, usual: &str) -> Result<String, ForeignError> {
        match self.get(key) {
            None => Ok(usual.into()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Err(self.wrong(key, format!("{value} is not a text"))),
        }
    }
}
