//! Texts of documents or rows: one JSON object per line, found by the places where the lines begin.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use super::shorten;
use crate::error::DataError;
use crate::source::{Info, SourceFile};

const NAME: &str = "JSON Lines";
/// Bytes that are searched for ends of lines at a time.
const PIECE: u64 = 1 << 20;
/// Longest line that is read.
const MAX_LINE: u64 = 1 << 26;

/// The text of a row, or of its document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text, at most 64 KiB of it.
    pub text: String,
    /// Whether this is all of it.
    pub whole: bool,
}

impl Text {
    /// Longest text that is shown, in bytes.
    pub const MAX: usize = 1 << 16;
}

/// The unit that has one text or one thumbnail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each row.
    Row,
    /// Each document.
    Document,
}

/// A file of texts: the places of its lines, 8 bytes per line, and nothing of their content.
#[derive(Debug)]
pub(super) struct Texts {
    file: SourceFile,
    /// Where each line begins, and where the last one ends.
    bounds: Vec<u64>,
    pub(super) per: Per,
}

/// Other keys, such as a label, are allowed.
#[derive(Deserialize)]
struct Line {
    text: String,
}

impl Texts {
    /// Finds the lines of a file with one line per document or per row.
    pub(super) fn open(path: &Path, info: &Info) -> Result<Self, DataError> {
        let file = SourceFile::stat(path)?;
        let bounds = line_bounds(&file)?;
        let lines = bounds.len() - 1;
        let documents = info.documents.as_ref().map(|documents| documents.count());
        let per = match lines {
            n if Some(n) == documents => Per::Document,
            n if n == info.rows => Per::Row,
            _ => {
                return Err(DataError::Meanings {
                    path: file.path,
                    what: "texts",
                    entries: lines,
                    rows: info.rows,
                    documents,
                });
            }
        };
        Ok(Self { file, bounds, per })
    }

    pub(super) fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The bytes of a line, with its end, after a check that it is a text.
    pub(super) fn line(&self, number: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = self.bytes(number)?;
        self.parse(number, &bytes)?;
        if bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// The text of a line.
    pub(super) fn text(&self, number: usize) -> Result<Text, DataError> {
        let mut text = self.parse(number, &self.bytes(number)?)?;
        let whole = text.len() <= Text::MAX;
        shorten(&mut text, Text::MAX);
        Ok(Text { text, whole })
    }

    fn bytes(&self, number: usize) -> Result<Vec<u8>, DataError> {
        let Range { start, end } = self.bounds[number]..self.bounds[number + 1];
        if end - start > MAX_LINE {
            let reason = format!("{} bytes; a line has at most {MAX_LINE}", end - start);
            return Err(self.wrong(number, reason));
        }
        self.file.open()?.bytes_at(NAME, start, end - start)
    }

    fn parse(&self, number: usize, bytes: &[u8]) -> Result<String, DataError> {
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(self.wrong(number, "this is no object".into())); // serde takes lists for objects, too
        }
        let line: Result<Line, _> = serde_json::from_slice(bytes);
        line.map(|line| line.text).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            self.wrong(number, format!("{reason}, column {}", error.column()))
        })
    }

    fn wrong(&self, number: usize, reason: String) -> DataError {
        DataError::Line {
            path: self.file.path.clone(),
            line: number + 1,
            reason,
        }
    }
}

/// Where each line begins, and where the last one ends. The last line may have no end of line.
fn line_bounds(file: &SourceFile) -> Result<Vec<u64>, DataError> {
    let mut open = file.open()?;
    let mut bounds = vec![0];
    let mut at = 0;
    while at < file.bytes {
        let piece = open.bytes_at(NAME, at, PIECE.min(file.bytes - at))?;
        let ends = piece.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        bounds.extend(ends.map(|(i, _)| at + i as u64 + 1));
        at += piece.len() as u64;
    }
    if bounds.last() != Some(&file.bytes) {
        bounds.push(file.bytes);
    }
    Ok(bounds)
}
