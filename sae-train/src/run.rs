//! The run directory: what a run leaves behind, and what resuming it needs.
//!
//! ```text
//! runs/<run>/  lock             held by the process that works here
//!              provenance.json  versions, git revision, device, threads, seed, data fingerprints
//!              config.toml      the config, every default written out; written last: with it, the run has begun
//!              checkpoint/      see `checkpoint`
//!              metrics.jsonl    one record a step and a validation
//!              train.log        what `tracing` has to say
//!              model/           cfg.json + sae.safetensors + BLAKE3SUMS
//!              reports/         written by sae-eval
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sae_data::{ActivationData, Fingerprint, Summary};
use sae_run::atomic_file;
use sae_run::sealed::STAGING_SUFFIX;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::failure::Failure;
use crate::lock::{LOCK_FILE, RunLock};
use crate::output;

/// Keys that may differ between the run and its continuation: they change no number of the result, except where
/// it would otherwise end (`on_nonfinite`, `on_collapse`). Data may have moved; whether it is the same is for the fingerprint to say.
const FREE_TO_CHANGE: [&str; 17] = [
    "run",
    "runs_dir",
    "training.log_every",
    "training.keep_checkpoints",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.on_nonfinite",
    "training.on_collapse",
    "data.workers",
    "data.train",
    "data.held_out",
    "data.labels",
    "data.held_out_labels",
    "data.class_embeddings",
    "data.class_names",
    "data.true_concepts",
    "data.true_codes",
];

/// Where the numbers of a run come from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Provenance {
    version: String,
    burn: String,
    /// Commit of the source tree that the program was built from, with `+` if it was changed (`build.rs`).
    git_revision: Option<String>,
    device: String,
    /// Threads that compute.
    threads: usize,
    seed: u64,
    train: Fingerprint,
    held_out: Fingerprint,
    /// Variance of the rows that were looked at, of both: what the fingerprints' samples miss shows here.
    variances: [f64; 2],
}

impl Provenance {
    pub(crate) fn new(
        config: &Config,
        [train, held_out]: [&ActivationData; 2],
        summaries: [&Summary; 2],
    ) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            burn: env!("SAE_BURN").into(),
            git_revision: Some(env!("SAE_REVISION").into())
                .filter(|commit: &String| !commit.is_empty()),
            device: config.device.clone(),
            threads: rayon::current_num_threads(),
            seed: config.seed,
            train: train.fingerprint()?,
            held_out: held_out.fingerprint()?,
            variances: summaries.map(|summary| summary.variance),
        })
    }

    /// In what the two differ that may make other bytes, though it is the same run.
    fn differences(&self, now: &Self) -> Vec<String> {
        let burn = |of: &Self| format!("Burn {}", of.burn);
        let version = |of: &Self| format!("sae-train {}", of.version);
        let revision =
            |of: &Self| format!("revision {}", of.git_revision.as_deref().unwrap_or("?"));
        let threads = |of: &Self| match of.device.as_str() {
            "cpu" => String::new(), // any number gives the same bytes
            _ => format!("{} threads", of.threads),
        };
        let all: [&dyn Fn(&Self) -> String; 4] = [&burn, &version, &revision, &threads];
        let pairs = all.into_iter().map(|what| (what(self), what(now)));
        pairs
            .filter(|(then, now)| then != now)
            .map(|(then, now)| format!("{then}, now {now}"))
            .collect()
    }
}

