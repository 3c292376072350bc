//! Arrow IPC, streams and files: what Hugging Face `datasets`, and so SAELens' activation cache, write.
//!
//! Opening reads only the messages, with the view that `arrow-ipc` generates, and the offsets of lists. They give the
//! places of the values in the file. Columns before the activations are skipped by the number of buffers of their types.

mod schema;
mod tokens;

use arrow_ipc::{MessageHeader, RecordBatch, root_as_message};

use schema::{Columns, List, Place, columns};

use super::builder::MatrixBuilder;
use super::file::{OpenFile, SourceFile};
use super::format::{Format, Open};
use super::matrix::{Integer, IntegerColumn};
use crate::error::DataError;

const NAME: &str = "Arrow";

pub(super) static FORMAT: Format = Format {
    name: NAME,
    about: "Arrow (SAELens' activation caches, Hugging Face datasets)",
    magic: &[b"ARROW", STREAM_MAGIC],
    extensions: &["arrow", "feather"],
    open: Open::InPlace(add),
    row_integers: Some(tokens::find),
    ..Format::UNNAMED
};

const FILE_MAGIC: &[u8; 6] = b"ARROW1";
/// Marks a message.
const STREAM_MAGIC: &[u8] = &[0xff; 4];
/// Longest message without its body that is read.
const MAX_MESSAGE: u64 = 1 << 28;

/// A buffer in the file.
#[derive(Clone, Copy, Debug)]
struct Span {
    offset: u64,
    len: u64,
}

/// Adds a file of activations.
fn add(
    builder: &mut MatrixBuilder<'_>,
    file: SourceFile,
    column: Option<&str>,
) -> Result<(), DataError> {
    let number = builder.file(file.clone());
    let mut reader = Reader {
        open: file.open()?,
        file: &file,
        columns: None,
        rows: 0,
    };
    let mut at = reader.start()?;
    while let Some((metadata, body)) = reader.message(at)? {
        let damaged = |reason: String| DataError::damaged(&file.path, NAME, at, reason);
        let message = root_as_message(&metadata).map_err(|error| damaged(error.to_string()))?;
        let length =
            u64::try_from(message.bodyLength()).map_err(|_| damaged("a negative length".into()))?;
        file.check_span(NAME, body, length)?;
        match message.header_type() {
            MessageHeader::Schema => {
                let schema = message.header_as_schema();
                let schema = schema.ok_or_else(|| damaged("a schema without content".into()))?;
                reader.columns = Some(columns(&file, &schema, column)?);
            }
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch();
                let batch =
                    batch.ok_or_else(|| damaged("a record batch without content".into()))?;
                reader.batch(
                    builder,
                    number,
                    &batch,
                    Span {
                        offset: body,
                        len: length,
                    },
                )?;
            }
            _ => {} // dictionaries of other columns
        }
        at = body + length;
    }
    match reader.columns {
        Some(_) => Ok(()),
        None => Err(DataError::damaged(
            &file.path,
            NAME,
            0,
            "there is no schema",
        )),
    }
}

struct Reader<'a> {
    open: OpenFile<'a>,
    file: &'a SourceFile,
    columns: Option<Columns>,
    /// Rows of this file so far, for error messages.
    rows: usize,
}

