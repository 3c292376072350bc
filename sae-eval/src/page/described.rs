//! Rows as the data set describes them: tokens in their passages, texts, cells of images.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use sae_data::{ActivationData, ImagePlace, Meanings, Neighbour, Neighbourhood};

use super::nearby::NEAR;
use super::rows::{Content, Patch, Showing, Shown, Thumbnail};
use super::text::clean;

/// Tokens before and behind a row's own token.
pub(super) const BEFORE: usize = 10;
const BEHIND: usize = 5;
/// Characters of a token.
const TOKEN: usize = 40;
/// Bytes of all thumbnails.
const PICTURES: usize = 6 << 20;

/// A data set that says what its rows are.
pub(super) struct Described {
    meanings: Meanings,
}

/// Where the pictures of documents, or of rows without documents, lie in the list of thumbnails.
#[derive(Default)]
struct Pictures {
    places: BTreeMap<usize, usize>,
    bytes: usize,
}

impl Described {
    /// `None` if the data says nothing of its rows beyond document and label.
    pub(super) fn of(data: &ActivationData) -> Result<Option<Self>> {
        let meanings = data.meanings()?;
        Ok((!meanings.is_empty()).then_some(Self { meanings }))
    }

    /// Whether rows are shown as tokens among others.
    pub(super) fn has_passages(&self, data: &ActivationData) -> bool {
        self.meanings.has_tokens() && data.info().documents.is_some()
    }

    /// The held-out rows whose tokens are near that of `row`, and the row itself; rows between them are near, too.
    pub(super) fn near(&self, row: u64) -> Range<u64> {
        let around = self.meanings.rows_around(row as usize, NEAR, NEAR);
        let rows = around.filter(|_| self.meanings.has_tokens());
        let mut rows = rows.into_iter().flatten().flatten().map(|row| row as u64);
        let first = rows.next().unwrap_or(row);
        first..rows.next_back().unwrap_or(first) + 1
    }

    /// The picture that a row belongs to, and its cell.
    fn patch(
        &self,
        row: u64,
        unit: usize,
        place: Option<ImagePlace>,
        pictures: &mut Pictures,
        thumbnails: &mut Vec<Thumbnail>,
    ) -> Result<Option<Content>> {
        if self.meanings.thumbnails().is_none() {
            return Ok(None);
        }
        if !pictures.places.contains_key(&unit)
            && pictures.bytes < PICTURES
            && let Some(picture) = self.meanings.thumbnail(row as usize)?
        {
            pictures.bytes += picture.bytes.len();
            pictures.places.insert(unit, thumbnails.len());
            thumbnails.push(Thumbnail {
                media_type: picture.media_type.name(),
                bytes: picture.bytes,
            });
        }
        let grid = self
            .meanings
            .image_grid()
            .map_or([1, 1], |image| image.grid);
        let cell = match place {
            Some(ImagePlace::Patch { row, column }) => Some([row, column]),
            _ => None,
        };
        let thumbnail = pictures.places.get(&unit).copied();
        Ok(thumbnail.map(|thumbnail| {
            Content::Patch(Patch {
                thumbnail,
                grid,
                cell,
            })
        }))
    }

    fn text(&self, row: u64, longest: usize) -> Result<Option<Content>> {
        let text = self.meanings.text(row as usize)?;
        Ok(text.map(|text| Content::Text(clean(&text.text, longest))))
    }
}

impl Showing for Described {
    fn show(
        &self,
        rows: &[u64],
        longest: usize,
        thumbnails: &mut Vec<Thumbnail>,
    ) -> Result<Vec<Shown>> {
        let (mut pictures, mut shown) = (Pictures::default(), Vec::with_capacity(rows.len()));
        let numbers: Vec<usize> = rows.iter().map(|row| *row as usize).collect();
        let tokens = self.meanings.has_tokens();
        let reach = if tokens { [BEFORE, BEHIND] } else { [0, 0] };
        self.meanings
            .visit(&numbers, reach, |row, meaning, around| {
                let row = row as u64;
                let unit = meaning.document.unwrap_or(meaning.number);
                let content = match around.filter(|_| tokens) {
                    Some(around) => Some(token(&around)),
                    None => {
                        match self.patch(row, unit, meaning.place, &mut pictures, thumbnails)? {
                            Some(content) => Some(content),
                            None => self.text(row, longest)?,
                        }
                    }
                };
                shown.push(Shown {
                    row: meaning.number as u64,
                    document: meaning.document.map(|document| document as u64),
                    position: meaning.position.map(|position| position as u64),
                    label: meaning.label,
                    content: content.unwrap_or_default(),
                });
                anyhow::Ok(())
            })?;
        Ok(shown)
    }

    fn window(&self, row: u64) -> Option<Vec<Option<u64>>> {
        if !self.meanings.has_tokens() {
            return None;
        }
        let around = self.meanings.rows_around(row as usize, BEFORE, BEHIND)?;
        Some(
            around
                .into_iter()
                .map(|row| row.map(|row| row as u64))
                .collect(),
        )
    }
}

/// The tokens around a row and its place among them.
fn token(around: &Neighbourhood) -> Content {
    let word = |neighbour: &Neighbour| {
        let token = neighbour.token.as_ref();
        token.map_or(String::new(), |token| clean(&token.to_string(), TOKEN))
    };
    Content::Token {
        tokens: around.rows.iter().map(word).collect(),
        at: around.own,
    }
}
