//! Data sets whose rows are stored in files without encoding: `.npy`, safetensors, Arrow and saev.
//!
//! The format readers find the places of the values and pass them to [`MatrixBuilder`](super::builder::MatrixBuilder);
//! from then on rows are read from those places in the same way for all formats.

use std::ops::Range;

use super::file::SourceFile;
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
        match self {
            Self::U8 => out.extend(bytes.iter().map(|b| i64::from(*b))),
            Self::I32 => {
                out.extend(
                    bytes
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|w| i64::from(i32::from_le_bytes(*w))),
                );
            }
            Self::I64 => out.extend(
                bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|w| i64::from_le_bytes(*w)),
            ),
        }
    }
}

/// A column of integers in one file: `count` of them from byte `offset`.
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

/// Rows that are stored in files without encoding.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(super) info: Info,
    pub(super) table: Table,
    pub(super) labels: Option<Labels>,
    /// The files that contain the labels.
    pub(super) label_files: Vec<SourceFile>,
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
        let (element, bytes) = (
            self.info.element,
            self.info.width * self.info.element.size(),
        );
        let mut out = out.iter_mut();
        let files = &self.info.files;
        self.table.read(files, pieces, scratch, |piece| {
            element.rows_to_f32(piece, bytes, &mut out);
        })
    }

    fn labels(&self, pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        let Some(labels) = &self.labels else {
            return Ok(None);
        };
        let mut all = Vec::with_capacity(pieces.iter().map(Range::len).sum());
        for rows in pieces.iter().filter(|rows| !rows.is_empty()) {
            self.add_labels(labels, rows.clone(), &mut all)?;
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }
}

impl Matrix {
    /// Appends the labels of `rows`, which is not empty.
    fn add_labels(
        &self,
        labels: &Labels,
        rows: Range<usize>,
        out: &mut Vec<i64>,
    ) -> Result<(), DataError> {
        let place = |row: usize| match (labels.per, &self.info.documents) {
            (Per::Example, Some(documents)) => documents.of(row),
            (Per::Row, _) => row,
            _ => self.table.stored_row(row),
        };
        let first = place(rows.start);
        let span = first..place(rows.end - 1) + 1;
        let mut all = Vec::with_capacity(span.len());
        let decode = |bytes: &[u8]| labels.integer.decode(bytes, &mut all);
        labels.table.read(
            &self.label_files,
            std::slice::from_ref(&span),
            &mut Vec::new(),
            decode,
        )?;
        out.extend(rows.map(|row| all[place(row) - first]));
        Ok(())
    }
}
