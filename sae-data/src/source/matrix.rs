//! A data set whose rows have a fixed number of bytes at known places: every format of files.
//!
//! The format readers find the places of the values and pass them to [`MatrixBuilder`](super::builder::MatrixBuilder);
//! from then on rows are read from those places in the same way for all formats.

use std::ops::Range;

use super::file::{SourceFile, Store};
use super::table::Table;
use super::{Info, Source};
use crate::error::DataError;

/// Integer type of labels and document ids, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integer {
    U8,
    I32,
    I64,
}

impl Integer {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Appends little-endian integers.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<i64>) {
        let (four, eight) = (bytes.as_chunks::<4>().0, bytes.as_chunks::<8>().0);
        match self {
            Self::U8 => out.extend(bytes.iter().map(|b| i64::from(*b))),
            Self::I32 => out.extend(four.iter().map(|w| i64::from(i32::from_le_bytes(*w)))),
            Self::I64 => out.extend(eight.iter().map(|w| i64::from_le_bytes(*w))),
        }
    }
}

/// A column of integers in one store: `count` of them from byte `offset`.
#[derive(Clone, Debug)]
pub(crate) struct IntegerColumn {
    pub(crate) integer: Integer,
    pub(crate) offset: u64,
    pub(crate) count: usize,
}

impl IntegerColumn {
    /// Reads the whole column.
    pub(crate) fn read(
        &self,
        file: &SourceFile,
        format: &'static str,
    ) -> Result<Vec<i64>, DataError> {
        let len = (self.count * self.integer.size()) as u64;
        let bytes = file.open()?.bytes_at(format, self.offset, len)?;
        let mut values = Vec::with_capacity(self.count);
        self.integer.decode(&bytes, &mut values);
        Ok(values)
    }
}

/// The unit that has one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Per {
    /// Each row of the file, including rows that are left out.
    StoredRow,
    /// Each row of the data set.
    Row,
    /// Each example.
    Example,
}

#[derive(Debug)]
pub(super) struct Labels {
    pub(super) integer: Integer,
    pub(super) table: Table,
    pub(super) per: Per,
}

/// Rows at known places.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(super) info: Info,
    /// The stores that the rows and the labels are read from.
    pub(super) stores: Vec<Box<dyn Store>>,
    pub(super) table: Table,
    pub(super) labels: Option<Labels>,
}

impl Source for Matrix {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let (element, bytes) = (self.info.element, self.table.row_bytes);
        let mut out = out.iter_mut();
        self.table.read(&self.stores, pieces, scratch, |piece| {
            element.rows_to_f32(piece, bytes, &mut out);
        })
    }

    fn labels(&self, pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        let Some(labels) = &self.labels else {
            return Ok(None);
        };
        let place = |row: usize| match (labels.per, &self.info.documents) {
            (Per::Example, Some(documents)) => documents.of(row),
            (Per::Row, _) => row,
            _ => self.table.stored_row(row),
        };
        // the places of each piece, and others between them; two pieces may share an example
        let mut spans: Vec<Range<usize>> = Vec::new();
        for rows in pieces.iter().filter(|rows| !rows.is_empty()) {
            let span = place(rows.start)..place(rows.end - 1) + 1;
            match spans.last_mut().filter(|last| span.start < last.end) {
                Some(last) => last.end = span.end,
                None => spans.push(span),
            }
        }
        let mut all = Vec::with_capacity(spans.iter().map(Range::len).sum());
        let decode = |bytes: &[u8]| labels.integer.decode(bytes, &mut all);
        let table = &labels.table;
        table.read(&self.stores, &spans, &mut Vec::new(), decode)?;
        let mut found = spans.into_iter().flatten().zip(all).peekable();
        let label = |row| {
            let place = place(row);
            while found.next_if(|(at, _)| *at < place).is_some() {}
            found.peek().map(|(_, label)| *label)
        };
        let found: Vec<i64> = pieces.iter().cloned().flatten().filter_map(label).collect();
        Ok(Some(found).filter(|labels| !labels.is_empty()))
    }
}
