//! `cargo xtask results`: tables and plots, from runs that it starts itself.
//!
//! A *plan* (`plan.rs`, `data.rs`) says what is run and shown. Each table of `docs/results.toml` is one; `--science` takes
//! `docs/science.toml` instead: every method on every data set, at every length and width, three seeds. Each finished run
//! becomes one line of `runs.jsonl` (`store.rs`), by a key of all that determines its numbers, and is not run again: twelve
//! hours of runs can be done on several days and machines. Runs are started in an order in which a part of them is useful
//! (`queue.rs`, `work.rs`, `execute.rs`). Tables and plots come from that file alone (`columns.rs`, `tables.rs`,
//! `figures.rs`, `../plot.rs`); they stand between two comments of the document that shows them (`document.rs`).

pub(crate) mod columns;
pub(crate) mod data;
mod document;
pub(crate) mod execute;
mod figures;
pub(crate) mod numbers;
pub(crate) mod plan;
pub(crate) mod queue;
mod select;
pub(crate) mod store;
pub(crate) mod tables;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::files::At;
use crate::plot;
use execute::Executor;
use plan::Plan;
use queue::Results;
use select::Selection;
use work::{How, work};

/// The options of `cargo xtask results`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The plan. Default: docs/results.toml, or docs/science.toml.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Only these tables; default: all whose data is there. With --science, only the runs of which this holds: data=NAME,
    /// method=NAME, steps=N, n_latents=M, seed=S, split=validation or heldout; several on one field are alternatives.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where a data set of the plan lies that the repository does not ship, for example
    /// --data tokens=data/wordnet-tokens; may be repeated. With --science, a directory that holds train, validation and heldout,
    /// each a directory or one file (train.safetensors).
    #[arg(long, value_name = "NAME=PATH")]
    data: Vec<String>,
    /// Seeds, instead of the plan's.
    #[arg(long, value_delimiter = ',', conflicts_with = "science")]
    seeds: Vec<u64>,
    /// Overrides for every run, for example --set training.steps=20 to try the command; the documents are then left alone.
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "science")]
    set: Vec<String>,
    /// Directory of the runs; they are kept, those of --science only if told by --keep. Default: runs/results, or runs/science.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print the tables, and change no document.
    #[arg(long)]
    print: bool,
    /// Runs at a time, each with one thread. Default: one for each processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Run docs/science.toml instead, and write its tables and plots.
    #[arg(long)]
    science: bool,
    /// With --science: the plan docs/science_short.toml in a minute, from the beginning; prints only.
    #[arg(long, requires = "science")]
    short: bool,
    /// With --science: run nothing, only write tables and plots from the runs that are there.
    #[arg(long, requires = "science")]
    render: bool,
    /// With --science: start no run after so many minutes.
    #[arg(long, requires = "science", value_name = "T")]
    budget_minutes: Option<f64>,
    /// With --science: keep the directories of these table runs (conditions as for --only); others are removed when finished.
    #[arg(
        long,
        requires = "science",
        value_delimiter = ',',
        value_name = "FIELD=VALUE"
    )]
    keep: Vec<String>,
    /// With --science: run again what is there already; best with --only.
    #[arg(long, requires = "science", conflicts_with = "render")]
    rerun: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { science, short, .. } = *arguments;
    let [file, dir] = match (science, short) {
        (false, _) => ["docs/results.toml", "runs/results"],
        (true, false) => ["docs/science.toml", "runs/science"],
        (true, true) => ["docs/science_short.toml", "runs/science-short"],
    };
    let file = arguments.plan.as_deref().unwrap_or(file.as_ref());
    let dir = arguments.dir.as_deref().unwrap_or(dir.as_ref());
    if short && dir.exists() {
        fs::remove_dir_all(dir).at(dir)?;
    }
    // The lines of --science are kept beside the plan, in a directory of its name.
    let kept = match science && !short {
        true => file.with_extension(""),
        false => dir.into(),
    };
    let plans = plans(arguments, file)?;
    let how = how(arguments)?;
    for mut plan in plans {
        let executor = match arguments.render {
            true => None,
            false => Some(Executor::new(dir, 1, plan.goes_through_a_tail())?),
        };
        if let Some(executor) = executor.as_ref().filter(|_| !science) {
            plan.revision = executor.programs()?;
        }
        make(arguments, &plan, executor.as_ref(), &how, &kept)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The plans of a file, as the arguments choose and change them. What cannot be run without `--data` is named and left
/// out, unless it was asked for.
fn plans(arguments: &Arguments, file: &Path) -> Result<Vec<Plan>> {
    let (science, only) = (arguments.science, &arguments.only);
    let mut plans = match science {
        true => vec![Plan::read(file)?],
        false => Plan::read_tables(file, &arguments.seeds)?,
    };
    if !science {
        let names: Vec<&String> = plans.iter().map(|plan| &plan.name).collect();
        if let Some(name) = only.iter().find(|name| !names.contains(name)) {
            bail!("--only {name}: no such table; the plan has {names:?}");
        }
        plans.retain(|plan| only.is_empty() || only.contains(&plan.name));
    }
    for plan in &mut plans {
        plan.place(&arguments.data)?;
        plan.override_with(&arguments.set);
        for (name, data) in plan.unplaced().filter(|_| !arguments.render) {
            let how = format!("pass --data {name}=PATH ({})", data.how);
            if !science && !only.is_empty() {
                bail!("{}: {how}", plan.name);
            }
            println!("{}: runs on {name} are left out; {how}", plan.name);
        }
    }
    plans.retain(|plan| science || plan.unplaced().next().is_none());
    Ok(plans)
}

/// How the arguments want the runs to be worked off. Those of tables are all wanted, and all kept.
fn how(arguments: &Arguments) -> Result<How> {
    let (mut only, mut keep) = (Selection::default(), Some(Selection::default()));
    if arguments.science {
        only = Selection::parse("--only", &arguments.only)?;
        let selected = Selection::parse("--keep", &arguments.keep)?;
        keep = (!arguments.keep.is_empty()).then_some(selected);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(How {
        jobs: arguments.jobs.map_or(cores, |jobs| jobs as usize),
        budget: arguments.budget_minutes.map(|minutes| 60.0 * minutes),
        only,
        keep,
    })
}

/// Runs what is missing of a plan, `jobs` at a time, with its lines in the directory `dir`, and keeps the run directories. Runs
/// of other programs count as missing.
pub(crate) fn all_of<'a>(
    plan: &'a Plan,
    executor: &Executor,
    jobs: usize,
    dir: &Path,
) -> Result<Results<'a>> {
    let mut results = Results::open(plan, &dir.join("runs.jsonl"))?;
    executor.forget(&mut results.store, |record| {
        record.revision != plan.revision
    })?;
    let how = How {
        jobs,
        budget: None,
        only: Selection::default(),
        keep: Some(Selection::default()),
    };
    work(&mut results, executor, &how)?;
    Ok(results)
}

