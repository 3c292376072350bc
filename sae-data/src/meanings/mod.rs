//! The meanings of rows, for people to look at: tokens, texts and images beside the activations.
//!
//! Training does not need any of this, and opening a data set does not look for it. Here nothing of the data set's size is
//! held in memory except the places of lines in a file of texts, 8 bytes each.

mod around;
mod copy;
mod images;
mod texts;
mod thumbnails;
mod vocabulary;

use std::ops::Range;
use std::path::PathBuf;

pub use around::{Neighbour, Neighbourhood};
pub use images::ImagePlace;
pub use texts::{Per, Text};
pub use thumbnails::{MediaType, Thumbnail};
pub use vocabulary::Token;

use around::Stretch;
use texts::Texts;
use thumbnails::Thumbnails;
use vocabulary::Vocabulary;

use crate::data::ActivationData;
use crate::error::DataError;
use crate::source::{ImageGrid, RowInteger, RowIntegers, has_document_ids};

/// Names of the files in the directory of a data set. Beside a file `NAME.npy` they are `NAME.texts.jsonl` and so on.
pub(crate) const TEXTS: &str = "texts.jsonl";
pub(crate) const VOCABULARY: &str = "vocab.json";
pub(crate) const THUMBNAILS: &str = "thumbnails";
const TOKENS: &str = "tokens.safetensors";

