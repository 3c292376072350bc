//! Checks the page headers of a column before any page is unpacked.
//!
//! A page header states the unpacked size of the page and its number of values, and the decoder allocates that much: a few
//! damaged bytes would cost gigabytes. Opening a data set walks over all headers and compares them with each other, with the
//! footer and with the size of the file. The same walk finds the first value of each page ([`Pages`]), so that a read can
//! begin at the page that it needs.

use parquet::basic::Compression;

use super::NAME;
use super::column::Column;
use super::thrift::{Compact, I32, STRUCT, Trouble};
use crate::error::DataError;
use crate::source::file::OpenFile;

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
const ENCODINGS: [i32; 6] = [0, 2, 8, 5, 9, 10];

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
    encoding: i32,
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
    /// Number of values before each data page.
    starts: Vec<u64>,
    /// Number of pages before the data pages: 1 with a dictionary.
    leading: usize,
}

impl Walked {
    /// Number of values of the longest page.
    pub(super) fn longest(&self) -> u64 {
        let ends = self.starts.iter().skip(1).chain([&self.values]);
        ends.zip(&self.starts)
            .map(|(end, start)| end - start)
            .max()
            .unwrap_or(0)
    }

    /// The table of pages; `record` returns the record of a value and the first value of that record.
    pub(super) fn pages(&self, record: impl Fn(u64) -> (usize, u64)) -> Pages {
        let first = self.starts.iter().map(|start| {
            let (record, begins) = record(*start);
            First {
                record,
                whole: begins == *start,
            }
        });
        Pages {
            leading: self.leading,
            first: first.collect(),
        }
    }
}

/// Finds the page at which to start reading a record.
///
/// A page may begin within a record; the decoder counts the rest of that record as one record.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    leading: usize,
    first: Vec<First>,
}

/// The first value of a page.
#[derive(Clone, Copy, Debug)]
struct First {
    /// The record that it belongs to.
    record: usize,
    /// Whether the record begins with it.
    whole: bool,
}

impl Pages {
    /// Number of the data page in which `record` begins.
    pub(super) fn of(&self, record: usize) -> usize {
        let begins = |first: &First| first.record + usize::from(!first.whole);
        self.first
            .partition_point(|first| begins(first) <= record)
            .saturating_sub(1)
    }

    /// Number of pages of any kind before data page `page`, and the record of its first value.
    pub(super) fn before(&self, page: usize) -> (usize, usize) {
        match self.first.get(page) {
            Some(first) if page > 0 => (self.leading + page, first.record),
            _ => (0, 0),
        }
    }
}

impl Column<'_> {
    /// Checks the headers of all pages, and records where their values begin.
    pub(super) fn check_pages(&self) -> Result<Walked, DataError> {
        let chunk = self.chunk();
        let (start, len) = (
            chunk
                .dictionary_page_offset()
                .unwrap_or(chunk.data_page_offset()),
            chunk.compressed_size(),
        );
        let (Ok(start), Ok(len)) = (u64::try_from(start), u64::try_from(len)) else {
            return Err(self.damaged("a negative place of a column"));
        };
        self.file.check_span(NAME, start, len)?;
        let promised = u64::try_from(chunk.num_values()).unwrap_or(0);
        let (mut at, end, mut values) = (start, start + len, 0);
        let (mut starts, mut leading) = (Vec::new(), 0);
        let mut open = self.file.open()?;
        while at < end {
            let page = self.page(&mut open, at, end)?;
            self.check_page(&page, at, end, promised)?;
            match page.kind {
                Kind::Data => {
                    starts.push(values);
                    values += page.values;
                }
                Kind::Dictionary if starts.is_empty() => leading += 1,
                Kind::Dictionary => {
                    return Err(self.damaged_at(at, "a dictionary behind its values"));
                }
            }
            if values > promised {
                return Err(self.damaged_at(
                    at,
                    format!("pages with {values} values, of which the footer knows {promised}"),
                ));
            }
            at += page.header + page.compressed;
        }
        Ok(Walked {
            values,
            starts,
            leading,
        })
    }

    fn damaged_at(&self, at: u64, reason: impl Into<String>) -> DataError {
        DataError::damaged(&self.file.path, NAME, at, reason)
    }

    /// Reads the header at `at`, which ends before `end`.
    fn page(&self, open: &mut OpenFile<'_>, at: u64, end: u64) -> Result<Page, DataError> {
        let most = HEADER.min(end - at);
        let mut len = most.min(512);
        loop {
            let bytes = open.bytes_at(NAME, at, len)?;
            match header(&bytes) {
                Ok(page) => return Ok(page),
                Err(Trouble::Short) if len < most => len = most,
                Err(Trouble::Short) => return Err(self.damaged_at(at, "a page header is cut off")),
                Err(Trouble::Wrong(what)) => {
                    return Err(self.damaged_at(at, format!("{what} in a page header")));
                }
            }
        }
    }

    /// Fails if the claims of `page` are impossible or too large.
    fn check_page(&self, page: &Page, at: u64, end: u64, promised: u64) -> Result<(), DataError> {
        let damaged = |reason: String| Err(self.damaged_at(at, reason));
        let (values, unpacked) = (page.values, page.unpacked);
        if page.compressed > end - at - page.header {
            return damaged(format!(
                "a page of {} bytes, more than its column",
                page.compressed
            ));
        }
        if values > promised {
            return damaged(format!(
                "a page of {values} values, in a column of {promised}"
            ));
        }
        if page.kind == Kind::Data && !ENCODINGS.contains(&page.encoding) {
            return Err(DataError::unsupported(
                &self.file.path,
                format!("encoding {} of a page (at byte {at})", page.encoding),
                "write it with encoding PLAIN, or with dictionaries",
            ));
        }
        let packed = self.chunk().compression() != Compression::UNCOMPRESSED;
        let (size, held) = match packed {
            true => (self.value_size(), unpacked),
            false => (self.value_size(), page.compressed),
        };
        let different = if size == 2 { HALVES } else { u64::MAX };
        if page.kind == Kind::Dictionary && values > different.min(held / size) {
            return damaged(format!("a dictionary of {values} values in {held} bytes"));
        }
        if packed && unpacked > values * (size + OVERHEAD) + PAGE_OVERHEAD {
            return damaged(format!(
                "a page of {values} values that unpacks to {unpacked} bytes"
            ));
        }
        let free = match page.kind {
            Kind::Data => PAGE,
            Kind::Dictionary => DICTIONARY,
        };
        if packed && unpacked > free + RATIO * page.compressed {
            let what = format!(
                "a page of {} bytes that unpacks to {unpacked} (at byte {at})",
                page.compressed
            );
            let remedy = "write it with smaller pages: data_page_size=2**20";
            return Err(DataError::unsupported(&self.file.path, what, remedy));
        }
        Ok(())
    }
}

