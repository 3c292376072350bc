//! Data sets whose rows stand in their files as they are: `.npy`, safetensors, Arrow and saev.
//!
//! The readers of the formats find out where the values lie and tell [`MatrixBuilder`]; from then on rows are
//! read from those places, and what format they came in does not matter.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::documents::DocumentsBuilder;
use super::file::SourceFile;
use super::table::Table;
use super::{Info, Options, Source};
use crate::element::Element;
use crate::error::DataError;

/// Integer type of labels and document ids, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integer {
    U8,
    I32,
    I64,
}

impl Integer {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// Appends little-endian integers.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut Vec<i64>) {
        match self {
            Self::U8 => out.extend(bytes.iter().map(|b| i64::from(*b))),
            Self::I32 => {
                out.extend(
                    bytes
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|w| i64::from(i32::from_le_bytes(*w))),
                );
            }
            Self::I64 => out.extend(
                bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|w| i64::from_le_bytes(*w)),
            ),
        }
    }
}

/// A column of integers in one file: `count` of them from byte `offset`.
#[derive(Clone, Debug)]
pub(crate) struct IntegerColumn {
    pub(crate) integer: Integer,
    pub(crate) offset: u64,
    pub(crate) count: usize,
}

impl IntegerColumn {
    /// All of it.
    pub(crate) fn read(
        &self,
        file: &SourceFile,
        format: &'static str,
    ) -> Result<Vec<i64>, DataError> {
        let len = (self.count * self.integer.size()) as u64;
        let bytes = file.open()?.bytes_at(format, self.offset, len)?;
        let mut values = Vec::with_capacity(self.count);
        self.integer.decode(&bytes, &mut values);
        Ok(values)
    }
}

/// What one label belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Per {
    /// A row of the file, left out or not.
    StoredRow,
    /// A row of the data set.
    Row,
    Example,
}

#[derive(Debug)]
struct Labels {
    integer: Integer,
    table: Table,
    per: Per,
}

/// Rows in files, as they are.
#[derive(Debug)]
pub(crate) struct Matrix {
    info: Info,
    table: Table,
    labels: Option<Labels>,
    /// The files that the labels are in, those of the activations or others.
    label_files: Vec<SourceFile>,
}

