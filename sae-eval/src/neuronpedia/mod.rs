//! `sae-eval neuronpedia`: files that `POST /api/feature/upload-batch` of Neuronpedia takes, with the strongest rows of each
//! latent and its activations on the tokens around them (docs/NEURONPEDIA.md). The rows are those of the report's cards, but
//! cards have shades, and Neuronpedia wants numbers and longer passages.

mod batches;
mod passages;

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use sae_model::device::NAMES;
use sae_run::checkpoints::Which;

use crate::evaluate::{Passes, rows_at_once};
use crate::model::{Model, host_of};
use crate::page::shades::{self, Wanted, activations};
use crate::page::strongest::{TOP, Tallies};
use crate::page::text::counted;
use crate::run::{Elsewhere, Run};
use crate::{cli, encode};
use batches::{Activation, Batches, Feature, Header, MOST_TOKENS};
use passages::Passages;

/// Write what a model's latents respond to as files for Neuronpedia's POST /api/feature/upload-batch.
///
/// OUT gets features-00000.json, ... with at most 128 latents each and, at the end, index.json.
/// tools/send_neuronpedia.py sends them. docs/NEURONPEDIA.md says what is in the files and what Neuronpedia needs first.
///
/// Exit codes: 0 done; 1 the files could not be written; 2 the run, its data or an option is wrong.
#[derive(Args, Debug)]
pub(crate) struct UploadArguments {
    /// The run directory, for example runs/language_model.
    run: PathBuf,
    /// The directory to write to: a new or an empty one.
    out: PathBuf,
    /// Id of the language model on Neuronpedia, for example gpt2-small.
    #[arg(long, value_name = "ID")]
    model_id: String,
    /// Id of the source on Neuronpedia: the layer and the name of your source set, for example 5-dynamic-sae.
    #[arg(long, value_name = "ID")]
    source: String,
    /// Only these latents: a list such as 3,17,40-60, or a file of one.
    #[arg(long, value_name = "FILE|LIST")]
    latents: Option<String>,
    /// Strongest rows of each latent.
    #[arg(long, value_name = "N", default_value_t = TOP as u16, value_parser = clap::value_parser!(u16).range(1..=TOP as i64))]
    examples: u16,
    /// Most tokens of a passage: two thirds before the strongest one, the others behind it.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=MOST_TOKENS as i64))]
    tokens: u16,
    /// Take the rows of these activations, not the run's held-out rows.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Name of the activation tensor or column of --data. Default: data.tensor, or the only one.
    #[arg(long, value_name = "NAME", requires = "data")]
    tensor: Option<String>,
    /// Use the model of a checkpoint: best, newest, or the number of a step.
    #[arg(long, value_name = "WHICH")]
    checkpoint: Option<Which>,
    #[arg(long, default_value = "cpu", help = format!("Device to encode on: {NAMES}"))]
    device: String,
    /// Number of threads; default: RAYON_NUM_THREADS, or one per processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Rows per batch; default: 1024, or fewer where a GPU holds the activations of all latents at once.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
}

/// Why there are no files, or not all of them.
enum Failure {
    Wrong(anyhow::Error),
    Unwritten(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Wrong(error.into())
    }
}

