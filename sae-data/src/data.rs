//! A data set, or one side of its split, for training and evaluation.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::selection::Selection;
use crate::source::memory::Memory;
use crate::source::{self, Info, Options, Source};

/// Activations `[rows, width]` on disk, read as float32.
///
/// Opening reads only headers; reading touches only the wanted rows. Copies share everything.
#[derive(Clone, Debug)]
pub struct ActivationData {
    source: Arc<dyn Source>,
    selection: Arc<Selection>,
    /// Rows that a limit of the norm has removed from the selection.
    beyond: Option<Arc<Selection>>,
}

/// Bytes of float32 that are read at a time if the source prefers larger pieces than the caller.
const TOGETHER: usize = 8 << 20;
/// Smallest number of rows per side of a split: one row has no variance to explain.
pub(crate) const LEAST: usize = 2;

impl ActivationData {
    /// Opens a file or directory of any known format.
    ///
    /// # Errors
    /// [`DataError`] if it is missing, damaged, or holds no activations.
    pub fn open(path: &Path, options: &Options) -> Result<Self, DataError> {
        let source: Arc<dyn Source> = Arc::new(source::open(path, options)?);
        Ok(Self::from_source(source))
    }

    /// Rows in memory, row-major.
    ///
    /// # Panics
    /// If the values do not fill whole rows of `width`.
    pub fn from_rows(values: Vec<f32>, width: usize) -> Self {
        let source: Arc<dyn Source> = Arc::new(Memory::new(values, width));
        Self::from_source(source)
    }

    /// All rows of a custom source.
    pub fn from_source(source: impl Into<Arc<dyn Source>>) -> Self {
        let source = source.into();
        let all = Selection::new(std::iter::once(0..source.info().rows));
        Self {
            source,
            selection: all.into(),
            beyond: None,
        }
    }

    /// Description of the whole data set.
    pub fn info(&self) -> &Info {
        self.source.info()
    }

    /// Path of the data set.
    pub fn path(&self) -> &Path {
        &self.info().path
    }

    /// Number of rows N.
    pub fn rows(&self) -> usize {
        self.selection.rows()
    }

    /// Width d of a row.
    pub fn width(&self) -> usize {
        self.info().width
    }

    /// Whether there are labels.
    pub fn has_labels(&self) -> bool {
        self.info().labelled
    }

    /// `(train, held out)` with about `fraction` of the rows held out, in whole documents if there are any, at places that
    /// `seed` chooses.
    ///
    /// # Errors
    /// [`DataError::Option`] if one of the two sides would have fewer than two rows.
    pub fn split_fraction(&self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let value = format!("{{ fraction = {fraction} }}");
        if !(fraction > 0.0 && fraction < 1.0) {
            let remedy = "a fraction lies between 0 and 1, such as 0.1";
            return Err(DataError::option("held_out", value, remedy));
        }
        let sides = Selection::split_fraction(self.info(), fraction, seed);
        self.sides(sides, value)
    }

    /// `(train, held out)` with `rows` held out, or with the documents that begin there.
    ///
    /// # Errors
    /// [`DataError::Option`] if there are no such rows, or one of the two sides would have fewer than two.
    pub(crate) fn split_rows(&self, rows: Range<usize>) -> Result<(Self, Self), DataError> {
        let value = format!("{{ rows = [{}, {}] }}", rows.start, rows.end);
        if rows.is_empty() || rows.end > self.info().rows {
            let remedy = format!(
                "{} has rows 0 to {}",
                self.path().display(),
                self.info().rows
            );
            return Err(DataError::option("held_out", value, remedy));
        }
        self.sides(Selection::split_rows(self.info(), rows), value)
    }

