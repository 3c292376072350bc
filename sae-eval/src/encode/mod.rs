//! `sae-eval encode`: the codes of a data set, on disk (docs/ENCODING.md).

mod failure;
mod index;
mod input;
mod keep;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;
mod shards;
mod spool;
mod stop;
mod stream;

use std::io::{Write, stdout};
use std::path::PathBuf;

use clap::Args;
use sae_model::device::NAMES;

use crate::cli;
use crate::evaluate::rows_at_once;
use crate::model::{Model, host_of};
use crate::progress::Progress;
use failure::Failure;
use index::{FORMAT, Index, Options, Output};
use input::Input;
pub(crate) use input::model_in;
use keep::Keep;
pub(crate) use keep::named;
use shards::{Dtype, Format, Layout};
use stop::Stop;
use stream::Job;

/// Encode a data set with a trained model: its sparse codes on disk, as safetensors or Parquet.
///
/// Every row of DATA is encoded, also rows that training left out for their norm. OUT gets shards of codes and, at the
/// end, index.json. The same command again continues after the last whole shard. docs/ENCODING.md describes the files.
///
/// Exit codes: 0 done; 1 the codes could not be written; 2 the model, the data or an option is wrong; 130 stopped by
/// Ctrl-C, 143 by SIGTERM. Whole shards stay in each case.
#[derive(Args, Debug)]
#[command(allow_missing_positional = true)]
pub(crate) struct EncodeArguments {
    /// The run directory, for example runs/quickstart, or a saved model.
    #[arg(required = true)]
    run: PathBuf,
    /// File or directory of activations, in any format that sae-data reads.
    data: Option<PathBuf>,
    /// The directory to write to: a new one, or one in which the same command was stopped.
    #[arg(required = true)]
    out: PathBuf,
    /// Encode the run's own held-out rows; leave DATA out.
    #[arg(long)]
    held_out: bool,
    /// Name of the activation tensor or column of DATA. Default: the only candidate.
    #[arg(long)]
    tensor: Option<String>,
    /// Number of the layer, for saev shards with several layers.
    #[arg(long, allow_hyphen_values = true)]
    layer: Option<i64>,
    /// Leave out position 0 of each example of DATA.
    #[arg(long)]
    drop_first_token: bool,
    /// Keep only these latents: a list such as 3,17,40-60, or a file of one.
    #[arg(long, value_name = "FILE|LIST")]
    latents: Option<String>,
    /// Keep the N largest values of each row; of equal ones those of the lower latents.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Write the reconstructed rows, too: a data set in OUT/reconstruction, made of the codes that are kept.
    #[arg(long)]
    reconstruct: bool,
    /// Type of the values, and of reconstructed rows.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Format of the codes.
    #[arg(long, value_enum, default_value_t = Format::Safetensors)]
    format: Format,
    /// Largest size of a shard.
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    shard_mb: u32,
    #[arg(long, default_value = "cpu", help = format!("Device to encode on: {NAMES}"))]
    device: String,
    /// Number of threads; default: RAYON_NUM_THREADS, or one per processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Rows per batch; default: 1024, or fewer where a GPU holds the activations of all latents at once.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
}

/// Runs the subcommand; returns the exit code.
pub(crate) fn main(arguments: &EncodeArguments) -> u8 {
    let Err(failure) = encode(arguments) else {
        return 0;
    };
    match &failure {
        Failure::Wrong(error) => eprintln!("error: {error:#}{}", input::remedy(error)),
        Failure::Unwritten(error) => eprintln!("error: {error:#}"),
        Failure::Stopped { message, .. } => eprintln!("{message}"),
    }
    failure.code()
}

fn encode(arguments: &EncodeArguments) -> Result<(), Failure> {
    cli::start_threads(arguments.threads)?;
    let device = cli::open_device(&arguments.device)?;
    let host = host_of(&device);
    let layout = arguments.layout();
    layout.check()?;
    let input = Input::open(arguments, &host)?;
    let latents = input.sae.config().n_latents;
    let kept = arguments.latents.as_deref();
    let kept = kept.map(|text| keep::named(text, latents)).transpose()?;
    let top = arguments.top.map(|top| top as usize);
    let keep = Keep::new(kept.as_deref(), top, latents);
    let layout = Layout {
        reconstructed: arguments.reconstruct.then(|| input.data.width()),
        ..layout
    };
    let fresh = arguments.index(&input, kept)?;
    let model = Model::new(input.sae, &device);
    let batch = rows_at_once(arguments.batch_size);
    let stop = Stop::watch()?;
    let mut output = Output::begin(&arguments.out, fresh)?;
    if output.is_complete {
        say(&format!("{}: it is complete already", summary(&output)));
        return Ok(());
    }
    let job = Job {
        model: &model,
        latents,
        host,
        data: &input.data,
        batch,
        keep,
        layout,
        stop,
    };
    let done = output.index.rows_done();
    if done > 0 {
        eprintln!("continuing with row {done}, the first after the whole shards");
    }
    let mut progress = Progress::new("encoding", "rows", output.index.rows, done);
    job.run(&mut output, &mut progress)?;
    let rate = progress.rate();
    drop(progress);
    say(&format!("{}; {rate}", summary(&output)));
    Ok(())
}

impl EncodeArguments {
    /// How shards are written, but for the width of reconstructed rows.
    fn layout(&self) -> Layout {
        Layout {
            format: self.format,
            dtype: self.dtype,
            reconstructed: None,
            limit: (self.shard_mb as usize) << 20,
        }
    }

    /// The encoding without any shard.
    fn index(&self, input: &Input, latents: Option<Vec<u32>>) -> Result<Index, Failure> {
        Ok(Index {
            format: FORMAT.into(),
            version: 1,
            rows: input.data.rows(),
            latents: input.sae.config().n_latents,
            dtype: format!("{:?}", self.dtype),
            model: input.model.clone(),
            data: input.data.fingerprint()?,
            data_rows: input.data_rows(),
            options: Options {
                file_format: self.format.to_string(),
                device: self.device.clone(),
                latents,
                top: self.top.map(|top| top as usize),
                reconstruct: self.reconstruct,
                shard_mb: self.shard_mb as usize,
            },
            shards: Vec::new(),
            reconstruction: Vec::new(),
        })
    }
}

/// What is in the directory.
fn summary(output: &Output) -> String {
    let index = &output.index;
    format!(
        "{}: {} rows, {:.1} latents per row, {} shards, {:.1} MB",
        output.dir.display(),
        index.rows,
        index.entries() as f64 / index.rows as f64,
        index.shards.len(),
        index.bytes() as f64 / 1e6
    )
}

/// Prints a line, unless nobody reads it.
fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}
