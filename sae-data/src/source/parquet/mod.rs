//! Parquet: row groups are decoded where they are read, a page at a time; nothing else is held.
//!
//! Rows are lists of floats, or examples are lists of such rows. The field's crate decodes columns into values
//! and levels (Dremel's definition and repetition levels); the levels say where rows begin and whether a value
//! is missing. What a file claims to hold is checked before the decoder makes room for it: `thrift.rs` walks over
//! the footer, `pages.rs` over the page headers, `levels.rs` over the levels.

mod column;
mod levels;
mod opening;
mod pages;
mod thrift;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parquet::file::metadata::ParquetMetaData;

use column::Column;
use opening::Opening;

use super::documents::DocumentsBuilder;
use super::file::SourceFile;
use super::{Documents, Info, Options, Source, only};
use crate::error::DataError;

const FORMAT: &str = "Parquet";
/// A data set of Parquet files.
#[derive(Debug)]
pub(crate) struct Parquet {
    info: Info,
    metadata: Vec<Arc<ParquetMetaData>>,
    groups: Vec<Group>,
    /// Depth of the lists: 1 for rows, 2 for examples of rows.
    depth: usize,
    skip: usize,
}

/// A row group.
#[derive(Debug)]
struct Group {
    file: usize,
    number: usize,
    /// Leaf column of the activations, and of the labels.
    column: usize,
    labels: Option<usize>,
    /// Its rows, among all.
    rows: Range<usize>,
    /// Its first example, among all; the same as its first row where there are no examples.
    first_record: usize,
}

impl Parquet {
    pub(crate) fn open(
        path: &Path,
        files: Vec<SourceFile>,
        options: &Options,
    ) -> Result<Self, DataError> {
        if let Some(labels) = &options.labels {
            return Err(DataError::Option {
                key: "data.labels",
                value: labels.display().to_string(),
                remedy: "labels of Parquet data are a column named label or labels; leave it out"
                    .into(),
            });
        }
        let mut opening = Opening::new(options);
        for (number, file) in files.iter().enumerate() {
            opening.file(number, file)?;
        }
        let labelled = opening
            .groups
            .iter()
            .filter(|group| group.labels.is_some())
            .count();
        if labelled != 0 && labelled != opening.groups.len() {
            return Err(DataError::NoTensor {
                path: path.into(),
                noun: "column",
                name: "label".into(),
                available: "it in some files only".into(),
            });
        }
        let nothing = DataError::NotRecognised {
            path: path.into(),
            reason: "it holds no rows".into(),
        };
        let Some(kind) = opening.kind.filter(|_| opening.rows > 0) else {
            return Err(nothing);
        };
        let info = Info {
            path: path.into(),
            format: FORMAT,
            files,
            element: kind.element,
            rows: opening.rows,
            width: kind.width,
            documents: opening.documents.finish(),
            labelled: labelled > 0,
            preferred_block: opening.groups.iter().map(|group| group.rows.len()).max(),
        };
        Ok(Self {
            info,
            metadata: opening.metadata,
            groups: opening.groups,
            depth: kind.depth,
            skip: usize::from(options.drop_first_token),
        })
    }

    fn column<'a>(&'a self, group: &Group, column: usize) -> Column<'a> {
        Column {
            file: &self.info.files[group.file],
            metadata: &self.metadata[group.file],
            group: group.number,
            column,
            element: self.info.element,
            width: self.info.width,
            depth: self.depth,
            first_row: group.rows.start,
        }
    }

    /// The row groups that `rows` lie in, and which of their own rows these are.
    fn overlapping(&self, rows: Range<usize>) -> impl Iterator<Item = (&Group, Range<usize>)> {
        let first = self
            .groups
            .partition_point(|group| group.rows.end <= rows.start);
        self.groups[first..]
            .iter()
            .take_while(move |group| group.rows.start < rows.end)
            .map(move |group| {
                let (start, end) = (
                    rows.start.max(group.rows.start),
                    rows.end.min(group.rows.end),
                );
                (group, start - group.rows.start..end - group.rows.start)
            })
    }

    /// The records of a group that hold its rows `rows`, and how many rows of the first of them come before.
    fn records(&self, group: &Group, rows: &Range<usize>) -> (Range<usize>, usize) {
        let Some(documents) = self.info.documents.as_ref().filter(|_| self.depth == 2) else {
            return (rows.clone(), 0);
        };
        let first = documents.of(group.rows.start + rows.start);
        let last = documents.of(group.rows.start + rows.end - 1);
        let before = group.rows.start + rows.start - start_of(documents, first);
        (
            first - group.first_record..last + 1 - group.first_record,
            before,
        )
    }
}

fn start_of(documents: &Documents, document: usize) -> usize {
    match documents {
        Documents::Uniform { tokens, .. } => document * tokens,
        Documents::Starts(starts) => starts[document],
    }
}

impl Source for Parquet {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        rows: Range<usize>,
        _scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let mut out = out.iter_mut();
        for (group, rows) in self.overlapping(rows) {
            let (records, before) = self.records(group, &rows);
            let (mut at, wanted) = (0, before..before + rows.len());
            self.column(group, group.column)
                .rows(records, |token, row| {
                    if token < self.skip {
                        return;
                    }
                    if wanted.contains(&at)
                        && let Some(Some(out)) = out.next()
                    {
                        out.copy_from_slice(row);
                    }
                    at += 1;
                })?;
        }
        Ok(())
    }

    fn labels(&self, rows: Range<usize>) -> Result<Option<Vec<i64>>, DataError> {
        let mut labels = Vec::with_capacity(rows.len());
        for (group, rows) in self.overlapping(rows) {
            let Some(column) = group.labels else {
                return Ok(None);
            };
            let (records, _) = self.records(group, &rows);
            let values = self.column(group, column).integers(records.clone())?;
            match self.info.documents.as_ref().filter(|_| self.depth == 2) {
                None => labels.extend(values),
                Some(documents) => labels.extend(rows.map(|row| {
                    values
                        [documents.of(group.rows.start + row) - group.first_record - records.start]
                })),
            }
        }
        Ok(Some(labels).filter(|labels| !labels.is_empty()))
    }
}
