//! `sae-train`: trains a sparse autoencoder from a TOML config.

mod bench;
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
    #[arg(required_unless_present = "bench")]
    config: Option<PathBuf>,
    /// Device to train on, instead of the config's: cpu, ndarray, wgpu or wgpu:N.
    #[arg(long)]
    device: Option<String>,
    /// Override a key of the config, for example --set training.lr=1e-3; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue an interrupted run from its last checkpoint.
    #[arg(long)]
    resume: bool,
    /// Be a worker of `cargo xtask bench` instead.
    #[arg(long, hide = true, requires = "shape")]
    bench: Option<bench::Work>,
    /// The worker's shape: batch, width, latents.
    #[arg(long, hide = true, num_args = 3, value_names = ["B", "D", "M"])]
    shape: Vec<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (result, failure) = match (arguments.bench, arguments.config.as_deref()) {
        (Some(work), _) => (bench::worker(work, &arguments.shape), 1),
        (None, Some(config)) => {
            let device = arguments.device.as_deref();
            match train::prepare(config, &arguments.set, device, arguments.resume) {
                Ok(prepared) => (prepared.train(), 1),
                Err(error) => (Err(error), 2),
            }
        }
        (None, None) => unreachable!("clap asks for a config unless --bench is there"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(failure)
        }
    }
}