/// What identifies a run: BLAKE3 of all that its numbers depend on.
fn identity(config: &Config, provenance: &Provenance) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in flatten(&config.to_table()) {
        if !FREE_TO_CHANGE.contains(&key.as_str()) {
            hasher.update(format!("{key} = {value}\n").as_bytes());
        }
    }
    for data in [&provenance.train, &provenance.held_out] {
        let (rows, sample) = (&data.rows_blake3, &data.sample_blake3);
        hasher.update(format!("{rows:?} {sample}\n").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
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

    /// The checkpoints of the run of `config`.
    pub(crate) fn checkpoints(&self, config: &Config, provenance: &Provenance) -> Checkpoints {
        let (dir, keep) = (self.0.join("checkpoint"), config.training.keep_checkpoints);
        Checkpoints::new(dir, identity(config, provenance), keep)
    }

    /// Whether there is a run in this directory.
    pub(crate) fn has_begun(&self) -> bool {
        self.config().exists()
    }

    /// Fails if there is already something where a new run would go; what a process left that died before the run
    /// had begun is nothing.
    pub(crate) fn check_new(&self) -> Result<()> {
        if self.has_begun() {
            bail!(
                "run directory {} exists; continue it with --resume, or start another with --set run=NAME \
                 (or remove the directory)",
                self.0.display()
            );
        }
        let begun_by_us = |name: &str| {
            name == LOCK_FILE || name == "provenance.json" || name.ends_with(STAGING_SUFFIX)
        };
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        if let Some(name) = names.find(|name| !begun_by_us(name)) {
            bail!(
                "run directory {} holds no run, but {name:?}; start the run with --set run=NAME, or empty the directory",
                self.0.display()
            );
        }
        Ok(())
    }

    /// Takes the lock of this directory.
    pub(crate) fn lock(&self) -> Result<RunLock, Failure> {
        RunLock::take(&self.0)
    }

    /// Fails if this directory does not hold a run of `config` on the same data.
    pub(crate) fn check_resumable(&self, config: &Config, provenance: &Provenance) -> Result<()> {
        let path = self.config();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let old: Table = text
            .parse()
            .with_context(|| format!("{}", path.display()))?;
        let differences = differences(&old, &config.to_table());
        // Other data makes other values that are derived from it, so it is what must be named first; but not
        // where the config asks for other data.
        let asks = |difference: &String| match difference.strip_prefix("data.") {
            Some(rest) if rest.starts_with("max_norm") => self.has_files_of(provenance),
            rest => rest.is_some(),
        };
        if !differences.iter().any(asks) {
            self.check_data(provenance)?;
        }
        if !differences.is_empty() {
            return Err(Failure::ConfigChanged {
                run: self.0.clone(),
                differences: differences.join("; "),
                free: FREE_TO_CHANGE.join(", "),
            }
            .into());
        }
        Ok(())
    }

    /// What the run was started with.
    fn started_with(&self) -> Result<Provenance> {
        let path = self.provenance();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    /// Whether the training data has the files that it had, so that another limit of its norms was asked for.
    fn has_files_of(&self, now: &Provenance) -> bool {
        let then = self.started_with();
        then.is_ok_and(|then| then.train.same_files(&now.train))
    }

    /// Fails if the data is not what the run was started with.
    fn check_data(&self, now: &Provenance) -> Result<()> {
        let then = self.started_with()?;
        for (key, i, then_data, now_data) in [
            ("data.train", 0, &then.train, &now.train),
            ("data.held_out", 1, &then.held_out, &now.held_out),
        ] {
            let (was, is) = (then.variances[i], now.variances[i]);
            let difference = match then_data.difference(now_data) {
                Some(difference) => difference,
                None if same_variance(was, is) => continue,
                None => format!("its variance was {was}, and is {is}"),
            };
            return Err(Failure::DataChanged { key, difference }.into());
        }
        for difference in then.differences(now) {
            output::complain(format!(
                "note: the run was started with {difference}: the result may differ in its last bits"
            ));
        }
        Ok(())
    }

    /// Creates the directory of a new run, locked, and what describes the run.
    pub(crate) fn create(&self, config: &Config, provenance: &Provenance) -> Result<RunLock> {
        std::fs::create_dir_all(&self.0).map_err(Failure::write(&self.0))?;
        let lock = self.lock()?;
        self.check_new()?; // another process may have been quicker
        let json = serde_json::to_string_pretty(provenance)? + "\n";
        let path = self.provenance();
        atomic_file::write(&path, json.as_bytes()).map_err(Failure::write(&path))?;
        self.write_config(config)?;
        Ok(lock)
    }

    /// Writes the config if it is not there as it is.
    pub(crate) fn write_config(&self, config: &Config) -> Result<()> {
        let (path, toml) = (
            self.config(),
            toml::to_string(config).context("writing the config as TOML")?,
        );
        if std::fs::read(&path).is_ok_and(|old| old == toml.as_bytes()) {
            return Ok(());
        }
        Ok(atomic_file::write(&path, toml.as_bytes()).map_err(Failure::write(&path))?)
    }
}

/// Whether two variances are of the same data: serde_json may read a number one unit in the last place off what it wrote.
fn same_variance(was: f64, is: f64) -> bool {
    (was - is).abs() <= 1e-12 * is.abs()
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

    #[test]
    fn a_variance_may_be_read_back_one_unit_off() {
        let written = 23.749591092613002_f64;
        let json = serde_json::to_string(&written).unwrap();
        let read: f64 = serde_json::from_str(&json).unwrap();
        assert!(same_variance(read, written), "{read} {written}");
        assert!(same_variance(written.next_up(), written));
        assert!(!same_variance(written * 1.000001, written));
    }

    #[test]
    fn what_may_change_bits_is_named() {
        let fingerprint = Fingerprint {
            path: "x".into(),
            format: "npy".into(),
            dtype: "F32".into(),
            tensor: None,
            layer: None,
            drop_first_token: None,
            rows: 1,
            left_out: None,
            rows_blake3: None,
            width: 1,
            files: 1,
            bytes: 1,
            sample_blake3: String::new(),
        };
        let provenance = |burn: &str, device: &str, threads| Provenance {
            version: "1".into(),
            burn: burn.into(),
            git_revision: None,
            device: device.into(),
            threads,
            seed: 0,
            train: fingerprint.clone(),
            held_out: fingerprint.clone(),
            variances: [1.0, 1.0],
        };
        let then = provenance("0.22.1", "ndarray", 2);
        let now = provenance("0.23.0", "ndarray", 4);
        assert_eq!(
            then.differences(&now),
            ["Burn 0.22.1, now Burn 0.23.0", "2 threads, now 4 threads"]
        );
        let cpu = |threads| provenance("0.22.1", "cpu", threads);
        assert!(cpu(1).differences(&cpu(9)).is_empty());
    }
}
