//! What is asked of the rest of the model: `[eval.tail]` in a config, and the options that take its place.

use std::path::PathBuf;

use clap::Args;
use sae_data::{MaxNorm, TailConfig};

/// The rest of the model, in place of `[eval.tail]`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TailArguments {
    /// The rest of the model from the layer on, an ONNX file that tools/export_tail.py wrote: what its predictions or answers
    /// lose is in the report.
    #[arg(id = "tail_file", long = "tail", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Documents for --tail: activations of all tokens from position 0 on. Default: those that the run has held out.
    #[arg(id = "tail_data", long = "tail-data", value_name = "PATH")]
    pub(crate) data: Option<PathBuf>,
    /// Labelled activations on which the latents of a class are ranked for --tail. Default: the run's training rows.
    #[arg(id = "tail_ranked_on", long = "tail-ranked-on", value_name = "PATH")]
    pub(crate) ranked_on: Option<PathBuf>,
    /// Class embeddings [classes, e], for a tail that gives embeddings.
    #[arg(
        id = "tail_class_embeddings",
        long = "tail-class-embeddings",
        value_name = "PATH"
    )]
    pub(crate) class_embeddings: Option<PathBuf>,
    /// Only the first N documents.
    #[arg(id = "tail_documents", long = "tail-documents", value_name = "N", value_parser = at_least_two)]
    pub(crate) documents: Option<usize>,
    /// Rows of a larger norm stay as they are in the documents of --tail: a number, "10x median" (of the rows that are
    /// replaced) or none. Default: none.
    #[arg(id = "tail_max_norm", long = "tail-max-norm", value_name = "NORM", value_parser = norm)]
    pub(crate) max_norm: Option<MaxNorm>,
}

impl TailArguments {
    /// These, completed by the run's config.
    pub(crate) fn or(&self, config: Option<&TailConfig>) -> Self {
        let Some(config) = config else {
            return self.clone();
        };
        let either =
            |own: &Option<PathBuf>, other: &Option<PathBuf>| own.clone().or_else(|| other.clone());
        Self {
            file: either(&self.file, &config.file),
            data: either(&self.data, &config.data),
            ranked_on: either(&self.ranked_on, &config.ranked_on),
            class_embeddings: either(&self.class_embeddings, &config.class_embeddings),
            documents: self.documents.or(config.documents),
            max_norm: self.max_norm.or(config.max_norm),
        }
    }
}

fn at_least_two(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "not a number".to_string())?;
    if number < 2 {
        return Err("intervals need two documents at least".into());
    }
    Ok(number)
}

fn norm(text: &str) -> Result<MaxNorm, String> {
    let number = text.parse::<f64>().map(serde_json::Value::from);
    let value = number.unwrap_or_else(|_| text.into());
    serde_json::from_value(value).map_err(|error| error.to_string())
}
