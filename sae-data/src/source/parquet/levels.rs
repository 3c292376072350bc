//! Checks the levels of pages, and takes them away.
//!
//! All rows have one width and no value is missing, so once the levels of a page have been compared with that, they say
//! nothing more. Levels are stored in runs, so they are compared without being unpacked, however many a page claims.

use std::fs::File;
use std::iter::repeat_n;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

use super::column::Column;
use super::thrift::varint;
use crate::error::DataError;

/// Values that a row may have in a column of any size.
const LONGEST: usize = 1 << 22;

fn damaged(reason: impl Into<String>) -> ParquetError {
    ParquetError::General(reason.into())
}

/// A data page in its parts.
struct Parts {
    repetition: Bytes,
    definition: Bytes,
    values: Bytes,
    count: usize,
}

impl Parts {
    /// The parts of a page; `None` for a dictionary.
    fn of(page: &Page, leaf: &ColumnDescriptor) -> Result<Option<Self>> {
        let (mut values, count) = (page.buffer().clone(), page.num_values() as usize);
        let mut take = |len| match values.len() < len {
            true => Err(damaged("the levels of a page are cut off")),
            false => Ok(values.split_to(len)),
        };
        let mut prefixed = |max_level, encoding| match encoding {
            _ if max_level == 0 => Ok(Bytes::new()),
            Encoding::RLE => {
                let len = take(4)?;
                take(u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize)
            }
            _ => Err(damaged("levels in the obsolete encoding BIT_PACKED")),
        };
        let (repetition, definition) = match page {
            Page::DictionaryPage { .. } => return Ok(None),
            Page::DataPage {
                rep_level_encoding: repetition,
                def_level_encoding: definition,
                ..
            } => (
                prefixed(leaf.max_rep_level(), *repetition)?,
                prefixed(leaf.max_def_level(), *definition)?,
            ),
            Page::DataPageV2 {
                rep_levels_byte_len: repetition,
                def_levels_byte_len: definition,
                ..
            } => (take(*repetition as usize)?, take(*definition as usize)?),
        };
        Ok(Some(Self {
            repetition,
            definition,
            values,
            count,
        }))
    }
}

/// The levels of a page as runs: level and number of equal ones (Parquet's hybrid of run lengths and packed bits).
struct Runs<'a> {
    /// Bits of a level.
    bits: usize,
    bytes: &'a [u8],
    /// Levels still to come; more than none at the end if the bytes end early.
    left: usize,
    packed: &'a [u8],
    /// Bits of `packed` that have been read.
    read: usize,
}

impl<'a> Runs<'a> {
    fn of(bytes: &'a [u8], max_level: i16, count: usize) -> Self {
        Self {
            bits: (i16::BITS - max_level.leading_zeros()) as usize,
            bytes,
            left: if max_level == 0 { 0 } else { count },
            packed: &[],
            read: 0,
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = (u16, usize);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        while self.read + self.bits > 8 * self.packed.len() {
            let run = varint(&mut self.bytes).ok()?;
            let count = usize::try_from(run >> 1).unwrap_or(usize::MAX);
            if run & 1 == 0 {
                let (level, count) = (*self.bytes.split_off_first()?, count.min(self.left));
                self.left -= count;
                return Some((level.into(), count));
            }
            let size = count.saturating_mul(self.bits).min(self.bytes.len());
            (self.packed, self.read) = (self.bytes.split_off(..size)?, 0);
        }
        let (at, shift) = (self.read / 8, self.read % 8);
        let next = self.packed.get(at + 1).copied().unwrap_or(0);
        let word = u16::from_le_bytes([self.packed[at], next]);
        (self.read, self.left) = (self.read + self.bits, self.left - 1);
        Some((word >> shift & ((1 << self.bits) - 1), 1))
    }
}

/// Counts the values of rows while their levels go by.
struct Rows {
    /// Rows begin at lower levels.
    depth: u16,
    width: usize,
    /// Rows that have begun.
    begun: usize,
    /// Values of the last of these.
    length: usize,
}

impl Rows {
    /// The rows of a page that begins with value `at`, if all pages before it are as they should be: a row that has ended
    /// there has `width` values, any other as many as are before `at`.
    fn at(at: usize, width: usize, depth: u16) -> Self {
        Self {
            depth,
            width,
            begun: at.div_ceil(width),
            length: (at + width - 1) % width + 1,
        }
    }

