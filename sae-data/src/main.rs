//! `sae-data`: inspects activation data, and converts it.

mod examples;
mod inspect;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sae_data::convert::{Conversion, convert, verify};
use sae_data::{ActivationData, DataError, Element, Options};

/// Inspect activation data sets, and convert them.
#[derive(Parser, Debug)]
#[command(version, after_long_help = formats_and_codes())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn formats_and_codes() -> String {
    let formats = sae_data::formats();
    format!("Reads {formats}.\n\nExit codes: 0 done, 2 the data or an option cannot be used.")
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Describe a data set, check its values, and show how the loader would read it.
    Inspect {
        #[command(flatten)]
        source: SourceArguments,
        /// Check about this many evenly spread rows; 0 for all. Default: all rows of up to 4 GiB as float32, otherwise 1 GiB.
        #[arg(long, value_name = "ROWS")]
        sample: Option<usize>,
        /// Memory of the loader, as data.window_mb.
        #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
        window_mb: u32,
        /// Compare shards with the checksums in their index.json.
        #[arg(long)]
        verify: bool,
    },
    /// Write a data set as safetensors shards with checksums; the same command again continues where it stopped.
    Convert {
        #[command(flatten)]
        source: SourceArguments,
        /// Directory for the shards.
        destination: PathBuf,
        /// Element type of the shards.
        #[arg(long, default_value = "f16", value_parser = ["f32", "f16", "bf16"])]
        dtype: String,
        /// Size of a shard.
        #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
        shard_mb: u32,
    },
}

#[derive(clap::Args, Debug)]
struct SourceArguments {
    /// File or directory of activations.
    path: PathBuf,
    /// Name of the activation tensor or column. Default: the only candidate.
    #[arg(long)]
    tensor: Option<String>,
    /// Number of the layer, for saev shards with several layers.
    #[arg(long, allow_hyphen_values = true)]
    layer: Option<i64>,
    /// Leave out position 0 of each example.
    #[arg(long)]
    drop_first_token: bool,
    /// File of labels, one per row or one per example.
    #[arg(long)]
    labels: Option<PathBuf>,
}

impl SourceArguments {
    fn open(&self) -> Result<ActivationData> {
        let options = Options {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: self.labels.clone(),
        };
        Ok(ActivationData::open(&self.path, &options)?)
    }
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let remedy = error.downcast_ref().and_then(remedy).unwrap_or_default();
            eprintln!("error: {error:#}{remedy}");
            ExitCode::from(2)
        }
    }
}

/// The remedy for an error, in the options of this program.
fn remedy(error: &DataError) -> Option<String> {
    match error {
        DataError::Ambiguous { .. } => Some(" with --tensor".into()),
        DataError::TooLarge { .. } => Some(" as --dtype".into()),
        DataError::Option { key, .. } => Some(format!(" (--{})", key.replace('_', "-"))),
        DataError::NotCompiled { feature, .. } => Some(format!(
            "; start this one with cargo run -p sae-data --features {feature}"
        )),
        _ => None,
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Inspect {
            source,
            sample,
            window_mb,
            verify: with_checksums,
        } => {
            let data = source.open()?;
            if *with_checksums {
                let bar = bar(
                    data.info().files.iter().map(|file| file.bytes).sum(),
                    "verifying",
                );
                verify(&source.path, |bytes| bar.inc(bytes))?;
                bar.finish_and_clear();
                println!("checksums: all shards match their index");
            }
            inspect::print(&data, *sample, *window_mb as usize)
        }
        Command::Convert {
            source,
            destination,
            dtype,
            shard_mb,
        } => {
            let data = source.open()?;
            let element = match dtype.as_str() {
                "f32" => Element::F32,
                "bf16" => Element::Bf16,
                _ => Element::F16,
            };
            convert_to(&data, destination, element, *shard_mb as usize)
        }
    }
}

fn convert_to(
    data: &ActivationData,
    destination: &Path,
    element: Element,
    shard_mb: usize,
) -> Result<()> {
    let inside = |path: &Path| path.canonicalize().ok();
    ensure!(
        inside(destination).is_none() || inside(destination) != inside(data.path()),
        "{}: source and destination are the same; choose another destination",
        destination.display()
    );
    let shard_rows = ((shard_mb << 20) / (data.width() * element.size())).max(1);
    let conversion = Conversion {
        element,
        shard_rows,
    };
    let bar = bar(data.rows() as u64, "converting");
    let index = convert(data, destination, conversion, |rows| bar.inc(rows as u64))?;
    bar.finish_and_clear();
    let bytes: u64 = index.shards.iter().map(|shard| shard.bytes).sum();
    println!(
        "{}: {} rows of width {} as {} in {} shards, {:.1} MB",
        destination.display(),
        index.rows,
        index.width,
        index.dtype,
        index.shards.len(),
        bytes as f64 / 1e6
    );
    Ok(())
}

/// A progress bar on stderr, if stderr is a terminal.
fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {wide_bar} {human_pos} of {human_len} ETA {eta}");
    let bar = ProgressBar::new(length).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
