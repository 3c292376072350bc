//! Checks the page headers of a column before any page is unpacked.
//!
//! A page header states the unpacked size of the page and its number of values, and the decoder allocates that much: a few
//! damaged bytes would cost gigabytes. Opening a data set walks over all headers and compares them with each other, with the
//! footer and with the size of the file. The same walk finds the first value of each page, so that a read can begin at the
//! page that it needs.

use std::collections::HashMap;

use parquet::basic::{Compression, Type as PhysicalType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;

use super::NAME;
use super::thrift::{I32, STRUCT, Trouble, walk};
use crate::error::DataError;
use crate::source::SourceFile;
use crate::source::file::{OpenFile, Store};

/// Largest page header in bytes; about forty are usual.
const HEADER: u64 = 1 << 16;
/// Bytes to which any page, and any dictionary, may unpack.
const PAGE: u64 = 64 << 20;
const DICTIONARY: u64 = 16 << 20;
/// Bytes that a page may unpack to in addition, per byte of its packed size.
const RATIO: u64 = 32;
/// Bytes that levels and encoding may add per value, and per page.
const OVERHEAD: u64 = 16;
const PAGE_OVERHEAD: u64 = 1 << 16;
/// Number of different two-byte values.
const HALVES: u64 = 1 << 16;

/// Encodings whose decoders allocate no more than their values need: plain, both dictionary encodings, delta, split streams,
/// ALP.
const ENCODINGS: [u64; 6] = [0, 2, 8, 5, 9, 10];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Dictionary,
}

/// Content of a page header.
#[derive(Clone, Copy, Debug)]
struct Page {
    kind: Kind,
    values: u64,
    encoding: u64,
    compressed: u64,
    unpacked: u64,
    /// Bytes of the header itself.
    header: u64,
}

/// The pages of a column, found by walking over their headers.
#[derive(Debug)]
pub(super) struct Walked {
    /// Number of values of all pages.
    pub(super) values: u64,
    /// Number of values of the longest page.
    pub(super) longest: u64,
    /// Places of the data pages, with the number of values before each as its first row.
    pub(super) places: Vec<PageLocation>,
}

impl Walked {
    /// Checks the headers of all pages.
    pub(super) fn over(file: &SourceFile, chunk: &ColumnChunkMetaData) -> Result<Self, DataError> {
        let first = chunk.dictionary_page_offset();
        let start = u64::try_from(first.unwrap_or(chunk.data_page_offset()));
        let (Ok(start), Ok(len)) = (start, u64::try_from(chunk.compressed_size())) else {
            let reason = "a negative place of a column";
            return Err(DataError::damaged(&file.path, NAME, 0, reason));
        };
        file.check_span(NAME, start, len)?;
        let headers = Headers {
            file,
            chunk,
            end: start + len,
            promised: u64::try_from(chunk.num_values()).unwrap_or(0),
        };
        let (mut values, mut longest, mut places) = (0, 0, Vec::new());
        let (mut at, mut open) = (start, file.open()?);
        while at < headers.end {
            let page = headers.read(&mut open, at)?;
            let (size, damaged) = (page.size(), |reason| Err(headers.damaged(at, reason)));
            if page.kind == Kind::Data {
                places.push(PageLocation {
                    offset: at as i64,
                    compressed_page_size: i32::try_from(size).unwrap_or(i32::MAX),
                    first_row_index: values as i64,
                });
                (values, longest) = (values + page.values, longest.max(page.values));
            } else if at > start {
                return damaged("a dictionary behind other pages".to_string());
            }
            if values > headers.promised {
                let promised = headers.promised;
                return damaged(format!(
                    "pages with {values} values, of which the footer knows {promised}"
                ));
            }
            at += size;
        }
        Ok(Self {
            values,
            longest,
            places,
        })
    }
}

/// The headers of a column.
struct Headers<'a> {
    file: &'a SourceFile,
    chunk: &'a ColumnChunkMetaData,
    /// Where the column ends.
    end: u64,
    /// Number of values in the column according to the footer.
    promised: u64,
}

