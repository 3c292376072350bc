//! `cargo xtask eval`: runs `sae-eval` on a run directory.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::programs::cargo;

pub(crate) fn run(run: &Path, features: Option<&str>, arguments: &[String]) -> Result<ExitCode> {
    let mut command = cargo();
    // Cargo says what it compiles: with a GPU's features that takes a quarter of an hour.
    command.args(["run", "--package", "sae-eval"]);
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    let status = command
        .arg("--")
        .arg(run)
        .args(arguments)
        .status()
        .context("running cargo")?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
