//! `sae-eval compare`: several runs beside each other, as `compare.json` and `compare.html` (docs/REPORT.md).
//!
//! It reads what the runs left: reports, configs, records of training, and the decoders of their models. It reads no data.

mod assemble;
pub(crate) mod data;
mod front;
mod measures;
mod opened;
mod recipes;
pub(crate) mod stability;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use sae_run::{RunDir, atomic_file};

use crate::cli;
use crate::page;
use crate::page::text::counted;
use data::{Comparison, LeftOut};
use opened::Opened;

/// Compare several runs by their reports, and how much of a dictionary comes back with another seed.
///
/// Writes compare.html and compare.json. Each RUN is a run directory with a report (sae-eval RUN makes it), or a directory of
/// runs; what is neither is said and left out.
///
/// Exit codes: 0 done; 1 the comparison could not be written; 2 there are not two runs to compare.
#[derive(Args, Debug)]
pub(crate) struct CompareArguments {
    /// Run directories, or directories of them.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Directory for compare.html and compare.json. Default: the directory that all runs lie in.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Number of threads; default: RAYON_NUM_THREADS, or one per processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
}

/// Runs the subcommand; returns the exit code.
pub(crate) fn main(arguments: &CompareArguments) -> u8 {
    let done = compare(arguments).map_err(|error| (2, error));
    let written =
        done.and_then(|(dir, comparison)| publish(&dir, &comparison).map_err(|error| (1, error)));
    match written {
        Ok(()) => 0,
        Err((code, error)) => {
            eprintln!("error: {error:#}");
            code
        }
    }
}

/// Compares the runs; also returns the directory to write to.
fn compare(arguments: &CompareArguments) -> Result<(PathBuf, Comparison)> {
    let started = Instant::now();
    if let Some(output) = &arguments.output
        && output.exists()
        && !output.is_dir()
    {
        bail!("--output {}: this is not a directory", output.display());
    }
    cli::start_threads(arguments.threads)?;
    let (runs, left_out) = open(&arguments.runs);
    for LeftOut { run, reason } in &left_out {
        eprintln!("left out: {run}: {reason}");
    }
    if runs.len() < 2 {
        bail!(
            "a comparison needs two runs with reports, and there {}",
            match runs.len() {
                0 => "is none",
                _ => "is one",
            }
        );
    }
    let dir = match &arguments.output {
        Some(output) => output.clone(),
        None => parent_of(&runs)?,
    };
    let mut comparison = assemble::of_runs(&runs, &dir);
    for note in &comparison.notes {
        eprintln!("note: {note}");
    }
    comparison.left_out = left_out;
    comparison.seconds = started.elapsed().as_secs_f64();
    Ok((dir, comparison))
}

/// Opens what the paths mean, each run once.
fn open(paths: &[PathBuf]) -> (Vec<Opened>, Vec<LeftOut>) {
    let (mut runs, mut left_out): (Vec<Opened>, Vec<LeftOut>) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for path in paths {
        let mut leave = |run: &Path, reason: String| {
            let run = run.display().to_string();
            left_out.push(LeftOut { run, reason });
        };
        let found = RunDir::all_in(path);
        if found.is_empty() {
            leave(path, "not a run directory, and no run lies in it".into());
        }
        for dir in found {
            let at = dir.path().canonicalize().unwrap_or(dir.path().into());
            if seen.contains(&at) {
                continue;
            }
            seen.push(at);
            let path = dir.path().to_path_buf();
            match Opened::new(dir) {
                Ok(run) => runs.push(run),
                Err(error) => leave(&path, format!("{error:#}")),
            }
        }
    }
    (runs, left_out)
}

/// The innermost directory that all runs lie in.
fn parent_of(runs: &[Opened]) -> Result<PathBuf> {
    let mut parents = Vec::new();
    for run in runs {
        let path = run.dir.path();
        let absolute = path
            .canonicalize()
            .with_context(|| path.display().to_string())?;
        parents.push(absolute.parent().unwrap_or(&absolute).to_path_buf());
    }
    let [first, rest @ ..] = &parents[..] else {
        bail!("there is no run");
    };
    let shared = first
        .ancestors()
        .find(|dir| rest.iter().all(|other| other.starts_with(dir)));
    let shared = shared.filter(|dir| dir.parent().is_some());
    shared.map(Path::to_path_buf).context(
        "the runs have no directory in common but the root; say where to write with --output DIR",
    )
}

/// Writes the comparison into `dir`.
fn publish(dir: &Path, comparison: &Comparison) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let json = serde_json::to_string_pretty(comparison)? + "\n";
    let html = page::compare::render(comparison);
    for (name, text) in [("compare.json", &json), ("compare.html", &html)] {
        let path = dir.join(name);
        atomic_file::write(&path, text.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let html = shown(&dir.join("compare.html"));
    println!(
        "{} of {} in {:.1} s. Open {html} in a browser; compare.json is beside it.",
        counted(comparison.runs.len(), "run", "runs"),
        counted(comparison.recipes.len(), "recipe", "recipes"),
        comparison.seconds
    );
    Ok(())
}

/// A path relative to the current directory, where it lies below it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let below = here.as_ref().and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).display().to_string()
}
