//! Where rows come from: the trait [`Source`], and a reader per format.
//!
//! [`open`] decides by content, not by name; `format.rs` has the table of file formats. `npy`, `safetensors`, `arrow`
//! and `saev` find the places of the values in the files, and `matrix` reads them from there; `parquet` decodes.

mod arrow;
mod builder;
mod directory;
mod documents;
mod file;
mod format;
mod json;
mod matrix;
mod npy;
mod parquet;
mod saev;
mod safetensors;
mod table;

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::element::Element;
use crate::error::DataError;
pub(crate) use directory::{INDEX, INDEX_FORMAT};
pub use directory::{IndexedShard, ShardIndex};
pub use documents::Documents;
pub use file::SourceFile;
pub use format::formats;

/// What a user may say about a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tensor or column of the activations; default: the only one that can be.
    pub tensor: Option<String>,
    /// The layer, by its number in `metadata.json`, where saev shards have several.
    pub layer: Option<i64>,
    /// Leave out the first row of each example: position 0, whose norm is often a hundred times the others'.
    pub drop_first_token: bool,
    /// A file of labels, one a row or one an example (`.npy`, or safetensors with one integer tensor).
    pub labels: Option<PathBuf>,
}

/// What a data set is.
#[derive(Clone, Debug)]
pub struct Info {
    /// As it was opened.
    pub path: PathBuf,
    /// Name of the format.
    pub format: &'static str,
    /// Its files; not those that have nothing but labels.
    pub files: Vec<SourceFile>,
    /// Element type in the files.
    pub element: Element,
    /// Number of rows N.
    pub rows: usize,
    /// Width d of a row.
    pub width: usize,
    /// Documents, where the data tells of them.
    pub documents: Option<Documents>,
    /// Whether there are labels.
    pub labelled: bool,
    /// Name of the tensor or column that was opened, where it has a name.
    pub tensor: Option<String>,
    /// Number of the layer, where the data has layers.
    pub layer: Option<i64>,
    /// Whether the first row of each example is left out.
    pub drop_first_token: bool,
    /// Rows that are best read together, where that matters (four pages of Parquet).
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
    /// What it is.
    fn info(&self) -> &Info;

    /// Reads the rows of `pieces`, which ascend, as float32, each into its place in `out`, if it has one. `scratch`
    /// saves allocations from call to call.
    ///
    /// # Errors
    /// [`DataError`] if the files cannot be read, or are no longer what they were.
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
pub(crate) fn open(path: &Path, options: &Options) -> Result<Box<dyn Source>, DataError> {
    let metadata = std::fs::metadata(path).map_err(DataError::io(path))?;
    match metadata.is_dir() {
        true => directory::open(path, options),
        false => format::open_file(path, options),
    }
}
