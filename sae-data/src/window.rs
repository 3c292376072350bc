//! The order of training: a pure function of (seed, epoch) with random access.
//!
//! A shuffle of single rows over the whole disk would need many tiny reads, and the state of a shuffle buffer would be
//! part of every checkpoint. Instead, the rows are cut into blocks. Each epoch puts the blocks into a new order and takes
//! them in *windows*; the rows of a window are shuffled among themselves. Blocks are read whole, a window fits into memory,
//! and both orders are permutations that are computed, not stored ([`Shuffle`]): a few multiplications find the row at any
//! position.

use std::ops::Range;

use crate::shuffle::Shuffle;

/// A data set cut into blocks and windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamingPlan {
    rows: usize,
    block: usize,
    /// Blocks per window; the last window may have fewer.
    blocks_per_window: usize,
    seed: Option<u64>,
}

/// Consecutive positions of one epoch, whose rows are read together.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Its positions, counted from the start of training.
    pub(crate) positions: Range<u64>,
    /// Its blocks, as ranges of rows; packed rows are numbered in this order.
    pub(crate) blocks: Vec<Range<usize>>,
    /// The packed row at each position; `None` for the order of the file.
    pub(crate) order: Option<Shuffle>,
}

impl StreamingPlan {
    /// Shuffled windows of at most about `window` rows, in blocks of `block`.
    ///
    /// # Panics
    /// If there are no rows.
    pub(crate) fn shuffled(rows: usize, window: usize, block: usize, seed: u64) -> Self {
        let block = block.clamp(1, rows);
        let blocks = rows.div_ceil(block);
        let most = (window / block).max(1);
        // windows of about the same size: a last window of one or two blocks would hardly be shuffled
        let windows = blocks.div_ceil(most);
        Self {
            rows,
            block,
            blocks_per_window: blocks.div_ceil(windows),
            seed: Some(seed),
        }
    }

    /// Windows of `window` rows in the order of the file.
    pub(crate) fn sequential(rows: usize, window: usize) -> Self {
        Self {
            rows,
            block: window.clamp(1, rows),
            blocks_per_window: 1,
            seed: None,
        }
    }

    /// Rows per full window, which are shuffled together.
    pub fn window_rows(&self) -> usize {
        (self.block * self.blocks_per_window).min(self.rows)
    }

    /// Rows per block, which are read together.
    pub fn block_rows(&self) -> usize {
        self.block
    }

    /// Windows per epoch.
    pub fn windows(&self) -> usize {
        self.blocks().div_ceil(self.blocks_per_window)
    }

    fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block)
    }

    /// The order of the blocks in an epoch; `None` with only one window.
    fn block_order(&self, epoch: u64) -> Option<Shuffle> {
        let seed = self.seed.filter(|_| self.windows() > 1)?;
        Some(Shuffle::new(self.blocks(), seed ^ 0x626c_6f63_6b73, epoch))
    }

    /// The window of a position, counted from the start of training.
    pub(crate) fn at(&self, position: u64) -> Window {
        let rows = self.rows as u64;
        let (epoch, within) = (position / rows, (position % rows) as usize);
        let order = self.block_order(epoch);
        // All blocks but the last have the same size; windows behind the last block begin earlier.
        let last = self.blocks() - 1;
        let short_slot = order.map_or(last, |order| order.position(last));
        let missing = self.blocks() * self.block - self.rows;
        let start_of = |window: usize| {
            let slot = window * self.blocks_per_window;
            (slot * self.block).min(self.blocks() * self.block)
                - if short_slot < slot { missing } else { 0 }
        };
        let mut window = within / (self.blocks_per_window * self.block);
        if within >= start_of(window + 1) {
            window += 1;
        }
        let slots = window * self.blocks_per_window
            ..((window + 1) * self.blocks_per_window).min(self.blocks());
        let block = |slot: usize| {
            let block = order.map_or(slot, |order| order.row(slot));
            block * self.block..((block + 1) * self.block).min(self.rows)
        };
        let (start, end) = (start_of(window), start_of(window + 1));
        let in_window = self.seed.map(|seed| {
            // the seed differs by window, and Shuffle gets the epoch
            let seed = seed.wrapping_add((window as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Shuffle::new(end - start, seed, epoch)
        });
        Window {
            positions: epoch * rows + start as u64..epoch * rows + end as u64,
            blocks: slots.map(block).collect(),
            order: in_window,
        }
    }
}

impl Window {
    /// The packed row at the `local`-th position of the window.
    pub(crate) fn packed(&self, local: usize) -> usize {
        self.order.map_or(local, |order| order.row(local))
    }

    /// The row at the `local`-th position of the window.
    pub(crate) fn row(&self, local: usize) -> usize {
        let mut packed = self.packed(local);
        for block in &self.blocks {
            if packed < block.len() {
                return block.start + packed;
            }
            packed -= block.len();
        }
        unreachable!("a window has a row at each of its positions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rows of positions `0..count`, window by window.
    fn rows(windows: &StreamingPlan, count: u64) -> Vec<usize> {
        let mut rows = Vec::new();
        while (rows.len() as u64) < count {
            let window = windows.at(rows.len() as u64);
            assert_eq!(window.positions.start, rows.len() as u64);
            let packed: Vec<usize> = window.blocks.iter().cloned().flatten().collect();
            rows.extend((0..packed.len()).map(|local| packed[window.packed(local)]));
        }
        rows
    }

    proptest! {
        #[test]
        fn every_row_exactly_once_per_epoch(
            n in 1usize..700, window in 1usize..400, block in 1usize..90, seed in any::<u64>(),
        ) {
            let windows = StreamingPlan::shuffled(n, window, block, seed);
            let all = rows(&windows, 3 * n as u64);
            for epoch in all.chunks(n) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            prop_assert!(windows.window_rows() <= window.max(block.min(n)));
        }

        #[test]
        fn a_window_is_found_by_any_of_its_positions(n in 1usize..500, window in 1usize..200, block in 1usize..60, position in 0u64..2000) {
            let windows = StreamingPlan::shuffled(n, window, block, 7);
            let there = windows.at(position);
            prop_assert!(there.positions.contains(&position));
            let again = windows.at(there.positions.start);
            prop_assert_eq!(&again.positions, &there.positions);
            prop_assert_eq!(&again.blocks, &there.blocks);
        }
    }

    #[test]
    fn windows_have_about_the_same_size() {
        let windows = StreamingPlan::shuffled(1010, 500, 10, 0);
        assert_eq!((windows.windows(), windows.window_rows()), (3, 340));
        assert_eq!(StreamingPlan::shuffled(1000, 10_000, 10, 0).windows(), 1);
    }

    /// Pearson's correlation of position and row.
    fn correlation(rows: &[usize]) -> f64 {
        let mean = (rows.len() - 1) as f64 / 2.0;
        let (mut product, mut square) = (0.0, 0.0);
        for (i, row) in rows.iter().enumerate() {
            product += (i as f64 - mean) * (*row as f64 - mean);
            square += (i as f64 - mean).powi(2);
        }
        product / square
    }

    /// Blocks move together, so chance makes the correlation of an epoch as large as that of a shuffle of the
    /// *blocks*: its standard deviation is 1/sqrt(blocks - 1).
    #[test]
    fn positions_and_rows_are_uncorrelated() {
        let (n, block) = (100_000, 100);
        let windows = StreamingPlan::shuffled(n, 10_000, block, 1);
        let all = rows(&windows, 8 * n as u64);
        let bound = 5.0 / ((n / block) as f64).sqrt();
        for (epoch, rows) in all.chunks(n).enumerate() {
            assert!(
                correlation(rows).abs() < bound,
                "epoch {epoch}: {}",
                correlation(rows)
            );
        }
        // within a window nothing moves together
        let window = windows.at(0);
        let local: Vec<usize> = (0..10_000).map(|local| window.packed(local)).collect();
        assert!(
            correlation(&local).abs() < 5.0 / 100.0,
            "{}",
            correlation(&local)
        );
    }

    #[test]
    fn each_epoch_has_an_order_of_its_own() {
        for windows in [
            StreamingPlan::shuffled(5000, 1000, 50, 3),
            StreamingPlan::shuffled(5000, 5000, 50, 3),
        ] {
            let n = 5000;
            let all = rows(&windows, 3 * n as u64);
            let epochs: Vec<&[usize]> = all.chunks(n).collect();
            for (a, b) in [(0, 1), (1, 2), (0, 2)] {
                // of a random permutation one row on average stays where it was
                let stay = epochs[a]
                    .iter()
                    .zip(epochs[b])
                    .filter(|(x, y)| x == y)
                    .count();
                assert!(stay < 10, "{stay} rows stay");
            }
            let other = StreamingPlan {
                seed: Some(4),
                ..windows
            };
            assert_ne!(rows(&other, n as u64), epochs[0]);
            assert_eq!(rows(&windows, n as u64), epochs[0]);
        }
    }

    /// Neighbours in the file should not be neighbours in a batch: how many of the rows of 1,000 consecutive
    /// positions lie within ten rows of the one before, against what chance gives.
    #[test]
    fn neighbours_are_parted() {
        let windows = StreamingPlan::shuffled(200_000, 50_000, 200, 9);
        let all = rows(&windows, 200_000);
        let near = all
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) <= 10)
            .count();
        // in a window of 250 blocks, chance is 20 / 50,000 per pair: 80 of 200,000
        assert!(near < 80 + 5 * 9, "{near}");
    }
}
