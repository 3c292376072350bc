//! The command line of `sae-train`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use sae_model::device::NAMES;
use sae_model::{AnyArchitecture, Architecture};

use crate::config::Written;
use crate::export::Export;
use crate::failure::{self, Failure};
use crate::prepare::{self, Prepared};
use crate::{config, output};

/// Train a sparse autoencoder on activations.
#[derive(Parser)]
#[command(
    version,
    after_help = failure::EXIT_CODES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The config, for example configs/quickstart.toml.
    #[arg(required_unless_present = "init")]
    config: Option<PathBuf>,
    #[arg(long, help = format!("Device to train on, instead of the config's: {NAMES}"))]
    device: Option<String>,
    /// Override a key of the config, for example --set training.lr=1e-3; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Start from this saved model in place of fresh parameters: a run directory, or the directory of a model. What the
    /// config does not say about the model is the model's. --resume needs it no more.
    #[arg(long, value_name = "MODEL")]
    from: Option<PathBuf>,
    /// Continue the run from its last checkpoint, or start it if it has not begun.
    #[arg(long)]
    resume: bool,
    /// Print plain progress lines on a terminal, too, instead of the dashboard.
    #[arg(long)]
    plain: bool,
    /// Write TensorBoard's event files into tensorboard/ of the run directory, beside metrics.jsonl. A run that has them goes
    /// on writing them.
    #[arg(long)]
    tensorboard: bool,
    /// Number of compute threads. Default: RAYON_NUM_THREADS, or all processors.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print a config with every key that an architecture knows, its meaning and its default, and do nothing else.
    #[arg(long, value_name = "ARCHITECTURE", num_args = 0..=1, default_missing_value = "attention", exclusive = true)]
    init: Option<String>,
}

/// Commands beside training.
#[derive(Subcommand)]
enum Command {
    /// Make a model of a checkpoint, in the format of the run's model. No lock is taken.
    Export(Export),
}

/// Runs the program with the command line of this process.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Export(export)) = &arguments.command {
        return match export.write() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, 2),
        };
    }
    let Some(config) = &arguments.config else {
        return init(arguments.init.as_deref().unwrap_or_default());
    };
    let (error, code) =
        match prepare(config, &arguments).map(|prepared| prepared.train(arguments.plain)) {
            Ok(Ok(())) => return ExitCode::SUCCESS,
            Ok(Err(error)) => (error, 1),
            Err(error) => (error, 2),
        };
    fail(&error, code)
}

/// Prints an error; returns its exit code, which is `code` if it has none of its own.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let remedy = failure::remedy_for_data(error);
    output::complain(format!("error: {}{remedy}", failure::chain(&**error)));
    let mut causes = error.chain();
    let known = causes.find_map(|cause| cause.downcast_ref::<Failure>());
    ExitCode::from(known.map_or(code, Failure::code))
}

/// Checks everything before anything is written.
fn prepare(config: &Path, arguments: &Arguments) -> anyhow::Result<Prepared> {
    use_threads(arguments.threads)?;
    let written = Written::read(config, &arguments.set, arguments.device.as_deref())?;
    let mut prepared = prepare::prepare(&written, arguments.from.as_deref(), arguments.resume)?;
    prepared.tensorboard |= arguments.tensorboard;
    Ok(prepared)
}

/// Prints a config for the architecture of this name.
fn init(name: &str) -> ExitCode {
    if let Some(architecture) = AnyArchitecture::named(name) {
        output::say(config::commented(&architecture).trim_end());
        return ExitCode::SUCCESS;
    }
    let all = AnyArchitecture::all();
    let names: Vec<&str> = all.iter().map(Architecture::name).collect();
    let names = names.join(", ");
    output::complain(format!(
        "error: --init {name}: there is no such architecture; use one of {names}"
    ));
    ExitCode::from(2)
}

/// Starts the pool of compute threads.
fn use_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .with_context(|| format!("--threads {threads}: cannot be started; use fewer"))
}
