//! One run: the config, the trainer, the evaluation, and the line that is kept of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sae_run::RunDir;

use super::columns::{self, Metrics, SECONDS};
use super::plan::{Data, Run};
use super::store::{Machine, Record};
use crate::programs;

/// Exit codes of sae-train by which a run itself has gone wrong (NaN, a collapse), so that it would again.
const OWN_FAULT: std::ops::RangeInclusive<i32> = 10..=19;
/// Another process works in the run directory: the trainer of a command that was killed goes on alone.
const IN_USE: i32 = 6;

/// The binaries, the directory of the runs, and what is the same for all of their lines.
pub(super) struct Executor {
    pub(super) train: PathBuf,
    pub(super) eval: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) version: String,
    pub(super) machine: Machine,
}

/// A run with what it needs.
pub(super) struct Task<'a> {
    pub(super) run: Run,
    pub(super) key: String,
    pub(super) revision: String,
    pub(super) fingerprint: String,
    pub(super) data: &'a Data,
    /// Whether to begin anew where there is a directory.
    pub(super) afresh: bool,
}

impl Executor {
    /// The directory of a run; its key stands at the end.
    pub(super) fn directory(&self, run: &Run, key: &str) -> PathBuf {
        let Run {
            judged,
            data,
            method,
            steps,
            n_latents,
            seed,
            ..
        } = run;
        let judged = format!("{judged:?}").to_lowercase();
        self.dir.join(format!(
            "{data}-{steps}-{n_latents}-{method}-{judged}-seed_{seed}-{key}"
        ))
    }

    /// Trains and evaluates with one thread, from where it was stopped.
    pub(super) fn execute(&self, task: &Task) -> Result<Record> {
        let started = Instant::now();
        let dir = self.directory(&task.run, &task.key);
        if task.afresh && dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        let failed = if RunDir::new(&dir).model().exists() {
            None
        } else {
            self.train(task, &dir)?
        };
        let metrics = match failed {
            None => self.evaluate(&dir)?,
            Some(_) => Metrics::new(),
        };
        // Not there where an earlier process has trained to the end.
        let _ = fs::remove_file(config_of(&dir));
        let trained = metrics.get(SECONDS).copied().unwrap_or_default();
        Ok(Record {
            key: task.key.clone(),
            run: task.run.clone(),
            fingerprint: task.fingerprint.clone(),
            revision: task.revision.clone(),
            metrics,
            failed,
            wall_seconds: started.elapsed().as_secs_f64().max(trained),
            version: self.version.clone(),
            machine: self.machine.clone(),
        })
    }

    /// Trains; what the trainer said where the run has gone wrong.
    fn train(&self, task: &Task, dir: &Path) -> Result<Option<String>> {
        let config = config_of(dir);
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("creating {}", self.dir.display()))?;
        fs::write(&config, task.data.config(task.run.judged)?)
            .with_context(|| format!("{}", config.display()))?;
        let seed = format!("seed={}", task.run.seed);
        let settings = task.run.set.iter().chain([&seed]).map(String::as_str);
        let mut command = programs::training(&self.train, &config, settings, dir);
        command.args(["--plain", "--threads", "1"]);
        loop {
            let output = programs::run(&mut command)?;
            match output.status.code() {
                Some(IN_USE) => thread::sleep(Duration::from_secs(2)),
                Some(code) if OWN_FAULT.contains(&code) => {
                    return Ok(Some(programs::last_words(&output)));
                }
                _ => return programs::succeeded(&command, &output).map(|()| None),
            }
        }
    }

    /// The numbers of a trained run.
    fn evaluate(&self, dir: &Path) -> Result<Metrics> {
        let mut command = Command::new(&self.eval);
        command.arg(dir).args(["--no-untrained", "--threads", "1"]);
        programs::finish(&mut command)?;
        let mut metrics = columns::of_report(&programs::report(dir)?);
        metrics.extend(training_seconds(dir).map(|seconds| (SECONDS.to_string(), seconds)));
        Ok(metrics)
    }
}

/// The config of a run, beside its directory.
fn config_of(dir: &Path) -> PathBuf {
    let mut path = dir.as_os_str().to_owned();
    path.push(".toml");
    path.into()
}

/// Seconds at the last line of `metrics.jsonl`, over all continuations.
fn training_seconds(dir: &Path) -> Option<f64> {
    programs::records(dir).ok()?.last()?["seconds"].as_f64()
}

/// Commit of the source tree, with `+` if what is tracked was changed.
pub(super) fn version() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "*.rs",
        "*.toml",
        "Cargo.lock",
    ]);
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(commit) if changed.as_deref() == Some("") => commit,
        Some(commit) => commit + "+",
        None => "unknown".into(),
    }
}
