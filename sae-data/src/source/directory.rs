//! Directories: their content decides how they are opened.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file::SourceFile;
use super::format::{Format, Parts, Sniffed, known_extension, sniff};
use super::json::{beside, json};
use super::matrix::Matrix;
use super::{Options, arrow, saev, safetensors};
use crate::error::DataError;
use crate::meanings::is_companion;

/// The directories that can be read, for help texts.
pub(super) const ABOUT: &str = "saev's shards, and directories of these";
/// Name of the index of our own shards.
pub(crate) const INDEX: &str = "index.json";
/// Value of [`ShardIndex::format`].
pub(crate) const INDEX_FORMAT: &str = "dynamic-sae.shards";

/// `index.json`: the shards that `sae-data convert` and `tools/export_activations.py` write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// `dynamic-sae.shards`.
    pub format: String,
    /// 1.
    pub version: u32,
    /// Rows of all shards.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// The shards, in the order of their rows.
    pub shards: Vec<IndexedShard>,
    /// How the rows lie in images, if they are parts of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageGrid>,
    /// Where the data comes from, in free form.
    #[serde(default)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// Where the positions of rows lie in an image: patches in rows, after tokens that are not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageGrid {
    /// Rows and columns of patches.
    pub grid: [usize; 2],
    /// Whether position 0 is a class token.
    pub class_token: bool,
    /// Position of the first patch: the number of class and register tokens before it.
    pub first_patch: usize,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedShard {
    /// Name of the file, beside the index.
    pub file: String,
    /// Its rows.
    pub rows: usize,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of the whole file, in hexadecimal.
    pub blake3: String,
}

/// `state.json` of a Hugging Face data set: its files in order.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

/// Opens a directory.
pub(super) fn open(dir: &Path, options: &Options) -> Result<Matrix, DataError> {
    if dir.join("dataset_dict.json").exists() {
        let dict: serde_json::Value = json(&dir.join("dataset_dict.json"))?;
        let reason = format!(
            "it is a Hugging Face DatasetDict of {}: open one of these directories in it",
            dict["splits"]
        );
        return Err(DataError::not_recognised(dir, reason));
    }
    if dir.join(saev::METADATA).exists() && holds_saev(dir)? {
        return saev::open(dir, options);
    }
    if dir.join(INDEX).exists() {
        return indexed(dir, options);
    }
    let state = dir.join("state.json");
    if state.exists() {
        let State { data_files } = json(&state)?;
        let stat = |file: DataFile| SourceFile::stat(&beside(&state, &file.filename)?);
        let data: Vec<SourceFile> = data_files.into_iter().map(stat).collect::<Result<_, _>>()?;
        return arrow::FORMAT.open(dir, &data, Parts::Each, options);
    }
    open_files(dir, options)
}

/// Opens the files of a directory without a description: all files of the one format that is in it.
fn open_files(dir: &Path, options: &Options) -> Result<Matrix, DataError> {
    let Found { data, other } = find(dir, options)?;
    let Some((format, first)) = data.first() else {
        let hint = match (other, directories(dir)) {
            (Some((name, what)), _) => format!("; {name} is {what}"),
            (None, inside) if !inside.is_empty() => {
                format!("; open one of its directories: {inside}")
            }
            _ => String::new(),
        };
        return Err(DataError::not_recognised(
            dir,
            format!("no file in it is one{hint}"),
        ));
    };
    for (other, file) in &data {
        DataError::agree(
            "format",
            (&file.path, other.name),
            (&first.path, format.name),
        )?;
    }
    let format = *format;
    let data: Vec<SourceFile> = data.into_iter().map(|(_, file)| file).collect();
    format.open(dir, &data, Parts::Each, options)
}

/// Names of the first few directories in `dir`, for a message.
fn directories(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let inside = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = inside
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_by_cached_key(|name| natural(name));
    names.truncate(8);
    names.join(", ")
}

