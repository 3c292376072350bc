//! Token ids and positions of rows: integers that lie beside the activations, in the same files or in one of their own.
//!
//! Opening a data set does not look at them. They are found when somebody asks for them, and read where they lie.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{ReadAt, SourceFile, Store};
use super::format::row_integers;
use super::matrix::IntegerColumn;
use super::{Documents, Info, safetensors};
use crate::error::DataError;

/// Name of the column of token ids in tables.
pub(super) const COLUMN: &str = "token_ids";

/// Integers per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowInteger {
    /// The id of the token whose activation the row is.
    Token,
    /// The position of the row in the input of the model, from 0.
    Position,
}

impl RowInteger {
    /// Name of the tensor in safetensors files.
    pub(crate) fn tensor(self) -> &'static str {
        match self {
            Self::Token => "tokens",
            Self::Position => "positions",
        }
    }
}

/// The integers of one file, in the order of its rows.
#[derive(Debug)]
pub(super) struct Found {
    /// The places where they lie, one after the other.
    pub(super) columns: Vec<(Arc<dyn Store>, IntegerColumn)>,
    /// The number of them in each example, if they are grouped into examples.
    pub(super) examples: Option<Vec<usize>>,
}

/// Finds the integers of one file of a data set.
pub(super) type FindRowIntegers =
    fn(&SourceFile, &Info, RowInteger) -> Result<Option<Found>, DataError>;

impl Found {
    /// Integers that lie in a file itself.
    pub(super) fn in_file(
        file: &SourceFile,
        columns: Vec<IntegerColumn>,
        examples: Option<Vec<usize>>,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::new(file.clone());
        let columns = columns.into_iter().map(|column| (store.clone(), column));
        Self {
            columns: columns.collect(),
            examples,
        }
    }
}

/// One integer per row of a data set.
#[derive(Debug)]
pub(crate) struct RowIntegers {
    format: &'static str,
    parts: Vec<Part>,
    /// For data whose first row of each example is left out: the examples that are empty in the files. Then there is an
    /// integer for each row in the files.
    stored: Option<Vec<usize>>,
}

/// Consecutive integers in one file, or in one column of it.
#[derive(Debug)]
struct Part {
    store: Arc<dyn Store>,
    column: IntegerColumn,
    /// Number of the first integer.
    first: usize,
}

/// A store, and what was opened to read from it.
type Opened<'a> = (&'a Arc<dyn Store>, Box<dyn ReadAt + 'a>);

impl RowIntegers {
    /// The integers of a data set, from its own files, or else from the file `companion`.
    ///
    /// # Errors
    /// [`DataError`] if there is not one integer per row.
    pub(crate) fn open(
        info: &Info,
        kind: RowInteger,
        companion: Option<&Path>,
    ) -> Result<Option<Self>, DataError> {
        if let Some(find) = row_integers(info.format) {
            let found = info.files.iter().map(|file| find(file, info, kind));
            let found = found.collect::<Result<Option<Vec<Found>>, _>>()?;
            if let Some(found) = found.filter(|found| !found.is_empty()) {
                return Self::new(info, info.format, found, kind);
            }
        }
        let Some(path) = companion else {
            return Ok(None);
        };
        let file = SourceFile::stat(path)?;
        let found = safetensors::integers_alone(&file, kind.tensor())?;
        let Some(column) = found else {
            return Ok(None);
        };
        let found = Found::in_file(&file, vec![column], None);
        Self::new(info, safetensors::FORMAT.name, vec![found], kind)
    }

    fn new(
        info: &Info,
        format: &'static str,
        found: Vec<Found>,
        kind: RowInteger,
    ) -> Result<Option<Self>, DataError> {
        let grouped = found.iter().all(|found| found.examples.is_some());
        if grouped && info.documents.is_none() {
            return Ok(None); // a list per row: the tokens of a text, not the token of the row
        }
        let (mut parts, mut count, mut lengths) = (Vec::new(), 0, Vec::new());
        for found in found {
            for (store, column) in found.columns {
                let first = count;
                count += column.count;
                parts.push(Part {
                    store,
                    column,
                    first,
                });
            }
            lengths.extend(found.examples.into_iter().flatten());
        }
        let skip = usize::from(info.drop_first_token && count != info.rows);
        let (documents, empty) = match &info.documents {
            Some(documents) if grouped => {
                (documents.count(), empty(info, documents, &lengths, skip))
            }
            documents => (
                documents.as_ref().map_or(0, Documents::count),
                Some(Vec::new()),
            ),
        };
        let fits = |empty: &Vec<usize>| count == info.rows + skip * (documents - empty.len());
        let empty = empty.filter(fits).ok_or_else(|| DataError::Meanings {
            path: parts
                .first()
                .map_or_else(PathBuf::new, |part| part.store.path().into()),
            what: kind.tensor(),
            entries: count,
            rows: info.rows,
            documents: None,
        })?;
        Ok(Some(Self {
            format,
            parts,
            stored: (skip > 0).then_some(empty),
        }))
    }

    /// The integers of `rows`, appended to `out`.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read or have changed since they were opened.
    pub(crate) fn read(
        &self,
        documents: Option<&Documents>,
        rows: Range<usize>,
        out: &mut Vec<i64>,
    ) -> Result<(), DataError> {
        if rows.is_empty() {
            return Ok(());
        }
        let place = |row: usize| match (&self.stored, documents) {
            (Some(empty), Some(documents)) => {
                let document = documents.of(row);
                let before = empty.partition_point(|empty| *empty <= document);
                row + document + 1 - before
            }
            _ => row,
        };
        let first = place(rows.start);
        let all = self.stored(first..place(rows.end - 1) + 1)?;
        out.extend(rows.map(|row| all[place(row) - first]));
        Ok(())
    }

    /// The integers `span`, counting those of rows that are left out.
    fn stored(&self, span: Range<usize>) -> Result<Vec<i64>, DataError> {
        let mut all = Vec::with_capacity(span.len());
        let first = self.parts.partition_point(|part| part.first <= span.start);
        let mut open: Option<Opened<'_>> = None;
        for part in &self.parts[first.saturating_sub(1)..] {
            let start = span.start.max(part.first) - part.first;
            let end = span.end.min(part.first + part.column.count);
            if part.first >= span.end {
                break;
            }
            let count = end.saturating_sub(part.first + start);
            if open
                .as_ref()
                .is_none_or(|(store, _)| !Arc::ptr_eq(store, &part.store))
            {
                open = Some((&part.store, part.store.open()?));
            }
            let Some((_, file)) = &mut open else { continue };
            let size = part.column.integer.size();
            let offset = part.column.offset + (start * size) as u64;
            let len = (count * size) as u64;
            part.store.check_span(self.format, offset, len)?;
            let mut bytes = vec![0; count * size];
            file.read_at(offset, &mut bytes)?;
            part.column.integer.decode(&bytes, &mut all);
        }
        Ok(all)
    }
}

/// The examples of these lengths that are empty, if the others have the rows of the documents, and `skip` more.
fn empty(info: &Info, documents: &Documents, lengths: &[usize], skip: usize) -> Option<Vec<usize>> {
    let start = |document| match document < documents.count() {
        true => documents.start(document),
        false => info.rows,
    };
    let rows = |document| start(document + 1) - start(document);
    let rows = (0..documents.count()).map(rows);
    let same = rows.eq(lengths.iter().map(|len| len.saturating_sub(skip)));
    same.then(|| (0..lengths.len()).filter(|i| lengths[*i] == 0).collect())
}
