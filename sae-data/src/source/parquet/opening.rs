//! Opens Parquet files: reads footers, chooses columns, and checks that a file can hold what it claims.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::ColumnDescriptor;

use super::NAME;
use super::column::{Column, guarded};
use super::pages::{Pages, Walked};
use super::reader::Group;
use super::thrift::{self, Trouble};
use crate::element::Element;
use crate::error::DataError;
use crate::source::builder::no_positions;
use crate::source::documents::DocumentsBuilder;
use crate::source::format::only;
use crate::source::{Options, SourceFile};

/// Bytes of the footer's length and the magic at the end of a file.
const TAIL: u64 = 8;
/// Number of values that any file may have, plus a number per byte of the file. Activations do not compress that well;
/// the limit bounds the time to read a file and the rows that it can claim.
const VALUES: u64 = 1 << 28;
const VALUES_PER_BYTE: u64 = 256;
/// Number of examples that any file may have, plus one per byte.
const EXAMPLES: u64 = 1 << 22;
/// Pages per block: on average, one page per block is decoded for two blocks.
const PAGES_PER_BLOCK: usize = 4;

/// Type and shape of the rows, and the first file that had them.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) element: Element,
    pub(super) width: usize,
    pub(super) depth: usize,
    /// Name of the column.
    pub(super) name: String,
    first: PathBuf,
}

/// A data set that is being opened.
pub(super) struct Opening<'a> {
    options: &'a Options,
    pub(super) kind: Option<Kind>,
    pub(super) metadata: Vec<Arc<ParquetMetaData>>,
    pub(super) groups: Vec<Group>,
    pub(super) documents: DocumentsBuilder,
    pub(super) rows: usize,
    records: usize,
    /// Number of rows that are best read together.
    pub(super) block: usize,
}

/// The values and examples that a file may still claim.
struct Budget {
    values: u64,
    examples: u64,
}

impl Budget {
    fn of(file: &SourceFile) -> Self {
        Self {
            values: VALUES.saturating_add(file.bytes.saturating_mul(VALUES_PER_BYTE)),
            examples: EXAMPLES.saturating_add(file.bytes),
        }
    }

    /// Subtracts the activations of a row group. Checks its pages, and that each of its `records` has a value.
    fn take(&mut self, column: &Column<'_>, records: usize) -> Result<Walked, DataError> {
        let walked = column.check_pages()?;
        let (values, records) = (walked.values, records as u64);
        if records > values {
            let reason = format!("a row group of {records} rows, but {values} values");
            return Err(column.damaged(reason));
        }
        let examples = if column.depth == 2 { records } else { 0 };
        match (
            self.values.checked_sub(values),
            self.examples.checked_sub(examples),
        ) {
            (Some(values), Some(examples)) => {
                *self = Self { values, examples };
                Ok(walked)
            }
            _ => Err(DataError::unsupported(
                &column.file.path,
                format!(
                    "a row group of {values} values in a file of {} bytes",
                    column.file.bytes
                ),
                "activations do not compress that well; write it as .npy if they are nearly all the same",
            )),
        }
    }
}

/// Checks the footer before it is decoded.
fn check_footer(file: &SourceFile) -> Result<(), DataError> {
    let mut open = file.open()?;
    let end = file.bytes.saturating_sub(TAIL);
    let tail = open.bytes_at(NAME, end, TAIL)?;
    let len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let damaged = |reason: &str| DataError::damaged(&file.path, NAME, end, reason);
    let start = end.checked_sub(len).filter(|_| tail[4..] == *b"PAR1");
    let start = start.ok_or_else(|| {
        damaged("a Parquet file ends in the length of its footer and \"PAR1\"; this one was cut")
    })?;
    let footer = open.bytes_at(NAME, start, len)?;
    thrift::walk(&footer).map_err(|trouble| match trouble {
        Trouble::Short => damaged("the footer claims more than it holds"),
        Trouble::Wrong(what) => damaged(&format!("{what} in the footer")),
    })
}

