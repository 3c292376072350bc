//! Cuts the scores of a batch into tasks, by rows and by latents. The cut depends on the shape alone.
//!
//! The dictionary is read in rounds. A round has as many latents as all rounds before it, because the scores seen so
//! far bound which scores can still be chosen. A round is a grid of tiles (rows by latents), and one thread works on a
//! tile. A tile reads its part of the dictionary once, so a round reads its part once per row of tiles. A wide round
//! therefore has few rows of tiles. A narrow round has more, because there would be too few tiles for many threads.

use std::ops::Range;

/// Maximum number of latents per tile.
const WIDTH: usize = 512;
/// Maximum number of rows per tile: its scores, `HEIGHT * WIDTH` floats, must stay in the cache.
const HEIGHT: usize = 1024;
/// Minimum number of rows per tile, if the batch has as many. With fewer rows, packing a tile's part of the dictionary
/// for the product costs as much as the product.
const MIN_HEIGHT: usize = 256;
/// Number of tiles that a round should have.
const TILES: usize = 16;
/// Maximum number of latents per round.
const ROUND: usize = 16 * WIDTH;

/// A part of the dictionary and its grid of tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    latents: Range<usize>,
    /// Number of rows of the batch.
    rows: usize,
    /// Number of rows of tiles.
    high: usize,
    /// Number of columns of tiles.
    wide: usize,
}

/// A part of the scores: some rows by some latents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) rows: Range<usize>,
    pub(crate) latents: Range<usize>,
}

/// The rounds of a batch of `rows` rows; the first has at most `first` latents.
pub(crate) fn rounds(rows: usize, latents: usize, first: usize) -> impl Iterator<Item = Round> {
    let mut seen = 0;
    std::iter::from_fn(move || {
        let left = latents - seen;
        let length = if seen == 0 { first } else { seen.min(ROUND) }.min(left);
        let round = (length > 0).then(|| Round::new(rows, seen..seen + length));
        seen += length;
        round
    })
}

impl Round {
    fn new(rows: usize, latents: Range<usize>) -> Self {
        let wide = latents.len().div_ceil(WIDTH);
        let height = (rows * wide / TILES).clamp(MIN_HEIGHT, HEIGHT);
        Self {
            latents,
            rows,
            high: rows.div_ceil(height),
            wide,
        }
    }

    /// Number of tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.high * self.wide
    }

    /// Tile `i`. Tiles with the same rows are consecutive, in ascending order of latents.
    pub(crate) fn tile(&self, i: usize) -> Tile {
        let part = |n: usize, i: usize, parts: usize| n * i / parts..n * (i + 1) / parts;
        let latents = part(self.latents.len(), i % self.wide, self.wide);
        let first = self.latents.start;
        Tile {
            rows: part(self.rows, i / self.wide, self.high),
            latents: first + latents.start..first + latents.end,
        }
    }

    /// The numbers of the tiles with the same rows as tile `i * wide`, for `i` below [`Self::high`].
    pub(crate) fn row_of_tiles(&self, i: usize) -> Range<usize> {
        i * self.wide..(i + 1) * self.wide
    }

    /// Number of rows of tiles.
    pub(crate) fn high(&self) -> usize {
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a batch reads the dictionary: the rows of it that all tiles read, divided by the rows that it has.
    fn passes(rows: usize, latents: usize) -> f64 {
        let tiles = rounds(rows, latents, WIDTH).flat_map(|round| {
            let tiles = 0..round.tiles();
            tiles.map(move |i| round.tile(i).latents.len())
        });
        tiles.sum::<usize>() as f64 / latents as f64
    }

    #[test]
    fn tiles_cover_every_score_once() {
        for (rows, latents, first) in [
            (1, 1, 512),
            (7, 513, 512),
            (1030, 1301, 64),
            (4096, 24576, 512),
        ] {
            let mut seen = 0;
            for round in rounds(rows, latents, first) {
                assert_eq!(round.latents.start, seen);
                seen = round.latents.end;
                let (mut row, mut column) = (0, round.latents.start);
                for tile in (0..round.tiles()).map(|i| round.tile(i)) {
                    assert!(!tile.rows.is_empty() && tile.rows.len() <= HEIGHT);
                    assert!(!tile.latents.is_empty() && tile.latents.len() <= WIDTH);
                    assert_eq!((tile.rows.start, tile.latents.start), (row, column));
                    column = tile.latents.end;
                    if column == round.latents.end {
                        (row, column) = (tile.rows.end, round.latents.start);
                    }
                }
                assert_eq!(row, rows);
            }
            assert_eq!(seen, latents);
        }
    }

    /// The numbers in docs/PERFORMANCE.md. Blocks of rows alone, two per thread and of at least 16 rows, would read the
    /// dictionary twice per thread: 64 times on 32 threads.
    #[test]
    fn the_dictionary_is_read_a_few_times_whatever_the_threads() {
        let rounded = |passes: f64| (passes * 10.0).round() / 10.0;
        assert_eq!(rounded(passes(2048, 6144)), 5.3);
        assert_eq!(rounded(passes(4096, 24576)), 4.7);
        assert_eq!(rounded(passes(4096, 98304)), 4.2);
        assert_eq!(rounded(passes(16384, 1_048_576)), 16.0);
    }
}
