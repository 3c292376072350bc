//! Parquet: row groups are decoded where they are read, a page at a time; nothing else is held.
//!
//! Rows are lists of floats, or examples are lists of such rows. The field's crate decodes columns into values
//! and levels (Dremel's definition and repetition levels); the levels say where rows begin and whether a value
//! is missing.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};

use half::f16;
use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use super::documents::DocumentsBuilder;
use super::file::SourceFile;
use super::{Documents, Info, Options, Source};
use crate::element::Element;
use crate::error::DataError;

const FORMAT: &str = "Parquet";
/// Records decoded at once where whole columns are walked.
const RECORDS: usize = 1024;

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
    let (path, noun, available) = (file.path.clone(), "column", names.join(", "));
    let candidates: Vec<usize> = (0..leaves.len())
        .filter(|i| activations(leaves[*i]).is_some())
        .filter(|i| wanted.is_none_or(|wanted| root(leaves[*i]) == wanted))
        .collect();
    match (&candidates[..], wanted) {
        ([column], _) => Ok(*column),
        ([], Some(name)) => Err(DataError::NoTensor {
            path,
            noun,
            name: name.into(),
            available,
        }),
        ([], None) => Err(DataError::NoActivations {
            path,
            noun,
            available,
        }),
        _ => Err(DataError::Ambiguous {
            path,
            noun,
            available,
        }),
    }
}

/// One column of one row group.
#[derive(Clone, Copy)]
struct Column<'a> {
    file: &'a SourceFile,
    metadata: &'a ParquetMetaData,
    group: usize,
    column: usize,
    element: Element,
    width: usize,
    depth: usize,
    /// First row of the row group among all, for messages.
    first_row: usize,
}

/// Decoded records: values, and the levels that say where rows begin.
#[derive(Default)]
struct Decoded {
    values: Vec<f32>,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Column<'_> {
    /// Where the column's pages begin, as the footer says; it may say anything.
    fn offset(&self) -> u64 {
        let chunk = self.metadata.row_group(self.group).column(self.column);
        u64::try_from(chunk.data_page_offset()).unwrap_or(0)
    }

    fn damaged(&self, reason: impl Into<String>) -> DataError {
        DataError::damaged(&self.file.path, FORMAT, self.offset(), reason)
    }

    /// Reads `records` and hands over their values, some records at a time.
    fn decode<T: DataType>(
        &self,
        records: Range<usize>,
        mut visit: impl FnMut(Vec<T::T>, Vec<i16>, Vec<i16>) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        self.file.open()?; // it is still what it was
        let mut reader = self.caught(|| {
            let file = Arc::new(File::open(&self.file.path)?);
            let group = self.metadata.row_group(self.group);
            let chunk = group.column(self.column);
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let pages = SerializedPageReader::new(file, chunk, rows, None)?;
            Ok(ColumnReaderImpl::<T>::new(
                chunk.column_descr_ptr(),
                Box::new(pages),
            ))
        })?;
        let skipped = self.caught(|| reader.skip_records(records.start))?;
        if skipped != records.start {
            return Err(self.damaged("the column has fewer rows than its row group"));
        }
        let mut left = records.len();
        while left > 0 {
            let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
            let (read, ..) = self.caught(|| {
                reader.read_records(
                    left.min(RECORDS),
                    Some(&mut definition),
                    Some(&mut repetition),
                    &mut values,
                )
            })?;
            if read == 0 {
                return Err(self.damaged("the column has fewer rows than its row group"));
            }
            left -= read.min(left);
            visit(values, definition, repetition)?;
        }
        Ok(())
    }

    fn caught<R>(&self, work: impl FnOnce() -> Result<R, ParquetError>) -> Result<R, DataError> {
        guarded(work).map_err(|reason| match reason.contains("Disabled feature") {
            true => DataError::unsupported(
                &self.file.path,
                reason.trim_start_matches("Parquet error: ").to_string(),
                "write it with compression snappy, zstd, gzip, lz4 or none",
            ),
            false => self.damaged(reason),
        })
    }

    /// Activations as float32.
    fn floats(
        &self,
        records: Range<usize>,
        mut visit: impl FnMut(Decoded) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut each = |values, definition, repetition| {
            visit(Decoded {
                values,
                definition,
                repetition,
            })
        };
        match self.element {
            Element::F64 => self.decode::<DoubleType>(records, |values, definition, repetition| {
                each(
                    values.into_iter().map(|v| v as f32).collect(),
                    definition,
                    repetition,
                )
            }),
            Element::F16 => {
                self.decode::<FixedLenByteArrayType>(records, |values, definition, repetition| {
                    let half = |v: &FixedLenByteArray| match *v.data() {
                        [low, high] => Ok(f16::from_le_bytes([low, high]).to_f32()),
                        _ => Err(self.damaged("a half-precision value has two bytes")),
                    };
                    each(
                        values.iter().map(half).collect::<Result<_, _>>()?,
                        definition,
                        repetition,
                    )
                })
            }
            _ => self.decode::<FloatType>(records, each),
        }
    }

    /// Width of the first row, from the first records that have one.
    fn first_width(&self) -> Result<usize, DataError> {
        let mut width = None;
        let records = usize::try_from(self.metadata.row_group(self.group).num_rows()).unwrap_or(0);
        self.floats(0..records.min(1), |decoded| {
            self.check_nulls(&decoded, 0)?;
            let same_row = decoded
                .repetition
                .iter()
                .skip(1)
                .take_while(|level| **level as usize == self.depth);
            width = width.or(Some(1 + same_row.count()));
            Ok(())
        })?;
        Ok(width.unwrap_or(1))
    }

    /// Every value must be there: nulls and empty lists have a lower definition level.
    fn check_nulls(&self, decoded: &Decoded, row: usize) -> Result<(), DataError> {
        let leaf = self
            .metadata
            .row_group(self.group)
            .column(self.column)
            .column_descr();
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

    /// Hands over each row of `records` with its place in its record.
    fn rows(
        &self,
        records: Range<usize>,
        mut visit: impl FnMut(usize, &[f32]),
    ) -> Result<(), DataError> {
        let (mut row, mut token) = (0, 0);
        self.floats(records, |decoded| {
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
                visit(token, values);
                rest = &rest[len..];
                row += 1;
            }
            Ok(())
        })
    }

    /// Number of rows of each of the `records` examples.
    fn lengths(&self, records: usize) -> Result<Vec<usize>, DataError> {
        let mut lengths = Vec::new();
        self.rows(0..records, |token, _| match lengths.last_mut() {
            Some(length) if token > 0 => *length += 1,
            _ => lengths.push(1),
        })?;
        match lengths.len() == records {
            true => Ok(lengths),
            false => Err(self.damaged("the column has fewer rows than its row group")),
        }
    }

    fn integers(&self, records: Range<usize>) -> Result<Vec<i64>, DataError> {
        let leaf = self
            .metadata
            .row_group(self.group)
            .column(self.column)
            .column_descr();
        let (whole, count) = (leaf.max_def_level(), records.len());
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
        match leaf.physical_type() {
            PhysicalType::INT32 => self.decode::<Int32Type>(records, |values, definition, _| {
                add(values.into_iter().map(i64::from).collect(), definition)
            })?,
            _ => {
                self.decode::<Int64Type>(records, |values, definition, _| add(values, definition))?
            }
        }
        match all.len() == count {
            true => Ok(all),
            false => Err(self.damaged("there are fewer labels than rows")),
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is caught by [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the decoder; a panic in it, which a damaged file can cause, is an error like any other and is not
/// printed.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| "the decoder gave up".into())),
    }
}