    /// Adds `count` equal levels; returns whether every row that ends here has its width.
    fn add(&mut self, level: u16, count: usize) -> bool {
        if level >= self.depth {
            self.length += count;
            return true;
        }
        // all rows that begin in one run have one value, except the last
        for _ in 0..count.min(2) {
            if self.length != self.width {
                return false;
            }
            (self.begun, self.length) = (self.begun + 1, 1);
        }
        self.begun += count.saturating_sub(2);
        true
    }
}

impl Column {
    fn parts(&self) -> Result<impl Iterator<Item = Result<Parts>>> {
        let parts = |page: Result<Page>| page.and_then(|page| Parts::of(&page, self.leaf()));
        Ok(self
            .pages()?
            .filter_map(move |page| parts(page).transpose()))
    }

    fn repetition<'a>(&self, page: &'a Parts) -> Runs<'a> {
        Runs::of(&page.repetition, self.leaf().max_rep_level(), page.count)
    }

    /// Fails unless all rows of a page that begins with value `at` have their width, without nulls and empty lists: these
    /// have a lower definition level than values.
    fn check(&self, page: &Parts, at: usize) -> Result<()> {
        let (leaf, path) = (self.leaf(), &self.file.path);
        let ours = |error: DataError| Err(ParquetError::External(Box::new(error)));
        let mut rows = Rows::at(at, self.width.max(1), leaf.max_rep_level() as u16);
        let whole = leaf.max_def_level() as u16;
        let mut levels = Runs::of(&page.definition, leaf.max_def_level(), page.count);
        if levels.any(|(level, _)| level != whole) {
            let (name, row) = (&leaf.path().parts()[0], self.first_row + rows.begun);
            return ours(DataError::null(path, name, row));
        }
        let mut begins = self.repetition(page);
        if self.width == 0 {
            begins.left = 0; // the width is not known yet
        }
        let fit = begins.all(|(level, count)| rows.add(level, count));
        if !fit || rows.length > rows.width {
            let row = self.first_row + rows.begun.saturating_sub(1);
            return ours(DataError::ragged(path, row, rows.length, self.width));
        }
        match levels.left + begins.left {
            0 => Ok(()),
            _ => Err(damaged("the levels of a page are cut off")),
        }
    }

    /// Width of the first row.
    pub(super) fn first_width(&self) -> Result<usize, DataError> {
        let depth = self.leaf().max_rep_level() as u16;
        let bytes = usize::try_from(self.chunk.compressed_size()).unwrap_or(0);
        let longest = LONGEST.saturating_add(bytes.saturating_mul(8));
        self.guarded(|| {
            let mut length = 0;
            for page in self.parts()? {
                let page = page?;
                self.check(&page, 0)?;
                for (level, count) in self.repetition(&page) {
                    if level < depth && length + count > 1 {
                        return Ok(length.max(1));
                    }
                    length += count;
                    if length > longest {
                        return Err(damaged(format!("a row of more than {longest} values")));
                    }
                }
            }
            Ok(length.max(1))
        })
    }

    /// Number of rows of each example.
    pub(super) fn lengths(&self) -> Result<Vec<usize>, DataError> {
        let (mut lengths, mut at) = (Vec::new(), 0);
        self.guarded(|| {
            for page in self.parts()? {
                let page = page?;
                self.check(&page, at)?;
                at += page.count;
                for (level, count) in self.repetition(&page) {
                    if level > 0 {
                        let last = lengths.last_mut();
                        let last = last.ok_or_else(|| damaged("it begins within an example"))?;
                        *last += if level == 1 { count } else { 0 };
                    } else if count <= self.records - lengths.len() {
                        lengths.extend(repeat_n(1, count));
                    } else {
                        return Err(damaged("more examples than the footer knows"));
                    }
                }
            }
            Ok(())
        })?;
        match lengths.len() == self.records {
            true => Ok(lengths),
            false => Err(self.damaged("the column has fewer rows than its row group")),
        }
    }
}

