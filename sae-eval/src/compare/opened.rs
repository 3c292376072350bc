//! One of the runs to compare, as its directory says: the report, the config, the provenance, and what training needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use sae_data::Fingerprint;
use sae_model::saved;
use sae_run::{Provenance, RunDir, read_text};
use serde::Deserialize;
use toml::{Table, Value};

use crate::report::{self, Report};

/// Length in bytes of the longest report that is read.
const MAX_REPORT: u64 = 256 << 20;
/// The last records of training are searched for in this many bytes.
const TAIL: u64 = 1 << 16;

/// A run.
pub(crate) struct Opened {
    pub(crate) dir: RunDir,
    pub(crate) report: Report,
    /// The keys of the config with their values as TOML.
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) provenance: Option<Provenance<Fingerprint>>,
    /// What training and evaluation cost.
    pub(crate) costs: BTreeMap<String, f64>,
    /// What to know about its numbers.
    pub(crate) notes: Vec<String>,
}

/// The part of a report that every version has.
#[derive(Deserialize)]
struct Header {
    schema: String,
    schema_version: u32,
}

/// A record of `metrics.jsonl`.
#[derive(Deserialize)]
struct Timed {
    seconds: f64,
}

impl Opened {
    /// Opens a run; an error says why it cannot be compared.
    pub(crate) fn new(dir: RunDir) -> Result<Self> {
        let text = dir.read_config()?;
        let table: Table = text.parse().context("config.toml")?;
        if !dir.model().exists() {
            bail!("it has no trained model yet; finish it with sae-train --resume");
        }
        let report = read_report(&dir)?;
        let saved = saved::load_config(&dir.model())?;
        if saved.model != report.model {
            bail!("its report is of another model than that in its directory; evaluate it again");
        }
        let mut notes = report.notes.clone();
        if changed(&dir.report_json()) < changed(&dir.model().join(saved::WEIGHTS_FILE)) {
            notes.push("the report is older than the model; evaluate the run again".into());
        }
        if report.fired.is_none() {
            notes.push(
                "the report does not say which latents fire, so dead ones are not left out of the stability; evaluate the run \
                 again"
                    .into(),
            );
        }
        let config = flat(&table);
        Ok(Self {
            costs: costs(&dir, &report, &config),
            provenance: dir.read_provenance().ok(),
            config,
            dir,
            report,
            notes,
        })
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> String {
        let path = self.dir.path();
        let absolute = path.canonicalize();
        let path = absolute.as_deref().unwrap_or(path);
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// The seed that its config has.
    pub(crate) fn seed(&self) -> Option<u64> {
        self.config.get("seed")?.parse().ok()
    }

    /// The rows on which each latent fires, if the report has them.
    pub(crate) fn fired(&self) -> Option<Vec<u32>> {
        let fired = self.report.fired.as_ref()?;
        fired.counts(self.report.model.n_latents)
    }
}

/// Reads the report of a run.
fn read_report(dir: &RunDir) -> Result<Report> {
    let path = dir.report_json();
    if !path.exists() {
        bail!(
            "it has no report; make one with sae-eval {}",
            dir.path().display()
        );
    }
    let text = read_text(&path, MAX_REPORT).context("reports/report.json")?;
    let header: Header = serde_json::from_str(&text).context("reports/report.json")?;
    if header.schema != report::SCHEMA || header.schema_version != report::SCHEMA_VERSION {
        bail!(
            "its report has the schema {} {}, this build reads {} {}: numbers of the same name may mean something else; evaluate \
             it again",
            header.schema,
            header.schema_version,
            report::SCHEMA,
            report::SCHEMA_VERSION
        );
    }
    serde_json::from_str(&text).context("reports/report.json")
}

fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

/// The keys of a config by their path, `training.lr`.
fn flat(table: &Table) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for (name, value) in table {
        match value {
            Value::Table(section) => {
                let of =
                    |(key, value): (&String, &Value)| (format!("{name}.{key}"), value.to_string());
                keys.extend(section.iter().map(of));
            }
            value => {
                keys.insert(name.clone(), value.to_string());
            }
        }
    }
    keys
}

/// Time and memory, where they are recorded.
fn costs(
    dir: &RunDir,
    report: &Report,
    config: &BTreeMap<String, String>,
) -> BTreeMap<String, f64> {
    let number = |key: &str| config.get(key).and_then(|value| value.parse::<f64>().ok());
    let usage = dir.read_usage().ok();
    let seconds = seconds(&dir.metrics());
    let rows = number("training.steps").zip(number("training.batch_size"));
    let rate = rows.zip(seconds).map(|((steps, rows), s)| steps * rows / s);
    let memory = usage.and_then(|usage| usage.peak_memory_bytes);
    let all = [
        ("training_seconds", seconds),
        ("training_rows_per_second", rate),
        (
            "training_peak_memory_bytes",
            memory.map(|bytes| bytes as f64),
        ),
        ("evaluation_seconds", Some(report.seconds)),
        (
            "evaluation_peak_memory_bytes",
            report.peak_memory_bytes.map(|bytes| bytes as f64),
        ),
    ];
    let known = all.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| value.is_finite())?;
        Some((name.to_string(), value))
    });
    known.collect()
}

/// Seconds of training over all continuations: those of the last record.
fn seconds(metrics: &Path) -> Option<f64> {
    let mut file = File::open(metrics).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let mut records = text
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Timed>(line).ok());
    records.next().map(|record| record.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_has_one_entry_per_key() {
        let table: Table = "seed = 3\n[data]\nheld_out = { fraction = 0.1, seed = 0 }\n[model]\narchitecture = \"topk\"\n"
            .parse()
            .unwrap();
        let flat = flat(&table);
        assert_eq!(flat["seed"], "3");
        assert_eq!(flat["model.architecture"], "\"topk\"");
        assert!(flat["data.held_out"].contains("fraction"), "{flat:?}");
        assert_eq!(flat.len(), 3);
    }

    #[test]
    fn the_last_whole_record_has_the_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line = |seconds: f64| format!("{{\"split\":\"train\",\"seconds\":{seconds}}}\n");
        let many: String = (0..4000).map(|i| line(f64::from(i))).collect();
        std::fs::write(&path, many + "{\"split\":\"held").unwrap();
        assert_eq!(seconds(&path), Some(3999.0));
        assert_eq!(seconds(&dir.path().join("none")), None);
    }
}
