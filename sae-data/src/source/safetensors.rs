//! safetensors: a JSON header with names, types, shapes and offsets, then the values.

use ::safetensors::tensor::{Metadata, TensorInfo};
use ::safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::Info;
use super::builder::MatrixBuilder;
use super::file::{OpenFile, ReadAt, SourceFile};
use super::format::{Format, only};
use super::matrix::{Integer, IntegerColumn};
use super::tokens::{Found, RowInteger};
use crate::element::Element;
use crate::error::DataError;

const NAME: &str = "safetensors";

pub(super) static FORMAT: Format = Format {
    name: NAME,
    about: "safetensors",
    recognises: Some(recognises),
    extensions: &["safetensors"],
    add,
    labels: Some(label_column),
    row_integers: Some(row_integers),
    ..Format::UNNAMED
};

/// Names of tensors that are not activations.
const LABELS: &str = "labels";
const DOCUMENTS: &str = "doc";

/// Limit of the crate safetensors.
const MAX_HEADER: u64 = 100_000_000;

/// Whether the first bytes `head` are a length and the start of a JSON object, and not those of a pickle.
fn recognises(file: &SourceFile, open: &mut OpenFile<'_>, head: &[u8]) -> Result<bool, DataError> {
    if let [0x80, 2..=5, ..] = head {
        return is_no_pickle(file, open, head);
    }
    let empty = head.len() == 8 && head != [0; 8]; // a length, and nothing behind it
    Ok(empty || head.get(8) == Some(&b'{'))
}

/// Whether a file that begins like a pickle is safetensors.
///
/// A safetensors file begins with the length of its header, so its first two bytes can have any value: a header of 640
/// bytes begins like a pickle of protocol 2. A pickle may have `{` where the header would begin, but then the eight bytes
/// before it are not a length at which an object ends within the file. For a truncated file the name decides.
fn is_no_pickle(
    file: &SourceFile,
    open: &mut OpenFile<'_>,
    head: &[u8],
) -> Result<bool, DataError> {
    let Some((len, [b'{', rest @ ..])) = head.split_first_chunk() else {
        return Ok(false);
    };
    let len = u64::from_le_bytes(*len);
    let space = |byte: &u8| byte.is_ascii_whitespace();
    let object = rest
        .first()
        .is_none_or(|byte| space(byte) || matches!(byte, b'"' | b'}'));
    if len > MAX_HEADER || !object {
        return Ok(false);
    }
    let Some(last) = len.checked_add(7).filter(|last| *last < file.bytes) else {
        return Ok(file
            .path
            .extension()
            .is_some_and(|name| name == "safetensors"));
    };
    let mut end = [0];
    open.read_at(last, &mut end)?;
    Ok(end[0] == b'}' || space(&end[0]))
}

/// Adds a file of activations, with its labels and document ids.
fn add(
    builder: &mut MatrixBuilder<'_>,
    file: &SourceFile,
    tensor: Option<&str>,
) -> Result<(), DataError> {
    let header = Header::read(file)?;
    let (name, info) = header.activations(file, tensor)?;
    let element = match info.dtype {
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        other => return Err(wrong_type(file, &name, other, "f32, f16 and bf16")),
    };
    let documents = match header.integers(file, DOCUMENTS)? {
        Some(column) if info.shape.len() == 2 => Some(column.read(file, NAME)?),
        _ => None,
    };
    let labels = header.integers(file, LABELS)?;
    let store = builder.file(file);
    let (shape, offset) = (&info.shape, header.place(info).0);
    let documents = documents.as_deref();
    builder.tensor(store, &name, element, shape, offset, documents)?;
    builder.info.tensor.get_or_insert(name);
    if let Some(labels) = labels {
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let (count, examples) = (labels.count, (shape.len() == 3).then_some(shape[0]));
        if count != rows && Some(count) != examples {
            return Err(DataError::label_count(&file.path, count, rows, examples));
        }
        builder.labels(store, &labels)?;
    }
    Ok(())
}

/// The labels in a file that holds nothing else: the tensor `labels`, or the only tensor of integers.
fn label_column(file: &SourceFile) -> Result<IntegerColumn, DataError> {
    let header = Header::read(file)?;
    if let Some(column) = header.integers(file, LABELS)? {
        return Ok(column);
    }
    let mut columns = header
        .tensors
        .keys()
        .filter_map(|name| header.integers(file, name).ok()?);
    match (columns.next(), columns.next()) {
        (Some(column), None) => Ok(column),
        _ => {
            let available = header.describe();
            let reason = format!("there is no tensor \"{LABELS}\"; the file has {available}");
            Err(DataError::unusable(&file.path, reason))
        }
    }
}

/// The integers per row in a file of activations, if it has a tensor of integers for them.
fn row_integers(
    file: &SourceFile,
    info: &Info,
    kind: RowInteger,
) -> Result<Option<Found>, DataError> {
    let header = Header::read(file)?;
    let Some(column) = header.integers_if_any(file, kind.tensor()) else {
        return Ok(None);
    };
    let named = header.activations(file, info.tensor.as_deref());
    let (_, activations) = named.or_else(|_| header.activations(file, None))?;
    let shape = &activations.shape;
    let rows: usize = shape[..shape.len().saturating_sub(1)].iter().product();
    if column.count != rows {
        return Err(DataError::Meanings {
            path: file.path.clone(),
            what: kind.tensor(),
            entries: column.count,
            rows,
            documents: None,
        });
    }
    Ok(Some(Found::in_file(file, vec![column], None)))
}

