//! `cargo xtask results --science`: every method on every data set, at every length and width, three seeds.
//!
//! The plan is `docs/science.toml` (`plan.rs`, `data.rs`). Each finished run becomes one line of `docs/science/runs.jsonl`
//! (`store.rs`), by a key of all that determines its numbers, and is not run again: twelve hours of runs can be done on several days
//! and machines. Runs are started in an order in which a part of them is useful (`queue.rs`, `execute.rs`). Tables and
//! plots come from that file alone (`columns.rs`, `tables.rs`, `figures.rs`, `plot.rs`).

mod columns;
mod data;
mod execute;
mod figures;
mod plan;
mod plot;
mod queue;
mod select;
mod store;
mod tables;
mod work;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::document;
use crate::programs::build;
use execute::Executor;
use plan::Plan;
use queue::Results;
use select::Selection;
use store::{Machine, Store};

/// Options of `--science` alone.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Run docs/science.toml instead, and write its tables and plots. --only then takes conditions: data=NAME, method=NAME,
    /// steps=N, n_latents=M, seed=S, split=validation or heldout; several on one field are alternatives.
    #[arg(long)]
    pub(super) science: bool,
    /// With --science: the plan docs/science_short.toml in a minute, from the beginning; prints only.
    #[arg(long, requires = "science")]
    short: bool,
    /// With --science: run nothing, only write tables and plots from the runs that are there.
    #[arg(long, requires = "science")]
    render: bool,
    /// With --science: runs at a time, each with one thread. Default: one for each processor.
    #[arg(long, requires = "science", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
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

/// The table's name in the documents.
const TABLE: &str = "science";

/// Runs what is missing, then writes tables and plots.
pub(super) fn run(arguments: &super::Arguments) -> Result<()> {
    let options = &arguments.options;
    if !arguments.set.is_empty() || !arguments.seeds.is_empty() {
        bail!(
            "--set and --seeds are not for --science: what determines its runs stands in the plan"
        );
    }
    let short = options.short;
    let plan_file = match (&arguments.plan, short) {
        (Some(plan), _) => plan.clone(),
        (None, false) => "docs/science.toml".into(),
        (None, true) => "docs/science_short.toml".into(),
    };
    let dir = arguments.dir.clone();
    let dir = dir.unwrap_or_else(|| {
        if short {
            "runs/science-short"
        } else {
            "runs/science"
        }
        .into()
    });
    if short && dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    // The runs are kept beside the plan, in a directory of its name.
    let kept = if short {
        dir.clone()
    } else {
        plan_file.with_extension("")
    };
    let mut plan = Plan::read(&plan_file)?;
    plan.place(&arguments.data)?;
    let store = Store::open(&kept.join("runs.jsonl"))?;
    let fingerprints = fingerprints(&plan, &store)?;
    let mut results = Results {
        plan: &plan,
        store,
        fingerprints,
    };
    let worked = match options.render {
        true => Ok(()),
        false => start(arguments, dir, &mut results),
    };
    results.store.merge(&kept.join("extra"))?;
    write(&results, &kept, arguments.print)?;
    worked
}

/// Runs what is missing.
fn start(arguments: &super::Arguments, dir: PathBuf, results: &mut Results) -> Result<()> {
    let options = &arguments.options;
    let only = Selection::parse("--only", &arguments.only)?;
    let keep = Selection::parse("--keep", &options.keep)?;
    for (name, data) in results
        .plan
        .data
        .iter()
        .filter(|(_, data)| !data.is_placed())
    {
        println!(
            "{name}: its runs are left out; pass --data {name}=DIR ({})",
            data.how
        );
    }
    if options.rerun {
        results.store.forget(|run| only.takes(run));
    }
    let (version, machine) = (execute::version(), Machine::this());
    let jobs = options.jobs.map_or(machine.cores, |jobs| jobs as usize);
    let executor = Executor {
        train: build("sae-train")?,
        eval: build("sae-eval")?,
        dir,
        version,
        machine,
    };
    let keep = (!options.keep.is_empty()).then_some(keep);
    let budget = options.budget_minutes.map(|minutes| 60.0 * minutes);
    work::work(
        results,
        &executor,
        &work::How {
            jobs,
            budget,
            only,
            keep,
        },
    )
}

/// Of the data sets at hand; of others that of their newest run.
fn fingerprints(plan: &Plan, store: &Store) -> Result<BTreeMap<String, String>> {
    let mut fingerprints = BTreeMap::new();
    for (name, data) in &plan.data {
        if data.is_placed() {
            let print = data
                .fingerprint()
                .with_context(|| format!("data set {name}"))?;
            fingerprints.insert(name.clone(), print);
        } else if let Some(last) = store
            .records()
            .iter()
            .rev()
            .find(|record| record.run.data == *name)
        {
            fingerprints.insert(name.clone(), last.fingerprint.clone());
        }
    }
    Ok(fingerprints)
}

/// Writes the plots beside the runs and the tables into the documents, or prints the tables.
fn write(results: &Results, kept: &Path, print: bool) -> Result<()> {
    let mut tables = String::new();
    for (name, data) in &results.plan.data {
        let table = tables::data_set(results, name);
        if table.is_empty() {
            continue;
        }
        let _ = write!(tables, "### {}\n\n{table}", data.title);
        for figure in figures::of_data_set(results, name) {
            let path = kept.join(&figure.file);
            let changed = fs::read_to_string(&path).ok().as_ref() != Some(&figure.svg);
            if changed && !print {
                fs::write(&path, &figure.svg).with_context(|| format!("{}", path.display()))?;
            }
            let dir = kept.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(tables, "![{}]({dir}/{})\n\n", figure.title, figure.file);
        }
    }
    tables += &state(results);
    if print || results.plan.files.is_empty() {
        println!("\n{tables}");
        return Ok(());
    }
    for file in &results.plan.files {
        document::replace(file, TABLE, &tables)?;
    }
    Ok(())
}

/// How to read the tables, and how much of the plan has been run.
fn state(results: &Results) -> String {
    let (mut done, mut all) = (0, 0);
    for name in results.plan.data.keys() {
        for cell in results.plan.cells(name) {
            let choice = cell.choice(results.plan);
            let chosen = results.chosen(&cell);
            let table = cell.runs(results.plan, chosen.flatten());
            all += choice.len() + table.len();
            done += choice
                .iter()
                .filter(|run| results.get(run).is_some())
                .count();
            if chosen.is_some() {
                done += table
                    .iter()
                    .filter(|run| results.get(run).is_some())
                    .count();
            }
        }
    }
    format!(
        "Mean ± standard deviation over the seeds. Numbers at equal L0 are interpolated between neighbouring runs of a seed (FVU: in log FVU over log L0); \
         \"-\": out of their range, or not run. \"below\" and \"above\" compare seed by seed with the method's better variant, with or without a pre-bias. Learning rates are chosen with \
         seed {} at one sparsity. {done} of {all} runs of the plan are done.\n",
        results.plan.choice_seed
    )
}

#[cfg(test)]
mod tests;