/// Runs the subcommand; returns the exit code.
pub(crate) fn main(arguments: &UploadArguments) -> u8 {
    match write(arguments) {
        Ok(()) => 0,
        Err(Failure::Wrong(error)) => {
            eprintln!("error: {error:#}{}", cli::remedy(&error));
            2
        }
        Err(Failure::Unwritten(error)) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}

fn write(arguments: &UploadArguments) -> Result<(), Failure> {
    check_ids(&arguments.model_id, &arguments.source)?;
    batches::check_empty(&arguments.out)?;
    cli::start_threads(arguments.threads)?;
    let device = cli::open_device(&arguments.device)?;
    let elsewhere = Elsewhere::rows(arguments.data.clone(), arguments.tensor.clone());
    let host = host_of(&device);
    let run = Run::open(&arguments.run, arguments.checkpoint, &elsewhere, &host)?;
    let count = run.config.model.n_latents;
    let chosen = match arguments.latents.as_deref() {
        Some(text) => encode::named(text, count)?,
        None => (0..count as u32).collect(),
    };
    let passages = Passages::of(&run.data.held_out, arguments.tokens.into())?;
    let model = Model::new(run.sae.clone(), &device);
    let batch = rows_at_once(arguments.batch_size);
    let passes = Passes::new(&run, &device, batch);
    let examples = arguments.examples.into();
    let tallies = tally(&passes, &model, count, examples)?;
    let header = Header {
        model_id: arguments.model_id.clone(),
        source: arguments.source.clone(),
    };
    let mut job = Job {
        passes: &passes,
        model: &model,
        passages: &passages,
        tallies: &tallies,
        examples,
        batches: Batches::begin(&arguments.out, header),
    };
    let silent = job.write(&chosen)?;
    let files = job.batches.finish(run.data.held_out.rows(), silent)?;
    let mut line = format!(
        "{}: {} in {}",
        arguments.out.display(),
        counted(chosen.len() - silent, "latent", "latents"),
        counted(files, "file", "files")
    );
    if silent > 0 {
        let silent = counted(silent, "latent", "latents");
        line += &format!("; left out: {silent} without an active row");
    }
    if passages.are_texts() {
        line += "; the rows are whole texts, and each is a passage of one token";
    }
    let _ = writeln!(stdout(), "{line}"); // unless nobody reads it
    Ok(())
}

/// Fails if these cannot be ids on Neuronpedia.
fn check_ids(model: &str, source: &str) -> Result<()> {
    for (option, id) in [("--model-id", model), ("--source", source)] {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        ensure!(
            !id.is_empty() && id.chars().all(known),
            "{option} {id:?}: ids on Neuronpedia have small letters, digits, hyphens, dots and underscores"
        );
    }
    let set = source
        .split_once('-')
        .filter(|(layer, set)| is_layer(layer) && !set.is_empty());
    if set.is_none() {
        bail!(
            "--source {source}: it is the layer and the name of your source set on Neuronpedia, such as 5-dynamic-sae"
        );
    }
    Ok(())
}

/// Whether a source may begin so: with a number, or with `e` for the embedding.
fn is_layer(layer: &str) -> bool {
    layer == "e" || (!layer.is_empty() && layer.chars().all(|c| c.is_ascii_digit()))
}

/// The rows on which each latent is active, as the report's page counts them.
fn tally(passes: &Passes, model: &Model, latents: usize, examples: usize) -> Result<Tallies> {
    let data = &passes.run.data.held_out;
    let mut tallies = Tallies::new(data, latents, examples)?;
    passes.walk(data, |start, rows| {
        let x = passes.tensor(rows, rows.len() / data.width());
        tallies.add_rows(data, start, &model.encode(x).codes);
        Ok(())
    })?;
    Ok(tallies)
}

/// A latent's strongest rows, and its activations on the tokens around each.
struct Draft {
    latent: u32,
    values: Vec<Vec<f32>>,
}

/// Everything that writing needs.
struct Job<'a> {
    passes: &'a Passes<'a>,
    model: &'a Model,
    passages: &'a Passages,
    tallies: &'a Tallies,
    /// Strongest rows of each latent.
    examples: usize,
    batches: Batches,
}

impl Job<'_> {
    /// Writes these latents; returns the number of those that are active on no row. Activations are computed for as many
    /// latents at a time as memory allows.
    fn write(&mut self, latents: &[u32]) -> Result<usize, Failure> {
        let (mut drafts, mut wanted, mut silent) = (Vec::new(), Vec::new(), 0);
        for latent in latents {
            if self.tallies.fired(*latent) == 0 {
                silent += 1; // Neuronpedia takes no feature without activations
                continue;
            }
            drafts.push(self.draft(*latent, &mut wanted)?);
            if wanted.len() >= shades::MOST {
                self.flush(std::mem::take(&mut drafts), std::mem::take(&mut wanted))?;
            }
        }
        self.flush(drafts, wanted)?;
        Ok(silent)
    }

    /// A latent without its values, and the tokens where they are wanted.
    fn draft(&self, latent: u32, wanted: &mut Vec<Wanted>) -> Result<Draft> {
        let strongest = self.tallies.strongest(latent, self.examples);
        let mut values = Vec::with_capacity(strongest.len());
        for (example, of) in (0u16..).zip(strongest) {
            let rows = self.passages.around(of.row)?.rows;
            values.push(vec![0.0; rows.len()]);
            for (place, row) in (0u16..).zip(rows) {
                wanted.extend(row.map(|row| Wanted {
                    row,
                    latent,
                    example,
                    place,
                }));
            }
        }
        Ok(Draft { latent, values })
    }

    /// Computes the values of some latents and writes them.
    fn flush(&mut self, mut drafts: Vec<Draft>, wanted: Vec<Wanted>) -> Result<(), Failure> {
        let mut wrong = None;
        activations(wanted, self.passes, self.model, |want, value| {
            let at = drafts.partition_point(|draft| draft.latent < want.latent);
            drafts[at].values[want.example as usize][want.place as usize] = value;
            if !value.is_finite() {
                wrong.get_or_insert((want.row, want.latent));
            }
        })?;
        if let Some((row, latent)) = wrong {
            let error =
                anyhow::anyhow!("row {row}: the activation of latent {latent} is not finite");
            return Err(error.into());
        }
        for draft in drafts {
            let feature = self.feature(draft)?;
            self.batches.add(&feature)?;
        }
        Ok(())
    }

    fn feature(&self, draft: Draft) -> Result<Feature> {
        let strongest = self.tallies.strongest(draft.latent, self.examples);
        let passages = strongest.iter().zip(draft.values).map(|(of, values)| {
            let tokens = self.passages.around(of.row)?.tokens;
            Ok(Activation { tokens, values })
        });
        Ok(Feature {
            index: draft.latent,
            density: self.tallies.fired(draft.latent) as f64
                / self.passes.run.data.held_out.rows() as f64,
            activations: passages.collect::<Result<_>>()?,
        })
    }
}
