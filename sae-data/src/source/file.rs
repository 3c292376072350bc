//! A file of a data set, in the state in which the data set was opened.
//!
//! Files are read, not mapped into memory: a mapped file that shrinks kills the process, whereas a short read is an error
//! that names the file. Every read opens its file, so there may be any number of shards.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::DataError;

/// Path, size and modification time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Path of the file.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    modified: Option<SystemTime>,
}

impl SourceFile {
    /// Records the current state of a file.
    pub(crate) fn stat(path: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(path).map_err(DataError::io(path))?;
        let (path, bytes) = (path.to_path_buf(), metadata.len());
        let modified = metadata.modified().ok();
        if bytes == 0 {
            return Err(DataError::Empty { path });
        }
        Ok(Self {
            path,
            bytes,
            modified,
        })
    }

    /// Opens the file; fails if it has changed.
    pub(crate) fn open(&self) -> Result<OpenFile<'_>, DataError> {
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.changed("it is missing"),
            _ => DataError::io(&self.path)(error),
        })?;
        let metadata = file.metadata().map_err(DataError::io(&self.path))?;
        if metadata.len() != self.bytes {
            return Err(self.changed(format!("{} bytes", metadata.len())));
        }
        if metadata.modified().ok() != self.modified {
            return Err(self.changed("the same size, but written to since"));
        }
        Ok(OpenFile { file, source: self })
    }

    fn changed(&self, now: impl Into<String>) -> DataError {
        DataError::Changed {
            path: self.path.clone(),
            was: self.bytes,
            now: now.into(),
        }
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct OpenFile<'a> {
    file: File,
    source: &'a SourceFile,
}

impl OpenFile<'_> {
    /// Fills `out` with the bytes at `offset`.
    pub(crate) fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), DataError> {
        let read = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(out));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.source.changed("fewer bytes"),
            _ => DataError::io(&self.source.path)(error),
        })
    }

    /// The `len` bytes at `offset`; a `format` file that ends earlier is damaged. This is checked before anything is
    /// allocated.
    pub(crate) fn bytes_at(
        &mut self,
        format: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, DataError> {
        self.source.check_span(format, offset, len)?;
        let mut bytes = vec![0; len as usize];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

impl SourceFile {
    /// Fails if the file ends before `offset + len`.
    pub(crate) fn check_span(
        &self,
        format: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<(), DataError> {
        if offset.checked_add(len).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let reason = format!(
            "{len} bytes should follow from here, but the file ends at byte {}",
            self.bytes
        );
        Err(DataError::damaged(&self.path, format, offset, reason))
    }
}
