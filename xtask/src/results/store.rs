//! Finished runs, one line each of a file: the tables and plots are made of it alone.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sae_run::atomic_file;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::columns::{self, FVU, FVU_AT_32, L0, Metrics};
use super::numbers::SLOPE;
use super::plan::Run;
use crate::files::{At, entries};

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// See [`key`].
    pub(super) key: String,
    #[serde(flatten)]
    pub(crate) run: Run,
    /// Fingerprint of the data set.
    pub(super) fingerprint: String,
    /// Revision of the plan and the method.
    pub(super) revision: String,
    /// Every number of its report, and those of its training (with one thread, beside the machine's other work).
    pub(super) metrics: Metrics,
    /// Why there are no numbers: what the trainer said when it gave the run up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
    /// The warnings of its report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
    /// Seconds from its last start to its report, or those of its training where that is more.
    pub(super) wall_seconds: f64,
    /// Git revision of the source tree, with `+` if it was changed.
    pub(crate) version: String,
    pub(super) machine: Machine,
}

impl Record {
    /// A number by its pointer.
    pub(crate) fn number(&self, at: &str) -> Option<f64> {
        match at {
            FVU_AT_32 => Some(self.number(FVU)? * (self.number(L0)? / 32.0).powf(SLOPE)),
            at => self.metrics.get(at).copied(),
        }
    }
}

/// The machine that a run was done on.
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
pub(crate) const CHANGE_NOTHING: [&str; 7] = [
    "data.workers",
    "training.log_every",
    "training.keep_checkpoints",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.validate_every",
    "training.validate_rows",
];

/// The key of a run: the first 16 digits of BLAKE3 of all that determines its numbers; without the name of its
/// method and the order of its settings.
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
}

impl Store {
    /// Reads the file, if there is one. A last line that was not written to its end is taken away: its run counts as not run.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let records = read(path)?;
        Ok(Self {
            path: path.into(),
            records,
        })
    }

    /// Adds measurements that others made: `runs` of every `*.json` of a directory, by a run's key or by the name of its
    /// directory, at `/extra/FILE/...`.
    pub(super) fn merge(&mut self, dir: &Path) -> Result<()> {
        if !dir.exists() {
            return Ok(()); // nobody measured anything
        }
        let is_json = |file: &PathBuf| file.extension().is_some_and(|end| end == "json");
        for file in entries(dir)?.into_iter().filter(is_json) {
            let extra: Value =
                serde_json::from_str(&fs::read_to_string(&file).at(&file)?).at(&file)?;
            let runs = extra["runs"].as_object();
            let runs = runs.context("no \"runs\": {...}").at(&file)?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            for (name, numbers) in runs {
                let mut parts = name.trim_end_matches('/').rsplit(['/', '-']);
                let key = parts.next().unwrap_or(name);
                for record in self.records.iter_mut().filter(|record| record.key == key) {
                    columns::flatten(numbers, &format!("/extra/{stem}"), &mut record.metrics);
                }
            }
        }
        Ok(())
    }

    /// The run of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Record> {
        self.records.iter().rev().find(|record| record.key == key)
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Takes runs out, so that they are run again; their lines stay until then.
    pub(super) fn forget(&mut self, mut which: impl FnMut(&Record) -> bool) -> Vec<Record> {
        self.records
            .extract_if(.., |record| which(record))
            .collect()
    }

    /// Writes a run's line, in place of the one that it may have.
    pub(super) fn add(&mut self, record: Record) -> Result<()> {
        let path = &self.path;
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).at(dir)?;
        }
        let line = |record| Ok(serde_json::to_string(record)? + "\n");
        let mut others = read(path)?; // as it is now: others may have written
        let before = others.len();
        others.retain(|other| other.key != record.key);
        if others.len() == before {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .at(path)?;
            file.write_all(line(&record)?.as_bytes()).at(path)?;
            file.sync_all().at(path)?;
        } else {
            let lines = others.iter().chain([&record]).map(line);
            let text = lines.collect::<Result<String>>()?;
            atomic_file::write(path, text.as_bytes()).at(path)?;
        }
        self.records.retain(|other| other.key != record.key);
        self.records.push(record);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut text = fs::read_to_string(path).at(path)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        text.truncate(whole);
        atomic_file::write(path, text.as_bytes()).at(path)?;
    }
    let record = |(i, line)| {
        let about = || format!("{}, line {}", path.display(), i + 1);
        serde_json::from_str(line).with_context(about)
    };
    text.lines().enumerate().map(record).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::results::plan::Judged;

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
            notes: Vec::new(),
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
        let root = crate::results::tests::scratch("store");
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
        // one line per run
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
        let root = crate::results::tests::scratch("extra");
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
