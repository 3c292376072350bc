//! Where rows come from: the trait [`Source`], and a reader per format.
//!
//! [`open`] decides by content, not by name; `format.rs` has the table of file formats. `npy`, `safetensors`, `arrow`
//! and `saev` find the places of the values in the files, `parquet` finds them in columns that it decodes, and `matrix`
//! reads them from there.

mod arrow;
mod builder;
mod directory;
mod documents;
mod file;
mod format;
mod json;
mod matrix;
pub(crate) mod memory;
mod npy;
mod parquet;
mod saev;
mod safetensors;
mod table;
mod tokens;

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::element::Element;
use crate::error::DataError;
pub(crate) use directory::{INDEX, INDEX_FORMAT};
pub use directory::{ImageGrid, IndexedShard, ShardIndex};
pub use documents::Documents;
pub(crate) use file::ReadAt;
pub use file::SourceFile;
pub use format::formats;
pub(crate) use json::json;
pub(crate) use safetensors::has_document_ids;
pub(crate) use tokens::{RowInteger, RowIntegers};

use matrix::Matrix;

/// How to open a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tensor or column of the activations. Default: the only candidate.
    pub tensor: Option<String>,
    /// Number of the layer in `metadata.json`, for saev shards with several layers.
    pub layer: Option<i64>,
    /// Leave out the first row of each example: position 0, which often has a hundred times the norm of the others.
    pub drop_first_token: bool,
    /// A file of labels, one per row or one per example (`.npy`, or safetensors with one integer tensor).
    pub labels: Option<PathBuf>,
}

/// Description of a data set.
#[derive(Clone, Debug)]
pub struct Info {
    /// Path from which it was opened.
    pub path: PathBuf,
    /// Name of the format.
    pub format: &'static str,
    /// Its files, without files that hold only labels.
    pub files: Vec<SourceFile>,
    /// Element type in the files.
    pub element: Element,
    /// Number of rows N.
    pub rows: usize,
    /// Width d of a row.
    pub width: usize,
    /// Documents, if the data defines any.
    pub documents: Option<Documents>,
    /// Whether there are labels.
    pub labelled: bool,
    /// Name of the opened tensor or column, if it has a name.
    pub tensor: Option<String>,
    /// Number of the layer, if the data has layers.
    pub layer: Option<i64>,
    /// Whether the first row of each example is left out.
    pub drop_first_token: bool,
    /// Number of rows that are best read together, if it matters (four pages of Parquet).
    pub preferred_block: Option<usize>,
}

impl Info {
    /// A data set of `[rows, width]` without files, documents, labels or names.
    pub fn new(
        path: impl Into<PathBuf>,
        format: &'static str,
        element: Element,
        [rows, width]: [usize; 2],
    ) -> Self {
        Self {
            path: path.into(),
            format,
            files: Vec::new(),
            element,
            rows,
            width,
            documents: None,
            labelled: false,
            tensor: None,
            layer: None,
            drop_first_token: false,
            preferred_block: None,
        }
    }
}

/// A data set that can be read from any row on; implement it to read a format of your own
/// ([`ActivationData::from_source`](crate::ActivationData::from_source)).
pub trait Source: Debug + Send + Sync {
    /// Description of the data set.
    fn info(&self) -> &Info;

    /// Reads the rows of `pieces`, which ascend, as float32. The i-th of them goes to `out[i]`, or nowhere if that is
    /// `None`. `scratch` is memory that is reused from call to call.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read or have changed since they were opened.
    fn read(
        &self,
        pieces: &[Range<usize>],
        scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError>;

    /// The labels of the rows of `pieces`, which ascend, if there are any.
    ///
    /// # Errors
    /// As [`Source::read`].
    fn labels(&self, pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError>;
}

/// Opens a file or a directory.
pub(crate) fn open(path: &Path, options: &Options) -> Result<Matrix, DataError> {
    let metadata = std::fs::metadata(path).map_err(DataError::io(path))?;
    match metadata.is_dir() {
        true => directory::open(path, options),
        false => format::open_file(path, options),
    }
}
