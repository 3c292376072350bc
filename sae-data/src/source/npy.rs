//! NumPy's `.npy`, versions 1 to 3: magic, version, header length, a Python dictionary, the values.
//!
//! The dictionary has exactly three keys and simple values, so it is parsed here: crates for it depend on parser
//! generators and big integers, and recurse as deep as a file makes them.

use super::builder::MatrixBuilder;
use super::file::SourceFile;
use super::format::{Format, nothing_to_choose};
use super::matrix::{Integer, IntegerColumn};
use crate::element::Element;
use crate::error::DataError;

const NAME: &str = "npy";

pub(super) static FORMAT: Format = Format {
    name: NAME,
    about: "NumPy's .npy",
    magic: &[MAGIC],
    extensions: &["npy"],
    add,
    labels: Some(label_column),
    ..Format::UNNAMED
};

const MAGIC: &[u8] = b"\x93NUMPY";

/// NumPy itself refuses longer headers.
const MAX_HEADER: u64 = 10_000;

/// The header of a file.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
    /// Byte at which the values start.
    data: u64,
}

/// Adds a file of activations.
fn add(
    builder: &mut MatrixBuilder<'_>,
    file: &SourceFile,
    tensor: Option<&str>,
) -> Result<(), DataError> {
    if let Some(tensor) = tensor {
        return Err(nothing_to_choose(&builder.info.path, "tensor", tensor));
    }
    let header = header(file)?;
    let element = match header.descr.as_str() {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        other => return Err(wrong_type(file, other, "f16, f32 and f64")),
    };
    contiguous(file, &header)?;
    let store = builder.file(file);
    builder.tensor(store, "array", element, &header.shape, header.data, None)
}

/// A file of labels.
fn label_column(file: &SourceFile) -> Result<IntegerColumn, DataError> {
    let header = header(file)?;
    let integer = match header.descr.as_str() {
        "|u1" => Integer::U8,
        "<i4" => Integer::I32,
        "<i8" => Integer::I64,
        other => return Err(wrong_type(file, other, "labels in i64, i32 and u8")),
    };
    contiguous(file, &header)?;
    let count = header
        .shape
        .iter()
        .try_fold(1usize, |n, size| n.checked_mul(*size));
    Ok(IntegerColumn {
        integer,
        offset: header.data,
        count: count.unwrap_or(usize::MAX),
    })
}

fn wrong_type(file: &SourceFile, descr: &str, expected: &'static str) -> DataError {
    if let Some(rest) = descr.strip_prefix('>') {
        return DataError::unsupported(
            &file.path,
            format!("big-endian \"{descr}\""),
            format!("save it as little-endian: np.save(path, x.astype('<{rest}'))"),
        );
    }
    if descr.contains('O') {
        let remedy = "they are pickled; save an array of numbers: np.save(path, np.stack(x))";
        return DataError::unsupported(&file.path, "Python objects", remedy);
    }
    DataError::wrong_type(&file.path, "array", descr, expected)
}

fn contiguous(file: &SourceFile, header: &Header) -> Result<(), DataError> {
    if header.fortran_order && header.shape.len() > 1 {
        let remedy = "save it by rows: np.save(path, np.ascontiguousarray(x))";
        return Err(DataError::unsupported(&file.path, "Fortran order", remedy));
    }
    Ok(())
}

