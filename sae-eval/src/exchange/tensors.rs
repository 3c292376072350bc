//! The tensors of a foreign safetensors file, by name, as float32. What is not asked for by name and shape is an error.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::error::ForeignError;

/// The bytes of a file; a pickle under the name of a safetensors file is named as one.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, ForeignError> {
    let is_file = fs::metadata(path)
        .map_err(ForeignError::io(path))?
        .is_file();
    if !is_file {
        let reason = std::io::Error::other("this is not a file");
        return Err(ForeignError::io(path)(reason));
    }
    let bytes = fs::read(path).map_err(ForeignError::io(path))?;
    let zip = bytes.starts_with(b"PK\x03\x04");
    let pickle = matches!(bytes.as_slice(), [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{');
    match zip || pickle {
        true => Err(ForeignError::Pickle {
            path: path.into(),
            dir: path.parent().unwrap_or(path).into(),
        }),
        false => Ok(bytes),
    }
}

/// Tensors that have not been taken yet.
pub(super) struct Tensors<'a> {
    file: SafeTensors<'a>,
    path: &'a Path,
    left: BTreeSet<String>,
}

impl<'a> Tensors<'a> {
    /// The tensors in `bytes`, the content of `path`. Header and size of the file are compared first.
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Result<Self, ForeignError> {
        let file = SafeTensors::deserialize(bytes).map_err(|source| ForeignError::Safetensors {
            path: path.into(),
            source,
        })?;
        let left = file.names().into_iter().map(String::from).collect();
        Ok(Self { file, path, left })
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    /// Takes the tensor of this name and shape.
    pub(super) fn take(&mut self, name: &str, dims: &[usize]) -> Result<Vec<f32>, ForeignError> {
        let Ok(view) = self.file.tensor(name) else {
            return Err(ForeignError::Missing {
                path: self.path.into(),
                name: name.into(),
            });
        };
        let values = match view.shape() == dims {
            true => as_f32(&view),
            false => None,
        };
        let values = values.ok_or_else(|| ForeignError::WrongTensor {
            path: self.path.into(),
            name: name.into(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            expected: dims.to_vec(),
        })?;
        self.left.remove(name);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(position) => Err(ForeignError::NonFinite {
                path: self.path.into(),
                name: name.into(),
                position,
                value: values[position],
            }),
        }
    }

    /// Fails if there is a tensor that was not taken.
    pub(super) fn finish(self) -> Result<(), ForeignError> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some(name) => Err(ForeignError::Unexpected {
                path: self.path.into(),
                name,
            }),
        }
    }
}

/// The values as float32; none if they are not of a type of floating point that weights have.
fn as_f32(view: &TensorView) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => words(data, f32::from_le_bytes).collect(),
        Dtype::F64 => words(data, |word| f64::from_le_bytes(word) as f32).collect(),
        Dtype::F16 => words(data, |word| f16::from_le_bytes(word).to_f32()).collect(),
        Dtype::BF16 => words(data, |word| bf16::from_le_bytes(word).to_f32()).collect(),
        _ => return None,
    })
}

fn words<'a, const N: usize>(
    data: &'a [u8],
    value: impl Fn([u8; N]) -> f32 + 'a,
) -> impl Iterator<Item = f32> + 'a {
    data.as_chunks::<N>().0.iter().map(move |word| value(*word))
}

/// A safetensors file of float32 tensors: name, shape, values.
pub(super) fn file_of(
    tensors: &[(&str, Vec<usize>, &[f32])],
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (*name, view))
        })
        .collect();
    let metadata = [("format".to_string(), "pt".to_string())]; // what torch's loaders look for
    safetensors::serialize(views?, Some(metadata.into()))
}

/// `[rows, columns]` as `[columns, rows]`.
pub(super) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32; // of both, so that neither side is read or written across the whole matrix
    let mut turned = vec![0.0; values.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for i in row..(row + TILE).min(rows) {
                for j in column..(column + TILE).min(columns) {
                    turned[j * rows + i] = values[i * columns + j];
                }
            }
        }
    }
    turned
}
