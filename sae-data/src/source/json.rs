//! The JSON files that describe a data set: `index.json`, `metadata.json`, `state.json`.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::file::SourceFile;
use crate::error::DataError;

/// Path of the file `name` in the directory of its `description`; a name that leads elsewhere is an error.
pub(super) fn beside(description: &Path, name: &str) -> Result<PathBuf, DataError> {
    if name.contains(['/', '\\']) || matches!(name, "" | "." | "..") {
        let reason = format!("{name:?} is not the name of a file beside it");
        return Err(DataError::damaged(description, "JSON", 0, reason));
    }
    Ok(description.with_file_name(name))
}

/// Reads a small JSON file.
pub(crate) fn json<T: DeserializeOwned>(path: &Path) -> Result<T, DataError> {
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
