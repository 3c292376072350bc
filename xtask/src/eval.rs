//! `cargo xtask eval`: runs `sae-eval` on a run directory; on several, it evaluates those that have no report yet, and compares
//! them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use sae_run::RunDir;

use crate::programs::cargo;

/// The options of `cargo xtask eval`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart. Several, or a directory of runs, are compared: compare.html and
    /// compare.json go to the directory that all of them lie in.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Evaluate every run, also those whose report is newer than their model; for several runs.
    #[arg(long)]
    again: bool,
    /// Directory for compare.html and compare.json; for several runs.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Cargo features to build with, needed for devices other than cpu.
    #[arg(long)]
    features: Option<String>,
    /// Passed on to sae-eval where it evaluates; see `cargo run -p sae-eval -- --help`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.runs[..] {
        [run] if is_single(run) => {
            ensure!(
                arguments.output.is_none(),
                "--output is for a comparison of several runs; for one, write -- --output DIR"
            );
            sae_eval(arguments, |command| {
                command.arg(run).args(&arguments.arguments);
            })
        }
        several => compare(arguments, several),
    }
}

/// Whether a path is to be evaluated alone: a run, or nothing that could be compared, of which sae-eval says what is wrong.
fn is_single(path: &Path) -> bool {
    let runs = RunDir::all_in(path);
    runs.first().is_none_or(|run| run.path() == path)
}

fn compare(arguments: &Arguments, paths: &[PathBuf]) -> Result<ExitCode> {
    for run in paths.iter().flat_map(|path| RunDir::all_in(path)) {
        let path = run.path().display();
        if !run.model().exists() {
            continue; // the comparison says so
        }
        if !arguments.again && has_new_report(&run) {
            println!(
                "{path}: its report is newer than its model and is taken as it is (--again makes it again)"
            );
            continue;
        }
        println!("{path}: evaluating");
        let code = sae_eval(arguments, |command| {
            command.arg(run.path()).args(&arguments.arguments);
            command.stdout(std::process::Stdio::null()); // the whole report, which is in its directory
        })?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    sae_eval(arguments, |command| {
        command.arg("compare").args(paths);
        if let Some(output) = &arguments.output {
            command.arg("--output").arg(output);
        }
    })
}

/// Whether the report of a run was written after its model.
fn has_new_report(run: &RunDir) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { path.metadata().ok()?.modified().ok() };
    let model = changed(&run.model().join("sae.safetensors"));
    let report = changed(&run.report_json());
    report
        .zip(model)
        .is_some_and(|(report, model)| report >= model)
}

/// Builds and runs sae-eval.
fn sae_eval(
    arguments: &Arguments,
    add: impl FnOnce(&mut std::process::Command),
) -> Result<ExitCode> {
    let mut command = cargo();
    // Cargo says what it compiles: with a GPU's features that takes a quarter of an hour.
    command.args(["run", "--package", "sae-eval"]);
    if let Some(features) = &arguments.features {
        command.args(["--features", features]);
    }
    command.arg("--");
    add(&mut command);
    let code = command.status().context("running cargo")?.code();
    let code = code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn touch(path: &Path, seconds: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    }

    #[test]
    fn a_report_counts_if_it_is_newer_than_the_model() {
        let dir = std::env::temp_dir().join(format!("xtask-eval-{}", std::process::id()));
        let run = RunDir::new(&dir);
        touch(&run.model().join("sae.safetensors"), 1000);
        assert!(!has_new_report(&run));
        touch(&run.report_json(), 900);
        assert!(!has_new_report(&run));
        touch(&run.report_json(), 1100);
        assert!(has_new_report(&run));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_directory_of_runs_is_compared_and_a_run_is_not() {
        let dir = std::env::temp_dir().join(format!("xtask-eval-runs-{}", std::process::id()));
        let run = RunDir::new(dir.join("a"));
        touch(&run.config(), 1);
        assert!(is_single(run.path()));
        assert!(!is_single(&dir));
        assert!(is_single(&dir.join("nothing")));
        fs::remove_dir_all(&dir).unwrap();
    }
}
