//! Decoding one column of one row group: values, levels, and what can be wrong with them.

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

/// Records decoded at once at most, and values of rows.
const RECORDS: usize = 1024;
const VALUES: usize = 1 << 18;
/// Values that a row or an example may have, however small its column is.
const LONGEST: usize = 1 << 22;
/// Values that a row may have beyond what the others have before it is not looked at.
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
    /// Where its records begin; with an empty table reads begin at the first page.
    pub(super) pages: &'a Pages,
    /// First row of the row group among all, for messages.
    pub(super) first_row: usize,
}

/// Decoded records: values, and the levels that say where rows begin.
#[derive(Default)]
struct Decoded {
    values: Vec<f32>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

/// How records are decoded: so many at once, with so many values each.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    records: usize,
    pub(super) longest: usize,
}

impl Column<'_> {
    /// What the footer says of the column; it may say anything.
    pub(super) fn chunk(&self) -> &ColumnChunkMetaData {
        self.metadata.row_group(self.group).column(self.column)
    }

    /// Where the column's pages begin.
    fn offset(&self) -> u64 {
        u64::try_from(self.chunk().data_page_offset()).unwrap_or(0)
    }

    /// Bytes of a value as such.
    pub(super) fn value_size(&self) -> u64 {
        match self.chunk().column_type() {
            PhysicalType::INT32 | PhysicalType::FLOAT => 4,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
            _ => 2,
        }
    }

    /// Steps of one record, of any length that a column of this size may have.
    fn one_by_one(&self) -> Steps {
        let bytes = usize::try_from(self.chunk().compressed_size()).unwrap_or(0);
        Steps {
            records: 1,
            longest: LONGEST.saturating_add(bytes.saturating_mul(8)),
        }
    }

    /// Steps of rows that have the known width, and of examples, which have no known length.
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

    /// A decoder that stands at the first value of page `page`, and the record that this value belongs to.
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
            // of a page that is passed over only the header is read; a dictionary is remembered
            (0..before).try_for_each(|_| pages.skip_next_page())?;
            Ok(ColumnReaderImpl::<T>::new(leaf, Box::new(pages)))
        })?;
        Ok((reader, record))
    }

    /// Reads the `ranges` of records, which ascend, in one pass, and hands over the values of each range, some
    /// records at a time, with the number of the range.
    fn decode<T: DataType>(
        &self,
        ranges: &[Range<usize>],
        steps: Steps,
        mut visit: impl FnMut(usize, Vec<T::T>, Vec<i16>, Vec<i16>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        self.file.open()?; // it is still what it was
        let short = || self.damaged("the column has fewer rows than its row group");
        let mut open: Option<(ColumnReaderImpl<T>, usize)> = None;
        for (number, range) in ranges.iter().enumerate() {
            // from where the last range ended, unless there is a page between that nobody wants
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
                let (read, ..) = self.caught(|| {
                    reader.read_records(
                        left.min(steps.records),
                        Some(&mut definition),
                        Some(&mut repetition),
                        &mut values,
                    )
                })?;
                if read == 0 {
                    return Err(short());
                }
                left -= read.min(left);
                visit(number, values, definition, repetition)?;
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

    /// Activations as float32, with the number of the range that they are of.
    fn floats(
        &self,
        ranges: &[Range<usize>],
        steps: Steps,
        mut visit: impl FnMut(usize, Decoded) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut each = |range, values, definition, repetition| {
            let decoded = Decoded {
                values,
                definition,
                repetition,
            };
            visit(range, decoded)
        };
        match self.element {
            Element::F64 => {
                self.decode::<DoubleType>(ranges, steps, |range, values, definition, repetition| {
                    let values = values.into_iter().map(|v| v as f32).collect();
                    each(range, values, definition, repetition)
                })
            }
            Element::F16 => {
                let half = |v: &FixedLenByteArray| match *v.data() {
                    [low, high] => Ok(f16::from_le_bytes([low, high]).to_f32()),
                    _ => Err(self.damaged("a half-precision value has two bytes")),
                };
                self.decode::<FixedLenByteArrayType>(
                    ranges,
                    steps,
                    |range, values, definition, repetition| {
                        let values = values.iter().map(half).collect::<Result<_, _>>()?;
                        each(range, values, definition, repetition)
                    },
                )
            }
            _ => self.decode::<FloatType>(ranges, steps, each),
        }
    }

    /// Width of the first row, from the first records that have one.
    pub(super) fn first_width(&self) -> Result<usize, DataError> {
        let mut width = None;
        let records = usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0);
        let first = 0..records.min(1);
        self.floats(
            std::slice::from_ref(&first),
            self.one_by_one(),
            |_, decoded| {
                self.check_nulls(&decoded, 0)?;
                let same_row = decoded
                    .repetition
                    .iter()
                    .skip(1)
                    .take_while(|level| **level as usize == self.depth);
                width = width.or(Some(1 + same_row.count()));
                Ok(())
            },
        )?;
        Ok(width.unwrap_or(1))
    }

    /// Every value must be there: nulls and empty lists have a lower definition level.
    fn check_nulls(&self, decoded: &Decoded, row: usize) -> Result<(), DataError> {
        let leaf = self.chunk().column_descr();
        let whole = leaf.max_def_level();
        if decoded.definition.iter().all(|level| *level == whole)
            && decoded.values.len() == decoded.repetition.len()
        {
            return Ok(());
        }
        Err(DataError::Null {
            path: self.file.path.clone(),
            name: leaf.path().parts().first().cloned().unwrap_or_default(),
            row: self.first_row + row,
        })
    }

    /// Hands over each row of the `ranges` of records: the range, the row's place in its record, its values.
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
                let inside = rest
                    .iter()
                    .skip(1)
                    .take_while(|level| **level as usize == self.depth);
                let len = 1 + inside.count();
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
        let all = 0..records;
        self.rows(std::slice::from_ref(&all), |_, token, _| {
            match lengths.last_mut() {
                Some(length) if token > 0 => *length += 1,
                _ => lengths.push(1),
            }
        })?;
        match lengths.len() == records {
            true => Ok(lengths),
            false => Err(self.damaged("the column has fewer rows than its row group")),
        }
    }

    /// The values of the `ranges` of records, one each.
    pub(super) fn integers(&self, ranges: &[Range<usize>]) -> Result<Vec<i64>, DataError> {
        let leaf = self.chunk().column_descr();
        let whole = leaf.max_def_level();
        let count = ranges.iter().map(Range::len).sum();
        let mut all = Vec::with_capacity(count);
        let mut add = |values: Vec<i64>, definition: Vec<i16>| {
            if definition.iter().any(|level| *level != whole) {
                return Err(DataError::Null {
                    path: self.file.path.clone(),
                    name: "label".into(),
                    row: self.first_row,
                });
            }
            all.extend(values);
            Ok(())
        };
        let steps = Steps {
            records: RECORDS,
            longest: RAGGED,
        };
        match leaf.physical_type() {
            PhysicalType::INT32 => {
                self.decode::<Int32Type>(ranges, steps, |_, values, definition, _| {
                    add(values.into_iter().map(i64::from).collect(), definition)
                })?
            }
            _ => self.decode::<Int64Type>(ranges, steps, |_, values, definition, _| {
                add(values, definition)
            })?,
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