/// Runs what is missing of a plan, with its lines in the directory `kept`, and writes its tables and plots.
fn make(
    arguments: &Arguments,
    plan: &Plan,
    executor: Option<&Executor>,
    how: &How,
    kept: &Path,
) -> Result<()> {
    let mut results = Results::open(plan, &kept.join("runs.jsonl"))?;
    let worked = match executor {
        Some(executor) => {
            // A table must not mix the numbers of two recipes.
            executor.forget(&mut results.store, |record| {
                let is_stale = !record.revision.starts_with(&plan.revision);
                let is_unwanted = arguments.rerun && how.only.takes(&record.run);
                let is_own = !plan.cells(&record.run.data).is_empty();
                is_unwanted || (is_stale && is_own && !arguments.science)
            })?;
            work(&mut results, executor, how)
        }
        None => Ok(()),
    };
    if !arguments.science {
        worked?;
        return show(arguments, plan, &tables::plain(&results));
    }
    results.store.merge(&kept.join("extra"))?;
    let text = science(&results, kept, arguments.print)?;
    show(arguments, plan, &text)?;
    worked
}

/// The tables of `--science`; its plots are written beside the lines of the runs.
fn science(results: &Results, kept: &Path, print: bool) -> Result<String> {
    let mut text = String::new();
    for (name, data) in &results.plan.data {
        let table = tables::data_set(results, name);
        if table.is_empty() {
            continue;
        }
        text += &format!("### {}\n\n{table}", data.title);
        for plot in figures::of_data_set(results, name) {
            let (path, svg) = (kept.join(&plot.file), plot::svg(&plot));
            if !print && fs::read_to_string(&path).ok().as_ref() != Some(&svg) {
                fs::write(&path, &svg).at(&path)?;
            }
            let dir = kept.file_name().unwrap_or_default().to_string_lossy();
            text += &format!("![{}]({dir}/{})\n\n", plot.title, plot.file);
        }
    }
    Ok(text + &tables::state(results))
}

/// Writes a table into the documents of the plan, or prints it.
fn show(arguments: &Arguments, plan: &Plan, table: &str) -> Result<()> {
    if arguments.print || !arguments.set.is_empty() || plan.files.is_empty() {
        println!("\n{}\n\n{table}", plan.name);
        return Ok(());
    }
    let mut files = plan.files.iter();
    files.try_for_each(|file| document::replace(file, &plan.name, table))
}

#[cfg(test)]
mod tests;
