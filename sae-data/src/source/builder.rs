//! Collects the findings of the format readers into a [`Matrix`]: the places of the rows, their documents and labels. All
//! files must agree.

use std::path::{Path, PathBuf};

use super::documents::DocumentsBuilder;
use super::file::{SourceFile, Store};
use super::matrix::{Integer, IntegerColumn, Labels, Matrix, Per};
use super::table::Table;
use super::{Info, Options};
use crate::element::Element;
use crate::error::DataError;

/// Collects the places of rows; [`MatrixBuilder::finish`] returns the data set.
#[derive(Debug)]
pub(crate) struct MatrixBuilder<'a> {
    options: &'a Options,
    /// Description of the data set, without what `finish` adds.
    pub(super) info: Info,
    stores: Vec<Box<dyn Store>>,
    /// The first file with rows; others must have their type and width.
    first: Option<PathBuf>,
    table: Table,
    documents: DocumentsBuilder,
    /// Whether rows are grouped into examples, and the first file that said so.
    in_examples: Option<(bool, PathBuf)>,
    examples: usize,
    /// Document id of the last row.
    last_id: Option<i64>,
    labels: Option<(Integer, Table)>,
    /// Whether a document may continue in the next file.
    pub(super) go_on: bool,
}

impl<'a> MatrixBuilder<'a> {
    pub(crate) fn new(path: &Path, format: &'static str, options: &'a Options) -> Self {
        Self {
            options,
            info: Info {
                drop_first_token: options.drop_first_token,
                ..Info::new(path, format, Element::F32, [0, 0])
            },
            stores: Vec::new(),
            first: None,
            table: Table::default(),
            documents: DocumentsBuilder::default(),
            in_examples: None,
            examples: 0,
            last_id: None,
            labels: None,
            go_on: false,
        }
    }

    /// Number of rows to leave out at the start of each example.
    fn skip(&self) -> usize {
        usize::from(self.options.drop_first_token)
    }

    /// Adds a file that rows lie in; returns its number as a store.
    pub(crate) fn file(&mut self, file: &SourceFile) -> usize {
        self.info.files.push(file.clone());
        self.store(file.clone())
    }

    /// Adds something that rows or labels lie in; returns its number.
    pub(crate) fn store(&mut self, store: impl Store + 'static) -> usize {
        self.stores.push(Box::new(store));
        self.stores.len() - 1
    }

    /// Records the type and width of the rows of `store`; fails if those of other files differ.
    pub(crate) fn kind(
        &mut self,
        store: usize,
        element: Element,
        width: usize,
    ) -> Result<(), DataError> {
        let path = self.stores[store].path();
        let first = self.first.get_or_insert_with(|| {
            (self.info.element, self.info.width) = (element, width);
            self.table = Table::new(width * element.size());
            path.into()
        });
        DataError::agree("width", (path, width), (first, self.info.width))?;
        DataError::agree("type", (path, element), (first, self.info.element))
    }

    /// Fails if some files have examples (or document ids) and others have none.
    fn structure(&mut self, store: usize, in_examples: bool) -> Result<(), DataError> {
        let path = self.stores[store].path();
        let (of_first, first) = self
            .in_examples
            .get_or_insert_with(|| (in_examples, path.into()));
        let words = |in_examples| match in_examples {
            true => "examples of rows",
            false => "single rows",
        };
        let there = words(*of_first);
        DataError::agree("structure", (path, words(in_examples)), (first, there))
    }

    /// Adds `rows` rows without documents, from byte `offset` of `store`.
    pub(crate) fn rows(&mut self, store: usize, offset: u64, rows: usize) -> Result<(), DataError> {
        self.structure(store, false)?;
        if self.skip() > 0 {
            let remedy = format!(
                "the rows of {} have no positions; leave it out, or give the data as [examples, tokens, width]",
                self.stores[store].path().display()
            );
            return Err(DataError::option("drop_first_token", true, remedy));
        }
        self.push(store, offset, rows, 0)
    }

    /// Adds an example of `rows` rows from byte `offset` of `store`.
    pub(crate) fn example(
        &mut self,
        store: usize,
        offset: u64,
        rows: usize,
    ) -> Result<(), DataError> {
        self.structure(store, true)?;
        let skip = self.skip();
        self.push(store, offset, rows, skip)?;
        self.documents.push(rows.saturating_sub(skip));
        self.examples += 1;
        Ok(())
    }

    fn push(
        &mut self,
        store: usize,
        offset: u64,
        rows: usize,
        skip: usize,
    ) -> Result<(), DataError> {
        let bytes = (rows as u64).checked_mul(self.table.row_bytes as u64);
        let bytes = bytes.unwrap_or(u64::MAX);
        self.stores[store].check_span(self.info.format, offset, bytes)?;
        self.table.push(store, offset, rows, skip);
        Ok(())
    }

