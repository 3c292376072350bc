//! `sae-eval export`: a model of ours as a directory that SAELens or sparsify loads.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use sae_model::{Sae, saved};

use super::approximate::{self, Form};
use super::certificate::{self, Measured};
use super::error::Misfit;
use super::folded::Folded;
use super::origin::OriginArguments;
use super::placed::{self, Placed};
use super::{Failure, saelens, sparsify};
use crate::run::{Data, Elsewhere, Run};
use crate::{cli, encode};

/// Write a trained model as a dictionary of SAELens or sparsify.
///
/// DIR gets cfg.json and the weights; of a run whose held-out rows can be read, also how often latents fire (SAELens'
/// sparsity.safetensors), and certificate.json, which compares what was written with the model on these rows. What the format
/// cannot hold exactly is refused, or approximated with --approximate. docs/INTEROP.md says what goes where.
///
/// Exit codes: 0 done; 1 DIR could not be written; 2 the model, its data or an option is wrong. DIR is whole or absent.
#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// The run directory, for example runs/quickstart, or a saved model.
    run: PathBuf,
    /// The directory to write: a new or an empty one.
    dir: PathBuf,
    /// The program that is to read it.
    #[arg(long, value_enum)]
    to: Format,
    /// Write the nearest TopK or JumpReLU, fitted on the run's training rows, and measure what that changes.
    #[arg(long, value_enum, value_name = "FORM")]
    approximate: Option<Form>,
    /// The run's training activations, if they have moved.
    #[arg(long, value_name = "PATH")]
    train: Option<PathBuf>,
    /// The run's held-out activations, if they are a data set of their own and have moved.
    #[arg(long, value_name = "PATH")]
    held_out: Option<PathBuf>,
    #[command(flatten)]
    origin: OriginArguments,
    /// Number of threads; default: RAYON_NUM_THREADS, or one per processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
}

/// A program whose dictionaries are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Saelens,
    Sparsify,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Saelens => saelens::NAME,
            Self::Sparsify => sparsify::NAME,
        }
    }
}

/// Writes the dictionary.
pub(super) fn export(arguments: &ExportArguments) -> Result<(), Failure> {
    placed::check_free(&arguments.dir)?;
    cli::start_threads(arguments.threads)?;
    let path = encode::model_in(&arguments.run)?;
    let sae = saved::load(&path, &Device::flex())?;
    let exact = arguments.exact(&sae, &path)?; // first, because reading data takes longer
    let data = arguments.data(&path);
    let (folded, what) = match exact {
        Some(folded) => (folded, "exact".to_string()),
        None => arguments.nearest(&sae, data.as_ref())?,
    };
    let mut files = match arguments.to {
        Format::Saelens => saelens::files(&folded, arguments.origin.metadata(&arguments.run))?,
        Format::Sparsify => sparsify::files(&folded)?,
    };
    let measured = match &data {
        Ok(data) => {
            let written = folded.to_sae(&Device::flex())?;
            let rows = &data.held_out;
            Some(certificate::measure(&sae, &written, rows, what.clone())?)
        }
        Err(_) => None,
    };
    if let Some(measured) = &measured {
        files.extend(measured_files(measured, arguments.to)?);
    }
    let written = write(&arguments.dir, &files);
    written.map_err(Failure::Unwritten)?;
    say(&format!(
        "{}: for {}, {} latents, width {}, {what}",
        arguments.dir.display(),
        arguments.to.name(),
        folded.n_latents,
        folded.d_in
    ));
    report(arguments.to, measured.as_ref(), data.err());
    Ok(())
}

impl ExportArguments {
    /// The rows of the run, or why there are none.
    fn data(&self, model: &Path) -> Result<Data, String> {
        if model == self.run {
            return Err(format!("{} is a model without a run", self.run.display()));
        }
        let elsewhere = Elsewhere::moved(self.train.clone(), self.held_out.clone());
        let run = Run::open(&self.run, None, &elsewhere, &Device::flex());
        run.map(|run| run.data)
            .map_err(|error| format!("{error:#}"))
    }

    /// What is written, if it is the model as it is.
    fn exact(&self, sae: &Sae, path: &Path) -> Result<Option<Folded>> {
        let name = self.to.name();
        let folded = match self.approximate {
            Some(Form::Jumprelu) if self.to == Format::Sparsify => Err(Misfit::Selection {
                architecture: "JumpReLU".into(),
                format: name,
            }),
            Some(_) => return Ok(None),
            None => Folded::of(sae, name).and_then(|folded| match self.to {
                Format::Saelens => Ok(folded),
                Format::Sparsify => sparsify::k(&folded).map(|_| folded),
            }),
        };
        let forms = match self.to {
            Format::Saelens => "--approximate topk or --approximate jumprelu",
            Format::Sparsify => "--approximate topk",
        };
        let folded = folded.map_err(|misfit| {
            anyhow!(
                "{}: {misfit}; the nearest model that it holds: {forms}",
                path.display()
            )
        })?;
        Ok(Some(folded))
    }

    /// What is written, if it is the nearest model of a form, and how it was found, in words.
    fn nearest(&self, sae: &Sae, data: Result<&Data, &String>) -> Result<(Folded, String)> {
        let form = self.approximate.unwrap_or(Form::Topk);
        let data = data.map_err(|reason| {
            anyhow!(
                "--approximate: what it changes is measured on held-out rows, which cannot be read: {reason}"
            )
        })?;
        let train = data.train.as_ref();
        let (folded, how) = approximate::nearest(sae, form, self.to.name(), train)?;
        Ok((folded, format!("approximate: {how}")))
    }
}

/// The files with what was measured.
fn measured_files(measured: &Measured, to: Format) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut json = serde_json::to_vec_pretty(&measured.certificate)?;
    json.push(b'\n');
    let mut files = vec![(certificate::FILE, json)];
    if to == Format::Saelens {
        files.push(saelens::sparsity(measured.frequencies.iter().copied())?);
    }
    Ok(files)
}

/// Writes the directory, whole or not at all.
fn write(dir: &Path, files: &[(&'static str, Vec<u8>)]) -> Result<()> {
    let placed = Placed::begin(dir)?;
    for (name, bytes) in files {
        placed.write(name, bytes)?;
    }
    placed.finish()
}

/// Says what was measured, or why nothing was.
fn report(to: Format, measured: Option<&Measured>, missing: Option<String>) {
    let sparsity = match to {
        Format::Saelens => " and sparsity.safetensors",
        Format::Sparsify => "",
    };
    match (measured, missing) {
        (Some(measured), _) => {
            for line in measured.certificate.lines() {
                say(&line);
            }
            say(&format!("measured: certificate.json{sparsity}"));
        }
        (None, reason) => say(&format!(
            "not written: certificate.json{sparsity}, because no held-out rows can be read ({})",
            reason.unwrap_or_default()
        )),
    }
}

/// Prints a line, unless nobody reads it.
pub(super) fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}
