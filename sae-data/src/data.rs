//! A data set, or one side of a split of it: what is trained and evaluated on.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::selection::Selection;
use crate::source::{self, Info, Options, Source};

/// Activations `[rows, width]` on disk, read as float32.
///
/// Opening looks at headers only; reading touches the rows asked for. Copies share everything.
#[derive(Clone, Debug)]
pub struct ActivationData {
    source: Arc<dyn Source>,
    selection: Arc<Selection>,
}

/// What identifies a data set without reading all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Path as configured.
    pub path: PathBuf,
    /// Format of the files.
    pub format: String,
    /// Element type in the files.
    pub dtype: String,
    /// Number of rows, of this side of the split.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// Number of files.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// BLAKE3 of the files' names and sizes and of 4 KiB of their bytes at each of 256 evenly spaced places.
    pub sample_blake3: String,
}

impl Fingerprint {
    /// Whether it is the same data, wherever it lies.
    pub fn same_data(&self, other: &Self) -> bool {
        let path = self.path.clone();
        *self
            == Self {
                path,
                ..other.clone()
            }
    }
}

impl ActivationData {
    /// Opens a file or directory of any known format.
    ///
    /// # Errors
    /// [`DataError`] if it is missing, damaged, or holds no activations.
    pub fn open(path: &Path, options: &Options) -> Result<Self, DataError> {
        let source: Arc<dyn Source> = source::open(path, options)?.into();
        let all = Selection::new(std::iter::once(0..source.info().rows));
        Ok(Self {
            source,
            selection: all.into(),
        })
    }

    /// What the whole data set is.
    pub fn info(&self) -> &Info {
        self.source.info()
    }

    /// Its path.
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

    /// `(train, held out)`: about `fraction` of the rows held out, in whole documents where there are any,
    /// spread over the data set by `seed`.
    ///
    /// # Errors
    /// [`DataError::Option`] if one of the two sides would be empty.
    pub fn split_fraction(&self, fraction: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let value = format!("{{ fraction = {fraction} }}");
        if !(fraction > 0.0 && fraction < 1.0) {
            let remedy = "a fraction lies between 0 and 1, such as 0.1".into();
            return Err(DataError::Option {
                key: "data.held_out",
                value,
                remedy,
            });
        }
        self.sides(
            Selection::split_fraction(self.info(), fraction, seed),
            value,
        )
    }

    /// `(train, held out)`: `rows` held out; where there are documents, those that begin in it.
    ///
    /// # Errors
    /// [`DataError::Option`] if there are no such rows, or one of the two sides would be empty.
    pub fn split_rows(&self, rows: Range<usize>) -> Result<(Self, Self), DataError> {
        let value = format!("{{ rows = [{}, {}] }}", rows.start, rows.end);
        if rows.is_empty() || rows.end > self.info().rows {
            return Err(DataError::Option {
                key: "data.held_out",
                value,
                remedy: format!(
                    "{} has rows 0 to {}",
                    self.path().display(),
                    self.info().rows
                ),
            });
        }
        self.sides(Selection::split_rows(self.info(), rows), value)
    }

    fn sides(
        &self,
        sides: (Selection, Selection),
        value: String,
    ) -> Result<(Self, Self), DataError> {
        let (train, held_out) = sides;
        if train.rows() == 0 || held_out.rows() == 0 {
            let documents = self
                .info()
                .documents
                .as_ref()
                .map_or(String::new(), |documents| {
                    format!(" in {} documents, which are not cut", documents.count())
                });
            return Err(DataError::Option {
                key: "data.held_out",
                value,
                remedy: format!(
                    "{} has {} rows{documents}: nothing would be left to train or to evaluate on",
                    self.path().display(),
                    self.info().rows
                ),
            });
        }
        let side = |selection: Selection| Self {
            source: self.source.clone(),
            selection: selection.into(),
        };
        Ok((side(train), side(held_out)))
    }

    /// Whether a file of one is a file of the other.
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

