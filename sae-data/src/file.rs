//! One safetensors file of activations `[rows, width]`, mapped into memory; rows come out as float32.
//!
//! The file is never read as a whole: opening it looks at the header, reading touches the rows asked for.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Name of the tensor with one class label a row, if the file has one.
const LABELS: &str = "labels";

/// Activations of one file, and their labels where it has them.
#[derive(Debug)]
pub struct ActivationFile {
    path: PathBuf,
    map: Mmap,
    name: String,
    rows: usize,
    width: usize,
    dtype: Dtype,
    data: Range<usize>,
    labels: Option<(Dtype, Range<usize>)>,
}

/// What identifies a data set without reading all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Path as configured.
    pub path: String,
    /// Name of the tensor.
    pub tensor: String,
    /// Element type in the file.
    pub dtype: String,
    /// Number of rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
    /// BLAKE3 of 256 evenly spaced rows, as they stand in the file.
    pub sample_blake3: String,
}

impl ActivationFile {
    /// Opens `path`; `tensor` names the activations, otherwise they are the only 2-D float tensor.
    ///
    /// # Errors
    /// [`DataError`] if the file is missing, damaged, or holds no such tensor.
    pub fn open(path: &Path, tensor: Option<&str>) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and private to this process. A file that another process
        // shortens while it is mapped can end this one with SIGBUS; it cannot make it compute on other
        // memory. Training data is written once and then read, so that is a risk of use, not of design.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let tensors = SafeTensors::deserialize(&map).map_err(|source| DataError::Safetensors {
            path: path.into(),
            source,
        })?;
        let name = match tensor {
            Some(name) => name.to_string(),
            None => only_candidate(path, &tensors)?,
        };
        let view = tensors.tensor(&name).map_err(|_| DataError::NoTensor {
            path: path.into(),
            name: name.clone(),
            available: describe(&tensors),
        })?;
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        if !is_float(dtype) {
            let expected = "f32, f16 and bf16";
            return Err(DataError::Dtype {
                path: path.into(),
                name,
                dtype,
                expected,
            });
        }
        let [rows, width] = shape[..] else {
            return Err(DataError::Shape {
                path: path.into(),
                name,
                shape,
            });
        };
        if rows == 0 || width == 0 {
            return Err(DataError::Shape {
                path: path.into(),
                name,
                shape,
            });
        }
        let data = span(&map, view.data());
        let labels = labels(path, &map, &tensors, rows)?;
        Ok(Self {
            path: path.into(),
            map,
            name,
            rows,
            width,
            dtype,
            data,
            labels,
        })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width d of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether the file has labels.
    pub fn has_labels(&self) -> bool {
        self.labels.is_some()
    }

    /// Reads one row as float32.
    ///
    /// # Panics
    /// If there is no such row or `out` does not have the width of one.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.width, "room for one row");
        convert(self.raw_row(row), self.dtype, out);
    }

    /// The bytes of one row, as they stand in the file.
    fn raw_row(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let bytes = self.width * self.dtype.bitsize() / 8;
        &self.map[self.data.clone()][row * bytes..][..bytes]
    }

    /// All rows in order, in blocks `[b, width]` of at most `block` rows.
    ///
    /// # Errors
    /// [`DataError::NonFinite`] at the first NaN or infinity: this is where data is checked.
    pub fn blocks(&self, block: usize) -> impl Iterator<Item = Result<Vec<f32>, DataError>> + '_ {
        (0..self.rows).step_by(block).map(move |start| {
            let end = (start + block).min(self.rows);
            let mut values = vec![0.0; (end - start) * self.width];
            for (row, out) in (start..end).zip(values.chunks_exact_mut(self.width)) {
                self.read_row(row, out);
            }
            match values.iter().position(|v| !v.is_finite()) {
                None => Ok(values),
                Some(at) => Err(DataError::NonFinite {
                    path: self.path.clone(),
                    row: start + at / self.width,
                    column: at % self.width,
                    value: values[at],
                }),
            }
        })
    }

    /// The class of a row, if the file has labels.
    ///
    /// # Errors
    /// [`DataError::Label`] if it is negative.
    pub fn label(&self, row: usize) -> Result<Option<usize>, DataError> {
        let Some((dtype, span)) = &self.labels else {
            return Ok(None);
        };
        let bytes = &self.map[span.clone()];
        let label = match dtype {
            Dtype::I64 => i64::from_le_bytes(word(bytes, row)),
            Dtype::I32 => i32::from_le_bytes(word(bytes, row)).into(),
            _ => bytes[row].into(),
        };
        let class = usize::try_from(label);
        class.map(Some).map_err(|_| DataError::Label {
            path: self.path.clone(),
            row,
            label,
        })
    }

    /// What identifies this data set.
    pub fn fingerprint(&self) -> Fingerprint {
        const SAMPLE: usize = 256;
        let mut hasher = blake3::Hasher::new();
        for i in 0..SAMPLE.min(self.rows) {
            hasher.update(self.raw_row(i * self.rows / SAMPLE.min(self.rows)));
        }
        Fingerprint {
            path: self.path.display().to_string(),
            tensor: self.name.clone(),
            dtype: format!("{:?}", self.dtype),
            rows: self.rows,
            width: self.width,
            sample_blake3: hasher.finalize().to_hex().to_string(),
        }
    }
}

