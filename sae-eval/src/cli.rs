//! The command line of `sae-eval`: evaluates a run on its held-out data and writes `reports/report.{json,md,html}`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Parser, ValueEnum};
use sae_model::device::{DeviceError, DeviceName};
use sae_run::{RunDir, atomic_file};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::page::{self, Findings};
use crate::ranking::Rule;
use crate::report::{self, Report};
use crate::{evaluate, model, run};

/// The threshold in the paper's code, whose scores are cosines.
const PAPER_THRESHOLD: f32 = 0.2;

/// Evaluate a trained run on its held-out data: reconstruction, sparsity, top-n classification.
///
/// Writes reports/report.html, reports/report.md and reports/report.json in the run directory. An existing report is replaced, whichever
/// options it was made with.
///
/// Exit codes: 0 done; 1 the report could not be written; 2 the run, the data or the device is wrong (no report is written).
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart.
    run: PathBuf,
    /// Device to evaluate on: cpu, ndarray, wgpu or wgpu:N.
    #[arg(long, default_value = "cpu")]
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
    /// Leave out report.html, the report to look at.
    #[arg(long)]
    pub(crate) no_html: bool,
    #[command(flatten)]
    elsewhere: run::Elsewhere,
}

/// Names of the ranking rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RankBy {
    Firing,
    Threshold,
}

impl Arguments {
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
    let arguments = Arguments::parse();
    let done = match evaluate_run(&arguments) {
        Ok((report, findings)) => {
            publish(&arguments.run, &report, findings).map_err(|error| (1, error))
        }
        Err(error) => Err((2, error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            let data = error.downcast_ref::<sae_data::config::DataConfigError>();
            let feature = data.and_then(|error| error.missing_feature);
            let remedy = feature.map_or(String::new(), |feature| {
                format!("; start this program with cargo run -p sae-eval --features {feature}")
            });
            eprintln!("error: {error:#}{remedy}");
            ExitCode::from(code)
        }
    }
}

fn evaluate_run(arguments: &Arguments) -> Result<(Report, Option<Findings>)> {
    let rule = arguments.rule()?;
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .build_global()
            .context("starting the threads")?;
    }
    let device = open_device(&arguments.device)?;
    let host = model::host_of(&device);
    let run = run::Run::open(&arguments.run, &arguments.elsewhere, &host)?;
    evaluate::report(&run, arguments, rule, &device)
}

/// Writes a report into its run and prints it.
fn publish(run: &Path, report: &Report, findings: Option<Findings>) -> Result<()> {
    let markdown = report::markdown::render(report);
    let page = findings.map(|findings| page::render(report, &findings));
    let dir = RunDir::new(run);
    write(&dir, report, &markdown, page.as_deref())?;
    print!("{markdown}");
    println!(
        "\nWritten to {} and report.json beside it.",
        dir.report_md().display()
    );
    if page.is_some() {
        println!("Open {} in a browser.", dir.report_html().display());
    }
    Ok(())
}

/// Opens a device by its name. If it is not compiled in, the error says how to build with it.
fn open_device(name: &str) -> Result<Device> {
    let opened = name.parse().and_then(DeviceName::open);
    opened.map_err(|error| match error {
        DeviceError::NotCompiled { feature, .. } => anyhow!(
            "{error}; build with `--features {feature}`, for example `cargo run -p sae-eval --features {feature} -- ...`"
        ),
        error => error.into(),
    })
}

/// Writes the files of a report; without a `page`, one of an earlier report is removed. Processes take turns, so that
/// all files belong to the same report.
fn write(run: &RunDir, report: &Report, markdown: &str, page: Option<&str>) -> Result<()> {
    let dir = run.reports();
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let lock = File::open(&dir);
    // Some network file systems have no locks; even there, each file is whole.
    let _locked = lock.as_ref().is_ok_and(|dir| dir.lock().is_ok());
    let json = serde_json::to_string_pretty(report)? + "\n";
    for (path, text) in [
        (run.report_json(), Some(json.as_str())),
        (run.report_md(), Some(markdown)),
        (run.report_html(), page),
    ] {
        match text {
            Some(text) => atomic_file::write(&path, text.as_bytes())
                .with_context(|| format!("writing {}", path.display()))?,
            None if path.exists() => std::fs::remove_file(&path)
                .with_context(|| format!("removing {}", path.display()))?,
            None => {}
        }
    }
    Ok(())
}