    /// Reads `rows`, each into its place; rows without a place are passed over.
    pub(crate) fn read_rows(
        &self,
        rows: Range<usize>,
        scratch: &mut Vec<u8>,
        mut out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        for piece in self.selection.pieces(rows) {
            let (now, later) = out.split_at_mut(piece.len());
            self.source.read(piece, scratch, now)?;
            out = later;
        }
        Ok(())
    }

    /// Reads `rows` as `[rows, width]`.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read, or are no longer what they were.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, DataError> {
        let mut values = vec![0.0; rows.len() * self.width()];
        let mut out: Vec<_> = values.chunks_exact_mut(self.width()).map(Some).collect();
        self.read_rows(rows, &mut Vec::new(), &mut out)?;
        Ok(values)
    }

    /// All rows in order, in blocks `[b, width]` of at most `block` rows.
    ///
    /// # Errors
    /// As [`ActivationData::read`], and [`DataError::NonFinite`] at the first NaN or infinity.
    pub fn blocks(&self, block: usize) -> impl Iterator<Item = Result<Vec<f32>, DataError>> + '_ {
        (0..self.rows()).step_by(block).map(move |start| {
            let values = self.read(start..(start + block).min(self.rows()))?;
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

    /// Number of a row in the whole data set.
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
        let mut classes = Vec::with_capacity(rows.len());
        for piece in self.selection.pieces(rows) {
            let Some(labels) = self.source.labels(piece.clone())? else {
                return Ok(None);
            };
            for (row, label) in piece.zip(labels) {
                classes.push(usize::try_from(label).map_err(|_| DataError::Label {
                    path: self.path().into(),
                    row,
                    label,
                })?);
            }
        }
        Ok(Some(classes))
    }

    /// The document of each row, numbered as in the whole data set, if there are documents.
    pub(crate) fn documents(&self, rows: Range<usize>) -> Option<Vec<i64>> {
        let documents = self.info().documents.as_ref()?;
        let rows = self.selection.pieces(rows).flatten();
        Some(rows.map(|row| documents.of(row) as i64).collect())
    }

    /// What identifies this data.
    ///
    /// # Errors
    /// As [`ActivationData::read`].
    pub fn fingerprint(&self) -> Result<Fingerprint, DataError> {
        const PLACES: u64 = 256;
        const PIECE: u64 = 4096;
        let info = self.info();
        let bytes: u64 = info.files.iter().map(|file| file.bytes).sum();
        let mut hasher = blake3::Hasher::new();
        let mut before = 0;
        for file in &info.files {
            let name = file.path.file_name().unwrap_or_default();
            hasher.update(name.as_encoded_bytes());
            hasher.update(&file.bytes.to_le_bytes());
            let place = |i: u64| (u128::from(i) * u128::from(bytes) / u128::from(PLACES)) as u64;
            let in_file = |i: &u64| (before..before + file.bytes).contains(&place(*i));
            let mut open = file.open()?;
            for i in (0..PLACES).filter(in_file) {
                let offset = place(i) - before;
                let mut piece = vec![0; PIECE.min(file.bytes - offset) as usize];
                open.read_at(offset, &mut piece)?;
                hasher.update(&piece);
            }
            before += file.bytes;
        }
        Ok(Fingerprint {
            path: info.path.clone(),
            format: info.format.into(),
            dtype: info.element.to_string(),
            rows: self.rows(),
            width: info.width,
            files: info.files.len(),
            bytes,
            sample_blake3: hasher.finalize().to_hex().to_string(),
        })
    }
}

/// Reads a small matrix whole: `(values, rows, width)`; class embeddings, say.
///
/// # Errors
/// As [`ActivationData::open`] and [`ActivationData::blocks`].
pub fn read_matrix(path: &Path) -> Result<(Vec<f32>, usize, usize), DataError> {
    let data = ActivationData::open(path, &Options::default())?;
    let blocks: Result<Vec<_>, _> = data.blocks(data.rows()).collect();
    Ok((blocks?.concat(), data.rows(), data.width()))
}
