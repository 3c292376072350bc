//! Several runs at a time, until nothing is missing or the time is over.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::execute::{Executor, Task};
use super::plan::{Judged, Run};
use super::queue::{Missing, Results, duration};
use super::select::Selection;
use super::store::Record;

/// In a directory that goes as soon as its run's line is kept: whoever is killed in between leaves it to the next.
const LEFTOVER: &str = "kept_as_a_line";

/// How the missing runs are worked off.
pub(super) struct How {
    /// Runs at a time.
    pub(super) jobs: usize,
    /// Seconds after which no run is started.
    pub(super) budget: Option<f64>,
    pub(super) only: Selection,
    /// Runs whose directories stay.
    pub(super) keep: Option<Selection>,
}

/// Runs what is missing. The first run that cannot be done ends it, when those that are on their way have come home.
pub(super) fn work(results: &mut Results, executor: &Executor, how: &How) -> Result<()> {
    let started = Instant::now();
    remove_leftovers(results, executor)?;
    let (sender, receiver) = mpsc::channel();
    let mut running: HashSet<String> = HashSet::new();
    let mut failed: Result<()> = Ok(());
    thread::scope(|scope| {
        loop {
            let over = how
                .budget
                .is_some_and(|budget| started.elapsed().as_secs_f64() >= budget);
            if failed.is_ok() && !over {
                let free = how.jobs.saturating_sub(running.len());
                let ready = results.missing(&how.only).ready.into_iter();
                let next: Vec<Task> = ready
                    .filter(|task| !running.contains(&task.key))
                    .take(free)
                    .collect();
                for task in next {
                    running.insert(task.key.clone());
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let done = executor.execute(&task);
                        // the receiver lives as long as the scope
                        let _ = sender.send((task.key, done));
                    });
                }
            }
            if running.is_empty() {
                break;
            }
            let Ok((key, done)) = receiver.recv() else {
                break;
            };
            running.remove(&key);
            if let Err(error) = done.and_then(|record| finish(results, executor, how, record)) {
                eprintln!("error: {error:#}; what runs is waited for, nothing else is started");
                if failed.is_ok() {
                    failed = Err(error);
                }
            }
        }
    });
    let left = results.missing(&how.only);
    let count = left.ready.len() + left.waiting.len();
    if count > 0 {
        println!(
            "{count} runs are left, about {}; the same command goes on",
            remaining(results, &left, how.jobs)
        );
    }
    failed
}

/// Keeps a run's line, removes its directory, and says so.
fn finish(results: &mut Results, executor: &Executor, how: &How, record: Record) -> Result<()> {
    let dir = executor.directory(&record.run, &record.key);
    let kept = record.run.judged == Judged::Heldout
        && how
            .keep
            .as_ref()
            .is_some_and(|keep| keep.takes(&record.run));
    let said = outcome(&record);
    let leftover = !kept && dir.exists();
    if leftover {
        let mark = dir.join(LEFTOVER);
        fs::write(&mark, "").with_context(|| format!("writing {}", mark.display()))?;
    }
    results.store.add(record)?;
    if leftover {
        remove(&dir)?;
    }
    let left = results.missing(&how.only);
    let count = left.ready.len() + left.waiting.len();
    println!(
        "{said}; {count} to go, ETA {}",
        remaining(results, &left, how.jobs)
    );
    Ok(())
}

/// Removes the directories of runs whose lines were kept by a process that was killed right then.
fn remove_leftovers(results: &Results, executor: &Executor) -> Result<()> {
    for record in results.store.records() {
        let dir = executor.directory(&record.run, &record.key);
        if dir.join(LEFTOVER).exists() {
            remove(&dir)?;
        } else {
            let _ = fs::remove_dir(&dir); // empty, if a kill came at the end of its removal
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
}

fn outcome(record: &Record) -> String {
    let Run {
        judged,
        data,
        method,
        steps,
        n_latents,
        seed,
        lr,
        ..
    } = &record.run;
    let number = |at: &str| record.metrics.get(at).copied().unwrap_or(f64::NAN);
    let lr = lr.map_or(String::new(), |lr| format!(" lr {lr}"));
    let numbers = match &record.failed {
        Some(failed) => failed.clone(),
        None => format!(
            "FVU {:.4} L0 {:.1} dead {:.1} %",
            number(super::columns::FVU),
            number(super::columns::L0),
            100.0 * number(super::columns::DEAD_SHARE)
        ),
    };
    let split = match judged {
        Judged::Validation => " (validation)",
        Judged::Heldout => "",
    };
    format!(
        "{data} {steps} steps M {n_latents} {method}{lr} seed {seed}{split}: {numbers}, {:.0} s",
        record.wall_seconds
    )
}

fn remaining(results: &Results, left: &Missing, jobs: usize) -> String {
    let ready = left.ready.iter().map(|task| &task.run);
    let seconds: f64 = ready
        .chain(&left.waiting)
        .map(|run| results.seconds(run))
        .sum();
    duration(seconds / jobs as f64)
}
