//! Rows with a fixed number of bytes at known places in files.
//!
//! A table is a list of [`Extent`]s. An extent is a series of runs of consecutive rows at equal distances: one long
//! run for a plain matrix; one run per example where the first token is left out, or where several layers are stored
//! side by side. A binary search over the extents finds any row.

use std::ops::Range;

use super::file::{ReadAt, Store};
use crate::error::DataError;

/// Bytes per read, and size of the scratch memory.
const PIECE: usize = 1 << 18;

/// Runs of rows in one store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    /// Number of the store.
    store: usize,
    /// Byte at which the first run starts.
    offset: u64,
    rows: usize,
    /// Rows of a run.
    run: usize,
    /// Bytes between the starts of two runs.
    stride: u64,
    /// Number of the first row, counting rows that are left out.
    first_stored: usize,
    /// Stored rows between the starts of two runs.
    pitch: usize,
}

/// Rows of `row_bytes` bytes.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) row_bytes: usize,
    extents: Vec<Extent>,
    /// First row of each extent.
    starts: Vec<usize>,
    rows: usize,
    stored: usize,
}

impl Table {
    pub(crate) fn new(row_bytes: usize) -> Self {
        Self {
            row_bytes,
            ..Self::default()
        }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of rows, counting rows that are left out.
    pub(crate) fn stored(&self) -> usize {
        self.stored
    }

    /// Adds the `rows` rows that start at byte `offset`, except the first `skip` of them. The caller has checked that they
    /// are within the store.
    pub(crate) fn push(&mut self, store: usize, offset: u64, rows: usize, skip: usize) {
        let kept = rows.saturating_sub(skip);
        let first_stored = self.stored + skip.min(rows);
        self.stored += rows;
        if kept == 0 {
            return;
        }
        let row_bytes = self.row_bytes as u64;
        let offset = offset + skip as u64 * row_bytes;
        self.rows += kept;
        if let Some(last) = self.extents.last_mut().filter(|last| last.store == store) {
            let (single, runs) = (last.run == last.rows, last.rows / last.run);
            let end = last.offset + last.rows as u64 * row_bytes;
            if single && (end, last.first_stored + last.rows) == (offset, first_stored) {
                last.rows += kept;
                last.run = last.rows;
                return;
            }
            if single && last.run == kept && offset > last.offset {
                last.stride = offset - last.offset;
                last.pitch = first_stored - last.first_stored;
            }
            let next = last.offset + runs as u64 * last.stride;
            let next_stored = last.first_stored + runs * last.pitch;
            if last.run == kept && (next, next_stored) == (offset, first_stored) {
                last.rows += kept;
                return;
            }
        }
        self.starts.push(self.rows - kept);
        self.extents.push(Extent {
            store,
            offset,
            rows: kept,
            run: kept,
            stride: 0,
            first_stored,
            pitch: 0,
        });
    }

    /// Number of `row`, counting rows that are left out.
    pub(crate) fn stored_row(&self, row: usize) -> usize {
        let (extent, local) = self.locate(row);
        extent.first_stored + local / extent.run * extent.pitch + local % extent.run
    }

    fn locate(&self, row: usize) -> (&Extent, usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let at = self.starts.partition_point(|start| *start <= row) - 1;
        (&self.extents[at], row - self.starts[at])
    }

    /// Reads the rows of `pieces` in order; `visit` gets their bytes, several whole rows at a time.
    pub(crate) fn read(
        &self,
        stores: &[Box<dyn Store>],
        pieces: &[Range<usize>],
        scratch: &mut Vec<u8>,
        mut visit: impl FnMut(&[u8]),
    ) -> Result<(), DataError> {
        let most = (PIECE / self.row_bytes).max(1);
        let mut last: Option<(usize, Box<dyn ReadAt + '_>)> = None;
        for rows in pieces {
            let mut row = rows.start;
            while row < rows.end {
                let (extent, local) = self.locate(row);
                let within = local % extent.run;
                let left_in_run = (extent.run - within).min(extent.rows - local);
                let count = left_in_run.min(rows.end - row).min(most);
                let offset = extent.offset
                    + (local / extent.run) as u64 * extent.stride
                    + (within * self.row_bytes) as u64;
                let same = last.take().filter(|(number, _)| *number == extent.store);
                let (_, store) = match same {
                    Some(same) => last.insert(same),
                    None => last.insert((extent.store, stores[extent.store].open()?)),
                };
                let bytes = count * self.row_bytes;
                if scratch.len() < bytes {
                    scratch.resize(bytes, 0);
                }
                store.read_at(offset, &mut scratch[..bytes])?;
                visit(&scratch[..bytes]);
                row += count;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::SourceFile;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain list of (file, byte, stored row) of every row.
        #[test]
        fn every_row_is_found_where_it_was_put(
            pieces in prop::collection::vec((0usize..3, 0u64..6, 1usize..6, 0usize..3), 1..12),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut contents = Vec::new();
            let files: Vec<Box<dyn Store>> = (0..3u8).map(|i| {
                let path = dir.path().join(i.to_string());
                contents.push((0..=255u8).map(|b| b.wrapping_mul(3).wrapping_add(i)).collect::<Vec<_>>());
                std::fs::write(&path, &contents[i as usize]).unwrap();
                Box::new(SourceFile::stat(&path).unwrap()) as Box<dyn Store>
            }).collect();
            let mut table = Table::new(3);
            let (mut expected, mut stored, mut at) = (Vec::new(), 0, [0u64; 3]);
            for (file, gap, rows, skip) in pieces {
                let offset = at[file] + 3 * gap;
                if offset + 3 * rows as u64 > 256 { continue }
                at[file] = offset + 3 * rows as u64;
                table.push(file, offset, rows, skip);
                for row in skip..rows {
                    let byte = offset as usize + 3 * row;
                    expected.push((contents[file][byte..byte + 3].to_vec(), stored + row));
                }
                stored += rows;
            }
            prop_assert_eq!(table.rows(), expected.len());
            prop_assert_eq!(table.stored(), stored);
            for start in 0..expected.len() {
                let mut read = Vec::new();
                table.read(&files, std::slice::from_ref(&(start..expected.len())), &mut Vec::new(), |bytes| read.extend_from_slice(bytes)).unwrap();
                let bytes: Vec<u8> = expected[start..].iter().flat_map(|(row, _)| row.clone()).collect();
                prop_assert_eq!(read, bytes);
                prop_assert_eq!(table.stored_row(start), expected[start].1);
            }
        }
    }
}
