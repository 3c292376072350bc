//! Finished runs, one line each of a committed file: the tables and plots are made of it alone.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sae_run::atomic_file;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::columns::{self, Metrics};
use super::plan::Run;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// See [`key`].
    pub(super) key: String,
    #[serde(flatten)]
    pub(super) run: Run,
    /// Of the data set.
    pub(super) fingerprint: String,
    /// Of the plan and the method.
    pub(super) revision: String,
    /// Every number of its report, and the seconds of its training (with one thread, beside the machine's other work).
    pub(super) metrics: Metrics,
    /// Why there are no numbers: what the trainer said when it gave the run up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
    /// Seconds from its last start to its report, or those of its training where that is more.
    pub(super) wall_seconds: f64,
    /// Git revision of the source tree, with `+` if it was changed.
    pub(super) version: String,
    pub(super) machine: Machine,
}

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) cpu: String,
}

impl Machine {
    pub(super) fn this() -> Self {
        let (cpu, cores) = crate::bench::processor();
        Self { cores, cpu }
    }
}

/// Settings that change no number of a run.
const CHANGE_NOTHING: [&str; 7] = [
    "data.workers",
    "training.log_every",
    "training.keep_checkpoints",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.validate_every",
    "training.validate_rows",
];

/// What identifies a run: the first 16 digits of BLAKE3 of all that determines its numbers. Not the name of its method,
/// nor the order of its settings.
pub(super) fn key(run: &Run, fingerprint: &str, revision: &str) -> String {
    let split = |setting: &'_ str| {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        (key.trim().to_string(), value.trim().to_string())
    };
    let mut settings: BTreeMap<String, String> = run.set.iter().map(|one| split(one)).collect();
    settings.retain(|key, _| !CHANGE_NOTHING.contains(&key.as_str()));
    let Run {
        judged, data, seed, ..
    } = run;
    let all = format!("{judged:?}\n{data}\n{fingerprint}\n{revision}\n{seed}\n{settings:?}");
    blake3::hash(all.as_bytes()).to_hex()[..16].into()
}

/// The file, read.
pub(super) struct Store {
    path: PathBuf,
    records: Vec<Record>,
    /// Keys whose lines do not count: their runs are to be run again.
    forgotten: Vec<String>,
}

