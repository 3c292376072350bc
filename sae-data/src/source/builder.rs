//! Collects the findings of the format readers into a [`Matrix`]: the places of the rows, their documents and labels. All
//! files must agree.

use std::path::{Path, PathBuf};

use super::documents::DocumentsBuilder;
use super::file::SourceFile;
use super::matrix::{Integer, IntegerColumn, Labels, Matrix, Per};
use super::table::Table;
use super::{Info, Options};
use crate::element::Element;
use crate::error::DataError;

/// Collects the places of rows; [`MatrixBuilder::finish`] returns the data set.
#[derive(Debug)]
pub(crate) struct MatrixBuilder<'a> {
    path: PathBuf,
    format: &'static str,
    options: &'a Options,
    files: Vec<SourceFile>,
    /// Element type and width, and the first file that had them.
    kind: Option<(Element, usize, PathBuf)>,
    table: Option<Table>,
    documents: DocumentsBuilder,
    /// Whether rows are grouped into examples, and the first file that said so.
    in_examples: Option<(bool, PathBuf)>,
    examples: usize,
    /// Document id of the last row.
    last_id: Option<i64>,
    labels: Option<(Integer, Table)>,
    label_files: Vec<SourceFile>,
    tensor: Option<String>,
    layer: Option<i64>,
    /// Whether a document may continue in the next file.
    go_on: bool,
}

impl<'a> MatrixBuilder<'a> {
    pub(crate) fn new(path: &Path, format: &'static str, options: &'a Options) -> Self {
        Self {
            path: path.into(),
            format,
            options,
            files: Vec::new(),
            kind: None,
            table: None,
            documents: DocumentsBuilder::default(),
            in_examples: None,
            examples: 0,
            last_id: None,
            labels: None,
            label_files: Vec::new(),
            tensor: None,
            layer: None,
            go_on: false,
        }
    }

    /// Path of the data set.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the last document of a file continue in the next file.
    pub(crate) fn documents_go_on(&mut self) {
        self.go_on = true;
    }

    /// Records the name of the tensor or column that is read; the first file's, if there are several.
    pub(crate) fn named(&mut self, tensor: &str) {
        self.tensor.get_or_insert_with(|| tensor.into());
    }

    /// Records the layer that is read.
    pub(crate) fn layer(&mut self, layer: i64) {
        self.layer = Some(layer);
    }

    /// Number of rows to leave out at the start of each example.
    pub(crate) fn skip(&self) -> usize {
        usize::from(self.options.drop_first_token)
    }

