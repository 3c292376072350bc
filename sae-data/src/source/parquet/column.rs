//! A column of one row group as a store: its values as little-endian bytes, decoded while they are read.
//!
//! The decoder gets pages without their levels (`levels.rs`), so to it the column is flat, and it skips pages to any value.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use super::NAME;
use super::levels::Checked;
use super::pages::Walked;
use crate::error::DataError;
use crate::source::SourceFile;
use crate::source::file::{ReadAt, Store};

/// One column of one row group.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) file: SourceFile,
    /// Metadata of the column from the footer, which is not to be trusted.
    pub(super) chunk: ColumnChunkMetaData,
    pub(super) pages: Walked,
    /// Number of records in the row group.
    pub(super) records: usize,
    /// Number of values per row; 0 before it is known.
    pub(super) width: usize,
    /// First row of the row group in its file, for messages.
    pub(super) first_row: usize,
}

impl Column {
    pub(super) fn leaf(&self) -> &ColumnDescriptor {
        self.chunk.column_descr()
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> DataError {
        let at = u64::try_from(self.chunk.data_page_offset()).unwrap_or(0);
        DataError::damaged(&self.file.path, NAME, at, reason)
    }

    /// The pages of the column; the decoder is told that each value is a row.
    pub(super) fn pages(&self) -> Result<SerializedPageReader<File>, ParquetError> {
        let file = Arc::new(File::open(&self.file.path)?);
        let (values, places) = (self.pages.values as usize, self.pages.places.clone());
        SerializedPageReader::new(file, &self.chunk, values, Some(places))
    }

    pub(super) fn guarded<T>(
        &self,
        work: impl FnOnce() -> Result<T, ParquetError>,
    ) -> Result<T, DataError> {
        guarded(&self.file, self.chunk.data_page_offset(), work)
    }
}

/// Runs the decoder; a damaged file can make it panic, which becomes an error like any other.
pub(super) fn guarded<T>(
    file: &SourceFile,
    at: i64,
    work: impl FnOnce() -> Result<T, ParquetError>,
) -> Result<T, DataError> {
    let reason = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(ParquetError::External(error))) => match error.downcast() {
            Ok(ours) => return Err(*ours),
            Err(error) => error.to_string(),
        },
        Ok(Err(error)) => error.to_string(),
        Err(panic) => match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(_) => "the decoder gave up".into(),
        },
    };
    if reason.contains("Disabled feature") {
        let what = reason.trim_start_matches("Parquet error: ");
        let remedy = "write it with compression snappy, zstd, gzip, lz4 or none";
        return Err(DataError::unsupported(&file.path, what, remedy));
    }
    let at = u64::try_from(at).unwrap_or(0);
    Err(DataError::damaged(&file.path, NAME, at, reason))
}

impl Store for Arc<Column> {
    fn path(&self) -> &Path {
        &self.file.path
    }

    /// Reading finds values that are missing, and says why.
    fn check_span(&self, _: &'static str, _: u64, _: u64) -> Result<(), DataError> {
        Ok(())
    }

    fn open(&self) -> Result<Box<dyn ReadAt + '_>, DataError> {
        self.file.open()?; // it has not changed
        Ok(match self.chunk.column_type() {
            PhysicalType::FLOAT => decoder::<FloatType, 4>(self, |v| Some(v.to_le_bytes())),
            PhysicalType::DOUBLE => decoder::<DoubleType, 8>(self, |v| Some(v.to_le_bytes())),
            PhysicalType::INT64 => decoder::<Int64Type, 8>(self, |v| Some(v.to_le_bytes())),
            PhysicalType::INT32 => {
                decoder::<Int32Type, 8>(self, |v| Some(i64::from(*v).to_le_bytes()))
            }
            _ => decoder::<FixedLenByteArrayType, 2>(self, |v| v.data().try_into().ok()),
        })
    }
}

/// Decodes values of `N` bytes; `to_bytes` returns `None` for a value of another size.
fn decoder<'a, T: DataType, const N: usize>(
    column: &'a Arc<Column>,
    to_bytes: impl Fn(&T::T) -> Option<[u8; N]> + 'a,
) -> Box<dyn ReadAt + 'a> {
    Box::new(Decoder::<T, _, N> {
        column,
        to_bytes,
        open: None,
    })
}

struct Decoder<'a, T: DataType, F, const N: usize> {
    column: &'a Arc<Column>,
    to_bytes: F,
    /// The decoder, and the value that it is at.
    open: Option<(ColumnReaderImpl<T>, u64)>,
}

impl<T: DataType, F: Fn(&T::T) -> Option<[u8; N]>, const N: usize> ReadAt for Decoder<'_, T, F, N> {
    fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<(), DataError> {
        let (first, out) = (offset / N as u64, out.as_chunks_mut::<N>().0);
        let (column, leaf) = (self.column, self.column.leaf());
        let open = self.open.take().filter(|(_, at)| *at <= first);
        let mut values = Vec::with_capacity(out.len());
        let (reader, complete) = column.guarded(|| {
            let (mut reader, at) = match open {
                Some(open) => open,
                None => {
                    let pages = Box::new(Checked {
                        column: column.clone(),
                        pages: column.pages()?,
                        at: 0,
                    });
                    let (leaf, path) = (leaf.self_type_ptr(), leaf.path().clone());
                    let flat = ColumnDescriptor::new(leaf, 0, 0, path);
                    (ColumnReaderImpl::new(Arc::new(flat), pages), 0)
                }
            };
            let skip = (first - at) as usize;
            let skipped = reader.skip_records(skip)?;
            reader.read_records(out.len(), None, None, &mut values)?;
            Ok((reader, skipped == skip && values.len() == out.len()))
        })?;
        if !complete {
            return Err(column.damaged("the column has fewer rows than its row group"));
        }
        self.open = Some((reader, first + out.len() as u64));
        for (value, out) in values.iter().zip(out) {
            let bytes = (self.to_bytes)(value);
            *out = bytes.ok_or_else(|| column.damaged("a value of another size"))?;
        }
        Ok(())
    }
}