/// The tensor of integers `name` in a file that need not have activations.
pub(super) fn integers_alone(
    file: &SourceFile,
    name: &str,
) -> Result<Option<IntegerColumn>, DataError> {
    Ok(Header::read(file)?.integers_if_any(file, name))
}

/// Whether the documents of a data set are ids in a tensor, and not examples of consecutive tokens.
pub(crate) fn has_document_ids(info: &Info) -> Result<bool, DataError> {
    match info.files.first().filter(|_| info.format == NAME) {
        Some(file) => Ok(Header::read(file)?
            .integers_if_any(file, DOCUMENTS)
            .is_some()),
        None => Ok(false),
    }
}

fn wrong_type(file: &SourceFile, name: &str, dtype: Dtype, expected: &str) -> DataError {
    DataError::wrong_type(&file.path, name, format!("{dtype:?}"), expected)
}

/// The header of a complete file.
struct Header {
    tensors: std::collections::BTreeMap<String, TensorInfo>,
    /// Byte at which the values start.
    data: u64,
}

impl Header {
    fn read(file: &SourceFile) -> Result<Self, DataError> {
        let damaged = |offset, reason: String| DataError::damaged(&file.path, NAME, offset, reason);
        let mut open = file.open()?;
        let len = open.bytes_at(NAME, 0, 8)?;
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes"));
        if len > MAX_HEADER {
            return Err(damaged(
                0,
                format!("a header of {len} bytes; there may be {MAX_HEADER}"),
            ));
        }
        let bytes = open.bytes_at(NAME, 0, 8 + len)?;
        // The crate expects the whole file; missing values are the last error that it checks for.
        match SafeTensors::read_metadata(&bytes) {
            Ok(_) | Err(SafeTensorError::MetadataIncompleteBuffer) => {}
            Err(error) => return Err(damaged(8, error.to_string())),
        }
        let metadata: Metadata =
            serde_json::from_slice(&bytes[8..]).map_err(|error| damaged(8, error.to_string()))?;
        let data = 8 + len;
        let tensors: std::collections::BTreeMap<String, TensorInfo> = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        let end = tensors
            .values()
            .map(|info| info.data_offsets.1 as u64)
            .max()
            .unwrap_or(0);
        if data.checked_add(end) != Some(file.bytes) {
            let reason = format!(
                "{end} bytes should follow from here, but the file ends at byte {}",
                file.bytes
            );
            return Err(damaged(data, reason));
        }
        Ok(Self { tensors, data })
    }

    /// Offset and number of bytes.
    fn place(&self, info: &TensorInfo) -> (u64, usize) {
        let (start, end) = info.data_offsets;
        (self.data + start as u64, end - start)
    }

    /// The named tensor, or the only 2-D float tensor, or else the only 3-D one.
    fn activations(
        &self,
        file: &SourceFile,
        name: Option<&str>,
    ) -> Result<(String, &TensorInfo), DataError> {
        let of_rank = |rank| {
            self.tensors.iter().filter(move |(_, info)| {
                matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
                    && info.shape.len() == rank
            })
        };
        let candidates: Vec<_> = match name {
            Some(name) => self.tensors.get_key_value(name).into_iter().collect(),
            None if of_rank(2).count() == 0 => of_rank(3).collect(),
            None => of_rank(2).collect(),
        };
        let (name, info) = only(&file.path, "tensor", name, candidates, self.describe())?;
        Ok((name.clone(), info))
    }

    /// The integer tensor of this name, if there is one, flattened.
    fn integers(&self, file: &SourceFile, name: &str) -> Result<Option<IntegerColumn>, DataError> {
        let Some(info) = self.tensors.get(name) else {
            return Ok(None);
        };
        let integer = match info.dtype {
            Dtype::I64 => Integer::I64,
            Dtype::I32 => Integer::I32,
            Dtype::U8 => Integer::U8,
            other => return Err(wrong_type(file, name, other, "integers in i64, i32 and u8")),
        };
        let (offset, bytes) = self.place(info);
        let count = bytes / integer.size();
        Ok(Some(IntegerColumn {
            integer,
            offset,
            count,
        }))
    }

    /// The tensor of this name, if there is one of integers; another tensor may have the name by chance.
    fn integers_if_any(&self, file: &SourceFile, name: &str) -> Option<IntegerColumn> {
        self.integers(file, name).ok().flatten()
    }

    /// Names, types and shapes, for messages.
    fn describe(&self) -> String {
        let part = |(name, info): (&String, &TensorInfo)| {
            format!("\"{name}\" {:?} {:?}", info.dtype, info.shape)
        };
        match self.tensors.is_empty() {
            true => "no tensors".into(),
            false => self.tensors.iter().map(part).collect::<Vec<_>>().join(", "),
        }
    }
}
