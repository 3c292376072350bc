//! The programs that chores run, built by cargo as a user builds them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sae_run::RunDir;
use serde_json::Value;

use crate::files::At;

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds a package; returns the path of its binary.
pub(crate) fn build(package: &str) -> Result<PathBuf> {
    build_with(package, None)
}

/// Builds a package with these cargo features; returns the path of its binary.
pub(crate) fn build_with(package: &str, features: Option<&str>) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", package]);
    if let Some(features) = features {
        command.args(["--features", features]);
    }
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.context("running cargo build")?;
    ensure!(output.status.success(), "cargo build failed");
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
    executable.context("cargo build names no executable")
}

/// A command that trains `config` as the run `run`, continuing it if it is there.
pub(crate) fn training<'a>(
    program: &Path,
    config: &Path,
    settings: impl IntoIterator<Item = &'a str>,
    run: &Path,
) -> Command {
    let mut command = Command::new(program);
    command.arg(config).arg("--resume");
    for setting in settings {
        command.args(["--set", setting]);
    }
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let runs = run.parent().unwrap_or(run).display().to_string();
    command.args(["--set", &format!("run={name:?}")]);
    command.args(["--set", &format!("runs_dir={runs:?}")]);
    command
}

/// Runs a command to its end, without input and with its output kept.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    output.with_context(|| format!("running {:?}", command.get_program()))
}

/// Runs a command that must succeed.
pub(crate) fn finish(command: &mut Command) -> Result<Output> {
    let output = run(command)?;
    succeeded(command, &output)?;
    Ok(output)
}

/// Fails if a command has failed, with its last words.
pub(crate) fn succeeded(command: &Command, output: &Output) -> Result<()> {
    if !output.status.success() {
        let words = last_words(output);
        bail!("{command:?} ended with {}: {words}", output.status);
    }
    Ok(())
}

/// The last line that a process wrote to its standard error.
pub(crate) fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.trim().lines().last().unwrap_or("(nothing)").into()
}

/// The report of a run.
pub(crate) fn report(run: &Path) -> Result<Value> {
    let path = RunDir::new(run).report_json();
    serde_json::from_str(&fs::read_to_string(&path).at(&path)?).at(&path)
}

/// The records of a run's `metrics.jsonl`.
pub(crate) fn records(run: &Path) -> Result<Vec<Value>> {
    let path = RunDir::new(run).metrics();
    let text = fs::read_to_string(&path).at(&path)?;
    let record = |line| serde_json::from_str(line).with_context(|| format!("not a record: {line}"));
    text.lines().map(record).collect::<Result<_>>().at(&path)
}
