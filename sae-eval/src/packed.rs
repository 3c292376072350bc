//! Bulk numbers inside JSON and HTML: deflated, in base64. As plain text, a number per latent would make a report ten times
//! as long, and nobody would read it.

use std::io::{Read, Write};

use data_encoding::BASE64;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};

/// How packed numbers are stored, in words.
const PACKING: &str = "little-endian, raw deflate (RFC 1951), base64";

/// Level of compression: level 7 takes three times as long for a page that is 2 to 3 % smaller.
const LEVEL: u32 = 5;

/// Bytes, deflated and in base64.
pub(crate) fn packed(bytes: &[u8]) -> String {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(LEVEL));
    let deflated = encoder.write_all(bytes).and_then(|()| encoder.finish());
    BASE64.encode(&deflated.expect("a vector takes all bytes"))
}

/// The `length` bytes that were packed; `None` if it is not as many, or nothing that was packed.
fn unpacked(text: &str, length: usize) -> Option<Vec<u8>> {
    let deflated = BASE64.decode(text.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    // No more is unpacked than there should be, whatever the text claims.
    let most = length as u64 + 1;
    let mut decoder = DeflateDecoder::new(&deflated[..]).take(most);
    decoder.read_to_end(&mut bytes).ok()?;
    (bytes.len() == length).then_some(bytes)
}

/// Columns of numbers of 4 bytes, packed one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PackedColumns {
    /// How the numbers are stored, in words.
    pub(crate) packing: String,
    /// Numbers per column.
    pub(crate) rows: usize,
    /// Name and type of each column.
    pub(crate) columns: Vec<(String, Kind)>,
    pub(crate) data: String,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    U32,
    I32,
    F32,
}

/// One column before it is packed.
pub(crate) enum Column {
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
}

impl Column {
    fn kind(&self) -> Kind {
        match self {
            Self::U32(_) => Kind::U32,
            Self::I32(_) => Kind::I32,
            Self::F32(_) => Kind::F32,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::U32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::I32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

impl PackedColumns {
    /// Packs columns of the same length.
    pub(crate) fn new(columns: Vec<(String, Column)>) -> Self {
        let bytes: Vec<u8> = columns.iter().flat_map(|(_, c)| c.bytes()).collect();
        let rows = bytes.len() / 4 / columns.len().max(1);
        Self {
            packing: PACKING.into(),
            rows,
            data: packed(&bytes),
            columns: columns
                .into_iter()
                .map(|(name, column)| (name, column.kind()))
                .collect(),
        }
    }

    /// The bytes of every column; `None` if they are not as many as the columns say.
    pub(crate) fn raw(&self) -> Option<Vec<Vec<[u8; 4]>>> {
        let numbers = self.rows.checked_mul(self.columns.len())?;
        let bytes = unpacked(&self.data, numbers.checked_mul(4)?)?;
        let (numbers, _) = bytes.as_chunks();
        let columns =
            (0..self.columns.len()).map(|i| numbers[i * self.rows..][..self.rows].to_vec());
        Some(columns.collect())
    }

    /// The counts of a single column of `rows` counts; `None` if it is something else.
    pub(crate) fn counts(&self, rows: usize) -> Option<Vec<u32>> {
        let single = matches!(self.columns[..], [(_, Kind::U32)]);
        if !single || self.rows != rows {
            return None;
        }
        let counts = self.raw()?.pop()?;
        Some(counts.into_iter().map(u32::from_le_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let bytes: Vec<u8> = (0..10_000u32)
            .flat_map(|i| (i % 97).to_le_bytes())
            .collect();
        let text = packed(&bytes);
        assert!(text.len() < bytes.len() / 3);
        assert_eq!(unpacked(&text, bytes.len()).unwrap(), bytes);
        assert_eq!(unpacked(&text, bytes.len() - 1), None);
        assert_eq!(unpacked(&text, bytes.len() + 1), None);
        assert_eq!(unpacked("<not base64>", 4), None);
    }

    #[test]
    fn counts_are_read_and_nothing_else_is() {
        let counts = || ("rows".to_string(), Column::U32(vec![3, 0, 70_000]));
        let packed = PackedColumns::new(vec![counts()]);
        assert_eq!(packed.rows, 3);
        assert_eq!(packed.counts(3), Some(vec![3, 0, 70_000]));
        assert_eq!(packed.counts(4), None);
        let floats = PackedColumns::new(vec![("x".into(), Column::F32(vec![1.0]))]);
        assert_eq!(floats.counts(1), None);
        let both = PackedColumns::new(vec![counts(), ("x".into(), Column::I32(vec![1, 2, -1]))]);
        assert_eq!((both.rows, both.counts(6)), (3, None));
    }
}