    /// Adds a tensor `[rows, width]` or `[examples, tokens, width]`, with its document ids if it has them.
    pub(crate) fn tensor(
        &mut self,
        store: usize,
        name: &str,
        element: Element,
        shape: &[usize],
        offset: u64,
        documents: Option<&[i64]>,
    ) -> Result<(), DataError> {
        // the claimed size must fit into the file, so nothing overflows later
        let bytes = shape
            .iter()
            .try_fold(element.size() as u64, |n, size| n.checked_mul(*size as u64))
            .unwrap_or(u64::MAX);
        let width = shape.last().copied().unwrap_or(0);
        if shape.contains(&0) || !matches!(shape.len(), 2 | 3) {
            let reason = format!(
                "\"{name}\" has shape {shape:?}; activations are [rows, width] or [examples, tokens, width], with no size of zero"
            );
            return Err(DataError::unusable(self.stores[store].path(), reason));
        }
        self.stores[store].check_span(self.info.format, offset, bytes)?;
        self.kind(store, element, width)?;
        match (shape, documents) {
            (&[examples, tokens, _], _) => {
                let bytes = (tokens * self.table.row_bytes) as u64;
                (0..examples as u64)
                    .try_for_each(|i| self.example(store, offset + i * bytes, tokens))
            }
            (_, Some(ids)) => self.grouped(store, offset, shape[0], ids),
            (_, None) => self.rows(store, offset, shape[0]),
        }
    }

    /// Adds rows with document ids.
    fn grouped(
        &mut self,
        store: usize,
        offset: u64,
        rows: usize,
        ids: &[i64],
    ) -> Result<(), DataError> {
        let path = self.stores[store].path();
        if ids.len() != rows {
            let reason = format!("{} document ids for {rows} rows", ids.len());
            return Err(DataError::damaged(path, self.info.format, offset, reason));
        }
        if let Some(row) = (1..rows).find(|row| ids[*row] < ids[row - 1]) {
            let reason = format!(
                "document ids must be grouped, but id {} at row {row} follows a larger one; sort the rows by document",
                ids[row]
            );
            return Err(DataError::unusable(path, reason));
        }
        let mut at = offset;
        for document in ids.chunk_by(|a, b| a == b) {
            if at == offset && self.go_on && self.last_id == Some(document[0]) {
                self.push(store, at, document.len(), 0)?;
                self.documents.extend(document.len());
            } else {
                self.example(store, at, document.len())?;
            }
            at += (document.len() * self.table.row_bytes) as u64;
        }
        self.last_id = ids.last().copied();
        Ok(())
    }

    /// Adds labels that lie in `store`; stores must be added in the order of their rows or examples.
    pub(crate) fn labels(&mut self, store: usize, column: &IntegerColumn) -> Result<(), DataError> {
        let size = column.integer.size();
        let bytes = (column.count as u64).saturating_mul(size as u64);
        self.stores[store].check_span(self.info.format, column.offset, bytes)?;
        let (integer, table) = self
            .labels
            .get_or_insert_with(|| (column.integer, Table::new(size)));
        let (here, there) = (format!("{:?}", column.integer), format!("{integer:?}"));
        let path = self.stores[store].path();
        DataError::agree("type of labels", (path, here), (&self.info.path, there))?;
        table.push(store, column.offset, column.count, 0);
        Ok(())
    }

    /// The data set, once all files have been added.
    pub(crate) fn finish(mut self) -> Result<Matrix, DataError> {
        self.add_label_file()?;
        let (path, table) = (&self.info.path, self.table);
        if self.first.is_none() {
            return Err(DataError::not_recognised(path, "it holds no rows"));
        }
        if table.rows() == 0 {
            return Err(DataError::not_recognised(path, "no row is left of it"));
        }
        let mut labels = None;
        if let Some((integer, in_files)) = self.labels {
            let per = match in_files.rows() {
                n if n == table.stored() => Per::StoredRow,
                n if n == table.rows() => Per::Row,
                n if n == self.examples && n > 0 => Per::Example,
                n => {
                    let path = self.options.labels.as_ref().unwrap_or(path);
                    let examples = (self.examples > 0).then_some(self.examples);
                    return Err(DataError::label_count(path, n, table.stored(), examples));
                }
            };
            labels = Some(Labels {
                integer,
                table: in_files,
                per,
            });
        }
        let info = Info {
            rows: table.rows(),
            documents: self.documents.finish(),
            labelled: labels.is_some(),
            ..self.info
        };
        Ok(Matrix {
            info,
            stores: self.stores,
            table,
            labels,
        })
    }

    /// Adds the file of labels that the options name.
    fn add_label_file(&mut self) -> Result<(), DataError> {
        let Some(path) = &self.options.labels else {
            return Ok(());
        };
        if self.labels.is_some() {
            let of = self.info.path.display();
            let remedy = format!("{of} has labels of its own; leave it out");
            return Err(DataError::option("labels", path.display(), remedy));
        }
        let file = SourceFile::stat(path)?;
        let column = super::format::label_file(&file)?;
        let store = self.store(file);
        self.labels(store, &column)
    }
}
