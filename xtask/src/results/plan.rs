//! The plan: `docs/results.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::Value;

/// What is run, and the tables made of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Seeds of every setting.
    pub(super) seeds: Vec<u64>,
    /// Data sets by name.
    pub(super) data: BTreeMap<String, Data>,
    /// The tables, in the order in which they are made.
    #[serde(rename = "table")]
    pub(super) tables: Vec<Table>,
}

/// A data set: the keys of a config's `[data]` section.
#[derive(Debug, Deserialize)]
pub(super) struct Data {
    /// The file or directory; absent where the repository does not ship it.
    pub(super) train: Option<PathBuf>,
    /// How to get it.
    #[serde(default)]
    pub(super) how: String,
    /// Every other key.
    #[serde(flatten)]
    pub(super) keys: BTreeMap<String, Value>,
}

/// A table of one document or several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// What it is called in the comments around it.
    pub(super) name: String,
    /// Documents that show it.
    pub(super) files: Vec<String>,
    /// Name of its data set.
    pub(super) data: String,
    /// `key=value` settings of all its runs.
    #[serde(default)]
    pub(super) set: Vec<String>,
    /// The numbers of a row; see `numbers.rs`.
    #[serde(default)]
    pub(super) columns: Vec<String>,
    /// Columns in which the best mean is printed bold, `+` in front where more is better.
    #[serde(default)]
    pub(super) best: Vec<String>,
    /// A row a setting.
    #[serde(default, rename = "row")]
    pub(super) rows: Vec<Row>,
    /// L0 at which methods are compared, instead of columns and rows.
    #[serde(default)]
    pub(super) at_l0: Vec<f64>,
    /// The methods that are compared, each at several settings; the first against the others.
    #[serde(default, rename = "method")]
    pub(super) methods: Vec<Method>,
}

/// One setting.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// Its name in the table.
    pub(super) label: String,
    /// Its own `key=value` settings.
    #[serde(default)]
    pub(super) set: Vec<String>,
}

/// One method at several sparsities.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Method {
    /// Its name in the table.
    pub(super) label: String,
    /// Settings of all its runs.
    #[serde(default)]
    pub(super) set: Vec<String>,
    /// One list of settings for each sparsity.
    pub(super) runs: Vec<Vec<String>>,
}

impl Plan {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    /// Applies `--data NAME=PATH`.
    pub(super) fn place(&mut self, places: &[String]) -> Result<()> {
        for place in places {
            let (name, path) = place
                .split_once('=')
                .with_context(|| format!("--data {place}: write NAME=PATH"))?;
            let data = self.data.get_mut(name);
            let data =
                data.with_context(|| format!("--data {place}: the plan has no data set {name}"))?;
            data.train = Some(path.into());
        }
        Ok(())
    }
}
