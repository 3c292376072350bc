//! The column `token_ids`: SAELens writes the tokens of each example beside its activations.

use arrow_ipc::{Schema, root_as_message};

use super::schema::{List, Place, columns, integer_in_lists, step_over};
use super::{Batch, NAME, Span, message, start};
use crate::error::DataError;
use crate::source::Info;
use crate::source::file::{OpenFile, SourceFile, Store};
use crate::source::matrix::{Integer, IntegerColumn};
use crate::source::tokens::{COLUMN, Found, RowInteger};

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
    info: &Info,
    kind: RowInteger,
) -> Result<Option<Found>, DataError> {
    if kind != RowInteger::Token {
        return Ok(None);
    }
    let mut open = file.open()?;
    let (mut found, mut spans, mut examples) = (None, Vec::new(), Vec::new());
    let mut at = start(file, &mut open)?;
    while let Some((metadata, body)) = message(file, &mut open, at)? {
        let damaged = |reason: String| DataError::damaged(&file.path, NAME, at, reason);
        let message = root_as_message(&metadata).map_err(|error| damaged(error.to_string()))?;
        let len = u64::try_from(message.bodyLength());
        let len = len.map_err(|_| damaged("a negative length".into()))?;
        file.check_span(NAME, body, len)?;
        if let Some(schema) = message.header_as_schema() {
            let Some(tokens) = in_schema(file, &schema)? else {
                return Ok(None);
            };
            found = Some((tokens, columns(file, &schema, info.tensor.as_deref())?));
        } else if let (Some(batch), Some((tokens, columns))) =
            (message.header_as_record_batch(), &found)
        {
            let batch = Batch {
                file,
                batch,
                body: Span { offset: body, len },
                columns,
                first_row: 0,
            };
            spans.push(batch.tokens(&mut open, *tokens, &mut examples)?);
        }
        at = body + len;
    }
    let examples = found.and_then(|(tokens, _)| tokens.list).map(|_| examples);
    Ok(Some(Found::in_file(file, spans, examples)))
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

impl Batch<'_> {
    /// The token ids of a record batch; the lengths of its examples are appended to `examples`.
    fn tokens(
        &self,
        open: &mut OpenFile<'_>,
        tokens: Tokens,
        examples: &mut Vec<usize>,
    ) -> Result<IntegerColumn, DataError> {
        let Tokens {
            place,
            list,
            integer,
        } = tokens;
        let count = self.node(place, usize::from(list.is_some()), COLUMN)?;
        // validity and offsets of the list, then validity and values of the ids
        let before = match list {
            None => 0,
            Some(List::Fixed(_)) => 1,
            Some(List::Offsets(_)) => 2,
        };
        let values = self.buffer(place, before + 1)?;
        self.check_length(values, count, integer.size(), "token ids are missing")?;
        let (first, end) = match list {
            None => (0, count),
            Some(list) => {
                let n = self.node(place, 0, COLUMN)?;
                let span = self.buffer(place, before - 1)?;
                let offsets = self.offsets(open, (list, span), n, count)?;
                examples.extend(offsets.windows(2).map(|pair| pair[1] - pair[0]));
                (offsets[0], offsets[n])
            }
        };
        Ok(IntegerColumn {
            integer,
            offset: values.offset + (first * integer.size()) as u64,
            count: end - first,
        })
    }
}
