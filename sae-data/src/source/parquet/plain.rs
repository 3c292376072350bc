//! Rows of one width, taken from their pages as they are.
//!
//! The decoder makes a value and two levels of each number. Where the levels say nothing but that each row has its
//! values (and their runs show it at a glance), the numbers stand in the page one behind the other, or their places in a
//! dictionary do, and are copied from there. Whatever is not so is left to the decoder, errors included.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::file::serialized_reader::SerializedPageReader;

use super::column::Column;
use super::levels::{Measured, Run, runs};
use crate::error::DataError;

/// Bytes that the values of a page with a dictionary may have; more are decoded bit by bit.
const LARGEST: usize = 32 << 20;

/// The page that was read last.
struct Current {
    number: usize,
    /// Its values, little-endian.
    values: Bytes,
}

/// The pages of a column, one after the other.
struct Walk<'a> {
    column: &'a Column<'a>,
    /// Where the next page is, and its number.
    reader: Option<(Measured, usize)>,
    dictionary: Option<Bytes>,
    current: Option<Current>,
}

impl Column<'_> {
    /// Hands over the `ranges` of rows, some whole rows at a time, as their values stand in the file; stops at a row in
    /// a page that has to be decoded. Returns how many rows there were.
    pub(super) fn plain_rows(
        &self,
        ranges: &[Range<usize>],
        mut visit: impl FnMut(&[u8]),
    ) -> Result<usize, DataError> {
        self.file.open()?; // it is still what it was
        let (size, row_bytes) = (self.element.size(), self.width * self.element.size());
        let mut walk = Walk {
            column: self,
            reader: None,
            dictionary: None,
            current: None,
        };
        let (mut done, mut cut) = (0, Vec::new());
        for range in ranges {
            let mut row = range.start;
            while row < range.end {
                let mut page = self.pages.of(row);
                let Some(values) = walk.values(page)? else {
                    return Ok(done);
                };
                let within = row * self.width - self.pages.start(page);
                let Some(rest) = values.get(within * size..) else {
                    return Ok(done);
                };
                let rows = (rest.len() / row_bytes).min(range.end - row);
                if rows > 0 {
                    visit(&rest[..rows * row_bytes]);
                    (row, done) = (row + rows, done + rows);
                    continue;
                }
                // a row that goes on in the next page
                cut.clear();
                cut.extend_from_slice(rest);
                while cut.len() < row_bytes {
                    page += 1;
                    let Some(values) = walk.values(page)? else {
                        return Ok(done);
                    };
                    let missing = (row_bytes - cut.len()).min(values.len());
                    cut.extend_from_slice(&values[..missing]);
                }
                visit(&cut);
                (row, done) = (row + 1, done + 1);
            }
        }
        Ok(done)
    }

    fn open_pages(&self, page: usize) -> Result<Measured, DataError> {
        let (before, _) = self.pages.before(page);
        self.caught(|| {
            let file = Arc::new(File::open(&self.file.path)?);
            let group = self.metadata.row_group(self.group);
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let pages = SerializedPageReader::new(file, self.chunk(), rows, None)?;
            let level = self.chunk().column_descr().max_rep_level();
            let mut pages = Measured::new(pages, level, self.steps().longest);
            // of a page that is passed over only the header is read; a dictionary is remembered
            (0..before).try_for_each(|_| pages.skip_next_page())?;
            Ok(pages)
        })
    }
}

impl Walk<'_> {
    /// The values of the page `number`, not before the one of the last call; none if they have to be decoded.
    fn values(&mut self, number: usize) -> Result<Option<&[u8]>, DataError> {
        if self
            .current
            .as_ref()
            .is_none_or(|current| current.number != number)
        {
            self.current = None;
            let Some(values) = self.read(number)? else {
                return Ok(None);
            };
            self.current = Some(Current { number, values });
        }
        Ok(self.current.as_ref().map(|current| &current.values[..]))
    }

    fn read(&mut self, number: usize) -> Result<Option<Bytes>, DataError> {
        let column = self.column;
        if number >= column.pages.len() {
            return Ok(None);
        }
        let (mut reader, next) = match self.reader.take().filter(|(_, next)| *next <= number) {
            Some(open) => open,
            None => (column.open_pages(number)?, number),
        };
        let page = column.caught(|| {
            (next..number).try_for_each(|_| reader.skip_next_page())?;
            loop {
                match reader.get_next_page()? {
                    Some(Page::DictionaryPage { buf, .. }) => self.dictionary = Some(buf),
                    page => return Ok(page),
                }
            }
        })?;
        let Some(Plain {
            encoding,
            count,
            values,
        }) = page.and_then(|page| plain(column, number, page))
        else {
            return Ok(None);
        };
        let size = column.element.size();
        let bytes = count * size;
        let values = match encoding {
            Encoding::PLAIN if values.len() >= bytes => Some(values.slice(..bytes)),
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY if bytes <= LARGEST => {
                if self.dictionary.is_none()
                    && let Some(Page::DictionaryPage { buf, .. }) =
                        column.caught(|| reader.take_deferred_dictionary())?
                {
                    self.dictionary = Some(buf);
                }
                let dictionary = self.dictionary.as_deref().unwrap_or(&[]);
                match size {
                    2 => gather::<2>(&values, count, dictionary),
                    4 => gather::<4>(&values, count, dictionary),
                    _ => gather::<8>(&values, count, dictionary),
                }
            }
            _ => None,
        };
        self.reader = Some((reader, number + 1));
        Ok(values)
    }
}

