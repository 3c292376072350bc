//! The column `token_ids`: SAELens writes the tokens of each example beside its activations.

use arrow_ipc::{MessageHeader, Schema, root_as_message};

use super::schema::{List, Place, integer_in_lists, step_over};
use super::{NAME, Reader, Span, Walk};
use crate::error::DataError;
use crate::source::Info;
use crate::source::file::SourceFile;
use crate::source::matrix::{Integer, IntegerColumn};
use crate::source::tokens::{Found, RowInteger};

const COLUMN: &str = "token_ids";

/// The column of token ids: its place, the list that holds the tokens of an example, and the type of an id.
#[derive(Clone, Copy)]
struct Tokens {
    place: Place,
    list: Option<List>,
    integer: Integer,
}

/// The token ids of one file, if it has them.
pub(super) fn find(
    file: &SourceFile,
    _info: &Info,
    kind: RowInteger,
) -> Result<Option<Found>, DataError> {
    if kind != RowInteger::Token {
        return Ok(None);
    }
    let mut reader = Reader {
        open: file.open()?,
        file,
        columns: None,
        rows: 0,
    };
    let (mut tokens, mut columns, mut examples) = (None, Vec::new(), Vec::new());
    let mut at = reader.start()?;
    while let Some((metadata, body)) = reader.message(at)? {
        let damaged = |reason: String| DataError::damaged(&file.path, NAME, at, reason);
        let message = root_as_message(&metadata).map_err(|error| damaged(error.to_string()))?;
        let len = u64::try_from(message.bodyLength());
        let len = len.map_err(|_| damaged("a negative length".into()))?;
        file.check_span(NAME, body, len)?;
        if message.header_type() == MessageHeader::Schema {
            tokens = match message.header_as_schema() {
                Some(schema) => in_schema(file, &schema)?,
                None => None,
            };
            if tokens.is_none() {
                return Ok(None);
            }
        }
        if let (Some(tokens), Some(batch)) = (tokens, message.header_as_record_batch()) {
            let walk = Walk {
                reader: &mut reader,
                batch: &batch,
                body: Span { offset: body, len },
                name: COLUMN,
            };
            columns.push(walk.tokens(tokens, &mut examples)?);
        }
        at = body + len;
    }
    let examples = tokens.and_then(|tokens| tokens.list).map(|_| examples);
    Ok(Some(Found { columns, examples }))
}

/// Finds the column in the schema.
fn in_schema(file: &SourceFile, schema: &Schema<'_>) -> Result<Option<Tokens>, DataError> {
    let mut place = Place::default();
    for field in schema.fields().into_iter().flatten() {
        let found = integer_in_lists(&field).filter(|_| field.name() == Some(COLUMN));
        if let Some((list, integer)) = found {
            return Ok(Some(Tokens {
                place,
                list,
                integer,
            }));
        }
        step_over(file, &field, &mut place, 0)?;
    }
    Ok(None)
}

impl Walk<'_, '_> {
    /// The token ids of a record batch; the lengths of its examples are appended to `examples`.
    fn tokens(
        mut self,
        tokens: Tokens,
        examples: &mut Vec<usize>,
    ) -> Result<IntegerColumn, DataError> {
        let Tokens {
            place,
            list,
            integer,
        } = tokens;
        let depth = usize::from(list.is_some());
        let count = self.node(place, depth)?;
        // validity and offsets of the list, then validity and values of the ids
        let before = match list {
            None => 0,
            Some(List::Fixed(_)) => 1,
            Some(_) => 2,
        };
        let values = self.buffer(place, before + 1)?;
        let size = integer.size() as u64;
        let bytes = (count as u64).checked_mul(size);
        if bytes.is_none_or(|bytes| bytes > values.len) {
            return Err(self.reader.damaged(values.offset, "token ids are missing"));
        }
        let (first, end) = match list {
            None => (0, count),
            Some(list) => {
                let n = self.node(place, 0)?;
                let offsets = self.buffer(place, before - 1)?;
                let offsets = self.offsets(list, offsets, n, count)?;
                examples.extend(offsets.windows(2).map(|pair| pair[1] - pair[0]));
                (offsets[0], offsets[n])
            }
        };
        Ok(IntegerColumn {
            integer,
            offset: values.offset + first as u64 * size,
            count: end - first,
        })
    }
}
