//! Decodes one column of one row group, and checks its values and levels.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use half::f16;
use parquet::basic::Type as PhysicalType;
use parquet::column::page::PageReader;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::serialized_reader::SerializedPageReader;

use super::NAME;
use super::levels::Measured;
use super::pages::Pages;
use crate::element::Element;
use crate::error::DataError;
use crate::source::SourceFile;

/// Limits of records, and of values, that are decoded at a time.
const RECORDS: usize = 1024;
const VALUES: usize = 1 << 18;
/// Values that a row or an example may have in a column of any size.
const LONGEST: usize = 1 << 22;
/// Values by which a row may exceed the width before it is refused undecoded; less is reported as ragged.
const RAGGED: usize = 1 << 14;

/// One column of one row group.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    pub(super) file: &'a SourceFile,
    pub(super) metadata: &'a ParquetMetaData,
    pub(super) group: usize,
    pub(super) column: usize,
    pub(super) element: Element,
    pub(super) width: usize,
    pub(super) depth: usize,
    /// Where its records begin; with an empty table every read begins at the first page.
    pub(super) pages: &'a Pages,
    /// First row of the row group among all, for messages.
    pub(super) first_row: usize,
}

/// Decoded records: values, and the levels that say where rows begin.
struct Decoded<V> {
    values: Vec<V>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// How many records are decoded at a time, and how many values each may have.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    records: usize,
    pub(super) longest: usize,
}

