//! `cargo xtask`: chores of the workspace. Of its crates it uses only `sae-run`, so it builds in seconds.

mod bench;
mod chaos;
mod check;
mod eval;
mod files;
mod guide;
mod one_build;
mod plot;
mod programs;
mod results;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check that crates depend on each other only as ARCHITECTURE.md says.
    Check,
    /// Time a training step, in multiples of one sgemm and beside torch and SAELens; or the data loader (--loader).
    Bench(bench::Arguments),
    /// Kill training processes and damage what they leave; every run must still end with the same bytes.
    Chaos(chaos::Arguments),
    /// Make the tables of README.md and docs/SCIENCE.md from runs that it starts itself.
    Results(results::Arguments),
    /// Recommend a k for TopK-like SAEs, from the L0 that sparse attention finds by itself (docs/GUIDE.md).
    Guide(guide::Arguments),
    /// Evaluate a run and write reports/report.{json,md,html} into it; compare several.
    Eval(eval::Arguments),
    /// Show a run in progress in a browser: curves as they grow, and the report of its newest checkpoint.
    Watch(watch::Arguments),
}

fn main() -> ExitCode {
    let done: Result<ExitCode> = match Arguments::parse().chore {
        Chore::Check => check::run(),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Chaos(arguments) => chaos::run(&arguments),
        Chore::Results(arguments) => results::run(&arguments),
        Chore::Guide(arguments) => guide::run(&arguments),
        Chore::Eval(arguments) => eval::run(&arguments),
        Chore::Watch(arguments) => watch::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
