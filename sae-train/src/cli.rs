//! The command line of `sae-train`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::failure::{self, Failure};
use crate::output;
use crate::prepare::{self, Prepared};

/// Train a sparse autoencoder on activations.
#[derive(Parser)]
#[command(version, after_help = failure::EXIT_CODES)]
struct Arguments {
    /// The config, for example configs/quickstart.toml.
    config: PathBuf,
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
}

/// Runs the program with the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (error, code) = match prepare(&arguments).map(|prepared| prepared.train(arguments.plain)) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => (error, 1),
        Err(error) => (error, 2),
    };
    output::complain(format!("error: {}", failure::chain(&*error)));
    let mut causes = error.chain();
    let known = causes.find_map(|cause| cause.downcast_ref::<Failure>());
    ExitCode::from(known.map_or(code, Failure::code))
}

/// Checks everything before anything is written.
fn prepare(arguments: &Arguments) -> anyhow::Result<Prepared> {
    use_threads(arguments.threads)?;
    let device = arguments.device.as_deref();
    prepare::prepare(&arguments.config, &arguments.set, device, arguments.resume)
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
