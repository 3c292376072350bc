//! saev's shards (github.com/samuelstevens/saev): `metadata.json`, `shards.json`, and files of float32 without a
//! header, `[example, layer, token, d]`, the last one filled up with zeros.
//!
//! `metadata.json` has a field `data` with a pickle in it. It is not looked at.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::directory::beside;
use super::file::SourceFile;
use super::matrix::{Integer, IntegerColumn, Matrix, MatrixBuilder};
use super::{Options, TENSOR, useless};
use crate::element::Element;
use crate::error::DataError;

const FORMAT: &str = "saev";
pub(super) const METADATA: &str = "metadata.json";
pub(super) const SHARDS: &str = "shards.json";
const LABELS: &str = "labels.bin";

/// What is read of `metadata.json`. The code of saev, its document and its
/// earlier versions spell keys differently.
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
    /// Tokens of an example, bytes of one layer of it, and of all.
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
        return Err(useless(dir, TENSOR, format!("{tensor:?}"), "tensors"));
    }
    let layer = layer(dir, &metadata, options)?;
    let sizes = metadata.sizes().ok_or_else(|| {
        let reason = "an example has no values, or more than there can be";
        DataError::damaged(&dir.join(METADATA), FORMAT, 0, reason)
    })?;
    let (tokens, layer_bytes, example_bytes) = sizes;
    let mut builder = MatrixBuilder::new(dir, FORMAT, options);
    builder.layer(metadata.layers[layer]);
    let mut examples = 0;
    for shard in shards {
        let file = beside(&dir.join(SHARDS), &shard.name)?;
        if shard.n_examples == 0 {
            continue; // a file that is padding and nothing else
        }
        let file = SourceFile::stat(&file)?;
        let promised = (shard.n_examples as u64).saturating_mul(example_bytes);
        file.check_span(FORMAT, 0, promised)?;
        if (file.bytes - promised) % example_bytes != 0 {
            let reason = format!(
                "whole examples of {example_bytes} bytes should end here; the file was cut"
            );
            return Err(DataError::damaged(&file.path, FORMAT, file.bytes, reason));
        }
        let number = builder.file(file);
        builder.kind(number, Element::F32, metadata.d_model)?;
        for example in 0..shard.n_examples as u64 {
            let offset = example * example_bytes + layer as u64 * layer_bytes;
            builder.example(number, offset, tokens)?;
        }
        examples += shard.n_examples;
    }
    labels(dir, &metadata, examples, options, &mut builder)?;
    builder.finish()
}

/// Which of the layers is wanted.
fn layer(dir: &Path, metadata: &Metadata, options: &Options) -> Result<usize, DataError> {
    let known = &metadata.layers;
    let wrong = |value: String, remedy: String| DataError::Option {
        key: "data.layer",
        value,
        remedy,
    };
    match options.layer {
        None if known.len() == 1 => Ok(0),
        None => Err(wrong(
            "(none)".into(),
            format!("{} has layers {known:?}; choose one", dir.display()),
        )),
        Some(layer) => known
            .iter()
            .position(|known| *known == layer)
            .ok_or_else(|| {
                wrong(
                    layer.to_string(),
                    format!("{} has layers {known:?}", dir.display()),
                )
            }),
    }
}

/// `labels.bin` `[example, content token]`, u8. The class token has no label, so there are labels only where it
/// is not there or dropped.
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
        return Err(DataError::LabelCount {
            path,
            labels: file.bytes as usize,
            rows,
            examples: None,
        });
    }
    let column = IntegerColumn {
        integer: Integer::U8,
        offset: 0,
        count: rows,
    };
    builder.labels(&file, &column)
}

/// Reads a small JSON file.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    const MAX: u64 = 1 << 28;
    let file = SourceFile::stat(path)?;
    if file.bytes > MAX {
        let reason = format!("{} bytes; a description has at most {MAX}", file.bytes);
        return Err(DataError::damaged(path, "JSON", 0, reason));
    }
    let bytes = file.open()?.bytes_at("JSON", 0, file.bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let lines = bytes
            .split_inclusive(|b| *b == b'\n')
            .take(error.line().saturating_sub(1));
        let offset = lines.map(<[u8]>::len).sum::<usize>() + error.column().saturating_sub(1);
        DataError::damaged(path, "JSON", offset as u64, error.to_string())
    })
}
