//! Conversion to shards: safetensors files of limited size, with an index that has their checksums.
//!
//! ```text
//! DST/  shard-00000.safetensors    activations [n, d]; labels [n], doc [n] in i64 and tokens [n], positions [n] in i32 where
//!       shard-00001.safetensors    there are any
//!       vocab.json, texts.jsonl, thumbnails/    as beside the source
//!       index.json                 written last: without it the conversion is not finished
//!       index.json.partial         during the conversion: the finished shards and their source
//! ```
//!
//! Every file is written under a temporary name, synced and renamed, so a file with its final name is complete. The same call
//! again continues after the last complete shard.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sae_run::atomic_file::{self, AtomicFile, is_full};
use sae_run::sealed::checksum;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::data::ActivationData;
use crate::element::Element;
use crate::error::DataError;
use crate::fingerprint::Fingerprint;
use crate::meanings::Meanings;
use crate::source::{self, INDEX, INDEX_FORMAT, IndexedShard, ShardIndex};

const PARTIAL: &str = "index.json.partial";
/// Rows that are converted at a time.
const BLOCK: usize = 1024;

/// How to write shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Element type: f32, f16 or bf16.
    pub element: Element,
    /// Rows per shard.
    pub shard_rows: usize,
}

/// State of an unfinished conversion.
#[derive(Serialize, Deserialize)]
struct Partial {
    source: Fingerprint,
    /// BLAKE3 of the labels, which are written but not part of the fingerprint.
    #[serde(default)]
    labels: Option<String>,
    /// Names of the columns of what rows are.
    #[serde(default)]
    columns: Vec<String>,
    shard_rows: usize,
    index: ShardIndex,
}

/// Writes `data` as shards into the directory `destination`; `progress` is called with the number of rows after each step.
///
/// # Errors
/// [`DataError::Destination`] if the directory contains something else or the disk is full; complete shards stay.
/// [`DataError::TooLarge`] if a value does not fit the element type.
pub fn convert(
    data: &ActivationData,
    destination: &Path,
    conversion: Conversion,
    mut progress: impl FnMut(usize),
) -> Result<ShardIndex, DataError> {
    let meanings = data.meanings()?;
    let mut partial = begin(data, &meanings, destination, conversion)?;
    let shards = data.rows().div_ceil(conversion.shard_rows);
    progress(partial.index.shards.iter().map(|shard| shard.rows).sum());
    for number in partial.index.shards.len()..shards {
        let start = number * conversion.shard_rows;
        let rows = start..(start + conversion.shard_rows).min(data.rows());
        let writer = ShardWriter {
            data,
            meanings: &meanings,
            element: conversion.element,
            path: destination.join(format!("shard-{number:05}.safetensors")),
        };
        let shard = writer.write(rows, &mut progress);
        let shard = shard.map_err(|error| stopped(error, number, shards))?;
        partial.index.shards.push(shard);
        write_json(&destination.join(PARTIAL), &partial)
            .map_err(|error| stopped(error, number, shards))?;
    }
    meanings
        .copy_to(destination)
        .and_then(|()| write_json(&destination.join(INDEX), &partial.index))
        .map_err(|error| stopped(error, shards, shards))?;
    let leftover = destination.join(PARTIAL);
    std::fs::remove_file(&leftover).map_err(DataError::io(&leftover))?;
    Ok(partial.index)
}

/// BLAKE3 of all labels, as u64, little-endian; `None` if there are none.
fn labels_blake3(data: &ActivationData) -> Result<Option<String>, DataError> {
    let mut hasher = blake3::Hasher::new();
    for block in data.all_labels() {
        for label in block?.1 {
            hasher.update(&(label as u64).to_le_bytes());
        }
    }
    let hash = hasher.finalize().to_hex().to_string();
    Ok(data.has_labels().then_some(hash))
}

/// Compares every shard of `dir` with its checksum; `progress` is called with the number of bytes after each shard.
///
/// # Errors
/// [`DataError::Checksum`] at the first shard that differs.
pub fn verify(dir: &Path, mut progress: impl FnMut(u64)) -> Result<(), DataError> {
    for shard in ShardIndex::read(dir)?.shards {
        let path = dir.join(&shard.file);
        if checksum(&path).map_err(DataError::io(&path))? != shard.blake3 {
            let index = dir.join(INDEX);
            return Err(DataError::Checksum { path, index });
        }
        progress(shard.bytes);
    }
    Ok(())
}