fn header(file: &SourceFile) -> Result<Header, DataError> {
    let damaged = |offset, reason: String| DataError::damaged(&file.path, NAME, offset, reason);
    let mut open = file.open()?;
    let head = open.bytes_at(NAME, 0, 10)?;
    if !head.starts_with(MAGIC) {
        return Err(damaged(0, "it does not begin with \\x93NUMPY".into()));
    }
    let (text, len) = match head[6] {
        1 => (10, u64::from(u16::from_le_bytes([head[8], head[9]]))),
        2 | 3 => {
            let len = open.bytes_at(NAME, 8, 4)?;
            (
                12,
                u64::from(u32::from_le_bytes([len[0], len[1], len[2], len[3]])),
            )
        }
        version => {
            return Err(damaged(
                6,
                format!("version {version}; there are 1, 2 and 3"),
            ));
        }
    };
    if len > MAX_HEADER {
        return Err(damaged(
            8,
            format!("a header of {len} bytes; NumPy writes at most {MAX_HEADER}"),
        ));
    }
    let bytes = open.bytes_at(NAME, text, len)?;
    let dictionary = String::from_utf8_lossy(&bytes);
    let parsed = Literal(&dictionary).header();
    let (descr, fortran_order, shape) = parsed
        .ok_or_else(|| damaged(text, format!("not a NumPy header: {}", dictionary.trim())))?;
    Ok(Header {
        descr,
        fortran_order,
        shape,
        data: text + len,
    })
}

/// The unread rest of the dictionary.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order. A `descr` that is a list (a
    /// structured type) is returned as its text.
    fn header(mut self) -> Option<(String, bool, Vec<usize>)> {
        let (mut descr, mut order, mut shape) = (None, None, None);
        self.token("{")?;
        while self.token("}").is_none() {
            let key = self.string()?;
            self.token(":")?;
            match key {
                "descr" => descr = Some(self.string().or_else(|| self.list())?.to_string()),
                "fortran_order" => order = Some(self.boolean()?),
                "shape" => shape = Some(self.shape()?),
                _ => return None,
            }
            if self.token(",").is_none() && !self.0.trim_start().starts_with('}') {
                return None;
            }
        }
        self.0.trim().is_empty().then_some((descr?, order?, shape?))
    }

    fn token(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn string(&mut self) -> Option<&'a str> {
        let quote = self
            .0
            .trim_start()
            .chars()
            .next()
            .filter(|c| matches!(c, '\'' | '"'))?;
        self.0 = &self.0.trim_start()[1..];
        let text = self.take(self.0.find(quote)?);
        self.0 = &self.0[1..];
        Some(text)
    }

    fn list(&mut self) -> Option<&'a str> {
        self.0 = self.0.trim_start();
        self.0.starts_with('[').then_some(())?;
        Some(self.take(self.0.rfind(']')? + 1))
    }

    fn boolean(&mut self) -> Option<bool> {
        match self.token("True") {
            Some(()) => Some(true),
            None => self.token("False").map(|()| false),
        }
    }

    fn shape(&mut self) -> Option<Vec<usize>> {
        self.token("(")?;
        let sizes = self.take(self.0.find(')')?);
        self.token(")")?;
        let sizes = sizes.trim().trim_end_matches(',');
        if sizes.is_empty() {
            return Some(Vec::new());
        }
        sizes
            .split(',')
            .map(|size| size.trim().trim_end_matches('L').parse().ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, bool, Vec<usize>)> {
        Literal(text).header()
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let plain = ("<f4".to_string(), false, vec![3, 4]);
        for text in [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }     \n",
            "{'shape': (3L, 4L), 'fortran_order': False, 'descr': \"<f4\"}",
        ] {
            assert_eq!(read(text).as_ref(), Some(&plain), "{text}");
        }
        let one = read("{'descr': '|u1', 'fortran_order': True, 'shape': (7,), }");
        assert_eq!(one, Some(("|u1".into(), true, vec![7])));
        let scalar = read("{'descr': '<f8', 'fortran_order': False, 'shape': (), }").unwrap();
        assert!(scalar.2.is_empty());
        let fields = "{'descr': [('x', '<f4'), ('y', '<f4', (3,))], 'fortran_order': False, 'shape': (2,), }";
        assert_eq!(
            read(fields).unwrap().0,
            "[('x', '<f4'), ('y', '<f4', (3,))]"
        );
    }

    #[test]
    fn other_headers_are_refused() {
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 4), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, -4), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 99999999999999999999999), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } + 1",
            "{'descr': '<f4 'fortran_order': False, 'shape': (3, 4), }",
            "[[[[[[[[[[[[",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