impl Headers<'_> {
    fn damaged(&self, at: u64, reason: impl Into<String>) -> DataError {
        DataError::damaged(&self.file.path, NAME, at, reason)
    }

    /// Reads the header at `at`, and checks it.
    fn read(&self, open: &mut OpenFile<'_>, at: u64) -> Result<Page, DataError> {
        let most = HEADER.min(self.end - at);
        let mut len = most.min(512);
        loop {
            let page = match header(&open.bytes_at(NAME, at, len)?) {
                Ok(page) => page,
                Err(Trouble::Short) if len < most => {
                    len = most;
                    continue;
                }
                Err(Trouble::Short) => return Err(self.damaged(at, "a page header is cut off")),
                Err(Trouble::Wrong(what)) => {
                    return Err(self.damaged(at, format!("{what} in a page header")));
                }
            };
            return self.check(&page, at).map(|()| page);
        }
    }

    /// Fails if the page at `at` claims what is impossible or too much.
    fn check(&self, page: &Page, at: u64) -> Result<(), DataError> {
        let (values, encoding) = (page.values, page.encoding);
        let (compressed, unpacked) = (page.compressed, page.unpacked);
        let (dictionary, promised) = (page.kind == Kind::Dictionary, self.promised);
        let packed = self.chunk.compression() != Compression::UNCOMPRESSED;
        let held = if packed { unpacked } else { compressed };
        let (size, different) = match self.chunk.column_type() {
            PhysicalType::INT32 | PhysicalType::FLOAT => (4, u64::MAX),
            PhysicalType::INT64 | PhysicalType::DOUBLE => (8, u64::MAX),
            _ => (2, HALVES),
        };
        let unsupported = |what: String, remedy| {
            let what = format!("{what} (at byte {at})");
            Err(DataError::unsupported(&self.file.path, what, remedy))
        };
        let free = if dictionary { DICTIONARY } else { PAGE };
        let reason = if page.size() > self.end - at {
            format!("a page of {compressed} bytes, more than its column")
        } else if values > promised {
            format!("a page of {values} values, in a column of {promised}")
        } else if dictionary && values > different.min(held / size) {
            format!("a dictionary of {values} values in {held} bytes")
        } else if packed && unpacked > values * (size + OVERHEAD) + PAGE_OVERHEAD {
            format!("a page of {values} values that unpacks to {unpacked} bytes")
        } else if !dictionary && !ENCODINGS.contains(&encoding) {
            let remedy = "write it with encoding PLAIN, or with dictionaries";
            return unsupported(format!("encoding {encoding} of a page"), remedy);
        } else if packed && unpacked > free + RATIO * compressed {
            let what = format!("a page of {compressed} bytes that unpacks to {unpacked}");
            return unsupported(what, "write it with smaller pages: data_page_size=2**20");
        } else {
            return Ok(());
        };
        Err(self.damaged(at, reason))
    }
}

impl Page {
    /// Bytes of the page with its header.
    fn size(&self) -> u64 {
        self.header + self.compressed
    }
}

/// Reads the page header that `bytes` begin with.
fn header(bytes: &[u8]) -> Result<Page, Trouble> {
    let mut numbers: HashMap<Vec<i16>, u64> = HashMap::new();
    let len = walk(bytes, &mut |path, kind, value| {
        let expected = match path {
            // kind, sizes, checksum; the headers of data, of an index, of a dictionary, of data in version 2
            [1..=4] | [5, 1..=4] | [7, 1..=2] | [8, 1..=6] => I32,
            [5..=8] => STRUCT,
            _ => return Ok(()),
        };
        if kind != expected {
            return Err(Trouble::Wrong("a field of another type"));
        }
        let value = if *path == [4] { 0 } else { value };
        let value = u64::try_from(value).map_err(|_| Trouble::Wrong("a negative number"))?;
        match numbers.insert(path.into(), value) {
            Some(_) => Err(Trouble::Wrong("a field that is there twice")),
            None => Ok(()),
        }
    })?;
    let number = |path: &[i16]| {
        let number = numbers.get(path).copied();
        number.ok_or(Trouble::Wrong("something missing"))
    };
    let (kind, of, encoding) = match number(&[1])? {
        0 => (Kind::Data, 5, 2),
        2 => (Kind::Dictionary, 7, 2),
        3 => (Kind::Data, 8, 4),
        1 => return Err(Trouble::Wrong("an index")), // nothing writes them
        _ => return Err(Trouble::Wrong("an unknown kind")),
    };
    if (5..=8).any(|other| other != of && numbers.contains_key(&[other][..])) {
        return Err(Trouble::Wrong("a kind of page that it is not"));
    }
    Ok(Page {
        kind,
        values: number(&[of, 1])?,
        encoding: number(&[of, encoding])?,
        compressed: number(&[3])?,
        unpacked: number(&[2])?,
        header: len as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of 1000 bytes, 25 values.
    const DATA: [u8; 17] = [
        0x15, 0, 0x15, 0xd0, 0x0f, 0x15, 0xd0, 0x0f, 0x2c, 0x15, 50, 0x15, 0, 0x15, 6, 0, 0,
    ];

    #[test]
    fn headers_say_what_they_say() {
        let page = header(&DATA).unwrap();
        assert_eq!((page.kind, page.values, page.encoding), (Kind::Data, 25, 0));
        assert_eq!(
            (page.unpacked, page.compressed, page.header),
            (1000, 1000, 17)
        );
        for len in 0..DATA.len() {
            assert_eq!(header(&DATA[..len]).unwrap_err(), Trouble::Short, "{len}");
        }
    }

    #[test]
    fn headers_that_could_be_read_in_two_ways_are_refused() {
        let with = |at: usize, bytes: &[u8]| {
            let mut header = DATA.to_vec();
            header.splice(at..at + 1, bytes.iter().copied());
            header
        };
        for (what, bytes) in [
            ("a dictionary's number", with(1, &[4])),
            ("a negative size", with(3, &[0xd1])),
            ("a size that is a double", with(2, &[0x17])),
            ("a second header", with(16, &[0x0c, 10, 0, 0])),
            ("no header", vec![0x15, 0, 0x15, 2, 0x15, 2, 0]),
            ("no size", vec![0x15, 0, 0x25, 2, 0x2c, 0, 0]),
        ] {
            let result = header(&bytes);
            assert!(result.is_err(), "{what}: {result:?}");
        }
    }
}
