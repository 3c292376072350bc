//! The column `token_ids`, as SAELens names it: one integer per row, or a list of them per example.

use std::sync::Arc;

use parquet::basic::Type as PhysicalType;
use parquet::file::metadata::RowGroupMetaData;
use parquet::schema::types::ColumnDescriptor;

use super::NAME;
use super::column::Column;
use super::opening::footer;
use super::pages::Walked;
use crate::error::DataError;
use crate::source::Info;
use crate::source::file::{SourceFile, Store};
use crate::source::matrix::{Integer, IntegerColumn};
use crate::source::tokens::{COLUMN, Found, RowInteger};

/// The token ids of one file, if it has them.
pub(super) fn find(
    file: &SourceFile,
    info: &Info,
    kind: RowInteger,
) -> Result<Option<Found>, DataError> {
    if kind != RowInteger::Token {
        return Ok(None);
    }
    let metadata = footer(file)?;
    let leaves = metadata.file_metadata().schema_descr().columns();
    let found = leaves.iter().position(|leaf| is_token_ids(leaf));
    let Some(number) = found else {
        return Ok(None);
    };
    let in_lists = leaves[number].max_rep_level() == 1;
    if in_lists && info.documents.is_none() {
        return Ok(None); // a list per row: the tokens of a text, not the token of the row
    }
    let (mut columns, mut examples, mut count) = (Vec::new(), Vec::new(), 0);
    for group in metadata.row_groups() {
        let Some(column) = column(file, group, number, count)? else {
            continue;
        };
        let values = column.pages.values as usize;
        count += values;
        check_count(file, info, count)?; // before the lengths of so many examples are listed
        if in_lists {
            examples.extend(column.lengths()?);
        }
        let store: Arc<dyn Store> = Arc::new(Arc::new(column));
        let place = IntegerColumn {
            integer: Integer::I64, // as which all are decoded
            offset: 0,
            count: values,
        };
        columns.push((store, place));
    }
    let examples = in_lists.then_some(examples);
    Ok(Some(Found { columns, examples }))
}

/// Whether this is the column of token ids: integers, or lists of integers.
fn is_token_ids(leaf: &ColumnDescriptor) -> bool {
    let parts = leaf.path().parts();
    // token_ids, token_ids.list.element, or the older token_ids.element
    let depth = match leaf.max_rep_level() {
        0 => parts.len() == 1,
        1 => parts.len() == 2 || parts.len() == 3,
        _ => false,
    };
    let integer = matches!(
        leaf.physical_type(),
        PhysicalType::INT32 | PhysicalType::INT64
    );
    depth && integer && parts[0] == COLUMN
}

/// The column of one row group, with its page headers checked; `None` if the group has no rows.
fn column(
    file: &SourceFile,
    group: &RowGroupMetaData,
    number: usize,
    first_row: usize,
) -> Result<Option<Column>, DataError> {
    let damaged = |reason: &str| DataError::damaged(&file.path, NAME, 0, reason);
    let records = usize::try_from(group.num_rows());
    let records = records.map_err(|_| damaged("a negative number of rows"))?;
    if records == 0 {
        return Ok(None);
    }
    if number >= group.num_columns() {
        return Err(damaged("a row group without all of its columns"));
    }
    let chunk = group.column(number);
    let column = Column {
        file: file.clone(),
        chunk: chunk.clone(),
        pages: Walked::over(file, chunk)?,
        records,
        width: 0, // lists have any lengths
        first_row,
    };
    let values = column.pages.values;
    if records as u64 > values {
        let reason = format!("a row group of {records} rows, but {values} token ids");
        return Err(column.damaged(reason));
    }
    Ok(Some(column))
}

/// Fails if there are more token ids than rows, counting one that is left out of each document.
fn check_count(file: &SourceFile, info: &Info, count: usize) -> Result<(), DataError> {
    let documents = info
        .documents
        .as_ref()
        .map_or(0, |documents| documents.count());
    match count <= info.rows + documents {
        true => Ok(()),
        false => Err(DataError::Meanings {
            path: file.path.clone(),
            what: RowInteger::Token.tensor(),
            entries: count,
            rows: info.rows,
            documents: None,
        }),
    }
}