/// Reads a small matrix whole: `(values, rows, width)`; class embeddings, say.
///
/// # Errors
/// As [`ActivationFile::open`] and [`ActivationFile::blocks`].
pub fn read_matrix(path: &Path) -> Result<(Vec<f32>, usize, usize), DataError> {
    let file = ActivationFile::open(path, None)?;
    let blocks: Result<Vec<_>, _> = file.blocks(file.rows()).collect();
    Ok((blocks?.concat(), file.rows(), file.width()))
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Names, types and shapes, for messages.
fn describe(tensors: &SafeTensors) -> String {
    let mut parts: Vec<String> = tensors
        .iter()
        .map(|(name, view)| format!("\"{name}\" {:?} {:?}", view.dtype(), view.shape()))
        .collect();
    parts.sort();
    if parts.is_empty() {
        "no tensors".into()
    } else {
        parts.join(", ")
    }
}

/// The only 2-D float tensor.
fn only_candidate(path: &Path, tensors: &SafeTensors) -> Result<String, DataError> {
    let candidates: Vec<&str> = tensors
        .iter()
        .filter(|(_, view)| is_float(view.dtype()) && view.shape().len() == 2)
        .map(|(name, _)| name)
        .collect();
    let available = describe(tensors);
    match candidates[..] {
        [name] => Ok(name.to_string()),
        [] => Err(DataError::NoActivations {
            path: path.into(),
            available,
        }),
        _ => Err(DataError::Ambiguous {
            path: path.into(),
            available,
        }),
    }
}

/// Where `data`, a part of `map`, lies in it.
fn span(map: &Mmap, data: &[u8]) -> Range<usize> {
    let start = data.as_ptr() as usize - map.as_ptr() as usize;
    start..start + data.len()
}

fn labels(
    path: &Path,
    map: &Mmap,
    tensors: &SafeTensors,
    rows: usize,
) -> Result<Option<(Dtype, Range<usize>)>, DataError> {
    let Ok(view) = tensors.tensor(LABELS) else {
        return Ok(None);
    };
    let name = LABELS.to_string();
    let dtype = view.dtype();
    if !matches!(dtype, Dtype::I64 | Dtype::I32 | Dtype::U8) {
        let expected = "labels in i64, i32 and u8";
        return Err(DataError::Dtype {
            path: path.into(),
            name,
            dtype,
            expected,
        });
    }
    let labels = view.shape().iter().product();
    if labels != rows {
        return Err(DataError::LabelCount {
            path: path.into(),
            name,
            labels,
            rows,
        });
    }
    Ok(Some((dtype, span(map, view.data()))))
}

/// The `index`-th little-endian word of `N` bytes.
fn word<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
    bytes.as_chunks::<N>().0[index]
}

/// Little-endian elements of a type that [`is_float`] accepts, as float32.
fn convert(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0;
            out.iter_mut()
                .zip(words)
                .for_each(|(o, w)| *o = f32::from_le_bytes(*w));
        }
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(values) => values.convert_to_f32_slice(out), // hardware conversion where there is one
            Err(_) => convert_words(bytes, out, |w| f16::from_le_bytes(w).to_f32()),
        },
        _ => match bytemuck::try_cast_slice::<u8, bf16>(bytes) {
            Ok(values) => values.convert_to_f32_slice(out),
            Err(_) => convert_words(bytes, out, |w| bf16::from_le_bytes(w).to_f32()),
        },
    }
}

/// Element by element, for data that is not aligned.
fn convert_words(bytes: &[u8], out: &mut [f32], to_f32: impl Fn([u8; 2]) -> f32) {
    let words = bytes.as_chunks::<2>().0;
    out.iter_mut().zip(words).for_each(|(o, w)| *o = to_f32(*w));
}