    /// Adds a file; returns its number.
    pub(crate) fn file(&mut self, file: SourceFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// Records the type and width of the rows of `file`; fails if other files differ.
    pub(crate) fn kind(
        &mut self,
        file: usize,
        element: Element,
        width: usize,
    ) -> Result<(), DataError> {
        let path = &self.files[file].path;
        let (first_element, first_width, first) = self
            .kind
            .get_or_insert_with(|| (element, width, path.clone()));
        DataError::agree("width", (path, width), (first, *first_width))?;
        DataError::agree("type", (path, element), (first, *first_element))?;
        self.table
            .get_or_insert_with(|| Table::new(width * element.size()));
        Ok(())
    }

    /// Fails if some files have examples (or document ids) and others have none.
    fn structure(&mut self, file: usize, in_examples: bool) -> Result<(), DataError> {
        let path = &self.files[file].path;
        let (first_in_examples, first) = self
            .in_examples
            .get_or_insert_with(|| (in_examples, path.clone()));
        let words = |in_examples| match in_examples {
            true => "examples of rows",
            false => "single rows",
        };
        let there = words(*first_in_examples);
        DataError::agree("structure", (path, words(in_examples)), (first, there))
    }

    fn row_bytes(&self) -> u64 {
        self.kind
            .as_ref()
            .map_or(0, |(element, width, _)| (element.size() * width) as u64)
    }

    /// Adds `rows` rows without documents, from byte `offset` of `file`.
    pub(crate) fn rows(&mut self, file: usize, offset: u64, rows: usize) -> Result<(), DataError> {
        self.check(file, offset, rows)?;
        self.structure(file, false)?;
        if self.skip() > 0 {
            return Err(no_positions(&self.files[file].path));
        }
        let table = self.table.as_mut().expect("kind() comes first");
        table.push(file, offset, rows, 0);
        Ok(())
    }

    /// Adds an example of `rows` rows from byte `offset` of `file`.
    pub(crate) fn example(
        &mut self,
        file: usize,
        offset: u64,
        rows: usize,
    ) -> Result<(), DataError> {
        self.check(file, offset, rows)?;
        self.structure(file, true)?;
        let skip = self.skip();
        let table = self.table.as_mut().expect("kind() comes first");
        table.push(file, offset, rows, skip);
        self.documents.push(rows.saturating_sub(skip));
        self.examples += 1;
        Ok(())
    }

    fn check(&self, file: usize, offset: u64, rows: usize) -> Result<(), DataError> {
        let bytes = (rows as u64).checked_mul(self.row_bytes());
        self.files[file].check_span(self.format, offset, bytes.unwrap_or(u64::MAX))
    }

    /// Adds a tensor `[rows, width]` or `[examples, tokens, width]`, with its document ids if it has them.
    pub(crate) fn tensor(
        &mut self,
        file: usize,
        name: &str,
        element: Element,
        shape: &[usize],
        offset: u64,
        documents: Option<&[i64]>,
    ) -> Result<(), DataError> {
        let wrong = || DataError::Shape {
            path: self.files[file].path.clone(),
            name: name.into(),
            shape: shape.into(),
        };
        if shape.contains(&0) || !matches!(shape.len(), 2 | 3) {
            return Err(wrong());
        }
        // the claimed size must fit into the file, so nothing overflows later
        let elements = shape
            .iter()
            .try_fold(element.size() as u64, |n, size| n.checked_mul(*size as u64));
        self.files[file].check_span(self.format, offset, elements.unwrap_or(u64::MAX))?;
        match (shape, documents) {
            (&[rows, width], None) => {
                self.kind(file, element, width)?;
                self.rows(file, offset, rows)
            }
            (&[rows, width], Some(ids)) => {
                self.kind(file, element, width)?;
                self.grouped(file, offset, rows, ids)
            }
            (&[examples, tokens, width], _) => {
                self.kind(file, element, width)?;
                let bytes = tokens as u64 * self.row_bytes();
                (0..examples)
                    .try_for_each(|i| self.example(file, offset + i as u64 * bytes, tokens))
            }
            _ => Err(wrong()),
        }
    }

    /// Adds rows with document ids.
    fn grouped(
        &mut self,
        file: usize,
        offset: u64,
        rows: usize,
        ids: &[i64],
    ) -> Result<(), DataError> {
        let path = self.files[file].path.clone();
        if ids.len() != rows {
            return Err(DataError::damaged(
                &path,
                self.format,
                offset,
                format!("{} document ids for {rows} rows", ids.len()),
            ));
        }
        if let Some(row) = (1..rows).find(|row| ids[*row] < ids[row - 1]) {
            let id = ids[row];
            return Err(DataError::Documents { path, row, id });
        }
        let mut start = 0;
        for document in ids.chunk_by(|a, b| a == b) {
            let at = offset + start as u64 * self.row_bytes();
            if start == 0 && self.go_on && self.last_id == Some(document[0]) {
                let table = self.table.as_mut().expect("kind() comes first");
                table.push(file, at, document.len(), 0);
                self.documents.extend(document.len());
            } else {
                self.example(file, at, document.len())?;
            }
            start += document.len();
        }
        self.last_id = ids.last().copied();
        Ok(())
    }

    /// Adds labels; files must be added in the order of their rows or examples.
    pub(crate) fn labels(
        &mut self,
        file: &SourceFile,
        column: &IntegerColumn,
    ) -> Result<(), DataError> {
        let size = column.integer.size();
        let bytes = (column.count as u64).saturating_mul(size as u64);
        file.check_span(self.format, column.offset, bytes)?;
        let (integer, table) = self
            .labels
            .get_or_insert_with(|| (column.integer, Table::new(size)));
        let (here, there) = (format!("{:?}", column.integer), format!("{integer:?}"));
        DataError::agree("type of labels", (&file.path, here), (&self.path, there))?;
        if self.label_files.last() != Some(file) {
            self.label_files.push(file.clone());
        }
        table.push(self.label_files.len() - 1, column.offset, column.count, 0);
        Ok(())
    }

    /// The data set, once all files have been added.
    pub(crate) fn finish(mut self) -> Result<Matrix, DataError> {
        self.add_label_file()?;
        let (Some((element, width, _)), Some(table)) = (&self.kind, self.table) else {
            return Err(DataError::not_recognised(&self.path, "it holds no rows"));
        };
        if table.rows() == 0 {
            return Err(DataError::not_recognised(
                &self.path,
                "no row is left of it",
            ));
        }
        let mut labels = None;
        if let Some((integer, in_files)) = self.labels {
            let per = match in_files.rows() {
                n if n == table.stored() => Per::StoredRow,
                n if n == table.rows() => Per::Row,
                n if n == self.examples && n > 0 => Per::Example,
                n => {
                    return Err(DataError::LabelCount {
                        path: self.options.labels.clone().unwrap_or(self.path),
                        labels: n,
                        rows: table.stored(),
                        examples: (self.examples > 0).then_some(self.examples),
                    });
                }
            };
            labels = Some(Labels {
                integer,
                table: in_files,
                per,
            });
        }
        let info = Info {
            files: self.files,
            documents: self.documents.finish(),
            labelled: labels.is_some(),
            tensor: self.tensor,
            layer: self.layer,
            drop_first_token: self.options.drop_first_token,
            ..Info::new(self.path, self.format, *element, [table.rows(), *width])
        };
        Ok(Matrix {
            info,
            table,
            labels,
            label_files: self.label_files,
        })
    }

    /// Adds the file of labels that the options name.
    fn add_label_file(&mut self) -> Result<(), DataError> {
        let Some(path) = &self.options.labels else {
            return Ok(());
        };
        if self.labels.is_some() {
            let remedy = format!(
                "{} has labels of its own; leave it out",
                self.path.display()
            );
            return Err(DataError::option(
                "labels",
                path.display().to_string(),
                remedy,
            ));
        }
        let file = SourceFile::stat(path)?;
        let column = super::format::label_file(&file)?;
        self.labels(&file, &column)
    }
}

/// The error of leaving out the first row of each example in data without examples.
pub(super) fn no_positions(path: &Path) -> DataError {
    let remedy = format!(
        "the rows of {} have no positions; leave it out, or give the data as [examples, tokens, width]",
        path.display()
    );
    DataError::option("drop_first_token", "true", remedy)
}