/// The state to start from, or to continue from.
fn begin(
    data: &ActivationData,
    meanings: &Meanings,
    dir: &Path,
    conversion: Conversion,
) -> Result<Partial, DataError> {
    std::fs::create_dir_all(dir).map_err(DataError::io(dir))?;
    if dir.join(INDEX).exists() {
        return Err(occupied(
            dir,
            "there is a finished data set already; choose another destination, or remove it",
        ));
    }
    let source = data.path().display().to_string();
    let fresh = Partial {
        source: data.fingerprint()?,
        labels: labels_blake3(data)?,
        columns: meanings.columns().map(String::from).collect(),
        shard_rows: conversion.shard_rows,
        index: ShardIndex {
            format: INDEX_FORMAT.into(),
            version: 1,
            rows: data.rows(),
            width: data.width(),
            dtype: conversion.element.name().into(),
            shards: Vec::new(),
            image: meanings.image_grid(),
            metadata: serde_json::Map::from_iter([("source".to_string(), source.into())]),
        },
    };
    if dir.join(PARTIAL).exists() {
        return resume(dir, &fresh);
    }
    // A run that was stopped in its first shard leaves at most a file with a temporary name.
    for entry in std::fs::read_dir(dir)
        .map_err(DataError::io(dir))?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".tmp") {
            let reason = format!("not empty (there is {name}); choose a new directory");
            return Err(occupied(dir, reason));
        }
    }
    Ok(fresh)
}

/// The state that an earlier call left, if it wrote the same data in the same way as `fresh`.
fn resume(dir: &Path, fresh: &Partial) -> Result<Partial, DataError> {
    let partial: Partial = source::json(&dir.join(PARTIAL))?;
    let same = partial.source.same_data(&fresh.source)
        && partial.labels == fresh.labels
        && partial.columns == fresh.columns
        && partial.shard_rows == fresh.shard_rows
        && partial.index.dtype == fresh.index.dtype;
    if !same {
        return Err(occupied(
            dir,
            "a conversion of other data, or with other options, was begun here; choose another destination, or remove it",
        ));
    }
    for shard in &partial.index.shards {
        let path = dir.join(&shard.file);
        let metadata = std::fs::metadata(&path).map_err(DataError::io(&path))?;
        if metadata.len() != shard.bytes {
            let reason = format!("{} was changed since; remove the directory", shard.file);
            return Err(occupied(dir, reason));
        }
    }
    Ok(partial)
}

fn occupied(dir: &Path, reason: impl Into<String>) -> DataError {
    DataError::Destination {
        path: dir.into(),
        reason: reason.into(),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DataError> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data");
    text.push(b'\n');
    atomic_file::write(path, &text).map_err(DataError::io(path))
}

/// If the disk is full, says how many shards are whole.
fn stopped(error: DataError, whole: usize, shards: usize) -> DataError {
    match error {
        DataError::Io { path, source } if is_full(&source) => DataError::Destination {
            path,
            reason: format!(
                "the disk is full ({source}); {whole} of {shards} shards are complete. Make room and start the same conversion again: it continues from there"
            ),
        },
        error => error,
    }
}

struct ShardWriter<'a> {
    data: &'a ActivationData,
    meanings: &'a Meanings,
    element: Element,
    path: PathBuf,
}

/// A tensor of integers `[rows]`.
struct Column {
    name: &'static str,
    dtype: Dtype,
    /// Little-endian.
    bytes: Vec<u8>,
}

impl Column {
    /// Values that fit `dtype`, i32 or i64.
    fn new(name: &'static str, dtype: Dtype, values: &[i64]) -> Self {
        let size = dtype.bitsize() / 8;
        let bytes = values
            .iter()
            .flat_map(|v| v.to_le_bytes().into_iter().take(size));
        let bytes = bytes.collect();
        Self { name, dtype, bytes }
    }
}

