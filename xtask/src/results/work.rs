//! Several runs at a time, until nothing is missing or the time is over.

use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::columns::{DEAD_SHARE, FVU, L0};
use super::execute::Executor;
use super::plan::Judged;
use super::queue::{Results, Task};
use super::select::Selection;
use super::store::Record;
use crate::files::At;

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
    let mut failed = None;
    thread::scope(|scope| {
        loop {
            let elapsed = started.elapsed().as_secs_f64();
            let over = how.budget.is_some_and(|budget| elapsed >= budget);
            if failed.is_none() && !over {
                let mut ready = results.missing(&how.only).ready;
                ready.retain(|task: &Task| !running.contains(&task.record.key));
                ready.truncate(how.jobs.saturating_sub(running.len()));
                for task in ready {
                    let key = task.record.key.clone();
                    running.insert(key.clone());
                    let sender = sender.clone();
                    let run = &task.record.run;
                    let name = format!("{}, seed {}", run.method, run.seed);
                    scope.spawn(move || {
                        // Without an answer, the others would be waited for, and then this one for ever.
                        let done = catch_unwind(AssertUnwindSafe(|| executor.execute(task)));
                        let done =
                            done.unwrap_or_else(|_| bail!("the thread of this run panicked"));
                        drop(sender.send((key, done.context(name)))); // the receiver lives as long as the scope
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
                failed.get_or_insert(error);
            }
        }
    });
    let (count, time) = results.left(&how.only, how.jobs);
    if count > 0 {
        println!("{count} runs are left, about {time}; the same command goes on");
    }
    failed.map_or(Ok(()), Err)
}

/// Keeps a run's line, removes its directory, and says so.
fn finish(results: &mut Results, executor: &Executor, how: &How, record: Record) -> Result<()> {
    let dir = executor.directory(&record);
    let keep = how
        .keep
        .as_ref()
        .filter(|_| record.run.judged == Judged::Heldout);
    let leftover = !keep.is_some_and(|keep| keep.takes(&record.run)) && dir.exists();
    if leftover {
        fs::write(dir.join(LEFTOVER), "").at(&dir)?;
    }
    let said = outcome(&record);
    results.store.add(record)?;
    if leftover {
        fs::remove_dir_all(&dir).at(&dir)?;
    }
    let (count, time) = results.left(&how.only, how.jobs);
    println!("{said}; {count} to go, ETA {time}");
    Ok(())
}

/// Removes the directories of runs whose lines were kept by a process that was killed right then.
fn remove_leftovers(results: &Results, executor: &Executor) -> Result<()> {
    for dir in results
        .store
        .records()
        .iter()
        .map(|record| executor.directory(record))
    {
        if dir.join(LEFTOVER).exists() {
            fs::remove_dir_all(&dir).at(&dir)?;
        } else {
            let _ = fs::remove_dir(&dir); // empty, if a kill came at the end of its removal
        }
    }
    Ok(())
}

fn outcome(record: &Record) -> String {
    let run = &record.run;
    let number = |at: &str| record.number(at).unwrap_or(f64::NAN);
    let numbers = record.failed.clone().unwrap_or_else(|| {
        let (fvu, l0, dead) = (number(FVU), number(L0), 100.0 * number(DEAD_SHARE));
        format!("FVU {fvu:.4} L0 {l0:.1} dead {dead:.1} %")
    });
    let lr = run.lr.map_or(String::new(), |lr| format!(" lr {lr}"));
    let split = match run.judged {
        Judged::Validation => " (validation)",
        Judged::Heldout => "",
    };
    format!(
        "{} {} steps M {} {}{lr} seed {}{split}: {numbers}, {:.0} s",
        run.data, run.steps, run.n_latents, run.method, run.seed, record.wall_seconds
    )
}
