//! The run directory: what a run leaves behind, and what resuming it needs.
//!
//! ```text
//! runs/<run>/  config.toml      the config, every default written out
//!              provenance.json  versions, git revision, device, threads, seed, data fingerprints
//!              checkpoint/      {model,optim,scheduler}-<n>.bpk after the n-th validation
//!              metrics.jsonl    one record a step and a validation
//!              train.log        what `tracing` has to say
//!              model/           cfg.json + sae.safetensors
//!              reports/         written by sae-eval
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sae_data::{ActivationData, Fingerprint};
use sae_model::atomic_file;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::Config;

/// Keys that may differ between the run and its continuation: they change no number of the result. Data may
/// have moved; whether it is the same is for the fingerprint to say.
const FREE_TO_CHANGE: [&str; 5] = [
    "training.log_every",
    "training.keep_checkpoints",
    "data.workers",
    "data.train",
    "data.held_out",
];

/// Where the numbers of a run come from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Provenance {
    version: String,
    burn: String,
    git_revision: Option<String>,
    device: String,
    threads: usize,
    seed: u64,
    train: Fingerprint,
    held_out: Fingerprint,
}

impl Provenance {
    pub(crate) fn new(
        config: &Config,
        train: &ActivationData,
        held_out: &ActivationData,
    ) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            burn: "0.22.1".into(),
            git_revision: git_revision(),
            device: config.device.clone(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            seed: config.seed,
            train: train.fingerprint()?,
            held_out: held_out.fingerprint()?,
        })
    }
}

/// Commit of the source tree that this binary was built from, if it still is one, with `+` if changed.
fn git_revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        command
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments);
        let output = command
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let revision = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() {
        revision
    } else {
        revision + "+"
    })
}

/// A run's directory.
#[derive(Debug)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("train.log")
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    fn provenance(&self) -> PathBuf {
        self.0.join("provenance.json")
    }

    /// Fails if there is already something where a new run would go.
    pub(crate) fn check_new(&self) -> Result<()> {
        if self.0.exists() {
            bail!(
                "run directory {} exists; continue it with --resume, or start another with --set run=NAME \
                 (or remove the directory)",
                self.0.display()
            );
        }
        Ok(())
    }

    /// Fails if this directory does not hold a run of `config` on the same data; otherwise returns the
    /// number of its newest checkpoint (0: none yet).
    pub(crate) fn check_resumable(
        &self,
        config: &Config,
        provenance: &Provenance,
    ) -> Result<usize> {
        let path = self.config();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "--resume: there is no run in {} to continue; start it without --resume",
                self.0.display()
            )
        })?;
        let old: Table = text
            .parse()
            .with_context(|| format!("{}", path.display()))?;
        let differences = differences(&old, &config.to_table());
        // Other data makes other values that are derived from it, so it is what must be named first; but not
        // where the config asks for other data.
        if !differences
            .iter()
            .any(|difference| difference.starts_with("data."))
        {
            self.check_data(provenance)?;
        }
        if !differences.is_empty() {
            bail!(
                "--resume: the config differs from the one that {} was started with: {}; \
                 restore these values, or start another run with --set run=NAME",
                self.0.display(),
                differences.join("; ")
            );
        }
        Ok(self.newest_checkpoint())
    }

    /// Fails if the data is not what the run was started with.
    fn check_data(&self, now: &Provenance) -> Result<()> {
        let path = self.provenance();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let then: Provenance =
            serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        for (key, then, now) in [
            ("data.train", &then.train, &now.train),
            ("data.held_out", &then.held_out, &now.held_out),
        ] {
            if !then.same_data(now) {
                bail!(
                    "--resume: {key} is not the data that the run was started with (was {then:?}, is {now:?}); \
                     put the data back, or start another run with --set run=NAME"
                );
            }
        }
        Ok(())
    }

    /// Creates the directory and what describes the run.
    pub(crate) fn create(&self, config: &Config, provenance: &Provenance) -> Result<()> {
        std::fs::create_dir_all(&self.0)
            .with_context(|| format!("creating {}", self.0.display()))?;
        let toml = toml::to_string(config).context("writing the config as TOML")?;
        let json = serde_json::to_string_pretty(provenance)? + "\n";
        for (path, text) in [(self.config(), toml), (self.provenance(), json)] {
            atomic_file::write(&path, text.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Number of the newest checkpoint of which all three files are there.
    fn newest_checkpoint(&self) -> usize {
        let dir = self.0.join("checkpoint");
        let whole = |n: &usize| {
            ["model", "optim", "scheduler"]
                .iter()
                .all(|part| dir.join(format!("{part}-{n}.bpk")).is_file())
        };
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix("model-")?
                .strip_suffix(".bpk")?
                .parse()
                .ok()
        });
        numbers.filter(whole).max().unwrap_or(0)
    }
}

/// Keys in which two configs differ, as `key: old -> new`.
fn differences(old: &Table, new: &Table) -> Vec<String> {
    let (old, new) = (flatten(old), flatten(new));
    let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |of: &[(String, Value)], key: &String| {
        let found = of.iter().find(|(k, _)| k == key);
        found.map_or("(absent)".to_string(), |(_, value)| value.to_string())
    };
    keys.into_iter()
        .filter(|key| !FREE_TO_CHANGE.contains(&key.as_str()))
        .filter_map(|key| {
            let (old, new) = (value(&old, key), value(&new, key));
            (old != new).then(|| format!("{key}: {old} -> {new}"))
        })
        .collect()
}

/// Plain values by dotted key.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let nested = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) => flatten(inner)
            .into_iter()
            .map(|(rest, value)| (format!("{key}.{rest}"), value))
            .collect(),
        value => vec![(key.clone(), value.clone())],
    };
    table.iter().flat_map(nested).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_key_and_both_values() {
        let old: Table = "seed = 0\n[training]\nlr = 1e-3\nlog_every = 5"
            .parse()
            .unwrap();
        let new: Table = "seed = 1\n[training]\nlr = 1e-3\nlog_every = 9"
            .parse()
            .unwrap();
        assert_eq!(differences(&old, &new), ["seed: 0 -> 1"]);
    }
}
