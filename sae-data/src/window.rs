//! The order of training: a pure function of (seed, epoch), reached anywhere at once.
//!
//! Shuffling row by row over the whole disk would read it in crumbs, shuffling a buffer would make its state
//! part of every checkpoint. Instead the rows are cut into blocks; each epoch puts the blocks into an order of
//! its own, and takes them a *window* at a time; the rows of a window are shuffled among themselves. Blocks are
//! read whole, a window fits into memory, and both orders are permutations that are computed, not stored
//! ([`Shuffle`]): which row stands at a position takes a few multiplications, whatever the position.

use std::ops::Range;

use crate::shuffle::Shuffle;

/// How a data set is cut into blocks and windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    rows: usize,
    block: usize,
    /// Blocks of a window; the last window may have fewer.
    blocks_per_window: usize,
    seed: Option<u64>,
}

/// Consecutive positions of one epoch, whose rows are read together.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Its positions, counted from the start of training.
    pub(crate) positions: Range<u64>,
    /// Its blocks, as ranges of rows, in the order in which they are packed.
    pub(crate) blocks: Vec<Range<usize>>,
    /// Which of the packed rows stands at each of the positions; none for the order of the file.
    pub(crate) order: Option<Shuffle>,
}

impl Windows {
    /// Shuffled windows of at most about `window` rows, in blocks of `block`.
    ///
    /// # Panics
    /// If there are no rows.
    pub(crate) fn shuffled(rows: usize, window: usize, block: usize, seed: u64) -> Self {
        let block = block.clamp(1, rows);
        let blocks = rows.div_ceil(block);
        let most = (window / block).max(1);
        // windows of about the same size: a last one of a block or two would hardly be shuffled
        let windows = blocks.div_ceil(most);
        Self {
            rows,
            block,
            blocks_per_window: blocks.div_ceil(windows),
            seed: Some(seed),
        }
    }

    /// The order of the file, `window` rows at a time.
    pub(crate) fn sequential(rows: usize, window: usize) -> Self {
        Self {
            rows,
            block: window.clamp(1, rows),
            blocks_per_window: 1,
            seed: None,
        }
    }

    /// Rows of a whole window.
    pub(crate) fn window_rows(&self) -> usize {
        (self.block * self.blocks_per_window).min(self.rows)
    }

    /// Rows of a block.
    pub(crate) fn block_rows(&self) -> usize {
        self.block
    }

    /// Number of windows of an epoch.
    pub(crate) fn count(&self) -> usize {
        self.blocks().div_ceil(self.blocks_per_window)
    }

    fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block)
    }

    /// The order of the blocks in an epoch; with one window there is nothing to order.
    fn block_order(&self, epoch: u64) -> Option<Shuffle> {
        let seed = self.seed.filter(|_| self.count() > 1)?;
        Some(Shuffle::new(self.blocks(), seed ^ 0x626c_6f63_6b73, epoch))
    }

    /// The window of the position `position`, counted from the start of training.
    pub(crate) fn at(&self, position: u64) -> Window {
        let rows = self.rows as u64;
        let (epoch, within) = (position / rows, (position % rows) as usize);
        let order = self.block_order(epoch);
        // All blocks are of one size but the last; where that one stands, what comes after is moved.
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
            // windows differ in their seeds, epochs in Shuffle's own argument
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
    /// Which of the packed rows stands at the `local`-th position of the window.
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

    /// The rows of positions `0..count`, a window at a time.
    fn rows(windows: &Windows, count: u64) -> Vec<usize> {
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
        fn every_row_exactly_once_an_epoch(
            n in 1usize..700, window in 1usize..400, block in 1usize..90, seed in any::<u64>(),
        ) {
            let windows = Windows::shuffled(n, window, block, seed);
            let all = rows(&windows, 3 * n as u64);
            for epoch in all.chunks(n) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            prop_assert!(windows.window_rows() <= window.max(block.min(n)));
        }

        #[test]
        fn any_position_is_reached_at_once(n in 1usize..500, window in 1usize..200, block in 1usize..60, position in 0u64..2000) {
            let windows = Windows::shuffled(n, window, block, 7);
            let there = windows.at(position);
            prop_assert!(there.positions.contains(&position));
            let again = windows.at(there.positions.start);
            prop_assert_eq!(&again.positions, &there.positions);
            prop_assert_eq!(&again.blocks, &there.blocks);
        }
    }

    #[test]
    fn windows_are_of_about_one_size() {
        let windows = Windows::shuffled(1010, 500, 10, 0);
        assert_eq!((windows.count(), windows.window_rows()), (3, 340));
        assert_eq!(Windows::shuffled(1000, 10_000, 10, 0).count(), 1);
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
        let windows = Windows::shuffled(n, 10_000, block, 1);
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
            Windows::shuffled(5000, 1000, 50, 3),
            Windows::shuffled(5000, 5000, 50, 3),
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
            let other = Windows {
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
        let windows = Windows::shuffled(200_000, 50_000, 200, 9);
        let all = rows(&windows, 200_000);
        let near = all
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) <= 10)
            .count();
        // in a window of 250 blocks, chance is 20 / 50,000 a pair: 80 of 200,000
        assert!(near < 80 + 5 * 9, "{near}");
    }
}
