//! `cargo xtask eval`: runs `sae-eval` on a run directory.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::programs::cargo;

/// The options of `cargo xtask eval`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart.
    run: PathBuf,
    /// Cargo features to build with, needed for devices other than cpu.
    #[arg(long)]
    features: Option<String>,
    /// Passed on to sae-eval; see `cargo run -p sae-eval -- --help`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut command = cargo();
    // Cargo says what it compiles: with a GPU's features that takes a quarter of an hour.
    command.args(["run", "--package", "sae-eval"]);
    if let Some(features) = &arguments.features {
        command.args(["--features", features]);
    }
    command.arg("--").arg(&arguments.run);
    let status = command.args(&arguments.arguments).status();
    let code = status.context("running cargo")?.code();
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
