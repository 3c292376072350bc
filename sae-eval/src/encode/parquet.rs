//! Parquet shards: one line per entry, with the number of its row in the whole output. Rows without entries have no line.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::{Compression, Encoding};
use parquet::column::writer::ColumnWriter;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::failure::Failure;
use super::index::Shard;
use super::keep::Entries;
use super::shards::{CodeShard, Hashed};

/// Entries per row group, which is in memory until it is written.
const GROUP: usize = 1 << 20;
const SCHEMA: &str = "message codes {
    required int64 row (INTEGER(64, false));
    required int32 latent (INTEGER(32, false));
    required float value;
}";

/// A Parquet shard that is being written.
pub(crate) struct ParquetShard {
    path: PathBuf,
    file: SerializedFileWriter<Hashed>,
    /// The entries of the next row group.
    group: (Vec<i64>, Vec<i32>, Vec<f32>),
    /// Number of the next row.
    row: usize,
    rows: usize,
    entries: usize,
}

impl ParquetShard {
    /// Begins the shard `path`, whose first row has the number `row`.
    ///
    /// # Errors
    /// [`Failure::Unwritten`]
    pub(crate) fn create(path: PathBuf, row: usize) -> Result<Self, Failure> {
        // Row numbers ascend, so their differences are small; values hardly ever repeat.
        let properties = WriterProperties::builder()
            .set_created_by("sae-eval encode".into())
            .set_compression(Compression::SNAPPY)
            .set_column_dictionary_enabled(ColumnPath::from("row"), false)
            .set_column_encoding(ColumnPath::from("row"), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(ColumnPath::from("value"), false)
            .build();
        let schema = parse_message_type(SCHEMA).expect("a schema");
        let hashed = Hashed::create(path.clone()).map_err(Failure::writing(&path))?;
        let file = SerializedFileWriter::new(hashed, Arc::new(schema), Arc::new(properties));
        Ok(Self {
            file: file.map_err(io_error).map_err(Failure::writing(&path))?,
            path,
            group: Default::default(),
            row,
            rows: 0,
            entries: 0,
        })
    }

    fn put(&mut self, entries: &Entries, rows: Range<usize>) -> Result<(), ParquetError> {
        for row in rows {
            let range = entries.offsets[row]..entries.offsets[row + 1];
            let (numbers, latents, values) = &mut self.group;
            numbers.extend(range.clone().map(|_| self.row as i64));
            latents.extend(entries.latents[range.clone()].iter().map(|j| *j as i32));
            values.extend(&entries.values[range.clone()]);
            self.row += 1;
            self.rows += 1;
            self.entries += range.len();
            if self.group.0.len() >= GROUP {
                self.write_group()?;
            }
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let (numbers, latents, values) = &self.group;
        let mut group = self.file.next_row_group()?;
        while let Some(mut column) = group.next_column()? {
            match column.untyped() {
                ColumnWriter::Int64ColumnWriter(to) => to.write_batch(numbers, None, None)?,
                ColumnWriter::Int32ColumnWriter(to) => to.write_batch(latents, None, None)?,
                ColumnWriter::FloatColumnWriter(to) => to.write_batch(values, None, None)?,
                _ => unreachable!("the schema has no other type"),
            };
            column.close()?;
        }
        group.close()?;
        self.group.0.clear();
        self.group.1.clear();
        self.group.2.clear();
        Ok(())
    }

    fn close(mut self) -> Result<Hashed, ParquetError> {
        if !self.group.0.is_empty() {
            self.write_group()?;
        }
        self.file.into_inner() // writes the footer
    }
}

/// The error of the file system in an error of the writer.
fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(cause) => io::Error::other(cause),
        },
        error => io::Error::other(error),
    }
}

impl CodeShard for ParquetShard {
    fn add(&mut self, entries: &Entries, rows: Range<usize>) -> Result<(), Failure> {
        let put = self.put(entries, rows).map_err(io_error);
        put.map_err(Failure::writing(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<Shard, Failure> {
        let (path, rows, entries) = (self.path.clone(), self.rows, self.entries);
        let file = self.close().map_err(io_error);
        file.and_then(|file| file.commit(rows, entries))
            .map_err(Failure::writing(&path))
    }
}
