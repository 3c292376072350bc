//! Where the bytes of rows are: a file in the state in which the data set was opened, or anything else that can be read
//! as if it were one.
//!
//! Files are read, not mapped into memory: a mapped file that shrinks kills the process, whereas a short read is an error
//! that names the file. Every read opens its file, so there may be any number of shards.

use std::fmt::Debug;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::DataError;

/// Bytes that have rows at known places: a file, or a column that is decoded while it is read.
pub(crate) trait Store: Debug + Send + Sync {
    /// Path of the file.
    fn path(&self) -> &Path;

    /// Fails if the bytes end before `offset + len`.
    fn check_span(&self, format: &'static str, offset: u64, len: u64) -> Result<(), DataError>;

    /// Fails if the file has changed since the data set was opened.
    fn open(&self) -> Result<Box<dyn ReadAt + '_>, DataError>;
}

/// A [`Store`] that is being read.
pub(crate) trait ReadAt {
    /// Fills `out` with the bytes at `offset`.
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), DataError>;
}

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
            let reason = "the file is empty; export it again, or check that the copy is complete";
            return Err(DataError::unusable(&path, reason));
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

impl Store for SourceFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn check_span(&self, format: &'static str, offset: u64, len: u64) -> Result<(), DataError> {
        let end = self.bytes;
        if offset.checked_add(len).is_some_and(|last| last <= end) {
            return Ok(());
        }
        let reason =
            format!("{len} bytes should follow from here, but the file ends at byte {end}");
        Err(DataError::damaged(&self.path, format, offset, reason))
    }

    fn open(&self) -> Result<Box<dyn ReadAt + '_>, DataError> {
        Ok(Box::new(self.open()?))
    }
}

impl ReadAt for OpenFile<'_> {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), DataError> {
        let read = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(out));
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.source.changed("fewer bytes"),
            _ => DataError::io(&self.source.path)(error),
        })
    }
}

impl OpenFile<'_> {
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
