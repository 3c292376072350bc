//! Arrow IPC, streams and files: what Hugging Face `datasets`, and so SAELens' activation cache, write.
//!
//! Opening reads only the messages, with the view that `arrow-ipc` generates, and the offsets of lists. They give the
//! places of the values in the file. Columns before the activations are skipped by the number of buffers of their types.

mod schema;
mod tokens;

use arrow_ipc::{RecordBatch, root_as_message};

use schema::{Columns, List, Place, columns};

use super::builder::MatrixBuilder;
use super::file::{OpenFile, SourceFile, Store};
use super::format::Format;
use super::matrix::IntegerColumn;
use crate::error::DataError;

const NAME: &str = "Arrow";

pub(super) static FORMAT: Format = Format {
    name: NAME,
    about: "Arrow (SAELens' activation caches, Hugging Face datasets)",
    magic: &[b"ARROW", STREAM_MAGIC],
    extensions: &["arrow", "feather"],
    add,
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
    file: &SourceFile,
    column: Option<&str>,
) -> Result<(), DataError> {
    let store = builder.file(file);
    let mut open = file.open()?;
    let (mut found, mut rows) = (None, 0);
    let mut at = start(file, &mut open)?;
    while let Some((metadata, body)) = message(file, &mut open, at)? {
        let damaged = |reason: String| DataError::damaged(&file.path, NAME, at, reason);
        let message = root_as_message(&metadata).map_err(|error| damaged(error.to_string()))?;
        let len = u64::try_from(message.bodyLength());
        let len = len.map_err(|_| damaged("a negative length".into()))?;
        file.check_span(NAME, body, len)?;
        if let Some(schema) = message.header_as_schema() {
            found = Some(columns(file, &schema, column)?);
        } else if let Some(batch) = message.header_as_record_batch() {
            let columns = found.as_ref();
            let batch = Batch {
                file,
                batch,
                body: Span { offset: body, len },
                columns: columns.ok_or_else(|| damaged("rows come before the schema".into()))?,
                first_row: rows,
            };
            rows += batch.add(builder, store, &mut open)?;
        } // or a dictionary of another column
        at = body + len;
    }
    let missing = || DataError::damaged(&file.path, NAME, 0, "there is no schema");
    let columns = found.ok_or_else(missing)?;
    builder.info.tensor.get_or_insert(columns.name);
    Ok(())
}

/// Offset of the first message: 0 in a stream, behind the magic in a file, which must also end with the magic.
fn start(file: &SourceFile, open: &mut OpenFile<'_>) -> Result<u64, DataError> {
    if open.bytes_at(NAME, 0, 4)? != FILE_MAGIC[..4] {
        return Ok(0);
    }
    let end = file.bytes.saturating_sub(FILE_MAGIC.len() as u64);
    if open.bytes_at(NAME, 0, 8)?[..6] != FILE_MAGIC[..]
        || open.bytes_at(NAME, end, 6)? != FILE_MAGIC
    {
        let reason = "an Arrow file ends in \"ARROW1\"; this one was cut";
        return Err(DataError::damaged(&file.path, NAME, end, reason));
    }
    Ok(8)
}