/// Whether a file of this name says what rows are, and holds no activations.
pub(crate) fn is_companion(name: &str) -> bool {
    let named = |companion: &str| {
        let before = name.strip_suffix(companion);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    [TEXTS, VOCABULARY, TOKENS].into_iter().any(named)
}

/// Cuts a string to at most `most` bytes.
fn shorten(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

/// The meanings of the rows of a data set. Rows are those of the [`ActivationData`] that it comes from: of a side of a split, or
/// within a limit of the norm.
#[derive(Debug)]
pub struct Meanings {
    data: ActivationData,
    tokens: Option<RowIntegers>,
    positions: Option<RowIntegers>,
    /// Whether documents are examples of consecutive tokens, so that places in them are positions.
    examples: bool,
    vocabulary: Option<Vocabulary>,
    texts: Option<Texts>,
    thumbnails: Option<Thumbnails>,
    image: Option<ImageGrid>,
}

/// The meaning of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowMeaning {
    /// Its number in the whole data set, before any split.
    pub number: usize,
    /// Its document, numbered as in the whole data set, if there are documents.
    pub document: Option<usize>,
    /// Its position in the input of the model, from 0, if it is known.
    pub position: Option<usize>,
    /// Its token, if it is the activation of one and the data says of which.
    pub token: Option<Token>,
    /// Its place in the image, if it is a part of one.
    pub place: Option<ImagePlace>,
    /// Its class, if there are labels.
    pub label: Option<usize>,
}

impl ActivationData {
    /// The meanings of the rows, as far as there are files beside the activations that say it (docs/DATA.md, "What rows are").
    ///
    /// Reads headers, the vocabulary, and the file of texts once, to find its lines.
    ///
    /// # Errors
    /// [`DataError::Meanings`] if a file has not one entry per row or document, and as [`ActivationData::open`] if one
    /// cannot be read.
    pub fn meanings(&self) -> Result<Meanings, DataError> {
        let info = self.info();
        let beside = |name| companion(self, name);
        let tokens_file = beside(TOKENS);
        let integers = |kind| RowIntegers::open(info, kind, tokens_file.as_deref());
        let tokens = integers(RowInteger::Token)?;
        let positions = integers(RowInteger::Position)?;
        let vocabulary = match &tokens {
            Some(_) => beside(VOCABULARY).or_else(|| sibling(self, VOCABULARY)),
            None => None,
        };
        let texts = beside(TEXTS).map(|path| Texts::open(&path, info));
        Ok(Meanings {
            examples: info.documents.is_some() && !has_document_ids(info)?,
            vocabulary: vocabulary.map(|p| Vocabulary::read(&p)).transpose()?,
            texts: texts.transpose()?,
            thumbnails: beside(THUMBNAILS).and_then(Thumbnails::open),
            image: images::grid(self.path())?,
            data: self.clone(),
            tokens,
            positions,
        })
    }
}

/// The path of the file `name` of a data set, if there is one: in its directory, or beside its file.
fn companion(data: &ActivationData, name: &str) -> Option<PathBuf> {
    let path = data.path();
    if data.info().files.is_empty() {
        return None; // the path of rows in memory is only a name
    }
    let path = match path.is_dir() {
        true => path.join(name),
        false => path.with_extension(name),
    };
    path.exists().then_some(path)
}

/// The path of a file that several data sets in one directory may share.
fn sibling(data: &ActivationData, name: &str) -> Option<PathBuf> {
    let path = data.path().parent()?.join(name);
    (!data.path().is_dir() && path.exists()).then_some(path)
}

impl Meanings {
    /// Whether rows have tokens.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Number of token ids that have a string, if there is a vocabulary.
    pub fn vocabulary_size(&self) -> Option<usize> {
        self.vocabulary.as_ref().map(Vocabulary::len)
    }

    /// Whether rows have positions in the input of the model.
    pub fn has_positions(&self) -> bool {
        self.positions.is_some() || self.examples
    }

    /// Number of texts of the whole data set and what has one, if there are texts.
    pub fn texts(&self) -> Option<(usize, Per)> {
        let texts = self.texts.as_ref()?;
        Some((texts.count(), texts.per))
    }

    /// The unit that has a thumbnail, if there are thumbnails.
    pub fn thumbnails(&self) -> Option<Per> {
        self.thumbnails.as_ref()?;
        Some(match self.data.info().documents {
            Some(_) => Per::Document,
            None => Per::Row,
        })
    }

    /// How rows lie in images, if they are parts of images.
    pub fn image_grid(&self) -> Option<ImageGrid> {
        self.image
    }

    /// Whether rows are anything but numbers, documents and labels.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_none() && self.texts.is_none() && self.thumbnails.is_none()
    }

    /// The meaning of `row`.
    ///
    /// # Errors
    /// [`DataError`] if a file cannot be read or has changed since it was opened, and as [`ActivationData::labels`].
    ///
    /// # Panics
    /// If there is no such row; so do the other methods.
    pub fn row(&self, row: usize) -> Result<RowMeaning, DataError> {
        let number = self.number(row);
        let labels = self.data.labels(row..row + 1)?;
        let stretch = self.stretch(number..number + 1)?;
        self.meaning(number, &stretch, labels.map(|labels| labels[0]))
    }

    /// The text of `row` or of its document, if there is one.
    ///
    /// # Errors
    /// As [`Meanings::row`], and [`DataError::Line`] if the line is no text.
    pub fn text(&self, row: usize) -> Result<Option<Text>, DataError> {
        let Some(texts) = &self.texts else {
            return Ok(None);
        };
        let number = self.unit(self.number(row), texts.per);
        texts.text(number).map(Some)
    }

    /// The thumbnail of the image that `row` is or is a part of, if there is one.
    ///
    /// # Errors
    /// As [`Meanings::row`], and [`DataError::Unusable`] if the file is no small JPEG or PNG.
    pub fn thumbnail(&self, row: usize) -> Result<Option<Thumbnail>, DataError> {
        let (Some(thumbnails), Some(per)) = (&self.thumbnails, self.thumbnails()) else {
            return Ok(None);
        };
        thumbnails.read(self.unit(self.number(row), per))
    }

    /// The token ids of `rows`, if rows have tokens.
    ///
    /// # Errors
    /// As [`Meanings::row`].
    pub fn token_ids(&self, rows: Range<usize>) -> Result<Option<Vec<i64>>, DataError> {
        self.each_piece(rows, |piece| self.tokens(piece))
    }

    /// The positions of `rows` in the input of the model, from 0, if they are known.
    ///
    /// # Errors
    /// As [`Meanings::row`].
    pub fn row_positions(&self, rows: Range<usize>) -> Result<Option<Vec<usize>>, DataError> {
        self.each_piece(rows, |piece| self.positions(piece))
    }

    /// What `read` finds of `rows`, which are those of the data that this was asked of; it gets rows of the whole data set.
    fn each_piece<T>(
        &self,
        rows: Range<usize>,
        read: impl Fn(Range<usize>) -> Result<Option<Vec<T>>, DataError>,
    ) -> Result<Option<Vec<T>>, DataError> {
        let mut all = Vec::with_capacity(rows.len());
        for piece in self.data.pieces(rows) {
            match read(piece)? {
                Some(some) => all.extend(some),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    fn meaning(
        &self,
        number: usize,
        stretch: &Stretch,
        label: Option<usize>,
    ) -> Result<RowMeaning, DataError> {
        let position = self.position(number, stretch)?;
        Ok(RowMeaning {
            number,
            document: self.document(number),
            position,
            token: stretch.token(number).map(|id| self.token(id)),
            place: self.place(position),
            label,
        })
    }

    fn number(&self, row: usize) -> usize {
        assert!(row < self.data.rows(), "row {row} of {}", self.data.rows());
        self.data.row_in_source(row)
    }

    fn document(&self, number: usize) -> Option<usize> {
        let documents = self.data.info().documents.as_ref()?;
        Some(documents.of(number))
    }

    /// Number of the document of a row, or of the row.
    fn unit(&self, number: usize, per: Per) -> usize {
        match per {
            Per::Row => number,
            Per::Document => self.document(number).unwrap_or(number),
        }
    }

    /// The rows of the document of a row.
    fn document_rows(&self, number: usize) -> Option<Range<usize>> {
        let documents = self.data.info().documents.as_ref()?;
        let document = documents.of(number);
        let end = match document + 1 < documents.count() {
            true => documents.start(document + 1),
            false => self.data.info().rows,
        };
        Some(documents.start(document)..end)
    }

    fn token(&self, id: i64) -> Token {
        let vocabulary = self.vocabulary.as_ref();
        vocabulary.map_or(Token { id, text: None }, |strings| strings.token(id))
    }

    fn place(&self, position: Option<usize>) -> Option<ImagePlace> {
        Some(images::place(self.image?, position?))
    }

    /// Token ids of `rows` of the whole data set.
    fn tokens(&self, rows: Range<usize>) -> Result<Option<Vec<i64>>, DataError> {
        self.integers(self.tokens.as_ref(), rows)
    }

    fn integers(
        &self,
        integers: Option<&RowIntegers>,
        rows: Range<usize>,
    ) -> Result<Option<Vec<i64>>, DataError> {
        let Some(integers) = integers else {
            return Ok(None);
        };
        let mut all = Vec::new();
        integers.read(self.data.info().documents.as_ref(), rows, &mut all)?;
        Ok(Some(all))
    }
}
