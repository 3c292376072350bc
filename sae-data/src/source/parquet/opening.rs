//! Opens Parquet files: reads footers, chooses columns, and checks that a file can hold what it claims.

use std::fs::File;
use std::sync::Arc;

use parquet::basic::{LogicalType, Type as PhysicalType};
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::schema::types::ColumnDescriptor;

use super::NAME;
use super::column::{Column, guarded};
use super::pages::Walked;
use super::thrift::{Trouble, walk};
use crate::element::Element;
use crate::error::DataError;
use crate::source::SourceFile;
use crate::source::builder::MatrixBuilder;
use crate::source::format::only;
use crate::source::matrix::{Integer, IntegerColumn};

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

/// Adds a file of activations.
pub(super) fn add(
    builder: &mut MatrixBuilder<'_>,
    file: &SourceFile,
    column: Option<&str>,
) -> Result<(), DataError> {
    builder.info.files.push(file.clone());
    let metadata = footer(file)?;
    let schema = metadata.file_metadata().schema_descr();
    let leaves: Vec<&ColumnDescriptor> = schema.columns().iter().map(AsRef::as_ref).collect();
    let (column, depth, element) = activation_column(file, &leaves, column)?;
    builder.info.tensor.get_or_insert(root(leaves[column]));
    let mut opening = Opening {
        file,
        column,
        depth,
        element,
        labels: leaves.iter().position(|leaf| is_label(leaf)),
        rows: 0,
        values_left: VALUES.saturating_add(file.bytes.saturating_mul(VALUES_PER_BYTE)),
        examples_left: EXAMPLES.saturating_add(file.bytes),
    };
    let mut groups = metadata.row_groups().iter();
    groups.try_for_each(|group| opening.group(builder, group))
}

/// The metadata of a file.
pub(super) fn footer(file: &SourceFile) -> Result<ParquetMetaData, DataError> {
    check_footer(file)?;
    guarded(file, 0, || {
        ParquetMetaDataReader::new().parse_and_finish(&File::open(&file.path)?)
    })
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
    match walk(&footer, &mut |_, _, _| Ok(())) {
        Ok(_) => Ok(()),
        Err(Trouble::Short) => Err(damaged("the footer claims more than it holds")),
        Err(Trouble::Wrong(what)) => Err(damaged(&format!("{what} in the footer"))),
    }
}

/// A file that is being opened.
struct Opening<'a> {
    file: &'a SourceFile,
    /// Leaf column of the activations.
    column: usize,
    /// Depth of its lists: 1 for rows, 2 for examples of rows.
    depth: usize,
    element: Element,
    /// Leaf column of the labels.
    labels: Option<usize>,
    /// Rows so far.
    rows: usize,
    /// The values and examples that the file may still claim.
    values_left: u64,
    examples_left: u64,
}

impl Opening<'_> {
    /// Adds a row group.
    fn group(
        &mut self,
        builder: &mut MatrixBuilder<'_>,
        group: &RowGroupMetaData,
    ) -> Result<(), DataError> {
        let damaged = |reason: &str| DataError::damaged(&self.file.path, NAME, 0, reason);
        let records = usize::try_from(group.num_rows());
        let records = records.map_err(|_| damaged("a negative number of rows"))?;
        if records == 0 {
            return Ok(());
        }
        if self.column.max(self.labels.unwrap_or(0)) >= group.num_columns() {
            return Err(damaged("a row group without all of its columns"));
        }
        let mut column = self.column(group.column(self.column), records)?;
        self.take(&column)?;
        let (values, known) = (column.pages.values, builder.info.width);
        column.width = match self.depth == 1 && values == records as u64 * known as u64 {
            true => known, // reading finds rows of another width
            false => column.first_width()?,
        };
        let page_rows = column.pages.longest as usize / column.width + 1;
        let block = page_rows.saturating_mul(PAGES_PER_BLOCK);
        builder.info.preferred_block = builder.info.preferred_block.max(Some(block));
        self.add(builder, Arc::new(column))?;
        let Some(labels) = self.labels else {
            return Ok(());
        };
        let mut labels = self.column(group.column(labels), records)?;
        labels.width = 1;
        let store = builder.store(Arc::new(labels));
        let column = IntegerColumn {
            integer: Integer::I64, // as which all are decoded
            offset: 0,
            count: records,
        };
        builder.labels(store, &column)
    }

    /// A column whose page headers have been checked.
    fn column(&self, chunk: &ColumnChunkMetaData, records: usize) -> Result<Column, DataError> {
        Ok(Column {
            file: self.file.clone(),
            chunk: chunk.clone(),
            pages: Walked::over(self.file, chunk)?,
            records,
            width: 0,
            first_row: self.rows,
        })
    }

    /// Subtracts the activations of a row group from what the file may claim; each record has a value.
    fn take(&mut self, column: &Column) -> Result<(), DataError> {
        let (values, records) = (column.pages.values, column.records as u64);
        if records > values {
            let reason = format!("a row group of {records} rows, but {values} values");
            return Err(column.damaged(reason));
        }
        let examples = if self.depth == 2 { records } else { 0 };
        let values_left = self.values_left.checked_sub(values);
        let (Some(values_left), Some(examples_left)) =
            (values_left, self.examples_left.checked_sub(examples))
        else {
            let bytes = self.file.bytes;
            return Err(DataError::unsupported(
                &self.file.path,
                format!("a row group of {values} values in a file of {bytes} bytes"),
                "activations do not compress that well; write it as .npy if they are nearly all the same",
            ));
        };
        (self.values_left, self.examples_left) = (values_left, examples_left);
        Ok(())
    }

    /// Adds the rows of a row group.
    fn add(
        &mut self,
        builder: &mut MatrixBuilder<'_>,
        column: Arc<Column>,
    ) -> Result<(), DataError> {
        let store = builder.store(column.clone());
        builder.kind(store, self.element, column.width)?;
        if self.depth == 1 {
            self.rows += column.records;
            return builder.rows(store, 0, column.records);
        }
        let row_bytes = (column.width * self.element.size()) as u64;
        let mut rows = 0;
        for length in column.lengths()? {
            builder.example(store, rows as u64 * row_bytes, length)?;
            rows += length;
        }
        self.rows += rows;
        Ok(())
    }
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

/// The wanted column, or the only candidate, with the depth of its lists and its element type.
fn activation_column(
    file: &SourceFile,
    leaves: &[&ColumnDescriptor],
    wanted: Option<&str>,
) -> Result<(usize, usize, Element), DataError> {
    let describe =
        |leaf: &&ColumnDescriptor| format!("\"{}\" {}", leaf.path().string(), leaf.physical_type());
    let names: Vec<String> = leaves.iter().map(describe).collect();
    let candidates = leaves.iter().enumerate().filter_map(|(number, leaf)| {
        let (depth, element) = activations(leaf)?;
        let named = wanted.is_none_or(|wanted| root(leaf) == wanted);
        named.then_some((number, depth, element))
    });
    let candidates = candidates.collect();
    only(&file.path, "column", wanted, candidates, names.join(", "))
}