/// The files of a directory that matter.
#[derive(Default)]
struct Found {
    /// Files of known formats, except one that is given as labels.
    data: Vec<(&'static Format, SourceFile)>,
    /// The first file of a kind that is known but not read: its name, and what it is.
    other: Option<(String, &'static str)>,
}

fn find(dir: &Path, options: &Options) -> Result<Found, DataError> {
    let mut found = Found::default();
    for path in listed(dir)? {
        let labels = options.labels.as_deref();
        if labels.is_some_and(|labels| same_file(labels, &path)) {
            continue;
        }
        let empty = path.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if empty && !known_extension(&path) {
            continue;
        }
        let file = SourceFile::stat(&path)?;
        match sniff(&file)? {
            Sniffed::Is(format) => found.data.push((format, file)),
            Sniffed::Other(what) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                found.other.get_or_insert((name.into_owned(), what));
            }
            Sniffed::Unknown => {}
        }
    }
    Ok(found)
}

/// Whether `metadata.json` is saev's: `shards.json` beside it, or keys of its own.
fn holds_saev(dir: &Path) -> Result<bool, DataError> {
    if dir.join(saev::SHARDS).exists() {
        return Ok(true);
    }
    let metadata: serde_json::Value = json(&dir.join(saev::METADATA))?;
    Ok(metadata.get("d_model").is_some() && metadata.get("layers").is_some())
}

/// Opens our own shards.
fn indexed(dir: &Path, options: &Options) -> Result<Matrix, DataError> {
    let path = dir.join(INDEX);
    let index = ShardIndex::read(dir)?;
    let mut shards = Vec::new();
    for shard in &index.shards {
        let file = SourceFile::stat(&dir.join(&shard.file))?;
        if file.bytes != shard.bytes {
            let reason = format!("{} says it has {} bytes", path.display(), shard.bytes);
            let (path, format) = (&file.path, safetensors::FORMAT.name);
            return Err(DataError::damaged(path, format, file.bytes, reason));
        }
        shards.push(file);
    }
    let source = safetensors::FORMAT.open(dir, &shards, Parts::OfOne, options)?;
    let info = &source.info;
    if (info.rows, info.width) != (index.rows, index.width) && !options.drop_first_token {
        let (rows, width) = (info.rows, info.width);
        let reason = format!(
            "it says {} rows of width {}, the shards have {rows} of {width}",
            index.rows, index.width
        );
        return Err(DataError::damaged(&path, "JSON", 0, reason));
    }
    Ok(source)
}

impl ShardIndex {
    /// Reads `dir/index.json`.
    ///
    /// # Errors
    /// [`DataError`] if there is none or it is not an index of shards.
    pub fn read(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join(INDEX);
        let index: Self = json(&path)?;
        if index.format != INDEX_FORMAT || index.version != 1 {
            let what = format!("format \"{}\", version {}", index.format, index.version);
            return Err(DataError::unsupported(
                &path,
                what,
                format!("known is \"{INDEX_FORMAT}\", version 1"),
            ));
        }
        for shard in &index.shards {
            beside(&path, &shard.file)?;
        }
        Ok(index)
    }
}

/// Whether two paths refer to the same file.
fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Files of a directory except hidden ones, `part-2` before `part-10`.
fn listed(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(DataError::io(dir))? {
        let path = entry.map_err(DataError::io(dir))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let beside = name.as_deref().is_some_and(is_companion);
        let hidden =
            name.is_some_and(|name| name.starts_with(['.', '_']) || name.ends_with(".tmp"));
        if path.is_file() && !hidden && !beside {
            paths.push(path);
        }
    }
    paths.sort_by_cached_key(|path| natural(&path.to_string_lossy()));
    Ok(paths)
}

/// A key by which runs of digits are compared as numbers, and equal numbers by their leading zeros.
fn natural(text: &str) -> Vec<u8> {
    let mut key = Vec::new();
    let digits = |a: &u8, b: &u8| a.is_ascii_digit() == b.is_ascii_digit();
    for run in text.as_bytes().chunk_by(digits) {
        if !run[0].is_ascii_digit() {
            key.extend(run);
            continue;
        }
        let zeros = run.iter().take_while(|digit| **digit == b'0').count();
        key.push(b'0'); // a number is before or after other characters as its digits are
        key.extend((run.len() - zeros).to_be_bytes());
        key.extend(&run[zeros..]);
        key.extend(run.len().to_be_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let sorted = [
            "a",
            "part-2.npy",
            "part-2b.npy",
            "part-10.npy",
            "part-010.npy",
            "part-11.npy",
            "é1",
            "é2",
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(natural(a).cmp(&natural(b)), i.cmp(&j), "{a} {b}");
            }
        }
    }
}