    fn sides(
        &self,
        (train, held_out): (Selection, Selection),
        value: String,
    ) -> Result<(Self, Self), DataError> {
        if train.rows() < LEAST || held_out.rows() < LEAST {
            let documents = self.info().documents.as_ref();
            let documents = documents.map_or(String::new(), |documents| {
                format!(" in {} documents, which are not cut", documents.count())
            });
            let remedy = format!(
                "of {}, with {} rows{documents}, {} would be held out and {} left to train on; each needs at least \
                 {LEAST}, because one row has no variance to explain; choose another part, or use more data",
                self.path().display(),
                self.info().rows,
                held_out.rows(),
                train.rows(),
            );
            return Err(DataError::option("held_out", value, remedy));
        }
        Ok((self.only(train), self.only(held_out)))
    }

    /// These rows of the same source.
    fn only(&self, selection: impl Into<Arc<Selection>>) -> Self {
        Self {
            source: self.source.clone(),
            selection: selection.into(),
            beyond: None,
        }
    }

    /// Its rows `rows`, counted from its first.
    pub(crate) fn stretch(&self, rows: Range<usize>) -> Self {
        self.only(Selection::new(self.selection.pieces(rows)))
    }

    /// Whether the two data sets have a file in common.
    pub fn shares_files(&self, other: &Self) -> bool {
        let paths = |data: &Self| -> Vec<PathBuf> {
            let files = data.info().files.iter();
            files
                .map(|file| file.path.canonicalize().unwrap_or(file.path.clone()))
                .collect()
        };
        let mine: std::collections::HashSet<PathBuf> = paths(self).into_iter().collect();
        paths(other).iter().any(|path| mine.contains(path))
    }

    /// Reads `rows`, each into its place; rows without a place are skipped.
    pub(crate) fn read_rows(
        &self,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let pieces: Vec<Range<usize>> = self.selection.pieces(rows).collect();
        self.source.read(&pieces, scratch, out)
    }