/// The message at `at` without its body, and the offset of the body; `None` at the end.
fn message(
    file: &SourceFile,
    open: &mut OpenFile<'_>,
    at: u64,
) -> Result<Option<(Vec<u8>, u64)>, DataError> {
    if at == file.bytes {
        return Ok(None); // a stream may end without a mark
    }
    let mut word = |at| -> Result<u32, DataError> {
        let bytes = open.bytes_at(NAME, at, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (len, start) = match word(at)? {
        u32::MAX => (word(at + 4)?, at + 8),
        len => (len, at + 4), // before Arrow 0.15
    };
    match u64::from(len) {
        0 => Ok(None),
        len if len <= MAX_MESSAGE => Ok(Some((open.bytes_at(NAME, start, len)?, start + len))),
        len => {
            let reason = format!("a message of {len} bytes");
            Err(DataError::damaged(&file.path, NAME, at, reason))
        }
    }
}

/// A record batch.
struct Batch<'a> {
    file: &'a SourceFile,
    batch: RecordBatch<'a>,
    body: Span,
    columns: &'a Columns,
    /// Number of its first row in the file, for messages.
    first_row: usize,
}

impl Batch<'_> {
    /// Adds its rows and labels; returns the number of rows.
    fn add(
        &self,
        builder: &mut MatrixBuilder<'_>,
        store: usize,
        open: &mut OpenFile<'_>,
    ) -> Result<usize, DataError> {
        if self.batch.compression().is_some() {
            let remedy = "write it uncompressed: feather.write_feather(..., compression=\"uncompressed\"), \
                          ipc.IpcWriteOptions(compression=None)";
            let what = "a compressed Arrow file";
            return Err(DataError::unsupported(&self.file.path, what, remedy));
        }
        let rows = self.activations(builder, store, open)?;
        if let Some((place, integer)) = self.columns.labels {
            let count = self.node(place, 0, "label")?;
            let values = self.buffer(place, 1)?;
            self.check_length(values, count, integer.size(), "labels are missing")?;
            let offset = values.offset;
            let column = IntegerColumn {
                integer,
                offset,
                count,
            };
            builder.labels(store, &column)?;
        }
        Ok(rows)
    }

    fn damaged(&self, offset: u64, reason: &str) -> DataError {
        DataError::damaged(&self.file.path, NAME, offset, reason)
    }

    /// Fails unless `count` elements of `size` bytes fit into `span`; called before anything of that length is allocated.
    fn check_length(
        &self,
        span: Span,
        count: usize,
        size: usize,
        reason: &str,
    ) -> Result<(), DataError> {
        match (count as u64).checked_mul(size as u64) {
            Some(bytes) if bytes <= span.len => Ok(()),
            _ => Err(self.damaged(span.offset, reason)),
        }
    }

    /// Length of the `index`-th node of the column `name` at `place`; fails if it contains nulls.
    fn node(&self, place: Place, index: usize, name: &str) -> Result<usize, DataError> {
        let damaged = |reason| self.damaged(self.body.offset, reason);
        let nodes = self.batch.nodes();
        let nodes = nodes.filter(|nodes| place.node + index < nodes.len());
        let nodes = nodes.ok_or_else(|| damaged("a column is missing"))?;
        let node = nodes.get(place.node + index);
        if node.null_count() != 0 {
            return Err(DataError::null(&self.file.path, name, self.first_row));
        }
        usize::try_from(node.length()).map_err(|_| damaged("a negative length"))
    }

    /// The `index`-th buffer of the column at `place`.
    fn buffer(&self, place: Place, index: usize) -> Result<Span, DataError> {
        let find = || {
            let mut at = place.buffer + index;
            if place.views > 0 {
                let counts = self.batch.variadicBufferCounts()?;
                for view in 0..place.views {
                    let count = (view < counts.len()).then(|| counts.get(view))?;
                    at = at.checked_add(usize::try_from(count).ok()?)?;
                }
            }
            let buffers = self.batch.buffers().filter(|buffers| at < buffers.len())?;
            let buffer = buffers.get(at);
            let offset = u64::try_from(buffer.offset()).ok()?;
            let len = u64::try_from(buffer.length()).ok()?;
            let inside = offset.checked_add(len)? <= self.body.len;
            let offset = self.body.offset + offset;
            inside.then_some(Span { offset, len })
        };
        let reason = "a buffer is missing, or exceeds its message";
        find().ok_or_else(|| self.damaged(self.body.offset, reason))
    }

    /// The `n + 1` offsets of a list, checked to ascend and to be within its `elements` elements.
    fn offsets(
        &self,
        open: &mut OpenFile<'_>,
        (list, span): (List, Span),
        n: usize,
        elements: usize,
    ) -> Result<Vec<usize>, DataError> {
        let damaged = |reason| self.damaged(span.offset, reason);
        let integer = match list {
            List::Fixed(size) => {
                let fits = n.checked_mul(size).is_some_and(|end| end <= elements);
                return match fits && n <= elements {
                    true => Ok((0..=n).map(|i| i * size).collect()),
                    false => Err(damaged("a list has too few elements")),
                };
            }
            List::Offsets(integer) => integer,
        };
        if n == 0 {
            return Ok(vec![0]);
        }
        self.check_length(
            span,
            n.saturating_add(1),
            integer.size(),
            "offsets are missing",
        )?;
        let len = (n + 1) * integer.size();
        let bytes = open.bytes_at(NAME, span.offset, len as u64)?;
        let mut offsets = Vec::with_capacity(n + 1);
        integer.decode(&bytes, &mut offsets);
        if offsets[0] < 0 || !offsets.is_sorted() || offsets[n] as u64 > elements as u64 {
            let reason = "the offsets of a list do not ascend, or exceed its length";
            return Err(damaged(reason));
        }
        Ok(offsets.into_iter().map(|offset| offset as usize).collect())
    }

    /// Adds the activations; returns the number of rows.
    fn activations(
        &self,
        builder: &mut MatrixBuilder<'_>,
        store: usize,
        open: &mut OpenFile<'_>,
    ) -> Result<usize, DataError> {
        let Columns {
            name, place, lists, ..
        } = self.columns;
        // a validity buffer per list, then its offsets if it has any
        let (mut lengths, mut spans, mut buffer) = (Vec::new(), Vec::new(), 0);
        for (depth, list) in lists.iter().enumerate() {
            lengths.push(self.node(*place, depth, name)?);
            let offsets = usize::from(!matches!(list, List::Fixed(_)));
            spans.push((*list, self.buffer(*place, buffer + offsets)?));
            buffer += 1 + offsets;
        }
        let depth = lists.len();
        let count = self.node(*place, depth, name)?;
        let values = self.buffer(*place, buffer + 1)?;
        let size = self.columns.element.size();
        self.check_length(values, count, size, "values are missing")?;
        let inner = lengths[depth - 1];
        let rows = self.offsets(open, spans[depth - 1], inner, count)?;
        if inner == 0 {
            return Ok(0);
        }
        let width = self.width(lists[depth - 1], &rows)?;
        builder.kind(store, self.columns.element, width)?;
        let place_of = |row: usize| values.offset + ((rows[0] + row * width) * size) as u64;
        if depth == 1 {
            builder.rows(store, place_of(0), inner)?;
            return Ok(inner);
        }
        let examples = self.offsets(open, spans[0], lengths[0], inner)?;
        for example in examples.windows(2) {
            builder.example(store, place_of(example[0]), example[1] - example[0])?;
        }
        Ok(examples[lengths[0]] - examples[0])
    }

    /// The width that all rows have, whose offsets are `offsets`.
    fn width(&self, list: List, offsets: &[usize]) -> Result<usize, DataError> {
        let width = match list {
            List::Fixed(size) => size,
            List::Offsets(_) => offsets[1] - offsets[0],
        };
        let mut lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]);
        let (row, len) = match lengths.position(|len| len != width) {
            _ if width == 0 => (0, 0),
            None => return Ok(width),
            Some(row) => (row, offsets[row + 1] - offsets[row]),
        };
        let row = self.first_row + row;
        Err(DataError::ragged(&self.file.path, row, len, width.max(1)))
    }
}
