//! The file formats, in one table: a new format is a file beside this one and an entry in [`FORMATS`].

use std::path::Path;

use super::builder::MatrixBuilder;
use super::file::{OpenFile, ReadAt, SourceFile};
use super::matrix::{IntegerColumn, Matrix};
use super::tokens::FindRowIntegers;
use super::{Options, arrow, directory, npy, parquet, safetensors};
use crate::error::DataError;

/// All formats of single files, in the order of help texts.
static FORMATS: [&Format; 4] = [
    &npy::FORMAT,
    &safetensors::FORMAT,
    &arrow::FORMAT,
    &parquet::FORMAT,
];

/// One file format. Content decides: first the magic bytes of all formats, then `recognises`, then the extension, so
/// that a file whose first bytes are damaged is refused by the reader that its name asks for.
#[derive(Debug)]
pub(super) struct Format {
    /// Short name, in messages and fingerprints.
    pub(super) name: &'static str,
    /// Name for help texts and errors.
    pub(super) about: &'static str,
    /// First bytes that no other format has.
    pub(super) magic: &'static [&'static [u8]],
    /// Decides for formats without magic bytes; gets up to 16 first bytes.
    pub(super) recognises: Option<Recognises>,
    /// Extensions of its files, without the dot.
    pub(super) extensions: &'static [&'static str],
    /// Adds one file, with the name of the wanted tensor or column.
    pub(super) add: Add,
    /// Finds the labels in a file that holds nothing else.
    pub(super) labels: Option<FindLabels>,
    /// Finds token ids and positions of the rows of a file.
    pub(super) row_integers: Option<FindRowIntegers>,
}

