//! `sae-eval`: evaluates a trained run on its held-out data and writes `reports/report.{json,md}`.

mod evaluate;
mod head;
mod ranking;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sae_model::device::DeviceName;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Evaluate a trained run on its held-out data: reconstruction, sparsity, top-n classification.
///
/// Exit codes: 0 done, 2 the run, the data or the device is not right (no report is written).
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Arguments {
    /// The run directory, for example runs/quickstart.
    run: PathBuf,
    /// Device to evaluate on: cpu, ndarray, wgpu or wgpu:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Rows at a time; default: 1024, fewer for very large dictionaries.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Numbers of latents to keep (or drop) in top-n classification; "all" is always included.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 50])]
    top_n: Vec<usize>,
    /// Activation above which a latent counts as firing when a class's latents are ranked; default: 0.2
    /// for models whose value is the score (the paper's code), 0 for probabilities.
    #[arg(long)]
    fire_threshold: Option<f32>,
    /// Leave out the same model before training, to save its passes over the data.
    #[arg(long)]
    no_untrained: bool,
}

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,wgpu_hal=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .init();
    match evaluate_run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn evaluate_run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.parse::<DeviceName>()?.open()?;
    let run = run::Run::open(&arguments.run, &device)?;
    let report = evaluate::report(&run, arguments, &device)?;
    let dir = arguments.run.join("reports");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let json = serde_json::to_string_pretty(&report)? + "\n";
    let markdown = report::markdown::render(&report);
    for (name, text) in [("report.json", &json), ("report.md", &markdown)] {
        let path = dir.join(name);
        sae_model::atomic_file::write(&path, text.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{markdown}");
    println!(
        "\nWritten to {} and report.json beside it.",
        dir.join("report.md").display()
    );
    Ok(())
}
