//! `sae-train`: trains a sparse autoencoder from a TOML config.

mod config;
mod learner;
mod logging;
mod metrics;
mod progress;
mod run;
mod schedule;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Train a sparse autoencoder on activations.
///
/// Exit codes: 0 trained, 1 training failed or was interrupted, 2 the config, the data or the device is
/// not right (nothing has been written).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The config, for example configs/quickstart.toml.
    config: PathBuf,
    /// Device to train on, instead of the config's: cpu, ndarray, wgpu or wgpu:N.
    #[arg(long)]
    device: Option<String>,
    /// Override a key of the config, for example --set training.lr=1e-3; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue an interrupted run from its last checkpoint.
    #[arg(long)]
    resume: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let prepared = train::prepare(
        &arguments.config,
        &arguments.set,
        arguments.device.as_deref(),
        arguments.resume,
    );
    let (result, failure) = match prepared {
        Ok(prepared) => (prepared.train(), 1),
        Err(error) => (Err(error), 2),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(failure)
        }
    }
}