/// The pages of a column without their levels, which are checked.
pub(super) struct Checked {
    pub(super) column: Arc<Column>,
    pub(super) pages: SerializedPageReader<File>,
    /// The value with which the next page begins.
    pub(super) at: usize,
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        while let Some(page) = self.pages.get_next_page()? {
            let Some(parts) = Parts::of(&page, self.column.leaf())? else {
                return Ok(Some(page));
            };
            self.column.check(&parts, self.at)?;
            self.at += parts.count;
            // the decoder would take an empty page for the end
            if parts.count > 0 {
                return Ok(Some(Page::DataPage {
                    buf: parts.values,
                    num_values: page.num_values(),
                    encoding: page.encoding(),
                    def_level_encoding: Encoding::RLE,
                    rep_level_encoding: Encoding::RLE,
                    statistics: None,
                }));
            }
        }
        Ok(None)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        let page = self.pages.peek_next_page()?;
        self.at += page.and_then(|page| page.num_rows).unwrap_or(0);
        self.pages.skip_next_page()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The levels one by one; fewer than `count` if the bytes end early.
    fn levels(bits: u32, bytes: &[u8], count: usize) -> Vec<u16> {
        let runs = Runs::of(bytes, (1 << bits) - 1, count);
        runs.flat_map(|(level, count)| std::iter::repeat_n(level, count))
            .collect()
    }

    #[test]
    fn levels_as_the_format_packs_them() {
        assert_eq!(levels(1, &[0x02, 0, 0x0c, 1], 7), [0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(levels(1, &[0x0c, 0], 6), [0; 6]);
        // eight at a time: 0111 0111, then three 1
        let packed = [0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1];
        assert_eq!(levels(1, &[0x03, 0b1110_1110, 0x06, 1], 11), packed);
        assert_eq!(levels(1, &[0x05, 0xff, 0xff], 16), [1; 16]);
        assert_eq!(levels(1, &[0x05, 0xff, 0x07], 11), [1; 11]);
        let nested = [0, 2, 1, 2, 2, 1, 2, 2, 1, 1];
        assert_eq!(levels(2, &[0x05, 0x98, 0xa6, 0x55, 0x55], 10), nested);
        // eight of three bits: 5 4 3 2 1 0 7 6
        let packed = [0x03, 0xe5, 0x14, 0xdc];
        assert_eq!(levels(3, &packed, 8), [5, 4, 3, 2, 1, 0, 7, 6]);
        // two billion of them in six bytes
        let mut many = Runs::of(&[0xfe, 0xff, 0xff, 0xff, 0x0f, 1], 1, 1 << 31);
        assert_eq!(many.next(), Some((1, (1 << 31) - 1)));
        for len in 0..4 {
            let mut cut = Runs::of(&[0x02, 0, 0x0c, 1][..len], 1, 7);
            assert!(cut.by_ref().count() < 2 && cut.left > 0);
        }
    }

    proptest! {
        /// Rows of one width pass wherever a page begins, and no others do.
        #[test]
        fn rows_of_another_width_are_found(width in 1usize..9, count in 1usize..30, at in 0usize..40, other in 0usize..200) {
            let mut levels: Vec<u16> = (at..at + count).map(|i| u16::from(i % width > 0)).collect();
            let fits = |levels: &[u16]| {
                let mut rows = Rows::at(at, width, 1);
                let mut runs = levels.chunk_by(|a, b| a == b);
                runs.all(|run| rows.add(run[0], run.len())) && rows.length <= width
            };
            prop_assert!(fits(&levels));
            if let Some(level) = levels.get_mut(other) {
                *level = 1 - *level;
                // a row that is cut off by the end of the page may be too short
                let last = (at + other) % width > 0 && at + count - (at + other) + (at + other) % width < width;
                prop_assert!(!fits(&levels) || last && levels[other] == 1, "{levels:?}");
            }
        }
    }
}
