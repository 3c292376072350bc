//! Rows of a document around one of them, and many such rows at once: they are read from files in stretches, because
//! opening a file takes as long as reading some thousand integers of it.

use std::ops::Range;

use super::{ImagePlace, Meanings, RowMeaning, Token};
use crate::error::DataError;

/// Rows between two that are asked for which are read rather than opening the files again.
const GAP: usize = 1 << 12;
/// Most rows that are read at once: two times 512 kB.
const STRETCH: usize = 1 << 16;

/// A row of a document, as one of several to be shown together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbour {
    /// The row in the data set that was asked, to read its activation; `None` for a row that a limit of the norm has left
    /// out.
    pub row: Option<usize>,
    /// As [`RowMeaning::position`].
    pub position: Option<usize>,
    /// As [`RowMeaning::token`].
    pub token: Option<Token>,
    /// As [`RowMeaning::place`].
    pub place: Option<ImagePlace>,
}

/// The rows of a document around one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Neighbourhood {
    /// The rows, in order.
    pub rows: Vec<Neighbour>,
    /// The place of the row itself among `rows`.
    pub own: usize,
    /// Number of rows of the document before `rows`.
    pub before: usize,
    /// Number of rows of the document after `rows`.
    pub after: usize,
}

/// Rows of the whole data set around one of its rows.
struct Window {
    number: usize,
    document: Range<usize>,
    shown: Range<usize>,
}

/// The integers of consecutive rows of the whole data set.
pub(super) struct Stretch {
    first: usize,
    tokens: Option<Vec<i64>>,
    positions: Option<Vec<i64>>,
}

impl Stretch {
    pub(super) fn token(&self, number: usize) -> Option<i64> {
        let tokens = self.tokens.as_ref()?;
        Some(tokens[number - self.first])
    }
}

impl Neighbourhood {
    /// Largest number of rows on each side.
    pub const MAX: usize = 2048;
}

impl Meanings {
    /// The rows of the document of `row` around it, at most `before` and `after` of them and [`Neighbourhood::MAX`] each;
    /// `None` without documents. The tokens, one after the other, are the text that the model read.
    ///
    /// # Errors
    /// As [`Meanings::row`].
    pub fn around(
        &self,
        row: usize,
        before: usize,
        after: usize,
    ) -> Result<Option<Neighbourhood>, DataError> {
        let number = self.number(row);
        let Some(window) = self.window(number, before, after) else {
            return Ok(None);
        };
        let stretch = self.stretch(window.shown.clone())?;
        self.neighbourhood(&window, &stretch).map(Some)
    }

    /// As [`Meanings::around`], but only [`Neighbour::row`] of each; reads no file.
    pub fn rows_around(
        &self,
        row: usize,
        before: usize,
        after: usize,
    ) -> Option<Vec<Option<usize>>> {
        let window = self.window(self.number(row), before, after)?;
        Some(self.data.rows_of_source(window.shown))
    }

    /// Visits several rows in the given order, as [`Meanings::row`] and [`Meanings::around`] describe them. What lies close
    /// together in the files is read at once, so ascending rows take a small part of the time of as many calls of those.
    ///
    /// # Errors
    /// As [`Meanings::row`], and those of `visit`.
    pub fn visit<E: From<DataError>>(
        &self,
        rows: &[usize],
        [before, after]: [usize; 2],
        mut visit: impl FnMut(usize, RowMeaning, Option<Neighbourhood>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = rows;
        while let Some((first, others)) = rest.split_first() {
            let mut span = self.needed(*first, before, after);
            let (mut last, mut count) = (*first, 1);
            for row in others {
                let needed = self.needed(*row, before, after);
                let close = needed.start >= span.start && needed.start <= span.end + GAP;
                if *row < last || !close || needed.end > span.start + STRETCH {
                    break;
                }
                span.end = span.end.max(needed.end);
                (last, count) = (*row, count + 1);
            }
            let labels = self.data.labels(*first..last + 1)?;
            let stretch = self.stretch(span)?;
            for row in &rest[..count] {
                let number = self.number(*row);
                let label = labels.as_ref().map(|labels| labels[row - first]);
                let meaning = self.meaning(number, &stretch, label)?;
                let window = self.window(number, before, after);
                let around = window.map(|window| self.neighbourhood(&window, &stretch));
                visit(*row, meaning, around.transpose()?)?;
            }
            rest = &rest[count..];
        }
        Ok(())
    }

    /// The rows of the whole data set that [`Meanings::visit`] needs of `row`.
    fn needed(&self, row: usize, before: usize, after: usize) -> Range<usize> {
        let number = self.number(row);
        let window = self.window(number, before, after);
        window.map_or(number..number + 1, |window| window.shown)
    }

    fn window(&self, number: usize, before: usize, after: usize) -> Option<Window> {
        let document = self.document_rows(number)?;
        let first = number.saturating_sub(before.min(Neighbourhood::MAX));
        let end = number.saturating_add(after.min(Neighbourhood::MAX) + 1);
        let shown = document.start.max(first)..document.end.min(end);
        Some(Window {
            number,
            document,
            shown,
        })
    }

    fn neighbourhood(
        &self,
        window: &Window,
        stretch: &Stretch,
    ) -> Result<Neighbourhood, DataError> {
        let Window {
            number,
            document,
            shown,
        } = window;
        let rows = self.data.rows_of_source(shown.clone());
        let neighbour = |(number, row)| {
            let position = self.position(number, stretch)?;
            Ok(Neighbour {
                row,
                position,
                token: stretch.token(number).map(|id| self.token(id)),
                place: self.place(position),
            })
        };
        let rows = shown.clone().zip(rows).map(neighbour);
        Ok(Neighbourhood {
            rows: rows.collect::<Result<_, DataError>>()?,
            own: number - shown.start,
            before: shown.start - document.start,
            after: document.end - shown.end,
        })
    }

    /// The integers of `rows` of the whole data set.
    pub(super) fn stretch(&self, rows: Range<usize>) -> Result<Stretch, DataError> {
        Ok(Stretch {
            first: rows.start,
            tokens: self.tokens(rows.clone())?,
            positions: self.integers(self.positions.as_ref(), rows)?,
        })
    }

    /// The position of a row of the whole data set, which is in `stretch`.
    pub(super) fn position(
        &self,
        number: usize,
        stretch: &Stretch,
    ) -> Result<Option<usize>, DataError> {
        if let Some(positions) = &stretch.positions {
            let position = positions[number - stretch.first];
            let checked = usize::try_from(position).map_err(|_| {
                let reason = format!("row {number} has position {position}");
                DataError::damaged(self.data.path(), "positions", 0, reason)
            });
            return checked.map(Some);
        }
        let skipped = usize::from(self.data.info().drop_first_token);
        let documents = self.data.info().documents.as_ref();
        let documents = documents.filter(|_| self.examples);
        Ok(documents.map(|documents| number - documents.start(documents.of(number)) + skipped))
    }

    /// Positions of `rows` of the whole data set, if it has positions.
    pub(super) fn positions(&self, rows: Range<usize>) -> Result<Option<Vec<usize>>, DataError> {
        let stretch = Stretch {
            first: rows.start,
            tokens: None,
            positions: self.integers(self.positions.as_ref(), rows.clone())?,
        };
        rows.map(|number| self.position(number, &stretch)).collect()
    }
}