/// What is behind the levels of a page.
struct Plain {
    encoding: Encoding,
    count: usize,
    values: Bytes,
}

/// The values of a page whose rows are all there and all of the same width.
fn plain(column: &Column<'_>, number: usize, page: Page) -> Option<Plain> {
    let (encoding, count, repetition, definition, values) = match page {
        Page::DataPage {
            mut buf,
            num_values,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            ..
        } => {
            let mut part = || {
                let len = u32::from_le_bytes(*buf.first_chunk()?) as usize;
                let part = (buf.len() >= 4 + len).then(|| buf.slice(4..4 + len))?;
                buf = buf.slice(4 + len..);
                Some(part)
            };
            let repetition = part()?;
            let definition = match column.chunk().column_descr().max_def_level() {
                0 => Bytes::new(),
                _ => part()?,
            };
            (encoding, num_values, repetition, definition, buf)
        }
        Page::DataPageV2 {
            buf,
            num_values,
            encoding,
            num_nulls: 0,
            def_levels_byte_len,
            rep_levels_byte_len,
            ..
        } => {
            let (repetition, definition) =
                (rep_levels_byte_len as usize, def_levels_byte_len as usize);
            let end = repetition
                .checked_add(definition)
                .filter(|end| *end <= buf.len())?;
            (
                encoding,
                num_values,
                buf.slice(..repetition),
                buf.slice(repetition..end),
                buf.slice(end..),
            )
        }
        _ => return None,
    };
    let count = count_of(column, number, num(count)?)?;
    let whole = every_value(
        &definition,
        count,
        column.chunk().column_descr().max_def_level(),
    );
    let rows = rows_of_width(&repetition, column.pages.start(number), count, column.width);
    (whole && rows).then_some(Plain {
        encoding,
        count,
        values,
    })
}

fn num(count: u32) -> Option<usize> {
    usize::try_from(count).ok()
}

/// The number of values, if it is the one of the table of pages.
fn count_of(column: &Column<'_>, number: usize, count: usize) -> Option<usize> {
    (column.pages.values(number) == count).then_some(count)
}

/// Whether the definition levels are the largest throughout: nothing is missing.
fn every_value(levels: &[u8], count: usize, largest: i16) -> bool {
    let bits = i16::BITS - largest.leading_zeros();
    let mut left = count;
    let whole = largest == 0
        || runs(levels, bits, count, |run, len| {
            left -= len;
            matches!(run, Run::Same(level) if level == largest as u32).then_some(())
        })
        .is_some();
    whole && (left == 0 || largest == 0)
}

/// Whether a row begins at each multiple of `width`, and nowhere else; the first level is that of value `start`.
fn rows_of_width(levels: &[u8], start: usize, count: usize, width: usize) -> bool {
    let mut at = start;
    let begins_before = |at: usize, end: usize| at.next_multiple_of(width) < end;
    let regular = runs(levels, 1, count, |run, len| {
        let from = at;
        at += len;
        let fits = match run {
            Run::Same(0) => width == 1 || len == 1 && from.is_multiple_of(width),
            Run::Same(_) => !begins_before(from, at),
            Run::Packed(bytes) => bytes.iter().enumerate().all(|(i, byte)| {
                let (from, end) = (from + 8 * i, at.min(from + 8 * i + 8));
                match *byte {
                    0xff => !begins_before(from, end),
                    byte => (from..end)
                        .enumerate()
                        .all(|(bit, value)| (byte >> bit & 1 == 0) == value.is_multiple_of(width)),
                }
            }),
        };
        fits.then_some(())
    });
    regular.is_some() && at == start + count
}