/// Reads the page header that `bytes` begin with.
fn header(bytes: &[u8]) -> Result<Page, Trouble> {
    let mut input = Compact::new(bytes);
    let (mut numbers, mut inner) = ([None; 4], None);
    input.fields(|input, number, kind| {
        match (number, kind) {
            (1..=4, I32) => numbers[number as usize - 1] = Some(input.i32()?),
            // the header of data, an index, a dictionary, data in version 2
            (5..=8, STRUCT) if inner.is_none() => inner = Some((number, of_kind(input, number)?)),
            (5..=8, STRUCT) => return Err(Trouble::Wrong("several kinds of pages")),
            (1..=8, _) => return Err(Trouble::Wrong("a field of another type")),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let missing = Trouble::Wrong("something missing");
    let [Some(kind), Some(unpacked), Some(compressed), _] = numbers else {
        return Err(missing);
    };
    let (number, (values, encoding)) = inner.ok_or(missing)?;
    let kind = match (kind, number) {
        (0, 5) | (3, 8) => Kind::Data,
        (2, 7) => Kind::Dictionary,
        (1, 6) => return Err(Trouble::Wrong("an index")), // nothing writes them
        _ => return Err(Trouble::Wrong("a kind of page that it is not")),
    };
    let count = |n: i32| u64::try_from(n).map_err(|_| Trouble::Wrong("a negative number"));
    Ok(Page {
        kind,
        values: count(values)?,
        encoding,
        compressed: count(compressed)?,
        unpacked: count(unpacked)?,
        header: input.at() as u64,
    })
}

/// Number of values and their encoding, from the header of one kind.
fn of_kind(input: &mut Compact<'_>, kind: i16) -> Result<(i32, i32), Trouble> {
    let (numbers, encoded) = match kind {
        5 => (1..=4, 2),
        7 => (1..=2, 2),
        8 => (1..=6, 4),
        _ => (0..=0, 0),
    };
    let (mut values, mut encoding) = (0, 0);
    input.fields(|input, number, kind| {
        if !numbers.contains(&number) {
            return Ok(false);
        }
        if kind != I32 {
            return Err(Trouble::Wrong("a field of another type"));
        }
        let value = input.i32()?;
        match number {
            1 => values = value,
            number if number == encoded => encoding = value,
            _ if value < 0 => return Err(Trouble::Wrong("a negative number")),
            _ => {}
        }
        Ok(true)
    })?;
    Ok((values, encoding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// From the page of a record, the stated number of skipped records leads to it, wherever pages begin.
        #[test]
        fn a_record_is_reached_from_its_page(
            lengths in prop::collection::vec(1u64..7, 1..40), cuts in prop::collection::btree_set(1u64..200, 0..20),
        ) {
            let begins: Vec<u64> = lengths.iter().scan(0, |at, len| { *at += len; Some(*at - len) }).collect();
            let values = lengths.iter().sum();
            let starts: Vec<u64> = std::iter::once(0).chain(cuts.into_iter().filter(|cut| *cut < values)).collect();
            let walked = Walked { values, starts: starts.clone(), leading: 1 };
            let pages = walked.pages(|value| {
                let record = begins.partition_point(|begin| *begin <= value) - 1;
                (record, begins[record])
            });
            for record in 0..lengths.len() {
                let page = pages.of(record);
                let last = starts.iter().rposition(|start| *start <= begins[record]).unwrap();
                prop_assert_eq!(page, last);
                let (skipped, first) = pages.before(page);
                prop_assert_eq!(skipped, if page == 0 { 0 } else { page + 1 });
                let met = begins.iter().filter(|begin| (starts[page]..begins[record]).contains(begin)).count();
                let rest = usize::from(!begins.contains(&starts[page]));
                prop_assert_eq!(record - first, met + rest);
            }
        }
    }

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
