//! The command line of `sae-train`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use sae_model::device::NAMES;
use sae_model::{AnyArchitecture, Architecture};

use crate::config::Written;
use crate::export::Export;
use crate::failure;
use crate::prepare::{self, Prepared};
use crate::shards::Shards;
use crate::sweep::{self, PreparedSweep};
use crate::{config, distributed, output};

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
    #[arg(long, help = format!("Device to train on, instead of the config's: {NAMES}; the runs of a sweep take turns over several, cuda:0,cuda:1"))]
    device: Option<String>,
    /// Override a key of the config, for example --set training.lr=1e-3; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Train one run for each of these values, side by side, for example --sweep training.lr=1e-3,2e-3; several options make
    /// every combination. The runs lie in the directory of the config's name. The config may have tables [[sweep]], too.
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    sweep: Vec<String>,
    /// Train at most so many runs of a sweep side by side; the others follow.
    #[arg(long, value_name = "N")]
    at_once: Option<NonZeroUsize>,
    /// Train one run in all the processes that mpirun or srun has started with this command line.
    #[arg(long)]
    distributed: bool,
    /// What the processes share: the rows of every batch (training.shards must be a multiple of their number), or the latents, for
    /// dictionaries that one memory does not hold.
    #[arg(long, value_enum, default_value_t, requires = "distributed")]
    shard: What,
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

/// What processes share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum What {
    #[default]
    Rows,
    Latents,
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
            Err(error) => ExitCode::from(fail(&error, 2)),
        };
    }
    let Some(config) = &arguments.config else {
        return init(arguments.init.as_deref().unwrap_or_default());
    };
    let training = match prepare(config, &arguments) {
        Ok(training) => training,
        Err(error) => return ExitCode::from(fail(&error, 2)),
    };
    let shards = training.shards();
    if let Some(shards) = &shards {
        shards.end_all_on_panic();
    }
    match training.train(arguments.plain) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = fail(&error, 1);
            if code > 0
                && let Some(shards) = shards.filter(Shards::are_waited_for)
            {
                shards.comm().abort(code);
            }
            ExitCode::from(code)
        }
    }
}

/// Prints an error, unless another process does; returns its exit code, which is `code` if it has none of its own.
fn fail(error: &anyhow::Error, code: u8) -> u8 {
    let code = failure::code_of(error).unwrap_or(code);
    if code > 0 {
        output::complain(format!("error: {}", failure::message(error)));
    }
    code
}

/// What the program has been asked to train.
enum Training {
    Run(Box<Prepared>),
    Sweep(PreparedSweep),
}

impl Training {
    fn train(self, plain: bool) -> anyhow::Result<()> {
        match self {
            Self::Run(run) if run.shards.comm().rank() > 0 => run.follow(),
            Self::Run(run) => run.train(plain),
            Self::Sweep(sweep) => sweep.train(plain),
        }
    }

    /// How the parts of its batches are shared, if it is one run.
    fn shards(&self) -> Option<Shards> {
        match self {
            Self::Run(run) => Some(run.shards.clone()),
            Self::Sweep(_) => None,
        }
    }
}

/// Checks everything before anything is written.
fn prepare(config: &Path, arguments: &Arguments) -> anyhow::Result<Training> {
    use_threads(arguments.threads)?;
    if arguments.distributed {
        return distributed_run(config, arguments);
    }
    let written = Written::read(config, &arguments.set, arguments.device.as_deref())?;
    let (from, resume) = (arguments.from.as_deref(), arguments.resume);
    if distributed::launched() > 1 {
        anyhow::bail!(
            "{} processes were started, and each would train the same run; add --distributed, or start one process",
            distributed::launched()
        );
    }
    if let Some(runs) = written.sweep(&arguments.sweep)? {
        let mut sweep = sweep::prepare(&runs, from, resume, arguments.at_once)?;
        for run in sweep.runs_mut() {
            run.tensorboard |= arguments.tensorboard;
        }
        return Ok(Training::Sweep(sweep));
    }
    if arguments.at_once.is_some() {
        anyhow::bail!("--at-once is for a sweep; give it one with --sweep KEY=VALUE,VALUE");
    }
    if let devices @ [_, _, ..] = &written.devices()[..] {
        let devices = devices.join(",");
        anyhow::bail!(
            "device = \"{devices}\": one run trains on one device; several are for a sweep"
        );
    }
    let mut run = prepare::prepare(&written, from, resume)?;
    run.config.check_alone()?;
    run.tensorboard |= arguments.tensorboard;
    Ok(Training::Run(Box::new(run)))
}

/// Checks a run that several processes train.
fn distributed_run(config: &Path, arguments: &Arguments) -> anyhow::Result<Training> {
    let comm = distributed::world()?;
    let mut run = distributed::agreed(comm.clone(), || {
        let mut written = Written::read(config, &arguments.set, arguments.device.as_deref())?;
        if written.sweep(&arguments.sweep)?.is_some() {
            anyhow::bail!(
                "--distributed is for one run, not for a sweep, whose runs need nothing of each other"
            );
        }
        if arguments.shard == What::Latents {
            written.spread_latents(comm.ranks());
        }
        if let Some(device) = distributed::device_of(&written.devices(), &*comm) {
            written.set_device(&device);
        }
        let (from, resume) = (arguments.from.as_deref(), arguments.resume);
        match comm.rank() {
            0 => prepare::prepare(&written, from, resume),
            _ => prepare::prepare_to_follow(&written, from, resume),
        }
    })?;
    run.tensorboard |= arguments.tensorboard;
    Ok(Training::Run(Box::new(run)))
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
