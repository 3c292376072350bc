//! The command line of `sae-eval`: evaluates a run on its held-out data, or on other data, and writes a report
//! (`report.{json,md,html}`); encodes a data set (`encode`); writes files for Neuronpedia (`neuronpedia`); compares several
//! runs (`compare`); or exchanges dictionaries with other programs (`export`, `import`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use sae_model::device::{DeviceError, DeviceName, NAMES};
use sae_run::checkpoints::{self, Which};
use sae_run::{RunDir, atomic_file};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::compare::{self, CompareArguments};
use crate::encode::{self, EncodeArguments};
use crate::exchange::{self, ExportArguments, ImportArguments};
use crate::neuronpedia::{self, UploadArguments};
use crate::page::{self, Findings};
use crate::ranking::Rule;
use crate::report::{self, Report};
use crate::tail_arguments::TailArguments;
use crate::{evaluate, model, run};

/// The threshold in the paper's code, whose scores are cosines.
const PAPER_THRESHOLD: f32 = 0.2;

/// Evaluate a trained run on its held-out data: reconstruction, sparsity, top-n classification.
///
/// Writes report.html, report.md and report.json into the directory reports of the run, or into that of --output. An existing
/// report is replaced, whichever options it was made with.
///
/// Exit codes: 0 done; 1 the report could not be written; 2 the run, the data or the device is wrong (no report is written).
#[derive(Parser, Debug)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart.
    run: PathBuf,
    #[arg(long, default_value = "cpu", help = format!("Device to evaluate on: {NAMES}"))]
    pub(crate) device: String,
    /// Number of threads; default: RAYON_NUM_THREADS, or one per processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Rows per batch; default: 1024, or fewer where a GPU holds the activations of all latents at once.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_size: Option<u32>,
    /// Numbers of latents to keep (or drop) in top-n classification; "all" is always included.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 50])]
    pub(crate) top_n: Vec<usize>,
    /// How to rank the latents of a class: by the number of the class's training rows on which they are active
    /// (firing), or on which they exceed a threshold (threshold; this depends on the unit of the activations).
    #[arg(long, value_enum, default_value_t = RankBy::Firing)]
    rank_by: RankBy,
    /// The threshold of --rank-by threshold; default: 0.2, as in the paper's code.
    #[arg(long, value_name = "T")]
    fire_threshold: Option<f32>,
    /// Leave out top-n classification before training, which saves passes over the data.
    #[arg(long)]
    pub(crate) no_untrained: bool,
    /// Evaluate not the trained model but that of a checkpoint: best (the least held-out FVU), newest, or the number of a
    /// step. The run may be in progress; no lock is taken.
    #[arg(long, value_name = "WHICH")]
    checkpoint: Option<Which>,
    /// Directory for the files of the report. Default: reports in the run directory; of a checkpoint,
    /// reports/step-00000300.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Leave out report.html, the report to look at.
    #[arg(long)]
    pub(crate) no_html: bool,
    #[command(flatten)]
    elsewhere: run::Elsewhere,
    #[command(flatten)]
    pub(crate) tail: TailArguments,
}

// Other uses of a trained run than a report. (A doc comment would take the place of the program's own text in --help.)
#[derive(Subcommand, Debug)]
enum Command {
    Encode(EncodeArguments),
    Neuronpedia(UploadArguments),
    Compare(CompareArguments),
    Export(ExportArguments),
    Import(ImportArguments),
}

/// Names of the ranking rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RankBy {
    Firing,
    Threshold,
}

impl Arguments {
    /// The directory of the report.
    pub(crate) fn reports(&self, checkpoint_step: Option<usize>) -> PathBuf {
        let own = RunDir::new(&self.run).reports();
        let own = match checkpoint_step {
            Some(step) => own.join(checkpoints::name_of(step)),
            None => own,
        };
        self.output.clone().unwrap_or(own)
    }

    /// The rule that the options ask for.
    fn rule(&self) -> Result<Rule> {
        match (self.rank_by, self.fire_threshold) {
            (RankBy::Firing, None) => Ok(Rule::Firing),
            (RankBy::Firing, Some(threshold)) => bail!(
                "--fire-threshold {threshold}: ranking by firing has no threshold; add --rank-by threshold, or leave it out"
            ),
            (RankBy::Threshold, threshold) => match threshold.unwrap_or(PAPER_THRESHOLD) {
                threshold if threshold.is_finite() => Ok(Rule::Threshold(threshold)),
                threshold => bail!("--fire-threshold {threshold}: must be a number, such as 0.2"),
            },
        }
    }
}