/// Looks `count` places up in the values of a dictionary.
fn gather<const N: usize>(places: &[u8], count: usize, dictionary: &[u8]) -> Option<Bytes> {
    let dictionary = dictionary.as_chunks::<N>().0;
    let (bits, places) = places.split_first()?;
    let bits = u32::from(*bits);
    if !(1..=32).contains(&bits) {
        return None;
    }
    let mut values: Vec<u8> = Vec::with_capacity(count * N);
    let mask = (1u64 << bits) - 1;
    runs(places, bits, count, |run, len| {
        match run {
            Run::Same(place) => {
                let value = dictionary.get(place as usize)?;
                (0..len).for_each(|_| values.extend_from_slice(value));
            }
            Run::Packed(bytes) => {
                let (mut buffer, mut held, mut bytes) = (0u64, 0, bytes.iter());
                for _ in 0..len {
                    while held < bits {
                        buffer |= u64::from(*bytes.next()?) << held;
                        held += 8;
                    }
                    values.extend_from_slice(dictionary.get((buffer & mask) as usize)?);
                    (buffer, held) = (buffer >> bits, held - bits);
                }
            }
        }
        Some(())
    })?;
    (values.len() == count * N).then(|| values.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Levels of one bit in runs: those of eight that differ packed, the others as one value.
    fn in_runs(levels: &[bool]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for eight in levels.chunks(8) {
            match eight.iter().all(|level| *level == eight[0]) {
                true => bytes.extend([2 * eight.len() as u8, u8::from(eight[0])]),
                false => {
                    let packed = eight
                        .iter()
                        .rev()
                        .fold(0, |byte, level| byte << 1 | u8::from(*level));
                    bytes.extend([0b11, packed]);
                }
            }
        }
        bytes
    }

    proptest! {
        /// Against the levels themselves; one of them may be wrong.
        #[test]
        fn rows_of_another_width_are_seen(width in 1usize..30, start in 0usize..40, count in 1usize..120, wrong in 0usize..240) {
            let mut levels: Vec<bool> = (start..start + count).map(|value| value % width != 0).collect();
            let regular = wrong >= count;
            if !regular {
                levels[wrong] = !levels[wrong];
            }
            let bytes = in_runs(&levels);
            prop_assert_eq!(rows_of_width(&bytes, start, count, width), regular);
            prop_assert!(!rows_of_width(&bytes[..bytes.len() - 1], start, count, width) || bytes.ends_with(&[0]));
            prop_assert!(!rows_of_width(&bytes, start, count + 8, width));
        }

        #[test]
        fn places_in_a_dictionary_are_looked_up(bits in 1u32..13, places in prop::collection::vec(any::<u16>(), 1..70)) {
            let places: Vec<usize> = places.iter().map(|place| *place as usize % (1 << bits)).collect();
            let dictionary: Vec<u8> = (0..1u32 << bits).flat_map(|value| (value * 3).to_le_bytes()).collect();
            let groups = places.len().div_ceil(8);
            let mut packed = vec![0u8; groups * bits as usize];
            for (i, place) in places.iter().enumerate() {
                for bit in (0..bits as usize).filter(|bit| place >> bit & 1 == 1) {
                    let at = i * bits as usize + bit;
                    packed[at / 8] |= 1 << (at % 8);
                }
            }
            let mut bytes = vec![bits as u8, (2 * groups + 1) as u8];
            bytes.extend(packed);
            let expected: Vec<u8> = places.iter().flat_map(|place| (*place as u32 * 3).to_le_bytes()).collect();
            prop_assert_eq!(gather::<4>(&bytes, places.len(), &dictionary).unwrap(), expected);
            // the last of them again and again, in a run
            let mut bytes = vec![bits as u8, 14];
            bytes.extend(&(places[0] as u32).to_le_bytes()[..bits.div_ceil(8) as usize]);
            let expected = (places[0] as u32 * 3).to_le_bytes().repeat(7);
            prop_assert_eq!(gather::<4>(&bytes, 7, &dictionary).unwrap(), expected);
            prop_assert!(gather::<4>(&bytes, 8, &dictionary).is_none());
            prop_assert!(gather::<4>(&bytes, 7, &dictionary[..4 * places[0]]).is_none());
        }
    }

    #[test]
    fn a_missing_value_is_seen() {
        assert!(every_value(&[12, 1], 6, 1));
        assert!(!every_value(&[10, 1, 2, 0], 6, 1));
        assert!(!every_value(&[10, 1], 6, 1));
        assert!(every_value(&[], 6, 0));
        assert!(every_value(&[12, 3], 6, 3) && !every_value(&[12, 2], 6, 3));
    }
}