    /// Reads `rows` as `[rows, width]`.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read or have changed since they were opened.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, DataError> {
        let mut values = vec![0.0; rows.len() * self.width()];
        let mut out: Vec<_> = values.chunks_exact_mut(self.width()).map(Some).collect();
        self.read_rows(rows, &mut Vec::new(), &mut out)?;
        Ok(values)
    }

    /// Number of rows to read at a time for a caller that wants `rows` at a time, in order: a multiple of `rows`.
    ///
    /// # Panics
    /// If `rows` is zero.
    pub fn together(&self, rows: usize) -> usize {
        let most = TOGETHER / (4 * self.width());
        let best = self.info().preferred_block.unwrap_or(0).min(most);
        rows * best.div_ceil(rows).max(1)
    }

    /// All rows in order, in blocks `[b, width]` of at most `block` rows.
    ///
    /// # Errors
    /// As [`ActivationData::read`], and [`DataError::NonFinite`] at the first NaN or infinity.
    ///
    /// # Panics
    /// If `block` is zero.
    pub fn blocks(&self, block: usize) -> impl Iterator<Item = Result<Vec<f32>, DataError>> + '_ {
        let (unit, mut read) = (self.together(block), (0..0, Vec::new()));
        (0..self.rows()).step_by(block).map(move |start| {
            if start >= read.0.end {
                let rows = start..(start + unit).min(self.rows());
                read = (rows.clone(), self.read(rows)?);
            }
            let (rows, values) = &mut read;
            let places = (start - rows.start) * self.width()..;
            let len = block.min(self.rows() - start) * self.width();
            let values = match rows.len() <= block {
                true => std::mem::take(values),
                false => values[places][..len].to_vec(),
            };
            match values.iter().position(|v| !v.is_finite()) {
                None => Ok(values),
                Some(at) => Err(DataError::NonFinite {
                    path: self.path().into(),
                    row: self.row_in_source(start + at / self.width()),
                    column: at % self.width(),
                    value: values[at],
                }),
            }
        })
    }

    /// A sample of `rows` rows, evenly spread in at most 128 stretches and always the same; all rows if there are no more.
    pub fn spread(&self, rows: usize) -> Self {
        if rows >= self.rows() {
            return self.clone();
        }
        self.only(self.selection.spread(rows))
    }

    /// These rows except `left_out`, single rows in order.
    pub(crate) fn without(&self, left_out: &[usize]) -> Self {
        let (kept, beyond) = self.selection.without(left_out);
        let beyond = (beyond.rows() > 0).then(|| beyond.into());
        Self {
            beyond,
            ..self.only(kept)
        }
    }

    /// The rows that [`ActivationData::within`] has left out, if any.
    pub fn left_out(&self) -> Option<Self> {
        Some(self.only(self.beyond.clone()?))
    }

    /// Number of rows that [`ActivationData::within`] has left out.
    pub fn rows_left_out(&self) -> usize {
        self.beyond.as_ref().map_or(0, |beyond| beyond.rows())
    }

    /// The numbers of `rows` in the whole data set.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows_in_source(&self, rows: Range<usize>) -> Vec<usize> {
        self.selection.pieces(rows).flatten().collect()
    }

    /// The selected rows, as ranges of rows of the whole data set.
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        self.selection.ranges()
    }

    /// `rows` as ranges of rows of the whole data set.
    pub(crate) fn pieces(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        self.selection.pieces(rows)
    }

    /// The row with this number in the whole data set, if it is one of these rows.
    pub(crate) fn row_of_source(&self, number: usize) -> Option<usize> {
        self.selection.position(number)
    }

    /// As [`ActivationData::row_of_source`], of consecutive numbers.
    pub(crate) fn rows_of_source(&self, numbers: Range<usize>) -> Vec<Option<usize>> {
        let first = self.row_of_source(numbers.start);
        let last = numbers
            .end
            .checked_sub(1)
            .and_then(|n| self.row_of_source(n));
        match (first, last) {
            // the numbers of rows rise, so there is a row for each
            (Some(first), Some(last)) if last - first + 1 == numbers.len() => {
                (first..=last).map(Some).collect()
            }
            _ => numbers.map(|number| self.row_of_source(number)).collect(),
        }
    }

    /// The number of `row` in the whole data set.
    pub(crate) fn row_in_source(&self, row: usize) -> usize {
        self.selection
            .pieces(row..row + 1)
            .next()
            .map_or(row, |piece| piece.start)
    }

    /// The classes of `rows`, if there are labels.
    ///
    /// # Errors
    /// As [`ActivationData::read`], and [`DataError::Label`] if one is negative.
    pub fn labels(&self, rows: Range<usize>) -> Result<Option<Vec<usize>>, DataError> {
        let pieces: Vec<Range<usize>> = self.selection.pieces(rows).collect();
        let Some(labels) = self.source.labels(&pieces)? else {
            return Ok(None);
        };
        let class = |(row, label): (usize, i64)| {
            usize::try_from(label).map_err(|_| DataError::Label {
                path: self.path().into(),
                row,
                label,
            })
        };
        let rows = pieces.into_iter().flatten().zip(labels);
        rows.map(class).collect::<Result<_, _>>().map(Some)
    }

    /// All labels, some at a time with the number of the first row; nothing with each if there are no labels.
    pub(crate) fn all_labels(
        &self,
    ) -> impl Iterator<Item = Result<(usize, Vec<usize>), DataError>> + '_ {
        const AT_ONCE: usize = 1 << 18;
        (0..self.rows()).step_by(AT_ONCE).map(|start| {
            let labels = self.labels(start..(start + AT_ONCE).min(self.rows()))?;
            Ok((start, labels.unwrap_or_default()))
        })
    }

    /// The document of each row, numbered as in the whole data set, if there are documents.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn documents(&self, rows: Range<usize>) -> Option<Vec<i64>> {
        let documents = self.info().documents.as_ref()?;
        let rows = self.selection.pieces(rows).flatten();
        Some(rows.map(|row| documents.of(row) as i64).collect())
    }
}