impl Store {
    /// Reads the file, if there is one. A last line that was not written to its end is taken away: its run counts as not run.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let records = read(path)?;
        Ok(Self {
            path: path.into(),
            records,
            forgotten: Vec::new(),
        })
    }

    /// Adds measurements that others made: `runs` of every `*.json` of a directory, by a run's key or by the name of its
    /// directory, at `/extra/FILE/...`.
    pub(super) fn merge(&mut self, dir: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(dir) else {
            return Ok(()); // nobody measured anything
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.retain(|file| file.extension().is_some_and(|end| end == "json"));
        files.sort();
        for file in files {
            let about = || format!("{}", file.display());
            let text = fs::read_to_string(&file).with_context(about)?;
            let extra: Value = serde_json::from_str(&text).with_context(about)?;
            let runs = extra["runs"].as_object();
            let runs = runs.with_context(|| format!("{}: no \"runs\": {{...}}", file.display()))?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            for (name, numbers) in runs {
                let key = name
                    .trim_end_matches('/')
                    .rsplit(['/', '-'])
                    .next()
                    .unwrap_or(name);
                for record in self.records.iter_mut().filter(|record| record.key == key) {
                    columns::flatten(numbers, &format!("/extra/{stem}"), &mut record.metrics);
                }
            }
        }
        Ok(())
    }

    /// The run of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Record> {
        let record = self.records.iter().rev().find(|record| record.key == key);
        record.filter(|_| !self.forgotten.iter().any(|forgotten| forgotten == key))
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Runs these again.
    pub(super) fn forget(&mut self, which: impl Fn(&Run) -> bool) {
        let keys = self.records.iter().filter(|record| which(&record.run));
        self.forgotten = keys.map(|record| record.key.clone()).collect();
    }

    /// Whether the run of a key is run again, although the file has it.
    pub(super) fn is_forgotten(&self, key: &str) -> bool {
        self.forgotten.iter().any(|forgotten| forgotten == key)
    }

    /// Writes a run's line, in place of the one that it may have.
    pub(super) fn add(&mut self, record: Record) -> Result<()> {
        let about = || format!("{}", self.path.display());
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).with_context(about)?;
        }
        let line = serde_json::to_string(&record)? + "\n";
        let mut others = read(&self.path)?; // as it is now: others may have written
        let before = others.len();
        others.retain(|other| other.key != record.key);
        if others.len() == before {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)
                .with_context(about)?;
            file.write_all(line.as_bytes())
                .and_then(|()| file.sync_all())
                .with_context(about)?;
        } else {
            let mut text = String::new();
            for other in &others {
                text += &(serde_json::to_string(other)? + "\n");
            }
            atomic_file::write(&self.path, (text + &line).as_bytes()).with_context(about)?;
        }
        self.forgotten.retain(|key| *key != record.key);
        self.records.retain(|other| other.key != record.key);
        self.records.push(record);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<Record>> {
    let about = || format!("{}", path.display());
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut text = fs::read_to_string(path).with_context(about)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        text.truncate(whole);
        atomic_file::write(path, text.as_bytes()).with_context(about)?;
    }
    let lines = text.lines().enumerate();
    lines
        .map(|(i, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}, line {}", path.display(), i + 1))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::results::science::plan::Judged;

    pub(in super::super) fn record(seed: u64, fvu: f64) -> Record {
        let run = Run {
            judged: Judged::Heldout,
            data: "small".into(),
            method: "topk".into(),
            steps: 20,
            n_latents: 32,
            seed,
            set: vec!["model.k=16".into(), "training.lr=0.001".into()],
            lr: Some(0.001),
        };
        Record {
            key: key(&run, "f", "1"),
            run,
            fingerprint: "f".into(),
            revision: "1".into(),
            metrics: [(columns::FVU.to_string(), fvu)].into(),
            failed: None,
            wall_seconds: 2.0,
            version: "abc".into(),
            machine: Machine {
                cores: 2,
                cpu: "x".into(),
            },
        }
    }

    #[test]
    fn a_key_is_of_what_determines_the_numbers() {
        let run = record(0, 0.5).run;
        let same = key(&run, "f", "1");
        // In runs.jsonl it must mean the same years later: this value may only change together with the file.
        assert_eq!(same, "cde6e180a531348a");
        let mut other = run.clone();
        other.set.reverse();
        other.set.insert(0, "model.k=99".into()); // overridden: the later one counts
        other.set.push("training.log_every=7".into());
        other.method = "renamed".into();
        assert_eq!(key(&other, "f", "1"), same);
        let changes: [fn(&mut Run); 4] = [
            |run| run.seed = 1,
            |run| run.judged = Judged::Validation,
            |run| run.data = "large".into(),
            |run| run.set.push("model.k=17".into()),
        ];
        for change in changes {
            let mut other = run.clone();
            change(&mut other);
            assert_ne!(key(&other, "f", "1"), same);
        }
        assert_ne!(key(&run, "g", "1"), same);
        assert_ne!(key(&run, "f", "2"), same);
    }

    #[test]
    fn a_line_cut_short_is_a_run_not_run() {
        let root = crate::results::science::tests::scratch("store");
        let path = root.join("a/runs.jsonl");
        let mut store = Store::open(&path).unwrap();
        for seed in 0..3 {
            store.add(record(seed, 0.5)).unwrap();
        }
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.records(), [record(0, 0.5), record(1, 0.5)]);
        store.add(record(2, 0.5)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        // one line a run
        store.add(record(1, 0.25)).unwrap();
        let again = Store::open(&path).unwrap();
        assert_eq!(
            again.records(),
            [record(0, 0.5), record(2, 0.5), record(1, 0.25)]
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn measurements_of_others_are_merged_by_key_or_directory() {
        let root = crate::results::science::tests::scratch("extra");
        let path = root.join("runs.jsonl");
        let mut store = Store::open(&path).unwrap();
        let (a, b) = (record(0, 0.5), record(1, 0.5));
        let extra = serde_json::json!({ "runs": {
            a.key.clone(): { "recovered": 0.98 },
            format!("runs/science/topk-k_16-{}", b.key): { "recovered": 0.97 },
            "another": { "recovered": 0.1 },
        }});
        fs::create_dir(root.join("extra")).unwrap();
        fs::write(root.join("extra/lm_loss.json"), extra.to_string()).unwrap();
        store.add(a.clone()).unwrap();
        store.add(b.clone()).unwrap();
        store.merge(&root.join("extra")).unwrap();
        let recovered = |key: &str| store.get(key).unwrap().metrics["/extra/lm_loss/recovered"];
        assert_eq!([recovered(&a.key), recovered(&b.key)], [0.98, 0.97]);
        fs::remove_dir_all(root).unwrap();
    }
}
