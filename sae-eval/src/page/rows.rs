//! A held-out row as a person can look at it, behind one trait: by its number here, by what the data says of it in
//! `described.rs`.

use std::ops::Range;

use anyhow::Result;
use data_encoding::BASE64;
use sae_data::ActivationData;
use serde::Serialize;

use super::text::clean;

/// Characters of a text that no row exceeds.
const LONGEST: usize = 1000;

/// A row to show.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    /// Its number in the data set that the split was cut from.
    pub(super) row: u64,
    /// Its document, numbered as in the data set.
    pub(super) document: Option<u64>,
    /// Its place in the document.
    pub(super) position: Option<u64>,
    pub(super) label: Option<usize>,
    pub(super) content: Content,
}

/// What a row is an activation of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Content {
    /// It is not known.
    #[default]
    Unknown,
    /// A whole text.
    Text(String),
    /// A token of a passage: the tokens around it, and its place among them.
    Token { tokens: Vec<String>, at: usize },
    /// A cell of an image.
    Patch(Patch),
}

/// A cell of an image's grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Patch {
    /// The thumbnail's place in the list of thumbnails.
    pub(super) thumbnail: usize,
    /// Rows and columns of the grid.
    pub(super) grid: [usize; 2],
    /// The cell's row and column; `None` for the whole image.
    pub(super) cell: Option<[usize; 2]>,
}

/// A small picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Thumbnail {
    /// `image/jpeg` or `image/png`.
    pub(super) media_type: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Thumbnail {
    /// The picture as a `data:` address.
    pub(super) fn url(&self) -> String {
        format!(
            "data:{};base64,{}",
            self.media_type,
            BASE64.encode(&self.bytes)
        )
    }
}

/// Shows rows.
pub(super) trait Showing {
    /// These held-out rows, ascending, each with at most `longest` characters of text. Pictures are added to `thumbnails`.
    fn show(
        &self,
        rows: &[u64],
        longest: usize,
        thumbnails: &mut Vec<Thumbnail>,
    ) -> Result<Vec<Shown>>;

    /// The rows of the tokens around a row, in order, as far as they are held-out rows; `None` if rows are no tokens.
    fn window(&self, _row: u64) -> Option<Vec<Option<u64>>> {
        None
    }
}

/// Rows by their numbers.
pub(super) struct Numbered<'a>(pub(super) &'a ActivationData);

impl Showing for Numbered<'_> {
    fn show(&self, rows: &[u64], _: usize, _: &mut Vec<Thumbnail>) -> Result<Vec<Shown>> {
        let places = Places::of(self.0);
        let mut shown = Vec::with_capacity(rows.len());
        for chunk in rows.chunk_by(|a, b| a + 1 == *b) {
            let range = chunk[0] as usize..chunk[0] as usize + chunk.len();
            let labels = match self.0.has_labels() {
                true => self.0.labels(range.clone())?,
                false => None,
            };
            let documents = self.0.documents(range.clone());
            let positions = places.positions(self.0, range.clone());
            let source = self.0.rows_in_source(range);
            for (i, row) in source.into_iter().enumerate() {
                shown.push(Shown {
                    row: row as u64,
                    document: documents.as_ref().map(|of| of[i] as u64),
                    position: positions.as_ref().map(|of| of[i] as u64),
                    label: labels.as_ref().map(|of| of[i]),
                    content: Content::Unknown,
                });
            }
        }
        Ok(shown)
    }
}

/// Where rows stand in their documents, if documents have several rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    known: bool,
    /// Rows at the start of each document that the data set leaves out.
    skipped: usize,
}

impl Places {
    pub(super) fn of(data: &ActivationData) -> Self {
        let info = data.info();
        let documents = info.documents.as_ref();
        Self {
            known: documents.is_some_and(|documents| documents.count() < info.rows),
            skipped: usize::from(info.drop_first_token),
        }
    }

    /// The documents of `rows`, and their places there among the rows of the data set, from 0.
    pub(super) fn in_documents(
        &self,
        data: &ActivationData,
        rows: Range<usize>,
    ) -> Option<Vec<(i64, usize)>> {
        let documents = data.info().documents.as_ref().filter(|_| self.known)?;
        let of = data.documents(rows.clone())?;
        let rows = data.rows_in_source(rows).into_iter().zip(of);
        Some(
            rows.map(|(row, document)| (document, row - documents.start(document as usize)))
                .collect(),
        )
    }

    /// The positions of `rows`, from 0.
    pub(super) fn positions(
        &self,
        data: &ActivationData,
        rows: Range<usize>,
    ) -> Option<Vec<usize>> {
        let places = self.in_documents(data, rows)?;
        Some(
            places
                .into_iter()
                .map(|(_, place)| self.position(place))
                .collect(),
        )
    }

    /// The position of a place in a document.
    pub(super) fn position(&self, place: usize) -> usize {
        place + self.skipped
    }
}

/// A row in the page's data: number, document, position, class (-1 where there is none), content.
#[derive(Serialize)]
pub(super) struct Packed(u64, i64, i64, i64, serde_json::Value);

impl Shown {
    /// The row as the page's script reads it.
    pub(super) fn packed(&self) -> Packed {
        let signed = |value: Option<u64>| value.map_or(-1, |value| value as i64);
        let content = match &self.content {
            Content::Unknown => serde_json::Value::Null,
            Content::Text(text) => clean(text, LONGEST).into(),
            Content::Token { tokens, at } => {
                let tokens: Vec<String> =
                    tokens.iter().map(|token| clean(token, LONGEST)).collect();
                serde_json::json!({ "t": tokens, "i": at })
            }
            Content::Patch(patch) => {
                serde_json::json!({ "p": patch.thumbnail, "g": patch.grid, "c": patch.cell })
            }
        };
        let label = self.label.map(|label| label as u64);
        Packed(
            self.row,
            signed(self.document),
            signed(self.position),
            signed(label),
            content,
        )
    }
}