/// Collects where the rows lie; [`MatrixBuilder::finish`] makes the data set.
#[derive(Debug)]
pub(crate) struct MatrixBuilder<'a> {
    path: PathBuf,
    format: &'static str,
    options: &'a Options,
    files: Vec<SourceFile>,
    /// Element type and width, and the file that had them first.
    kind: Option<(Element, usize, PathBuf)>,
    table: Option<Table>,
    documents: DocumentsBuilder,
    /// Whether rows come in examples, and the file that said so first.
    in_examples: Option<(bool, PathBuf)>,
    examples: usize,
    /// Document id of the last row.
    last_id: Option<i64>,
    labels: Option<(Integer, Table)>,
    label_files: Vec<SourceFile>,
    tensor: Option<String>,
    layer: Option<i64>,
    /// Whether documents go on from one file to the next.
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

    /// The files are parts of one: the last document of one may go on in the next.
    pub(crate) fn documents_go_on(&mut self) {
        self.go_on = true;
    }

    /// Notes the name of the tensor or column that is read; of several files, the first's.
    pub(crate) fn named(&mut self, tensor: &str) {
        self.tensor.get_or_insert_with(|| tensor.into());
    }

    /// Notes the layer that is read.
    pub(crate) fn layer(&mut self, layer: i64) {
        self.layer = Some(layer);
    }

    /// Whether the first row of each example is to be left out.
    pub(crate) fn skip(&self) -> usize {
        usize::from(self.options.drop_first_token)
    }

    /// Adds a file; returns its number.
    pub(crate) fn file(&mut self, file: SourceFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// Says what the rows of `file` are; fails if those before were different.
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
        let mixed = |what, here: String, there: String| DataError::Mixed {
            path: path.clone(),
            first: first.clone(),
            what,
            here,
            there,
        };
        if *first_width != width {
            return Err(mixed("width", width.to_string(), first_width.to_string()));
        }
        if *first_element != element {
            return Err(mixed(
                "type",
                element.to_string(),
                first_element.to_string(),
            ));
        }
        self.table
            .get_or_insert_with(|| Table::new(width * element.size()));
        Ok(())
    }

    /// All files have examples (or document ids), or none has.
    fn structure(&mut self, file: usize, in_examples: bool) -> Result<(), DataError> {
        let path = &self.files[file].path;
        let (first_in_examples, first) = self
            .in_examples
            .get_or_insert_with(|| (in_examples, path.clone()));
        if *first_in_examples == in_examples {
            return Ok(());
        }
        let words = |in_examples| {
            if in_examples {
                "examples of rows"
            } else {
                "rows alone"
            }
        };
        Err(DataError::Mixed {
            path: path.clone(),
            first: first.clone(),
            what: "structure",
            here: words(in_examples).into(),
            there: words(*first_in_examples).into(),
        })
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
            return Err(DataError::Option {
                key: "data.drop_first_token",
                value: "true".into(),
                remedy: format!(
                    "the rows of {} have no positions; leave it out, or give the data as [examples, tokens, width]",
                    self.files[file].path.display()
                ),
            });
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
        // no overflow later: what is said to be there must fit into the file
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

    /// Adds rows whose documents are told by ids.
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

    /// Adds labels; those of all files come in the order of their rows or examples.
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
        if *integer != column.integer {
            return Err(DataError::Mixed {
                path: file.path.clone(),
                first: self.path.clone(),
                what: "type of labels",
                here: format!("{:?}", column.integer),
                there: format!("{integer:?}"),
            });
        }
        if self.label_files.last() != Some(file) {
            self.label_files.push(file.clone());
        }
        table.push(self.label_files.len() - 1, column.offset, column.count, 0);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Matrix, DataError> {
        if let Some(path) = &self.options.labels {
            if self.labels.is_some() {
                return Err(DataError::Option {
                    key: "data.labels",
                    value: path.display().to_string(),
                    remedy: format!(
                        "{} has labels of its own; leave it out",
                        self.path.display()
                    ),
                });
            }
            let file = SourceFile::stat(path)?;
            let column = super::label_file(&file)?;
            self.labels(&file, &column)?;
        }
        let nothing = |what: &str| DataError::NotRecognised {
            path: self.path.clone(),
            reason: what.into(),
        };
        let (Some((element, width, _)), Some(table)) = (&self.kind, self.table) else {
            return Err(nothing("it holds no rows"));
        };
        if table.rows() == 0 {
            return Err(nothing("no row is left of it"));
        }
        let (rows, stored) = (table.rows(), table.stored());
        let labels = match self.labels {
            None => None,
            Some((integer, labels)) => {
                let per = match labels.rows() {
                    n if n == stored => Per::StoredRow,
                    n if n == rows => Per::Row,
                    n if n == self.examples && n > 0 => Per::Example,
                    n => {
                        return Err(DataError::LabelCount {
                            path: self.options.labels.clone().unwrap_or(self.path),
                            labels: n,
                            rows: stored,
                            examples: (self.examples > 0).then_some(self.examples),
                        });
                    }
                };
                let table = labels;
                Some(Labels {
                    integer,
                    table,
                    per,
                })
            }
        };
        let info = Info {
            path: self.path,
            format: self.format,
            files: self.files,
            element: *element,
            rows,
            width: *width,
            documents: self.documents.finish(),
            labelled: labels.is_some(),
            tensor: self.tensor,
            layer: self.layer,
            drop_first_token: self.options.drop_first_token,
            preferred_block: None,
        };
        Ok(Matrix {
            info,
            table,
            labels,
            label_files: self.label_files,
        })
    }
}

impl Source for Matrix {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let (element, bytes) = (
            self.info.element,
            self.info.width * self.info.element.size(),
        );
        let mut out = out.iter_mut();
        let files = &self.info.files;
        self.table.read(files, pieces, scratch, |piece| {
            element.rows_to_f32(piece, bytes, &mut out);
        })
    }

    fn labels(&self, pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        let Some(labels) = &self.labels else {
            return Ok(None);
        };
        let mut all = Vec::with_capacity(pieces.iter().map(Range::len).sum());
        for rows in pieces.iter().filter(|rows| !rows.is_empty()) {
            self.add_labels(labels, rows.clone(), &mut all)?;
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }
}

impl Matrix {
    /// Appends the labels of `rows`, of which there are some.
    fn add_labels(
        &self,
        labels: &Labels,
        rows: Range<usize>,
        out: &mut Vec<i64>,
    ) -> Result<(), DataError> {
        let place = |row: usize| match (labels.per, &self.info.documents) {
            (Per::Example, Some(documents)) => documents.of(row),
            (Per::Row, _) => row,
            _ => self.table.stored_row(row),
        };
        let first = place(rows.start);
        let span = first..place(rows.end - 1) + 1;
        let mut all = Vec::with_capacity(span.len());
        let decode = |bytes: &[u8]| labels.integer.decode(bytes, &mut all);
        labels.table.read(
            &self.label_files,
            std::slice::from_ref(&span),
            &mut Vec::new(),
            decode,
        )?;
        out.extend(rows.map(|row| all[place(row) - first]));
        Ok(())
    }
}
