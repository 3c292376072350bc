//! Writes the meanings of rows beside a copy of them.

use std::fs::create_dir_all;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use sae_run::atomic_file::{self, AtomicFile};

use super::{Meanings, Per, TEXTS, THUMBNAILS, VOCABULARY};
use crate::error::DataError;
use crate::source::RowInteger;

/// Rows whose documents are looked up at a time.
const AT_ONCE: usize = 1 << 16;

impl Meanings {
    /// Names of the tensors of integers per row that a copy needs.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &'static str> {
        let there = [
            (RowInteger::Token, self.has_tokens()),
            (RowInteger::Position, self.has_positions()),
        ];
        let there = there.into_iter().filter(|(_, there)| *there);
        there.map(|(kind, _)| kind.tensor())
    }

    /// The integers of `rows` for the tensor `name`, one of [`Meanings::columns`].
    pub(crate) fn column(&self, name: &str, rows: Range<usize>) -> Result<Vec<i64>, DataError> {
        let mut all = Vec::with_capacity(rows.len());
        for piece in self.data.pieces(rows) {
            if name == RowInteger::Token.tensor() {
                all.extend(self.tokens(piece)?.unwrap_or_default());
            } else {
                let positions = self.positions(piece)?.unwrap_or_default();
                all.extend(positions.into_iter().map(|position| position as i64));
            }
        }
        Ok(all)
    }

    /// Writes the vocabulary, the texts and the thumbnails into `dir`, renumbered for the rows there.
    pub(crate) fn copy_to(&self, dir: &Path) -> Result<(), DataError> {
        if let Some(vocabulary) = &self.vocabulary {
            let bytes = std::fs::read(&vocabulary.path).map_err(DataError::io(&vocabulary.path))?;
            let path = dir.join(VOCABULARY);
            atomic_file::write(&path, &bytes).map_err(DataError::io(&path))?;
        }
        if let Some(texts) = &self.texts {
            let path = dir.join(TEXTS);
            let mut file = AtomicFile::create(&path).map_err(DataError::io(&path))?;
            self.each(texts.per, |_, number| {
                let line = texts.line(number)?;
                file.write_all(&line).map_err(DataError::io(&path))
            })?;
            file.commit().map_err(DataError::io(&path))?;
        }
        if let (Some(thumbnails), Some(per)) = (&self.thumbnails, self.thumbnails()) {
            let to = dir.join(THUMBNAILS);
            create_dir_all(&to).map_err(DataError::io(&to))?;
            self.each(per, |copy, number| {
                let Some(thumbnail) = thumbnails.read(number)? else {
                    return Ok(());
                };
                let path = to.join(format!("{copy}.{}", thumbnail.media_type.extension()));
                atomic_file::write(&path, &thumbnail.bytes).map_err(DataError::io(&path))
            })?;
        }
        Ok(())
    }

    /// Visits the rows, or the documents that have rows, in order: the number in a copy, and the number here.
    fn each(
        &self,
        per: Per,
        mut visit: impl FnMut(usize, usize) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let (mut copies, mut last) = (0, None);
        for start in (0..self.data.rows()).step_by(AT_ONCE) {
            let rows = start..(start + AT_ONCE).min(self.data.rows());
            for number in self.data.pieces(rows).flatten() {
                let unit = self.unit(number, per);
                if last != Some(unit) {
                    visit(copies, unit)?;
                    (copies, last) = (copies + 1, Some(unit));
                }
            }
        }
        Ok(())
    }
}
