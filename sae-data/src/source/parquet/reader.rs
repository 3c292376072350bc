//! A data set of Parquet files: row groups are decoded when they are read, one page at a time; nothing is kept.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parquet::file::metadata::ParquetMetaData;

use super::NAME;
use super::column::Column;
use super::opening::Opening;
use super::pages::Pages;
use crate::error::DataError;
use crate::source::{Documents, Info, Options, Source, SourceFile};

/// A data set of Parquet files.
#[derive(Debug)]
pub(super) struct Parquet {
    info: Info,
    metadata: Vec<Arc<ParquetMetaData>>,
    groups: Vec<Group>,
    /// Depth of the lists: 1 for rows, 2 for examples of rows.
    depth: usize,
    skip: usize,
}

/// A row group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) file: usize,
    pub(super) number: usize,
    /// Leaf column of the activations.
    pub(super) column: usize,
    /// Its pages.
    pub(super) pages: Pages,
    pub(super) labels: Option<(usize, Pages)>,
    /// Its rows, numbered over all files.
    pub(super) rows: Range<usize>,
    /// Its first record, numbered over all files.
    pub(super) first_record: usize,
}

impl Parquet {
    pub(super) fn open(
        path: &Path,
        files: Vec<SourceFile>,
        options: &Options,
    ) -> Result<Self, DataError> {
        if let Some(labels) = &options.labels {
            let remedy = "labels of Parquet data are a column named label or labels; leave it out";
            return Err(DataError::option(
                "labels",
                labels.display().to_string(),
                remedy,
            ));
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
        let Some(kind) = opening.kind.filter(|_| opening.rows > 0) else {
            return Err(DataError::not_recognised(path, "it holds no rows"));
        };
        let info = Info {
            path: path.into(),
            format: NAME,
            files,
            element: kind.element,
            rows: opening.rows,
            width: kind.width,
            documents: opening.documents.finish(),
            labelled: labelled > 0,
            preferred_block: Some(opening.block),
            tensor: Some(kind.name),
            layer: None,
            drop_first_token: options.drop_first_token,
        };
        Ok(Self {
            info,
            metadata: opening.metadata,
            groups: opening.groups,
            depth: kind.depth,
            skip: usize::from(options.drop_first_token),
        })
    }

    fn column<'a>(&'a self, group: &'a Group, column: usize, pages: &'a Pages) -> Column<'a> {
        Column {
            file: &self.info.files[group.file],
            metadata: &self.metadata[group.file],
            group: group.number,
            column,
            element: self.info.element,
            width: self.info.width,
            depth: self.depth,
            pages,
            first_row: group.rows.start,
        }
    }

    /// The row groups of `pieces`, which ascend, and the wanted rows within each.
    fn overlapping(&self, pieces: &[Range<usize>]) -> Vec<(&Group, Vec<Range<usize>>)> {
        let mut found: Vec<(&Group, Vec<Range<usize>>)> = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let first = self
                .groups
                .partition_point(|group| group.rows.end <= piece.start);
            let groups = self.groups[first..].iter();
            for group in groups.take_while(|group| group.rows.start < piece.end) {
                let start = piece.start.max(group.rows.start) - group.rows.start;
                let rows = start..piece.end.min(group.rows.end) - group.rows.start;
                match found.last_mut() {
                    Some((last, all)) if std::ptr::eq(*last, group) => all.push(rows),
                    _ => found.push((group, vec![rows])),
                }
            }
        }
        found
    }

    /// The examples of all groups, if rows are grouped into examples.
    fn examples(&self) -> Option<&Documents> {
        self.info.documents.as_ref().filter(|_| self.depth == 2)
    }

    /// The records of a group that hold its rows `rows`, adjacent records as one range.
    fn records(&self, group: &Group, rows: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut records: Vec<Range<usize>> = Vec::with_capacity(rows.len());
        for rows in rows {
            let of = |row: usize| match self.examples() {
                None => row,
                Some(documents) => documents.of(group.rows.start + row) - group.first_record,
            };
            let (first, end) = (of(rows.start), of(rows.end - 1) + 1);
            match records.last_mut() {
                Some(last) if last.end >= first => last.end = end,
                _ => records.push(first..end),
            }
        }
        records
    }

    /// The first row of a record, numbered within its group.
    fn first_row(&self, group: &Group, record: usize) -> usize {
        match self.examples() {
            None => record,
            Some(documents) => documents.start(group.first_record + record) - group.rows.start,
        }
    }
}

impl Source for Parquet {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        _scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let mut out = out.iter_mut();
        for (group, rows) in self.overlapping(pieces) {
            let column = self.column(group, group.column, &group.pages);
            let records = self.records(group, &rows);
            let mut wanted = rows.iter().cloned().flatten().peekable();
            let (mut range, mut row) = (None, 0);
            column.rows(&records, |now, token, values| {
                if range != Some(now) {
                    (range, row) = (Some(now), self.first_row(group, records[now].start));
                }
                if token < self.skip {
                    return;
                }
                if wanted.next_if_eq(&row).is_some()
                    && let Some(Some(out)) = out.next()
                {
                    out.copy_from_slice(values);
                }
                row += 1;
            })?;
            if wanted.next().is_some() {
                return Err(column.damaged("the column has fewer rows than its row group"));
            }
        }
        Ok(())
    }

    fn labels(&self, pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        let mut labels = Vec::with_capacity(pieces.iter().map(Range::len).sum());
        for (group, rows) in self.overlapping(pieces) {
            let Some((column, pages)) = &group.labels else {
                return Ok(None);
            };
            let records = self.records(group, &rows);
            let values = self.column(group, *column, pages).integers(&records)?;
            let Some(documents) = self.examples() else {
                labels.extend(values);
                continue;
            };
            let numbers = records.into_iter().flatten();
            let of_record: HashMap<usize, i64> = numbers.zip(values).collect();
            labels.extend(rows.into_iter().flatten().map(|row| {
                of_record[&(documents.of(group.rows.start + row) - group.first_record)]
            }));
        }
        Ok(Some(labels).filter(|labels| !labels.is_empty()))
    }
}