impl Column<'_> {
    /// Metadata of the column from the footer, which is not to be trusted.
    pub(super) fn chunk(&self) -> &ColumnChunkMetaData {
        self.metadata.row_group(self.group).column(self.column)
    }

    /// Where the column's pages begin.
    fn offset(&self) -> u64 {
        u64::try_from(self.chunk().data_page_offset()).unwrap_or(0)
    }

    /// Bytes of one value.
    pub(super) fn value_size(&self) -> u64 {
        match self.chunk().column_type() {
            PhysicalType::INT32 | PhysicalType::FLOAT => 4,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
            _ => 2,
        }
    }

    /// One record at a time, with as many values as a column of this size may have.
    fn one_by_one(&self) -> Steps {
        let bytes = usize::try_from(self.chunk().compressed_size()).unwrap_or(0);
        Steps {
            records: 1,
            longest: LONGEST.saturating_add(bytes.saturating_mul(8)),
        }
    }

    /// Many records at a time for rows, whose width is known; one at a time for examples.
    pub(super) fn steps(&self) -> Steps {
        match self.depth {
            1 => Steps {
                records: (VALUES / self.width.max(1)).clamp(1, RECORDS),
                longest: self.width.saturating_mul(4).saturating_add(RAGGED),
            },
            _ => self.one_by_one(),
        }
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> DataError {
        DataError::damaged(&self.file.path, NAME, self.offset(), reason)
    }

    /// A decoder at the first value of page `page`, and the record that this value belongs to.
    fn start<T: DataType>(
        &self,
        page: usize,
        steps: Steps,
    ) -> Result<(ColumnReaderImpl<T>, usize), DataError> {
        let (before, record) = self.pages.before(page);
        let reader = self.caught(|| {
            let file = Arc::new(File::open(&self.file.path)?);
            let (chunk, group) = (self.chunk(), self.metadata.row_group(self.group));
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let pages = SerializedPageReader::new(file, chunk, rows, None)?;
            let leaf = chunk.column_descr_ptr();
            let mut pages = Measured::new(pages, leaf.max_rep_level(), steps.longest);
            // only the header of a skipped page is read; a dictionary is kept
            (0..before).try_for_each(|_| pages.skip_next_page())?;
            Ok(ColumnReaderImpl::<T>::new(leaf, Box::new(pages)))
        })?;
        Ok((reader, record))
    }

    /// Decodes the `ranges` of records, which ascend, in one pass. `visit` gets the number of the range and its values, a
    /// few records at a time, each as `convert` returns it (`None` for a damaged one).
    fn decode<T: DataType, V>(
        &self,
        ranges: &[Range<usize>],
        steps: Steps,
        convert: impl Fn(T::T) -> Option<V>,
        mut visit: impl FnMut(usize, Decoded<V>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        self.file.open()?; // it has not changed
        let short = || self.damaged("the column has fewer rows than its row group");
        let mut open: Option<(ColumnReaderImpl<T>, usize)> = None;
        for (number, range) in ranges.iter().enumerate() {
            // continue where the last range ended, unless there is an unwanted page between
            let page = self.pages.of(range.start);
            let near = |(_, at): &(_, usize)| page <= self.pages.of(*at) + 1;
            let (mut reader, at) = match open.take().filter(near) {
                Some(open) => open,
                None => self.start(page, steps)?,
            };
            let skip = range.start - at;
            if self.caught(|| reader.skip_records(skip))? != skip {
                return Err(short());
            }
            let mut left = range.len();
            while left > 0 {
                let (mut values, mut definition, mut repetition) =
                    (Vec::new(), Vec::new(), Vec::new());
                let most = left.min(steps.records);
                let levels = (Some(&mut definition), Some(&mut repetition));
                let (read, ..) =
                    self.caught(|| reader.read_records(most, levels.0, levels.1, &mut values))?;
                if read == 0 {
                    return Err(short());
                }
                left -= read.min(left);
                let values = values.into_iter().map(&convert).collect::<Option<_>>();
                let decoded = Decoded {
                    values: values.ok_or_else(|| self.damaged("a value of another size"))?,
                    definition,
                    repetition,
                };
                visit(number, decoded)?;
            }
            open = Some((reader, range.end));
        }
        Ok(())
    }

    pub(super) fn caught<R>(
        &self,
        work: impl FnOnce() -> Result<R, ParquetError>,
    ) -> Result<R, DataError> {
        guarded(work).map_err(|reason| match reason.contains("Disabled feature") {
            true => DataError::unsupported(
                &self.file.path,
                reason.trim_start_matches("Parquet error: ").to_string(),
                "write it with compression snappy, zstd, gzip, lz4 or none",
            ),
            false => self.damaged(reason),
        })
    }

    /// Decodes activations to float32.
    fn floats(
        &self,
        ranges: &[Range<usize>],
        steps: Steps,
        visit: impl FnMut(usize, Decoded<f32>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let half = |v: FixedLenByteArray| match *v.data() {
            [low, high] => Some(f16::from_le_bytes([low, high]).to_f32()),
            _ => None,
        };
        match self.element {
            Element::F64 => self.decode::<DoubleType, _>(ranges, steps, |v| Some(v as f32), visit),
            Element::F16 => self.decode::<FixedLenByteArrayType, _>(ranges, steps, half, visit),
            _ => self.decode::<FloatType, _>(ranges, steps, Some, visit),
        }
    }

    /// Width of the first row.
    pub(super) fn first_width(&self) -> Result<usize, DataError> {
        let mut width = None;
        let records = usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0);
        let first = 0..records.min(1);
        self.floats(
            std::slice::from_ref(&first),
            self.one_by_one(),
            |_, decoded| {
                self.check_nulls(&decoded, 0)?;
                width.get_or_insert(self.row_length(&decoded.repetition));
                Ok(())
            },
        )?;
        Ok(width.unwrap_or(1))
    }

    /// Number of values in the row that begins with the first of these levels.
    fn row_length(&self, repetition: &[i16]) -> usize {
        let inside = |level: &&i16| **level as usize == self.depth;
        1 + repetition.iter().skip(1).take_while(inside).count()
    }

    /// Fails at nulls and empty lists, which have a lower definition level than values.
    fn check_nulls<V>(&self, decoded: &Decoded<V>, row: usize) -> Result<(), DataError> {
        let leaf = self.chunk().column_descr();
        let whole = leaf.max_def_level();
        if decoded.definition.iter().all(|level| *level == whole)
            && (decoded.repetition.is_empty() || decoded.values.len() == decoded.repetition.len())
        {
            return Ok(());
        }
        Err(DataError::Null {
            path: self.file.path.clone(),
            name: leaf.path().parts().first().cloned().unwrap_or_default(),
            row: self.first_row + row,
        })
    }

    /// Visits each row of the `ranges` of records: number of the range, position of the row in its record, values.
    pub(super) fn rows(
        &self,
        ranges: &[Range<usize>],
        mut visit: impl FnMut(usize, usize, &[f32]),
    ) -> Result<(), DataError> {
        let (mut row, mut token) = (0, 0);
        self.floats(ranges, self.steps(), |range, decoded| {
            self.check_nulls(&decoded, row)?;
            let mut rest = &decoded.repetition[..];
            for values in decoded.values.chunks(self.width) {
                let len = self.row_length(rest);
                if len != self.width {
                    return Err(DataError::Ragged {
                        path: self.file.path.clone(),
                        row: self.first_row + row,
                        len,
                        width: self.width,
                    });
                }
                token = if rest[0] == 0 { 0 } else { token + 1 };
                visit(range, token, values);
                rest = &rest[len..];
                row += 1;
            }
            Ok(())
        })
    }

    /// Number of rows of each of the `records` examples.
    pub(super) fn lengths(&self, records: usize) -> Result<Vec<usize>, DataError> {
        let mut lengths = Vec::new();
        self.rows(
            std::slice::from_ref(&(0..records)),
            |_, token, _| match lengths.last_mut() {
                Some(length) if token > 0 => *length += 1,
                _ => lengths.push(1),
            },
        )?;
        match lengths.len() == records {
            true => Ok(lengths),
            false => Err(self.damaged("the column has fewer rows than its row group")),
        }
    }

    /// The integers of the `ranges` of records, one per record.
    pub(super) fn integers(&self, ranges: &[Range<usize>]) -> Result<Vec<i64>, DataError> {
        let count = ranges.iter().map(Range::len).sum();
        let mut all = Vec::with_capacity(count);
        let add = |_, decoded: Decoded<i64>| {
            self.check_nulls(&decoded, 0)?;
            all.extend(decoded.values);
            Ok(())
        };
        let steps = Steps {
            records: RECORDS,
            longest: RAGGED,
        };
        match self.chunk().column_type() {
            PhysicalType::INT32 => {
                self.decode::<Int32Type, _>(ranges, steps, |v| Some(i64::from(v)), add)?
            }
            _ => self.decode::<Int64Type, _>(ranges, steps, Some, add)?,
        }
        match all.len() == count {
            true => Ok(all),
            false => Err(self.damaged("there are fewer labels than rows")),
        }
    }
}

/// Runs the decoder; a damaged file can make it panic, which becomes an error like any other.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| "the decoder gave up".into())),
    }
}
