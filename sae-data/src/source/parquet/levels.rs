//! Lengths of records, found in their levels before they are decoded.
//!
//! The decoder returns whole records, and a record ends where the next one begins: a few bytes of levels can claim a
//! record of billions of values. Repetition levels are stored in runs, so the runs give the length of every record.

use std::fs::File;

use parquet::basic::Encoding;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::serialized_reader::SerializedPageReader;

/// Pages of records with a limited number of values; a longer record is an error.
pub(super) struct Measured {
    pages: SerializedPageReader<File>,
    records: Records,
}

/// Length of the current record, whose end has not been found yet.
struct Records {
    /// Bits of a repetition level: one or two, none where there are no lists.
    bits: u32,
    length: usize,
    longest: usize,
}

impl Measured {
    /// `max_level` is the largest repetition level, `longest` the most values of a record.
    pub(super) fn new(pages: SerializedPageReader<File>, max_level: i16, longest: usize) -> Self {
        let records = Records {
            bits: i16::BITS - max_level.leading_zeros(),
            length: 0,
            longest,
        };
        Self { pages, records }
    }

    fn measure(&mut self, page: &Page) -> Result<(), ParquetError> {
        if self.records.bits == 0 {
            return Ok(());
        }
        let cut = || ParquetError::General("the levels of a page are cut off".into());
        let (levels, count) = match page {
            Page::DictionaryPage { .. } => return Ok(()),
            Page::DataPage {
                buf,
                num_values,
                rep_level_encoding: Encoding::RLE,
                ..
            } => {
                let (len, rest) = buf.split_first_chunk().ok_or_else(cut)?;
                let len = u32::from_le_bytes(*len) as usize;
                (rest.get(..len).ok_or_else(cut)?, *num_values)
            }
            Page::DataPage { .. } => {
                let what = "levels in the obsolete encoding BIT_PACKED";
                return Err(ParquetError::General(what.into()));
            }
            Page::DataPageV2 {
                buf,
                num_values,
                rep_levels_byte_len,
                ..
            } => {
                let levels = buf.get(..*rep_levels_byte_len as usize);
                (levels.ok_or_else(cut)?, *num_values)
            }
        };
        self.records.runs(levels, count as usize).ok_or_else(|| {
            let longest = self.records.longest;
            ParquetError::General(format!("a row or an example of more than {longest} values"))
        })
    }
}

impl Records {
    /// Walks over the runs of `left` levels; `None` where a record is too long. The decoder finds damaged runs.
    fn runs(&mut self, mut bytes: &[u8], mut left: usize) -> Option<()> {
        while left > 0
            && let Some(run) = varint(&mut bytes).filter(|run| *run > 0)
        {
            let mut count = usize::try_from(run >> 1).unwrap_or(usize::MAX);
            if run & 1 == 0 {
                count = count.min(left);
                let level = bytes.split_off_first().copied().unwrap_or(0);
                self.same(level, count)?;
            } else {
                let size = count.saturating_mul(self.bits as usize).min(bytes.len());
                let (packed, rest) = bytes.split_at(size);
                count = (size * 8 / self.bits as usize).min(left);
                self.packed(packed, count)?;
                bytes = rest;
            }
            left -= count;
        }
        Some(())
    }

    /// Counts `count` equal levels.
    fn same(&mut self, level: u8, count: usize) -> Option<()> {
        match level {
            0 if count > 0 => self.length = 1,
            _ => self.length = self.length.checked_add(count)?,
        }
        (self.length <= self.longest).then_some(())
    }

    /// Counts packed levels, eight at a time. A record that begins among eight levels is counted from the first of them,
    /// which is up to seven values too many.
    fn packed(&mut self, packed: &[u8], count: usize) -> Option<()> {
        let mut left = count;
        for group in packed.chunks(self.bits as usize) {
            let levels = left.min(8);
            let unused = u16::MAX.checked_shl(levels as u32 * self.bits).unwrap_or(0);
            let group = u16::from_le_bytes([group[0], group.get(1).copied().unwrap_or(0)]) | unused;
            let begins = match self.bits {
                1 => group != u16::MAX,
                _ => (group | group >> 1) & 0x5555 != 0x5555,
            };
            self.length = if begins { levels } else { self.length + levels };
            if self.length > self.longest {
                return None;
            }
            left -= levels;
        }
        Some(())
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl Iterator for Measured {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Measured {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.measure(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.records.length = 0;
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>, ParquetError> {
        self.pages.take_deferred_dictionary()
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        // pyarrow may end a column with an empty page, after which the decoder misses the end of the last record
        while let Some(page) = self.pages.peek_next_page()?
            && page.num_levels == Some(0)
            && !page.is_dict
        {
            self.pages.skip_next_page()?;
        }
        self.pages.at_record_boundary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(bits: u32, levels: &[u8], count: usize) -> usize {
        let fits = |longest| {
            let mut records = Records {
                bits,
                length: 0,
                longest,
            };
            records.runs(levels, count).is_some()
        };
        (0..1000).find(|longest| fits(*longest)).unwrap_or(1000)
    }

    #[test]
    fn the_longest_record_is_found_without_its_values() {
        assert_eq!(longest(1, &[0x02, 0, 0x0c, 1], 7), 7); // one 0, six 1
        assert_eq!(longest(1, &[0x0c, 0], 6), 1);
        // eight at a time: 0111 0111, then three 1; then eight, and eight more
        assert_eq!(longest(1, &[0x03, 0b1110_1110, 0x06, 1], 11), 8 + 3);
        assert_eq!(longest(1, &[0x05, 0xff, 0xff], 16), 16);
        assert_eq!(longest(1, &[0x07, 0xff, 0xfe, 0xff], 24), 16);
        assert_eq!(longest(1, &[0x05, 0xff, 0x07], 11), 11);
        assert_eq!(longest(1, &[0x07, 0xff, 0x07, 0x00, 0x0c, 1], 11), 11);
        assert_eq!(longest(2, &[0x05, 0x55, 0x55, 0x05, 0x00], 10), 10);
        // 0 2 1 2 2 1 2 2, 1 1 1 1 1 1 1 1, and 0 2 1 2 0 0 2 2
        assert_eq!(longest(2, &[0x05, 0x98, 0xa6, 0x55, 0x55], 16), 16);
        assert_eq!(longest(2, &[0x05, 0x98, 0xa6, 0x98, 0xa0], 16), 8);
        // two billion of them in six bytes
        assert_eq!(
            longest(1, &[0xfe, 0xff, 0xff, 0xff, 0x0f, 1], 1 << 31),
            1000
        );
        // the decoder reports levels that are cut off
        for len in 0..4 {
            assert!(longest(1, &[0x02, 0, 0x0c, 1][..len], 7) <= 7);
        }
    }
}
