//! The command line of `sae-train`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::failure::{self, Failure};
use crate::{bench, output, prepare};

/// Train a sparse autoencoder on activations.
#[derive(Parser)]
#[command(version, after_help = failure::EXIT_CODES)]
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
    /// Continue the run from its last checkpoint; a run that has not begun is begun.
    #[arg(long)]
    resume: bool,
    /// Plain progress lines on a terminal, too, instead of the dashboard.
    #[arg(long)]
    plain: bool,
    /// Threads to compute with. Default: RAYON_NUM_THREADS, or all processors.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Be a worker of `cargo xtask bench` instead.
    #[arg(long, hide = true, requires = "shape")]
    bench: Option<bench::Work>,
    /// The worker's shape: batch, width, latents.
    #[arg(long, hide = true, num_args = 3, value_names = ["B", "D", "M"])]
    shape: Vec<usize>,
}

/// Runs the program with the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (result, failure) = match (arguments.bench, arguments.config.as_deref()) {
        (Some(work), _) => (bench::worker(work, &arguments.shape), 1),
        (None, Some(config)) => {
            let device = arguments.device.as_deref();
            let prepared = use_threads(arguments.threads)
                .and_then(|()| prepare::prepare(config, &arguments.set, device, arguments.resume));
            match prepared {
                Ok(prepared) => (prepared.train(arguments.plain), 1),
                Err(error) => (Err(error), 2),
            }
        }
        (None, None) => unreachable!("clap asks for a config unless --bench is there"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let known = error
                .chain()
                .find_map(|cause| cause.downcast_ref::<Failure>());
            output::complain(format!("error: {}", failure::chain(&*error)));
            ExitCode::from(known.map_or(failure, Failure::code))
        }
    }
}

/// Starts the threads that everything computes with.
fn use_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .with_context(|| format!("--threads {threads}: cannot be started; use fewer"))
}