impl Reader<'_> {
    fn damaged(&self, offset: u64, reason: impl Into<String>) -> DataError {
        DataError::damaged(&self.file.path, NAME, offset, reason)
    }

    /// Offset of the first message: 0 in a stream, behind the magic in a file, which must also end with the magic.
    fn start(&mut self) -> Result<u64, DataError> {
        if self.open.bytes_at(NAME, 0, 4)? != FILE_MAGIC[..4] {
            return Ok(0);
        }
        let end = self.file.bytes.saturating_sub(FILE_MAGIC.len() as u64);
        if self.open.bytes_at(NAME, 0, 8)?[..6] != FILE_MAGIC[..]
            || self.open.bytes_at(NAME, end, 6)? != FILE_MAGIC
        {
            return Err(self.damaged(end, "an Arrow file ends in \"ARROW1\"; this one was cut"));
        }
        Ok(8)
    }

    /// The message at `at` without its body, and the offset of the body; `None` at the end.
    fn message(&mut self, at: u64) -> Result<Option<(Vec<u8>, u64)>, DataError> {
        if at == self.file.bytes {
            return Ok(None); // a stream may end without a mark
        }
        let mut word = |at| -> Result<u32, DataError> {
            let bytes = self.open.bytes_at(NAME, at, 4)?;
            Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let (length, start) = match word(at)? {
            u32::MAX => (word(at + 4)?, at + 8),
            length => (length, at + 4), // before Arrow 0.15
        };
        match u64::from(length) {
            0 => Ok(None),
            length if length > MAX_MESSAGE => {
                Err(self.damaged(at, format!("a message of {length} bytes")))
            }
            length => {
                let metadata = self.open.bytes_at(NAME, start, length)?;
                Ok(Some((metadata, start + length)))
            }
        }
    }

    /// Adds the rows of a record batch.
    fn batch(
        &mut self,
        builder: &mut MatrixBuilder<'_>,
        number: usize,
        batch: &RecordBatch<'_>,
        body: Span,
    ) -> Result<(), DataError> {
        if batch.compression().is_some() {
            let remedy = "write it uncompressed: feather.write_feather(..., compression=\"uncompressed\"), ipc.IpcWriteOptions(compression=None)";
            return Err(DataError::unsupported(
                &self.file.path,
                "a compressed Arrow file",
                remedy,
            ));
        }
        let columns = self.columns.take();
        let columns =
            columns.ok_or_else(|| self.damaged(body.offset, "rows come before the schema"))?;
        let walk = Walk {
            reader: self,
            batch,
            body,
            name: &columns.name,
        };
        let rows = walk.activations(builder, number, &columns)?;
        if let Some((place, integer)) = columns.labels {
            let walk = Walk {
                reader: self,
                batch,
                body,
                name: "label",
            };
            let node = walk.node(place, 0)?;
            let values = walk.buffer(place, 1)?;
            let bytes = (node as u64).checked_mul(integer.size() as u64);
            if bytes.is_none_or(|bytes| bytes > values.len) {
                return Err(self.damaged(values.offset, "labels are missing"));
            }
            let column = IntegerColumn {
                integer,
                offset: values.offset,
                count: node,
            };
            builder.labels(self.file, &column)?;
        }
        builder.named(&columns.name);
        self.rows += rows;
        self.columns = Some(columns);
        Ok(())
    }
}

/// One column of one record batch.
struct Walk<'a, 'b> {
    reader: &'a mut Reader<'b>,
    batch: &'a RecordBatch<'a>,
    body: Span,
    name: &'a str,
}

impl Walk<'_, '_> {
    /// Length of the column's `index`-th node; fails if it contains nulls.
    fn node(&self, place: Place, index: usize) -> Result<usize, DataError> {
        let nodes = self.batch.nodes();
        let node = nodes.filter(|nodes| place.node + index < nodes.len());
        let node = node.map(|nodes| *nodes.get(place.node + index));
        let node =
            node.ok_or_else(|| self.reader.damaged(self.body.offset, "a column is missing"))?;
        if node.null_count() != 0 {
            return Err(DataError::Null {
                path: self.reader.file.path.clone(),
                name: self.name.into(),
                row: self.reader.rows,
            });
        }
        usize::try_from(node.length())
            .map_err(|_| self.reader.damaged(self.body.offset, "a negative length"))
    }

    /// The column's `index`-th buffer.
    fn buffer(&self, place: Place, index: usize) -> Result<Span, DataError> {
        let damaged = |reason: &str| self.reader.damaged(self.body.offset, reason);
        let mut at = place.buffer + index;
        if place.views > 0 {
            let counts = self.batch.variadicBufferCounts();
            let counts = counts.filter(|counts| counts.len() >= place.views);
            let counts = counts.ok_or_else(|| damaged("counts of view buffers are missing"))?;
            for count in counts.iter().take(place.views) {
                let count = usize::try_from(count).map_err(|_| damaged("a negative count"))?;
                at = at
                    .checked_add(count)
                    .ok_or_else(|| damaged("too many view buffers"))?;
            }
        }
        let buffers = self.batch.buffers().filter(|buffers| at < buffers.len());
        let buffer = buffers.map(|buffers| *buffers.get(at));
        let buffer = buffer.ok_or_else(|| damaged("a buffer is missing"))?;
        let span = || {
            let offset = u64::try_from(buffer.offset()).ok()?;
            let len = u64::try_from(buffer.length()).ok()?;
            let inside = offset.checked_add(len)? <= self.body.len;
            let offset = self.body.offset + offset;
            inside.then_some(Span { offset, len })
        };
        span().ok_or_else(|| damaged("a buffer exceeds its message"))
    }

