//! Embeddings and names of the classes of a labelled data set, checked against the data before training or evaluation.

use std::path::Path;

use sae_run::read_text;

use crate::config::{self, DataConfig, DataConfigError, Split};
use crate::data::ActivationData;
use crate::error::DataError;

/// Longest list of class names that is read, in bytes.
const MAX_NAMES: u64 = 16 << 20;

const EMBEDDINGS: &str = "data.class_embeddings";
const NAMES: &str = "data.class_names";

/// The weights of a zero-shot head: one embedding per class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassHead {
    /// Embeddings `[classes, width]`.
    pub embeddings: Vec<f32>,
    /// Name of each class; its number if the config has no list of names.
    pub names: Vec<String>,
    /// Width d of an embedding, the same as of the activations.
    pub width: usize,
}

impl DataConfig {
    /// The classes of both sides of `split`, or the reason why there are none: no embeddings, or no labels. Reads all labels.
    ///
    /// # Errors
    /// [`DataConfigError`] with the key whose file cannot be read or does not fit: embeddings of another width, more or fewer
    /// names than embeddings, or a label without an embedding.
    pub fn class_head(&self, split: &Split) -> Result<Result<ClassHead, String>, DataConfigError> {
        let Some(path) = &self.class_embeddings else {
            return Ok(Err(format!("the config names no {EMBEDDINGS}")));
        };
        let (embeddings, classes) = config::matrix(EMBEDDINGS, path, split)?;
        let names = match &self.class_names {
            Some(path) => names(path, classes)?,
            None => (0..classes).map(|class| class.to_string()).collect(),
        };
        for (key, side) in [
            ("data.train", &split.train),
            ("data.held_out", &split.held_out),
        ] {
            if !side.has_labels() {
                return Ok(Err(format!("{} has no labels", side.path().display())));
            }
            let about = DataConfigError::of(key, side.path());
            if let Some((row, label)) = unknown_label(side, classes).map_err(about)? {
                let remedy = format!(
                    "it has {classes} embeddings, but row {row} of {} has label {label}; give one embedding per class",
                    side.path().display()
                );
                return Err(DataConfigError::about(EMBEDDINGS, path, remedy));
            }
        }
        Ok(Ok(ClassHead {
            embeddings,
            names,
            width: split.train.width(),
        }))
    }
}

/// The first row whose label is not below `classes`, numbered in the whole data set, and its label.
fn unknown_label(
    side: &ActivationData,
    classes: usize,
) -> Result<Option<(usize, usize)>, DataError> {
    for block in side.all_labels() {
        let (start, labels) = block?;
        if let Some(at) = labels.iter().position(|label| *label >= classes) {
            return Ok(Some((side.row_in_source(start + at), labels[at])));
        }
    }
    Ok(None)
}

/// The names of `classes` classes: a JSON list of strings.
fn names(path: &Path, classes: usize) -> Result<Vec<String>, DataConfigError> {
    let wrong = |remedy: String| DataConfigError::about(NAMES, path, remedy);
    let text = read_text(path, MAX_NAMES)
        .map_err(DataError::io(path))
        .map_err(DataConfigError::of(NAMES, path))?;
    let names: Vec<String> = serde_json::from_str(&text)
        .map_err(|error| wrong(format!("not a JSON list of strings: {error}")))?;
    match names.len() == classes {
        true => Ok(names),
        false => Err(wrong(format!(
            "{} names for {classes} class embeddings; give one name per class, in their order",
            names.len()
        ))),
    }
}
