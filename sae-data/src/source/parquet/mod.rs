//! Parquet: row groups are decoded where they are read, a page at a time; nothing else is held.
//!
//! Rows are lists of floats, or examples are lists of such rows. The field's crate decodes columns into values
//! and levels (Dremel's definition and repetition levels); the levels say where rows begin and whether a value
//! is missing.

mod column;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::ColumnDescriptor;

use column::{Column, guarded};

use super::documents::DocumentsBuilder;
use super::file::SourceFile;
use super::{Documents, Info, Options, Source, only};
use crate::element::Element;
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
        let mut opening = Opening {
            options,
            kind: None,
            metadata: Vec::new(),
            groups: Vec::new(),
            documents: DocumentsBuilder::default(),
            rows: 0,
            records: 0,
        };
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

/// What the rows are, and the file that said so first.
#[derive(Clone, Debug)]
struct Kind {
    element: Element,
    width: usize,
    depth: usize,
    first: std::path::PathBuf,
}

/// A data set while it is opened.
struct Opening<'a> {
    options: &'a Options,
    kind: Option<Kind>,
    metadata: Vec<Arc<ParquetMetaData>>,
    groups: Vec<Group>,
    documents: DocumentsBuilder,
    rows: usize,
    records: usize,
}

impl Opening<'_> {
    fn file(&mut self, number: usize, file: &SourceFile) -> Result<(), DataError> {
        file.open()?; // it is there
        let metadata = guarded(|| {
            let opened = File::open(&file.path)?;
            ParquetMetaDataReader::new().parse_and_finish(&opened)
        });
        let metadata =
            metadata.map_err(|reason| DataError::damaged(&file.path, FORMAT, 0, reason))?;
        let schema = metadata.file_metadata().schema_descr();
        let leaves: Vec<&ColumnDescriptor> = schema.columns().iter().map(AsRef::as_ref).collect();
        let column = activation_column(file, &leaves, self.options.tensor.as_deref())?;
        let (depth, element) = activations(leaves[column]).expect("it has been chosen for that");
        if self.options.drop_first_token && depth == 1 {
            return Err(DataError::Option {
                key: "data.drop_first_token",
                value: "true".into(),
                remedy: format!(
                    "the rows of {} have no positions; leave it out",
                    file.path.display()
                ),
            });
        }
        let labels = leaves.iter().position(|leaf| is_label(leaf));
        let metadata = Arc::new(metadata);
        for (group_number, group) in metadata.row_groups().iter().enumerate() {
            let damaged = |reason: &str| DataError::damaged(&file.path, FORMAT, 0, reason);
            let records = usize::try_from(group.num_rows())
                .map_err(|_| damaged("a negative number of rows"))?;
            if records == 0 {
                continue;
            }
            let in_group = Column {
                file,
                metadata: &metadata,
                group: group_number,
                column,
                element,
                width: 0,
                depth,
                first_row: self.rows,
            };
            let width = in_group.first_width()?;
            self.check_kind(file, element, width, depth)?;
            let start = self.rows;
            if depth == 1 {
                let rows = self.rows.checked_add(records);
                self.rows = rows.ok_or_else(|| damaged("too many rows"))?;
            } else {
                let skip = usize::from(self.options.drop_first_token);
                let lengths = Column { width, ..in_group }.lengths(records)?;
                for length in lengths {
                    self.documents.push(length.saturating_sub(skip));
                    self.rows += length.saturating_sub(skip);
                }
            }
            self.groups.push(Group {
                file: number,
                number: group_number,
                column,
                labels,
                rows: start..self.rows,
                first_record: self.records,
            });
            self.records += records;
        }
        self.metadata.push(metadata);
        Ok(())
    }

    fn check_kind(
        &mut self,
        file: &SourceFile,
        element: Element,
        width: usize,
        depth: usize,
    ) -> Result<(), DataError> {
        let kind = self.kind.get_or_insert_with(|| Kind {
            element,
            width,
            depth,
            first: file.path.clone(),
        });
        for (what, here, there) in [
            ("width", width.to_string(), kind.width.to_string()),
            ("type", element.to_string(), kind.element.to_string()),
            ("depth of lists", depth.to_string(), kind.depth.to_string()),
        ] {
            if here != there {
                return Err(DataError::Mixed {
                    path: file.path.clone(),
                    first: kind.first.clone(),
                    what,
                    here,
                    there,
                });
            }
        }
        Ok(())
    }
}

/// Lists of floats, one or two deep: the depth and the type.
fn activations(leaf: &ColumnDescriptor) -> Option<(usize, Element)> {
    let depth = usize::try_from(leaf.max_rep_level())
        .ok()
        .filter(|depth| matches!(depth, 1 | 2))?;
    let parts = leaf.path().parts().len();
    // acts.list.element, or the older acts.element; anything else is inside a struct
    if parts != 1 + 2 * depth && parts != 1 + depth {
        return None;
    }
    let element = match leaf.physical_type() {
        PhysicalType::FLOAT => Element::F32,
        PhysicalType::DOUBLE => Element::F64,
        PhysicalType::FIXED_LEN_BYTE_ARRAY
            if leaf.logical_type_ref() == Some(&LogicalType::Float16)
                && leaf.type_length() == 2 =>
        {
            Element::F16
        }
        _ => return None,
    };
    Some((depth, element))
}

fn is_label(leaf: &ColumnDescriptor) -> bool {
    let name = matches!(leaf.path().string().as_str(), "label" | "labels");
    name && matches!(
        leaf.physical_type(),
        PhysicalType::INT32 | PhysicalType::INT64
    )
}

/// The wanted column, or the only one that can be.
fn activation_column(
    file: &SourceFile,
    leaves: &[&ColumnDescriptor],
    wanted: Option<&str>,
) -> Result<usize, DataError> {
    let root = |leaf: &ColumnDescriptor| leaf.path().parts().first().cloned().unwrap_or_default();
    let names: Vec<String> = leaves
        .iter()
        .map(|leaf| format!("\"{}\" {}", leaf.path().string(), leaf.physical_type()))
        .collect();
    let candidates = (0..leaves.len())
        .filter(|i| activations(leaves[*i]).is_some())
        .filter(|i| wanted.is_none_or(|wanted| root(leaves[*i]) == wanted))
        .collect();
    only(&file.path, "column", wanted, candidates, names.join(", "))
}
