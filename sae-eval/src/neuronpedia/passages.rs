//! The passage around a row, as Neuronpedia takes it: the strings of the tokens, and the rows to read their activations.

use anyhow::{Result, bail};
use sae_data::{ActivationData, Meanings, Per};

/// Characters of a text that stands for one token.
const LONGEST: usize = 1000;

/// Finds the passage of each row of a data set.
pub(super) struct Passages {
    meanings: Meanings,
    /// Tokens before and behind a row; `None` if rows are whole texts.
    sides: Option<(usize, usize)>,
}

/// Tokens, one after the other.
pub(super) struct Passage {
    pub(super) tokens: Vec<String>,
    /// Their rows; `None` for a row that `data.max_norm` leaves out.
    pub(super) rows: Vec<Option<u64>>,
}

impl Passages {
    /// Passages of at most `most` tokens.
    ///
    /// # Errors
    /// If the rows are neither tokens with strings nor whole texts.
    pub(super) fn of(data: &ActivationData, most: usize) -> Result<Self> {
        let meanings = data.meanings()?;
        let path = data.path().display();
        let sides = match (meanings.has_tokens(), meanings.texts()) {
            (true, _) if meanings.vocabulary_size().is_some() => {
                let before = (most - 1) * 2 / 3;
                Some((before, most - 1 - before))
            }
            (true, _) => bail!(
                "{path}: its tokens are numbers without strings, and Neuronpedia shows strings; write them to vocab.json \
                 beside the data (docs/DATA.md, \"What rows are\")"
            ),
            (false, Some((texts, per))) if per == Per::Row || texts == data.info().rows => None,
            _ if meanings.thumbnails().is_some() => {
                bail!("{path}: its rows are of images, and Neuronpedia shows tokens")
            }
            _ => bail!(
                "{path}: nothing beside the data says which token or text each row is (docs/DATA.md, \"What rows are\"), and \
                 Neuronpedia shows tokens"
            ),
        };
        Ok(Self { meanings, sides })
    }

    /// Whether each row is a whole text.
    pub(super) fn are_texts(&self) -> bool {
        self.sides.is_none()
    }

    /// The passage around a row; a text is a passage of one token.
    pub(super) fn around(&self, row: u64) -> Result<Passage> {
        let at = row as usize;
        let Some((before, behind)) = self.sides else {
            let text = self
                .meanings
                .text(at)?
                .map_or(String::new(), |text| text.text);
            let cut = text.char_indices().nth(LONGEST).map(|(end, _)| end);
            let text = cut.map_or(text.clone(), |end| format!("{}…", &text[..end]));
            return Ok(alone(row, &text));
        };
        let Some(around) = self.meanings.around(at, before, behind)? else {
            let token = self.meanings.row(at)?.token;
            let text = token.map_or(String::new(), |token| token.to_string());
            return Ok(alone(row, &text)); // without documents, a token has no neighbours
        };
        let rows = around.rows;
        let word = |token: &Option<sae_data::Token>| {
            let text = token.as_ref().map(ToString::to_string);
            storable(&text.unwrap_or_default())
        };
        Ok(Passage {
            tokens: rows.iter().map(|of| word(&of.token)).collect(),
            rows: rows.iter().map(|of| of.row.map(|row| row as u64)).collect(),
        })
    }
}

fn alone(row: u64, text: &str) -> Passage {
    Passage {
        tokens: vec![storable(text)],
        rows: vec![Some(row)],
    }
}

/// A string that Neuronpedia takes: it refuses empty ones, and its database has no character U+0000.
fn storable(text: &str) -> String {
    match text {
        "" => " ".into(),
        text => text.replace('\0', "\u{fffd}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_a_database_cannot_hold_are_replaced() {
        assert_eq!(storable(""), " ");
        assert_eq!(storable("a\0\n<b>\"\u{202e}"), "a\u{fffd}\n<b>\"\u{202e}");
    }
}