    /// The `n + 1` offsets of a list, checked to ascend and to be within its `elements` elements.
    fn offsets(
        &mut self,
        list: List,
        span: Span,
        n: usize,
        elements: usize,
    ) -> Result<Vec<usize>, DataError> {
        let size = match list {
            List::Fixed(size) => {
                let fits = n.checked_mul(size).is_some_and(|end| end <= elements);
                if !fits || n > elements {
                    return Err(self
                        .reader
                        .damaged(span.offset, "a list has too few elements"));
                }
                return Ok((0..=n).map(|i| i * size).collect());
            }
            List::Offsets32 => 4,
            List::Offsets64 => 8,
        };
        if n == 0 {
            return Ok(vec![0]);
        }
        let len = (n as u64).checked_add(1).and_then(|n| n.checked_mul(size));
        let len = len.filter(|len| *len <= span.len);
        let len = len.ok_or_else(|| self.reader.damaged(span.offset, "offsets are missing"))?;
        let bytes = self.reader.open.bytes_at(NAME, span.offset, len)?;
        let mut offsets = Vec::with_capacity(n + 1);
        match list {
            List::Offsets32 => Integer::I32.decode(&bytes, &mut offsets),
            _ => Integer::I64.decode(&bytes, &mut offsets),
        }
        let ascending = offsets[0] >= 0
            && offsets.windows(2).all(|pair| pair[0] <= pair[1])
            && offsets[n] as u64 <= elements as u64;
        if !ascending {
            return Err(self.reader.damaged(
                span.offset,
                "the offsets of a list do not ascend, or exceed its length",
            ));
        }
        Ok(offsets.into_iter().map(|offset| offset as usize).collect())
    }

    /// Adds the activations; returns the number of rows.
    fn activations(
        mut self,
        builder: &mut MatrixBuilder<'_>,
        number: usize,
        columns: &Columns,
    ) -> Result<usize, DataError> {
        let place = columns.place;
        // a validity buffer per list, then its offsets if it has any
        let (mut lengths, mut spans, mut buffer) = (Vec::new(), Vec::new(), 0);
        for (depth, list) in columns.lists.iter().enumerate() {
            lengths.push(self.node(place, depth)?);
            let fixed = matches!(list, List::Fixed(_));
            spans.push(self.buffer(place, buffer + usize::from(!fixed))?);
            buffer += if fixed { 1 } else { 2 };
        }
        let depth = columns.lists.len();
        let count = self.node(place, depth)?;
        let values = self.buffer(place, buffer + 1)?;
        let size = columns.element.size() as u64;
        // checked before anything of that length is allocated
        let bytes = (count as u64).checked_mul(size);
        if bytes.is_none_or(|bytes| bytes > values.len) {
            return Err(self.reader.damaged(values.offset, "values are missing"));
        }
        let (list, inner) = (columns.lists[depth - 1], lengths[depth - 1]);
        let rows = self.offsets(list, spans[depth - 1], inner, count)?;
        if inner == 0 {
            return Ok(0);
        }
        let width = self.width(list, &rows)?;
        builder.kind(number, columns.element, width)?;
        let place_of = |row: usize| values.offset + (rows[0] + row * width) as u64 * size;
        if depth == 1 {
            builder.rows(number, place_of(0), inner)?;
            return Ok(inner);
        }
        let examples = self.offsets(columns.lists[0], spans[0], lengths[0], inner)?;
        for example in examples.windows(2) {
            builder.example(number, place_of(example[0]), example[1] - example[0])?;
        }
        Ok(examples[lengths[0]] - examples[0])
    }

    /// The width that all rows have, whose offsets are `offsets`.
    fn width(&self, list: List, offsets: &[usize]) -> Result<usize, DataError> {
        let ragged = |row: usize, len, width| DataError::Ragged {
            path: self.reader.file.path.clone(),
            row: self.reader.rows + row,
            len,
            width,
        };
        let width = match list {
            List::Fixed(size) => size,
            _ => offsets[1] - offsets[0],
        };
        if width == 0 {
            return Err(ragged(0, 0, 1));
        }
        let lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]);
        match lengths.enumerate().find(|(_, len)| *len != width) {
            None => Ok(width),
            Some((row, len)) => Err(ragged(row, len, width)),
        }
    }
}