type Recognises = fn(&SourceFile, &mut OpenFile<'_>, &[u8]) -> Result<bool, DataError>;
type FindLabels = fn(&SourceFile) -> Result<IntegerColumn, DataError>;
type Add = fn(&mut MatrixBuilder<'_>, &SourceFile, Option<&str>) -> Result<(), DataError>;

impl Format {
    /// The optional parts of a format, all absent.
    pub(super) const UNNAMED: Self = Self {
        name: "",
        about: "",
        magic: &[],
        recognises: None,
        extensions: &[],
        add: |_, _, _| Ok(()),
        labels: None,
        row_integers: None,
    };

    /// Whether files with the extension of `path` are of this format.
    fn has_extension_of(&self, path: &Path) -> bool {
        let extension = path.extension().unwrap_or_default();
        self.extensions.iter().any(|known| extension == *known)
    }

    /// Opens files of this format as one data set.
    pub(super) fn open(
        &self,
        path: &Path,
        files: &[SourceFile],
        parts: Parts,
        options: &Options,
    ) -> Result<Matrix, DataError> {
        if let Some(layer) = options.layer {
            return Err(nothing_to_choose(path, "layer", layer));
        }
        let mut builder = MatrixBuilder::new(path, self.name, options);
        builder.go_on = parts == Parts::OfOne;
        for file in files {
            (self.add)(&mut builder, file, options.tensor.as_deref())?;
        }
        builder.finish()
    }
}

/// The formats that can be read, for help texts: "NumPy's .npy, safetensors, ... and directories of these".
pub fn formats() -> String {
    let names: Vec<&str> = FORMATS.iter().map(|format| format.about).collect();
    format!("{}, {}", names.join(", "), directory::ABOUT)
}

/// How token ids and positions are found in files of the format with this name.
pub(super) fn row_integers(name: &str) -> Option<FindRowIntegers> {
    let format = FORMATS.iter().find(|format| format.name == name)?;
    format.row_integers
}

/// Whether a format claims files with the extension of `path`.
pub(super) fn known_extension(path: &Path) -> bool {
    FORMATS.iter().any(|format| format.has_extension_of(path))
}

/// The format of a file, by its content.
pub(super) enum Sniffed {
    Is(&'static Format),
    /// A known kind of file that holds no readable activations, with the remedy.
    Other(&'static str),
    Unknown,
}

/// Finds the format of `file` by its first bytes, or by its name where they are damaged.
pub(super) fn sniff(file: &SourceFile) -> Result<Sniffed, DataError> {
    let mut head = [0; 16];
    let head = &mut head[..file.bytes.min(16) as usize];
    let mut open = file.open()?;
    open.read_at(0, head)?;
    for format in FORMATS {
        if format.magic.iter().any(|magic| head.starts_with(magic)) {
            return Ok(Sniffed::Is(format));
        }
    }
    for format in FORMATS {
        if let Some(recognises) = format.recognises
            && recognises(file, &mut open, head)?
        {
            return Ok(Sniffed::Is(format));
        }
    }
    Ok(match head {
        [b'P', b'K', 3, 4, ..] => Sniffed::Other(
            "a zip archive, as torch.save and np.savez write them; save the tensor with safetensors or np.save",
        ),
        [0x80, 2..=5, ..] => Sniffed::Other(
            "a pickle, which is never read; save the tensor with safetensors or np.save",
        ),
        _ => FORMATS
            .into_iter()
            .find(|format| format.has_extension_of(&file.path))
            .map_or(Sniffed::Unknown, Sniffed::Is),
    })
}

/// Opens a single file.
pub(super) fn open_file(path: &Path, options: &Options) -> Result<Matrix, DataError> {
    let file = SourceFile::stat(path)?;
    let reason = match sniff(&file)? {
        Sniffed::Is(format) => return format.open(path, &[file], Parts::Each, options),
        Sniffed::Other(what) => format!("it is {what}"),
        Sniffed::Unknown => "its first bytes are those of no format".into(),
    };
    Err(DataError::not_recognised(path, reason))
}

/// How the files of a data set relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Each file has documents of its own: equal ids in two files mean nothing.
    Each,
    /// The files are parts of one data set, which may be cut within a document.
    OfOne,
}

/// The error of an option that chooses among things which the data does not have.
pub(super) fn nothing_to_choose(
    path: &Path,
    key: &'static str,
    value: impl std::fmt::Debug,
) -> DataError {
    let remedy = format!(
        "{} has no {key}s to choose from; leave it out",
        path.display()
    );
    DataError::option(key, format!("{value:?}"), remedy)
}

/// The only candidate for the activations; all candidates bear the wanted name if there is one.
pub(super) fn only<T>(
    path: &Path,
    noun: &'static str,
    wanted: Option<&str>,
    mut candidates: Vec<T>,
    available: String,
) -> Result<T, DataError> {
    let reason = match (candidates.pop(), wanted) {
        (Some(candidate), _) if candidates.is_empty() => return Ok(candidate),
        (Some(_), _) => {
            let path = path.into();
            return Err(DataError::Ambiguous {
                path,
                noun,
                available,
            });
        }
        (None, Some(name)) => format!("there is no {noun} \"{name}\"; the file has {available}"),
        (None, None) => format!(
            "no {noun} of activations, [rows, width] or [examples, tokens, width] in floats; the file has {available}"
        ),
    };
    Err(DataError::unusable(path, reason))
}

/// The labels in a file of their own.
pub(super) fn label_file(file: &SourceFile) -> Result<IntegerColumn, DataError> {
    match sniff(file)? {
        Sniffed::Is(Format {
            labels: Some(labels),
            ..
        }) => labels(file),
        _ => {
            let with_labels = FORMATS.iter().filter(|format| format.labels.is_some());
            let names: Vec<&str> = with_labels.map(|format| format.name).collect();
            Err(DataError::unsupported(
                &file.path,
                "this kind of label file",
                format!("save labels as {}, in i64, i32 or u8", names.join(" or ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list "Add a file format" of CONTRIBUTING.md.
    #[test]
    fn every_format_is_described_and_written_by_python_and_fuzzed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file");
        let described = read("../docs/DATA.md");
        let written = read("tests/python/write_formats.py");
        for format in FORMATS {
            for extension in format.extensions {
                let name = format!(".{extension}");
                assert!(described.contains(&format!("`{name}`")), "DATA.md: {name}");
                assert!(written.contains(&name), "write_formats.py: {name}");
            }
            let corpus = root.join("tests/corpus").join(format.extensions[0]);
            assert!(corpus.is_dir(), "{}", corpus.display());
        }
    }
}
