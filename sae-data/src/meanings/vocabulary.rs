//! The strings of token ids: a JSON list, as a program that knows the tokenizer has written it.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::shorten;
use crate::error::DataError;
use crate::source::{SourceFile, json};

/// Largest file of strings: vocabularies have at most some hundred thousand of them.
const MAX_FILE: u64 = 1 << 26;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: i64,
    /// Its text, at most 256 bytes, if the vocabulary has one. A space that belongs to it is part of it.
    pub text: Option<String>,
}

impl Token {
    /// Longest text that is shown, in bytes.
    pub const MAX: usize = 256;
}

/// The text, or the id if there is none.
impl Display for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => write!(f, "{}", self.id),
        }
    }
}

/// The strings by id, in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    /// Where it was read from.
    pub(super) path: PathBuf,
    text: String,
    /// Where each string ends.
    ends: Vec<u32>,
}

impl Vocabulary {
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let file = SourceFile::stat(path)?;
        if file.bytes > MAX_FILE {
            let reason = format!("{} bytes; a vocabulary has at most {MAX_FILE}", file.bytes);
            return Err(DataError::damaged(path, "JSON", 0, reason));
        }
        let strings: Self = json(path)?;
        let path = path.into();
        Ok(Self { path, ..strings })
    }

    /// Number of strings.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn token(&self, id: i64) -> Token {
        let text = usize::try_from(id).ok().and_then(|at| {
            let end = *self.ends.get(at)? as usize;
            let start = at.checked_sub(1).map_or(0, |at| self.ends[at] as usize);
            let text = self.text[start..end].to_string();
            Some(text).filter(|text| !text.is_empty())
        });
        Token { id, text }
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings, one per token id (null where an id has none)")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                let mut vocabulary = Vocabulary::default();
                while let Some(string) = list.next_element::<Option<String>>()? {
                    let mut string = string.unwrap_or_default();
                    shorten(&mut string, Token::MAX);
                    vocabulary.text += &string;
                    vocabulary.ends.push(vocabulary.text.len() as u32);
                }
                Ok(vocabulary)
            }
        }

        deserializer.deserialize_seq(Strings)
    }
}
