//! One run: the config, the trainer, the evaluation, and the line that is kept of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sae_run::{RunDir, sealed};
use serde_json::Value;

use super::columns::{self, SECONDS};
use super::queue::Task;
use super::store::{Record, Store};
use crate::files::At;
use crate::programs;

/// Exit codes of sae-train by which a run itself has gone wrong (NaN, a collapse), so that it would again.
const OWN_FAULT: std::ops::RangeInclusive<i32> = 10..=19;
/// Another process works in the run directory: the trainer of a command that was killed goes on alone.
const IN_USE: i32 = 6;

/// The binaries, and the directory of the runs.
pub(crate) struct Executor {
    train: PathBuf,
    eval: PathBuf,
    dir: PathBuf,
    /// Threads of each run; they change no number on a CPU.
    threads: String,
}

impl Executor {
    /// Builds the binaries, which run with so many `threads`; the evaluation runs the rest of a model only if one is
    /// `through_a_tail`.
    pub(crate) fn new(dir: &Path, threads: usize, through_a_tail: bool) -> Result<Self> {
        Ok(Self {
            train: programs::build("sae-train")?,
            eval: programs::build_with("sae-eval", through_a_tail.then_some("tail"))?,
            dir: dir.into(),
            threads: threads.to_string(),
        })
    }

    /// The first 16 digits of BLAKE3 of both binaries.
    pub(crate) fn programs(&self) -> Result<String> {
        let sum = |path: &PathBuf| sealed::checksum(path).at(path);
        let sums = sum(&self.train)? + &sum(&self.eval)?;
        Ok(blake3::hash(sums.as_bytes()).to_hex()[..16].into())
    }

    /// The directory of a run; its key stands at the end.
    pub(super) fn directory(&self, Record { run, key, .. }: &Record) -> PathBuf {
        let (data, method, judged) = (&run.data, &run.method, run.judged.name());
        let name = format!(
            "{data}-{}-{}-{method}-{judged}-seed_{}-{key}",
            run.steps, run.n_latents, run.seed
        );
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        self.dir.join(name.replace(|c| !is_plain(c), "_"))
    }

    /// Takes runs out of a store, and removes their directories.
    pub(super) fn forget(&self, store: &mut Store, which: impl Fn(&Record) -> bool) -> Result<()> {
        let dirs = store
            .forget(which)
            .into_iter()
            .map(|record| self.directory(&record));
        dirs.filter(|dir| dir.exists())
            .try_for_each(|dir| fs::remove_dir_all(&dir).at(&dir))
    }

    /// Trains and evaluates, from where it was stopped.
    pub(super) fn execute(&self, task: Task) -> Result<Record> {
        let started = Instant::now();
        let dir = self.directory(&task.record);
        // It is needed until training is done.
        let config = self.dir.join(format!("{}.toml", task.record.key));
        let mut record = task.record;
        if !RunDir::new(&dir).model().exists() {
            fs::create_dir_all(&self.dir).at(&self.dir)?;
            fs::write(&config, task.data.config(record.run.judged)?).at(&config)?;
            record.failed = self.train(&record, &config, &dir)?;
        }
        if record.failed.is_none() {
            let mut command = Command::new(&self.eval);
            command.arg(&dir).arg("--no-untrained");
            programs::finish(command.args(["--threads", &self.threads]))?;
            let report = programs::report(&dir)?;
            record.metrics = columns::of_report(&report);
            record.notes = columns::notes(&report);
            let training = programs::records(&dir).unwrap_or_default();
            record.metrics.extend(columns::of_training(&training));
        }
        let _ = fs::remove_file(&config);
        let provenance: Value = RunDir::new(&dir).read_provenance().unwrap_or_default();
        record.version = provenance["git_revision"]
            .as_str()
            .unwrap_or("unknown")
            .into();
        let trained = record.number(SECONDS).unwrap_or_default();
        record.wall_seconds = started.elapsed().as_secs_f64().max(trained);
        Ok(record)
    }

    /// Trains; the trainer's last words if the run has gone wrong.
    fn train(&self, record: &Record, config: &Path, dir: &Path) -> Result<Option<String>> {
        let seed = format!("seed={}", record.run.seed);
        let settings = record.run.set.iter().chain([&seed]).map(String::as_str);
        let mut command = programs::training(&self.train, config, settings, dir);
        command.args(["--plain", "--threads", &self.threads]);
        loop {
            let output = programs::run(&mut command)?;
            match output.status.code() {
                Some(IN_USE) => thread::sleep(Duration::from_secs(2)),
                Some(code) if OWN_FAULT.contains(&code) => {
                    let words = programs::last_words(&output);
                    return Ok(Some(format!("exit code {code}: {words}")));
                }
                _ => return programs::succeeded(&command, &output).map(|()| None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::store::tests::record;

    fn executor(dir: &Path) -> Executor {
        Executor {
            train: "train".into(),
            eval: "eval".into(),
            dir: dir.into(),
            threads: "1".into(),
        }
    }

    #[test]
    fn runs_of_other_programs_are_forgotten() {
        let dir = crate::results::tests::scratch("programs");
        let executor = executor(&dir);
        let path = dir.join("runs.jsonl");
        let by = |programs: &str| {
            let mut store = Store::open(&path).unwrap();
            executor
                .forget(&mut store, |record| record.revision != programs)
                .unwrap();
            let mut of = record(0, 0.5);
            of.revision = programs.into();
            let run = executor.directory(&of);
            let known = store.get(&of.key).is_some();
            assert_eq!(known, run.exists());
            fs::create_dir_all(&run).unwrap();
            store.add(of).unwrap();
            known
        };
        assert_eq!(["1", "1", "2", "2"].map(by), [false, true, false, true]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn settings_make_distinct_names_of_one_directory() {
        let executor = executor("runs".as_ref());
        let mut a = record(1, 0.5);
        let name = executor.directory(&a);
        let expected = format!("runs/small-20-32-topk-heldout-seed_1-{}", a.key);
        assert_eq!(name, Path::new(&expected));
        assert_ne!(name, executor.directory(&record(2, 0.5)));
        a.run.method = "run=\"../y\", k = 1".into();
        let name = executor.directory(&a);
        assert_eq!(name.parent(), Some("runs".as_ref()));
        assert!(name.to_str().unwrap().contains("-run__.._y___k___1-"));
    }
}
