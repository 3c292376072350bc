//! Where rows come from: one trait, and a reader for each format.
//!
//! [`open`] looks at what is there, not at its name. `npy`, `safetensors`, `arrow` and `saev` find out where in
//! the files the values lie and hand that to `matrix`, which reads them from there; `parquet` has to decode.

mod arrow;
mod directory;
mod documents;
mod file;
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
use matrix::{IntegerColumn, MatrixBuilder};

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

/// A data set that can be read from anywhere in it.
pub(crate) trait Source: Debug + Send + Sync {
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

/// The formats of single files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Npy,
    Safetensors,
    Arrow,
    Parquet,
}

/// The key that chooses among the tensors of a data set.
pub(crate) const TENSOR: &str = "data.tensor";

/// What the first bytes of a file say.
enum Sniffed {
    Is(Kind),
    /// Something else, and what to do about it.
    Other(&'static str),
    Unknown,
}

fn sniff(file: &SourceFile) -> Result<Sniffed, DataError> {
    let mut head = [0; 16];
    let len = file.bytes.min(16) as usize;
    let mut open = file.open()?;
    open.read_at(0, &mut head[..len])?;
    let header = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
    let json_header = || len > 8 && head[8] == b'{' || len == 8 && header > 0;
    let extension = file.path.extension().and_then(|e| e.to_str()).unwrap_or("");
    Ok(match &head[..len] {
        [0x93, b'N', b'U', b'M', ..] => Sniffed::Is(Kind::Npy),
        [b'P', b'A', b'R', b'1', ..] => Sniffed::Is(Kind::Parquet),
        [b'A', b'R', b'R', b'O', b'W', ..] => Sniffed::Is(Kind::Arrow),
        [0xff, 0xff, 0xff, 0xff, ..] => Sniffed::Is(Kind::Arrow),
        [b'P', b'K', 3, 4, ..] => Sniffed::Other(
            "a zip archive, as torch.save and np.savez write them; save the tensor with safetensors or np.save",
        ),
        [0x80, 2..=5, ..] if !safetensors::begins(file, &mut open, &head[..len])? => {
            Sniffed::Other(
                "a pickle, which is never read; save the tensor with safetensors or np.save",
            )
        }
        _ if json_header() => Sniffed::Is(Kind::Safetensors),
        // too damaged to be known by its content: let the reader of its name say what is wrong
        _ => match extension {
            "npy" => Sniffed::Is(Kind::Npy),
            "safetensors" => Sniffed::Is(Kind::Safetensors),
            "arrow" | "feather" => Sniffed::Is(Kind::Arrow),
            "parquet" => Sniffed::Is(Kind::Parquet),
            _ => Sniffed::Unknown,
        },
    })
}

/// Opens a file or a directory.
pub(crate) fn open(path: &Path, options: &Options) -> Result<Box<dyn Source>, DataError> {
    let metadata = std::fs::metadata(path).map_err(DataError::io(path))?;
    if metadata.is_dir() {
        return directory::open(path, options);
    }
    let file = SourceFile::stat(path)?;
    let reason = match sniff(&file)? {
        Sniffed::Is(kind) => return files(path, kind, vec![file], Parts::Each, options),
        Sniffed::Other(what) => format!("it is {what}"),
        Sniffed::Unknown => "its first bytes are those of no format".into(),
    };
    let path = path.to_path_buf();
    Err(DataError::NotRecognised { path, reason })
}

/// Adds a file to a data set; the name is that of the wanted tensor or column.
type Add = fn(&mut MatrixBuilder<'_>, SourceFile, Option<&str>) -> Result<(), DataError>;

/// What the files of a data set are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    /// Each has documents of its own: that ids in two of them are the same means nothing.
    Each,
    /// One data set that was cut, within a document perhaps.
    OfOne,
}

/// Opens files of one kind as one data set.
fn files(
    path: &Path,
    kind: Kind,
    files: Vec<SourceFile>,
    parts: Parts,
    options: &Options,
) -> Result<Box<dyn Source>, DataError> {
    if let Some(layer) = options.layer {
        return Err(useless(path, "data.layer", layer.to_string(), "layers"));
    }
    if let Some(tensor) = options.tensor.as_ref().filter(|_| kind == Kind::Npy) {
        return Err(useless(path, TENSOR, format!("{tensor:?}"), "tensors"));
    }
    let (format, add): (_, Add) = match kind {
        Kind::Npy => (npy::FORMAT, npy::add),
        Kind::Safetensors => (safetensors::FORMAT, safetensors::add),
        Kind::Arrow => (arrow::FORMAT, arrow::add),
        Kind::Parquet => return Ok(Box::new(parquet::Parquet::open(path, files, options)?)),
    };
    let mut builder = MatrixBuilder::new(path, format, options);
    if parts == Parts::OfOne {
        builder.documents_go_on();
    }
    for file in files {
        add(&mut builder, file, options.tensor.as_deref())?;
    }
    Ok(Box::new(builder.finish()?))
}

/// The error of an option that chooses among what there is not in this format.
fn useless(path: &Path, key: &'static str, value: String, what: &str) -> DataError {
    let remedy = format!(
        "{} has no {what} to choose from; leave it out",
        path.display()
    );
    DataError::Option { key, value, remedy }
}

/// The only candidate for the activations, all of which bear the wanted name if there is one.
fn only<T>(
    path: &Path,
    noun: &'static str,
    wanted: Option<&str>,
    mut candidates: Vec<T>,
    available: String,
) -> Result<T, DataError> {
    let path = path.to_path_buf();
    match (candidates.pop(), wanted) {
        (Some(candidate), _) if candidates.is_empty() => Ok(candidate),
        (Some(_), _) => Err(DataError::Ambiguous {
            path,
            noun,
            available,
        }),
        (None, Some(name)) => Err(DataError::NoTensor {
            path,
            noun,
            name: name.into(),
            available,
        }),
        (None, None) => Err(DataError::NoActivations {
            path,
            noun,
            available,
        }),
    }
}

/// The labels in a file of their own.
fn label_file(file: &SourceFile) -> Result<IntegerColumn, DataError> {
    match sniff(file)? {
        Sniffed::Is(Kind::Npy) => npy::label_column(file),
        Sniffed::Is(Kind::Safetensors) => safetensors::label_column(file),
        _ => Err(DataError::unsupported(
            &file.path,
            "this kind of label file",
            "save labels with np.save or safetensors, as i64, i32 or u8",
        )),
    }
}
