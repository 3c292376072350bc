//! `cargo xtask results`: the tables of README.md and docs/SCIENCE.md, from runs that it starts itself.
//!
//! `docs/results.toml` says which runs a table is made of and which numbers it shows (`plan.rs`); every setting is
//! trained with every seed and evaluated by the real binaries (`runs.rs`); the numbers come from the reports
//! (`numbers.rs`); a table is written between two comments of the document that shows it (`render.rs`, `document.rs`). Runs
//! that are finished are not run again, so the command goes on where it was stopped. `--science` runs a plan of another kind
//! (`science/`).

mod document;
mod numbers;
mod plan;
mod render;
mod runs;
mod science;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use plan::{Plan, Table};
use runs::Runner;

/// What to run, and where to write.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The plan. Default: docs/results.toml, or docs/science.toml.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Only these tables; default: all whose data is there. With --science, only the runs of which this holds.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where a data set of the plan lies that the repository does not ship, for example
    /// --data tokens=data/wordnet-tokens; may be repeated. With --science, a directory that holds train, validation and heldout,
    /// each a directory or one file (train.safetensors).
    #[arg(long, value_name = "NAME=PATH")]
    data: Vec<String>,
    /// Seeds, instead of the plan's.
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Overrides for every run, for example --set training.steps=20 to try the command; the documents are then left alone.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Directory of the runs; they are kept, those of --science only if told by --keep. Default: runs/results, or runs/science.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print the tables, and change no document.
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    options: science::Options,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.options.science {
        science::run(arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = arguments.plan.as_deref();
    let mut plan = Plan::read(file.unwrap_or("docs/results.toml".as_ref()))?;
    plan.place(&arguments.data)?;
    if !arguments.seeds.is_empty() {
        plan.seeds.clone_from(&arguments.seeds);
    }
    let chosen = choose(&plan, &arguments.only)?;
    let dir = arguments.dir.as_deref();
    let dir = dir.unwrap_or("runs/results".as_ref());
    let runner = Runner::new(&plan, dir, &arguments.set)?;
    let change_documents = !arguments.print && arguments.set.is_empty();
    for table in chosen {
        let text = render::table(table, &plan.seeds, &runner)?;
        println!("\n{}: {}\n\n{text}", table.name, table.files.join(", "));
        if change_documents {
            for file in &table.files {
                document::replace(file.as_ref(), &table.name, &text)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The tables to make; those whose data is not there are named and left out, unless they were asked for.
fn choose<'a>(plan: &'a Plan, only: &[String]) -> Result<Vec<&'a Table>> {
    for name in only {
        let known = plan.tables.iter().any(|table| table.name == *name);
        let names: Vec<&str> = plan.tables.iter().map(|t| t.name.as_str()).collect();
        ensure!(
            known,
            "--only {name}: no such table; the plan has {}",
            names.join(", ")
        );
    }
    let mut chosen = Vec::new();
    for table in &plan.tables {
        if !only.is_empty() && !only.contains(&table.name) {
            continue;
        }
        let data = plan.data.get(&table.data);
        let data =
            data.with_context(|| format!("table {}: no data set {}", table.name, table.data))?;
        match (&data.train, only.is_empty()) {
            (Some(_), _) => chosen.push(table),
            (None, true) => println!(
                "{}: left out, its data set is not part of the repository; pass --data {}=PATH ({})",
                table.name, table.data, data.how
            ),
            (None, false) => anyhow::bail!(
                "{}: pass --data {}=PATH ({})",
                table.name,
                table.data,
                data.how
            ),
        }
    }
    Ok(chosen)
}