impl<'a> Opening<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self {
            options,
            kind: None,
            metadata: Vec::new(),
            groups: Vec::new(),
            documents: DocumentsBuilder::default(),
            rows: 0,
            records: 0,
            block: 1,
        }
    }

    /// Adds file number `number`.
    pub(super) fn file(&mut self, number: usize, file: &SourceFile) -> Result<(), DataError> {
        check_footer(file)?;
        let metadata = guarded(|| {
            let opened = File::open(&file.path)?;
            ParquetMetaDataReader::new().parse_and_finish(&opened)
        });
        let metadata =
            metadata.map_err(|reason| DataError::damaged(&file.path, NAME, 0, reason))?;
        let schema = metadata.file_metadata().schema_descr();
        let leaves: Vec<&ColumnDescriptor> = schema.columns().iter().map(AsRef::as_ref).collect();
        let column = activation_column(file, &leaves, self.options.tensor.as_deref())?;
        let (depth, element) = activations(leaves[column]).expect("it has been chosen for that");
        if self.options.drop_first_token && depth == 1 {
            return Err(no_positions(&file.path));
        }
        let labels = leaves.iter().position(|leaf| is_label(leaf));
        let metadata = Arc::new(metadata);
        let mut budget = Budget::of(file);
        for group in 0..metadata.num_row_groups() {
            let in_group = Column {
                file,
                metadata: &metadata,
                group,
                column,
                element,
                width: 0,
                depth,
                pages: &Pages::default(),
                first_row: self.rows,
            };
            self.group(number, in_group, labels, &mut budget)?;
        }
        self.metadata.push(metadata);
        Ok(())
    }

    /// Adds a row group.
    fn group(
        &mut self,
        file: usize,
        column: Column<'_>,
        labels: Option<usize>,
        budget: &mut Budget,
    ) -> Result<(), DataError> {
        let group = column.metadata.row_group(column.group);
        let damaged = |reason: &str| DataError::damaged(&column.file.path, NAME, 0, reason);
        let records =
            usize::try_from(group.num_rows()).map_err(|_| damaged("a negative number of rows"))?;
        if records == 0 {
            return Ok(());
        }
        if column.column.max(labels.unwrap_or(0)) >= group.num_columns() {
            return Err(damaged("a row group without all of its columns"));
        }
        let walked = budget.take(&column, records)?;
        let label_pages = |labels| {
            let of_labels = Column {
                column: labels,
                ..column
            };
            Ok((labels, by_width(&of_labels.check_pages()?, 1, records)))
        };
        let labels = labels.map(label_pages).transpose()?;
        let width = self.width(&column, walked.values, records as u64)?;
        let column = Column { width, ..column };
        self.check_kind(&column)?;
        let start = self.rows;
        let pages = if column.depth == 1 {
            let rows = self.rows.checked_add(records);
            self.rows = rows.ok_or_else(|| damaged("too many rows"))?;
            by_width(&walked, width, records)
        } else {
            self.examples(&column, &walked, records)?
        };
        let page_rows = usize::try_from(walked.longest()).unwrap_or(usize::MAX) / width.max(1);
        let block = (page_rows + 1).saturating_mul(PAGES_PER_BLOCK);
        self.block = self.block.max(block);
        self.groups.push(Group {
            file,
            number: column.group,
            column: column.column,
            pages,
            labels,
            rows: start..self.rows,
            first_record: self.records,
        });
        self.records += records;
        Ok(())
    }

    /// Width of the rows; reading them finds rows of another width.
    fn width(&self, column: &Column<'_>, values: u64, records: u64) -> Result<usize, DataError> {
        match &self.kind {
            Some(kind) if column.depth == 1 && values == records * kind.width as u64 => {
                Ok(kind.width)
            }
            _ => column.first_width(),
        }
    }

    /// Adds the examples of a row group.
    fn examples(
        &mut self,
        column: &Column<'_>,
        walked: &Walked,
        records: usize,
    ) -> Result<Pages, DataError> {
        let skip = usize::from(self.options.drop_first_token);
        let lengths = column.lengths(records)?;
        for length in &lengths {
            self.documents.push(length.saturating_sub(skip));
            self.rows += length.saturating_sub(skip);
        }
        Ok(by_lengths(walked, column.width, &lengths))
    }

    fn check_kind(&mut self, column: &Column<'_>) -> Result<(), DataError> {
        let (file, width) = (column.file, column.width);
        let (element, depth) = (column.element, column.depth);
        let kind = self.kind.get_or_insert_with(|| Kind {
            element,
            width,
            depth,
            name: root(column.chunk().column_descr()),
            first: file.path.clone(),
        });
        let (path, first) = (&file.path, &kind.first);
        DataError::agree("width", (path, width), (first, kind.width))?;
        DataError::agree("type", (path, element), (first, kind.element))?;
        DataError::agree("depth of lists", (path, depth), (first, kind.depth))
    }
}

/// The pages of records of `width` values each; an empty table if the number of values differs, which reading reports.
fn by_width(walked: &Walked, width: usize, records: usize) -> Pages {
    let width = width as u64;
    match (records as u64).checked_mul(width) == Some(walked.values) {
        true => walked.pages(|value| ((value / width) as usize, value / width * width)),
        false => Pages::default(),
    }
}

/// The pages of examples of `lengths` rows of `width` values.
fn by_lengths(walked: &Walked, width: usize, lengths: &[usize]) -> Pages {
    let begins: Vec<u64> = lengths
        .iter()
        .scan(0, |at, length| {
            let begin = *at;
            *at += (length * width) as u64;
            Some(begin)
        })
        .collect();
    walked.pages(|value| {
        let record = begins
            .partition_point(|begin| *begin <= value)
            .saturating_sub(1);
        (record, begins.get(record).copied().unwrap_or(0))
    })
}

/// Depth of the lists and element type of a column of floats in one or two nested lists.
fn activations(leaf: &ColumnDescriptor) -> Option<(usize, Element)> {
    let depth = usize::try_from(leaf.max_rep_level())
        .ok()
        .filter(|depth| matches!(depth, 1 | 2))?;
    let parts = leaf.path().parts().len();
    // acts.list.element, or the older acts.element; other paths lead into structs
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

/// Name of the column that a leaf belongs to.
fn root(leaf: &ColumnDescriptor) -> String {
    leaf.path().parts().first().cloned().unwrap_or_default()
}

/// The wanted column, or the only candidate.
fn activation_column(
    file: &SourceFile,
    leaves: &[&ColumnDescriptor],
    wanted: Option<&str>,
) -> Result<usize, DataError> {
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