/// Runs the program with the command line of this process.
pub fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,wgpu_hal=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .init();
    // The options of a report stand beside the subcommands: clap looks for both, and one of the two is there.
    let matches = Command::augment_subcommands(Arguments::command()).get_matches();
    if matches.subcommand().is_some() {
        return ExitCode::from(match parsed(Command::from_arg_matches(&matches)) {
            Command::Encode(arguments) => encode::main(&arguments),
            Command::Neuronpedia(arguments) => neuronpedia::main(&arguments),
            Command::Compare(arguments) => compare::main(&arguments),
            Command::Export(arguments) => exchange::export_main(&arguments),
            Command::Import(arguments) => exchange::import_main(&arguments),
        });
    }
    make_report(&parsed(Arguments::from_arg_matches(&matches)))
}

/// What was parsed; ends the program with a message if it is not as it should be.
fn parsed<T>(arguments: Result<T, clap::Error>) -> T {
    arguments.unwrap_or_else(|error| error.format(&mut Arguments::command()).exit())
}

/// Makes the report of a run.
fn make_report(arguments: &Arguments) -> ExitCode {
    let done = match evaluate_run(arguments) {
        Ok((report, findings)) => {
            let dir = arguments.reports(report.checkpoint_step);
            publish(&dir, &report, findings).map_err(|error| (1, error))
        }
        Err(error) => Err((2, error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            eprintln!("error: {error:#}{}", remedy(&error));
            ExitCode::from(code)
        }
    }
}

/// The remedy for an error of a run's data, in the words of this program.
pub(crate) fn remedy(error: &anyhow::Error) -> String {
    let data = error.downcast_ref::<sae_data::config::DataConfigError>();
    let feature = data.and_then(|error| error.missing_feature);
    feature.map_or(String::new(), |feature| {
        format!("; start this program with cargo run -p sae-eval --features {feature}")
    })
}

fn evaluate_run(arguments: &Arguments) -> Result<(Report, Option<Findings>)> {
    let rule = arguments.rule()?;
    if let Some(output) = &arguments.output
        && output.exists()
        && !output.is_dir()
    {
        bail!("--output {}: this is not a directory", output.display());
    }
    start_threads(arguments.threads)?;
    let device = open_device(&arguments.device)?;
    let host = model::host_of(&device);
    let run = run::Run::open(
        &arguments.run,
        arguments.checkpoint,
        &arguments.elsewhere,
        &host,
    )?;
    evaluate::report(&run, arguments, rule, &device)
}

/// Starts this number of threads.
pub(crate) fn start_threads(threads: Option<u32>) -> Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build_global()
        .context("starting the threads")
}

/// Writes a report into `dir` and prints it, even if it cannot be written.
fn publish(dir: &Path, report: &Report, findings: Option<Findings>) -> Result<()> {
    let markdown = report::markdown::render(report);
    let page = findings.map(|findings| page::render(report, &findings));
    let written = write(dir, report, &markdown, page.as_deref());
    print!("{markdown}");
    let path = written?;
    println!("\nWritten to {} and report.json beside it.", path.display());
    if page.is_some() {
        println!("Open {} in a browser.", dir.join("report.html").display());
    }
    Ok(())
}

/// Opens a device by its name. If it is not compiled in, the error says how to build with it.
pub(crate) fn open_device(name: &str) -> Result<Device> {
    let opened = name.parse().and_then(DeviceName::open);
    opened.map_err(|error| match error {
        DeviceError::NotCompiled { feature, .. } => anyhow!(
            "{error}; build with `--features {feature}`, for example `cargo run -p sae-eval --features {feature} -- ...`"
        ),
        error => error.into(),
    })
}

/// Writes the files of a report; without a `page`, one of an earlier report is removed. Returns the path of the one to read.
/// Processes take turns, so that all files belong to the same report.
fn write(dir: &Path, report: &Report, markdown: &str, page: Option<&str>) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let lock = File::open(dir);
    // Some network file systems have no locks; even there, each file is whole.
    let _locked = lock.as_ref().is_ok_and(|dir| dir.lock().is_ok());
    let json = serde_json::to_string_pretty(report)? + "\n";
    let path = dir.join("report.md");
    for (path, text) in [
        (&dir.join("report.json"), Some(json.as_str())),
        (&path, Some(markdown)),
        (&dir.join("report.html"), page),
    ] {
        match text {
            Some(text) => atomic_file::write(path, text.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?,
            None if path.exists() => std::fs::remove_file(path)
                .with_context(|| format!("removing {}", path.display()))?,
            None => {}
        }
    }
    Ok(path)
}