impl ShardWriter<'_> {
    fn write(
        &self,
        rows: Range<usize>,
        progress: &mut impl FnMut(usize),
    ) -> Result<IndexedShard, DataError> {
        let integers = self.integers(&rows)?;
        let mut file = AtomicFile::create(&self.path).map_err(DataError::io(&self.path))?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let mut put = |file: &mut AtomicFile, part: &[u8]| {
            hasher.update(part);
            bytes += part.len() as u64;
            file.write_all(part).map_err(DataError::io(&self.path))
        };
        put(&mut file, &self.header(rows.len(), &integers)?)?;
        let mut converted = Vec::new();
        for start in rows.clone().step_by(BLOCK) {
            let block = start..(start + BLOCK).min(rows.end);
            let values = self.data.read(block.clone())?;
            self.check(&values, start)?;
            converted.clear();
            self.element.write_f32(&values, &mut converted);
            put(&mut file, &converted)?;
            progress(block.len());
        }
        for column in &integers {
            put(&mut file, &column.bytes)?;
        }
        file.commit().map_err(DataError::io(&self.path))?;
        let name = self.path.file_name().unwrap_or_default();
        Ok(IndexedShard {
            file: name.to_string_lossy().into_owned(),
            rows: rows.len(),
            bytes,
            blake3: hasher.finalize().to_hex().to_string(),
        })
    }

    /// The integers per row. Those of 8 bytes come first, so that all are aligned.
    fn integers(&self, rows: &Range<usize>) -> Result<Vec<Column>, DataError> {
        let labels = self.data.labels(rows.clone())?;
        let labels = labels.map(|labels| labels.into_iter().map(|label| label as i64).collect());
        let documents = self.data.documents(rows.clone());
        let mut columns = Vec::new();
        for (name, values) in [("labels", labels), ("doc", documents)] {
            columns.extend(values.map(|values| Column::new(name, Dtype::I64, &values)));
        }
        for name in self.meanings.columns() {
            let values = self.meanings.column(name, rows.clone())?;
            let short = values.iter().all(|value| i32::try_from(*value).is_ok());
            let dtype = if short { Dtype::I32 } else { Dtype::I64 };
            columns.push(Column::new(name, dtype, &values));
        }
        columns.sort_by_key(|column| std::cmp::Reverse(column.dtype.bitsize()));
        Ok(columns)
    }

    /// The header of a safetensors file, with its length.
    fn header(&self, rows: usize, integers: &[Column]) -> Result<Vec<u8>, DataError> {
        let mut end = 0;
        let mut tensor = |name: &str, dtype: Dtype, shape: Vec<usize>| {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let data_offsets = (start, end);
            let info = TensorInfo {
                dtype,
                shape,
                data_offsets,
            };
            (name.to_string(), info)
        };
        let dtype = match self.element {
            Element::F16 => Dtype::F16,
            Element::Bf16 => Dtype::BF16,
            Element::F32 => Dtype::F32,
            Element::F64 => Dtype::F64,
        };
        let mut tensors = vec![tensor("activations", dtype, vec![rows, self.data.width()])];
        tensors.extend(
            integers
                .iter()
                .map(|column| tensor(column.name, column.dtype, vec![rows])),
        );
        let failed = |reason: String| DataError::damaged(&self.path, "safetensors", 0, reason);
        let metadata = Metadata::new(None, tensors).map_err(|error| failed(error.to_string()))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|error| failed(error.to_string()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        Ok(header)
    }

    /// Fails at a value that the element type cannot hold.
    fn check(&self, values: &[f32], start: usize) -> Result<(), DataError> {
        let limit = self.element.overflows_at();
        let fits = |v: &f32| v.abs() < limit || !v.is_finite();
        let Some(at) = values.iter().position(|v| !fits(v)) else {
            return Ok(());
        };
        let (row, column) = (start + at / self.data.width(), at % self.data.width());
        Err(DataError::TooLarge {
            row,
            column,
            value: values[at],
            element: self.element.name().to_lowercase(),
            remedy: match self.element {
                Element::F16 => "bf16 or f32",
                _ => "f32",
            },
        })
    }
}
