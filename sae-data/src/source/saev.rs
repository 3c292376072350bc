//! saev's shards (github.com/samuelstevens/saev): `metadata.json`, `shards.json`, and files of float32 without a
//! header, `[example, layer, token, d]`, the last one filled up with zeros.
//!
//! `metadata.json` has a field `data` with a pickle in it. It is not looked at.

use std::path::Path;

use serde::Deserialize;

use super::Options;
use super::builder::MatrixBuilder;
use super::file::{SourceFile, Store};
use super::format::nothing_to_choose;
use super::json::{beside, json};
use super::matrix::{Integer, IntegerColumn, Matrix};
use crate::element::Element;
use crate::error::DataError;

const NAME: &str = "saev";
pub(super) const METADATA: &str = "metadata.json";
pub(super) const SHARDS: &str = "shards.json";
const LABELS: &str = "labels.bin";

/// The parts of `metadata.json` that are read. The code of saev, its documentation and its earlier versions spell keys
/// differently.
#[derive(Deserialize)]
struct Metadata {
    layers: Vec<i64>,
    #[serde(
        alias = "patches_per_ex",
        alias = "n_patches_per_img",
        alias = "content_tokens_per_ex"
    )]
    content_tokens_per_example: usize,
    cls_token: bool,
    #[serde(alias = "d_vit")]
    d_model: usize,
    #[serde(default = "float32")]
    dtype: String,
}

impl Metadata {
    /// Tokens per example, bytes per layer of an example, bytes per example.
    fn sizes(&self) -> Option<(usize, u64, u64)> {
        let class_token = usize::from(self.cls_token);
        let tokens = self.content_tokens_per_example.checked_add(class_token)?;
        let layer = (tokens as u64)
            .checked_mul(self.d_model as u64)?
            .checked_mul(4)?;
        let example = layer.checked_mul(self.layers.len() as u64)?;
        (layer > 0).then_some((tokens, layer, example))
    }
}

fn float32() -> String {
    "float32".into()
}

/// An entry of `shards.json`.
#[derive(Deserialize)]
struct Shard {
    name: String,
    #[serde(alias = "n_imgs")]
    n_examples: usize,
}

/// Opens a directory of shards.
pub(super) fn open(dir: &Path, options: &Options) -> Result<Matrix, DataError> {
    let metadata: Metadata = json(&dir.join(METADATA))?;
    let shards: Vec<Shard> = json(&dir.join(SHARDS))?;
    if metadata.dtype != "float32" {
        return Err(DataError::unsupported(
            &dir.join(METADATA),
            format!("dtype \"{}\"", metadata.dtype),
            "saev's shards are float32",
        ));
    }
    if let Some(tensor) = &options.tensor {
        return Err(nothing_to_choose(dir, "tensor", tensor));
    }
    let layer = layer(dir, &metadata, options)?;
    let sizes = metadata.sizes().ok_or_else(|| {
        let reason = "an example has no values, or more than there can be";
        DataError::damaged(&dir.join(METADATA), NAME, 0, reason)
    })?;
    let (tokens, layer_bytes, example_bytes) = sizes;
    let mut builder = MatrixBuilder::new(dir, NAME, options);
    builder.info.layer = Some(metadata.layers[layer]);
    let mut examples = 0;
    for shard in shards {
        let file = beside(&dir.join(SHARDS), &shard.name)?;
        if shard.n_examples == 0 {
            continue; // a file of nothing but padding
        }
        let file = SourceFile::stat(&file)?;
        let promised = (shard.n_examples as u64).saturating_mul(example_bytes);
        file.check_span(NAME, 0, promised)?;
        if (file.bytes - promised) % example_bytes != 0 {
            let reason = format!(
                "whole examples of {example_bytes} bytes should end here; the file was cut"
            );
            return Err(DataError::damaged(&file.path, NAME, file.bytes, reason));
        }
        let store = builder.file(&file);
        builder.kind(store, Element::F32, metadata.d_model)?;
        for example in 0..shard.n_examples as u64 {
            let offset = example * example_bytes + layer as u64 * layer_bytes;
            builder.example(store, offset, tokens)?;
        }
        examples += shard.n_examples;
    }
    labels(dir, &metadata, examples, options, &mut builder)?;
    builder.finish()
}

/// Position of the wanted layer among the layers.
fn layer(dir: &Path, metadata: &Metadata, options: &Options) -> Result<usize, DataError> {
    let known = &metadata.layers;
    let position = match options.layer {
        None => (known.len() == 1).then_some(0),
        Some(layer) => known.iter().position(|known| *known == layer),
    };
    position.ok_or_else(|| {
        let value = options
            .layer
            .map_or("(none)".into(), |layer| layer.to_string());
        let remedy = format!("{} has layers {known:?}; choose one", dir.display());
        DataError::option("layer", value, remedy)
    })
}

/// Adds `labels.bin` `[example, content token]`, u8. The class token has no label, so the data has labels only without a
/// class token or if it is dropped.
fn labels(
    dir: &Path,
    metadata: &Metadata,
    examples: usize,
    options: &Options,
    builder: &mut MatrixBuilder<'_>,
) -> Result<(), DataError> {
    let path = dir.join(LABELS);
    if !path.exists() || (metadata.cls_token && !options.drop_first_token) {
        return Ok(());
    }
    let file = SourceFile::stat(&path)?;
    let rows = examples.saturating_mul(metadata.content_tokens_per_example);
    if file.bytes != rows as u64 {
        return Err(DataError::label_count(&path, file.bytes, rows, None));
    }
    let column = IntegerColumn {
        integer: Integer::U8,
        offset: 0,
        count: rows,
    };
    let store = builder.store(file);
    builder.labels(store, &column)
}
