//! How the scores of a batch are cut into tasks: by the shape alone, in rows and in latents.
//!
//! The dictionary is walked in rounds, each of as many latents as were seen before it, because what was seen bounds
//! what can still be chosen. A round is a grid of tiles, rows by latents, and a tile is one thread's work. A tile
//! reads its part of the dictionary once, so a round reads it once a row of tiles: few rows of tiles where the
//! round is wide, more where it is narrow and there would be too few tiles for many threads.

use std::ops::Range;

/// Latents in a tile, at most.
const WIDTH: usize = 512;
/// Rows in a tile, at most: its scores, `HEIGHT * WIDTH` floats, must not leave the cache.
const HEIGHT: usize = 1024;
/// Rows in a tile, at least, where there are as many: below, laying out a tile's part of the dictionary for the
/// product costs as much as the product.
const MIN_HEIGHT: usize = 256;
/// Tiles that a round should have.
const TILES: usize = 16;
/// Latents in a round, at most.
const ROUND: usize = 16 * WIDTH;

/// A part of the dictionary, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    latents: Range<usize>,
    /// Rows of the batch.
    rows: usize,
    /// Rows of tiles.
    high: usize,
    /// Columns of tiles.
    wide: usize,
}

/// A part of the scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) rows: Range<usize>,
    pub(crate) latents: Range<usize>,
}

/// The rounds of a batch of `rows` rows, the first of at most `first` latents.
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

    /// Tile `i`; those of the same rows follow each other, by ascending latents.
    pub(crate) fn tile(&self, i: usize) -> Tile {
        let part = |n: usize, i: usize, parts: usize| n * i / parts..n * (i + 1) / parts;
        let latents = part(self.latents.len(), i % self.wide, self.wide);
        let first = self.latents.start;
        Tile {
            rows: part(self.rows, i / self.wide, self.high),
            latents: first + latents.start..first + latents.end,
        }
    }

    /// The tiles of the same rows as tile `i * wide`, for `i` below [`Self::high`].
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

    /// How often a batch reads the dictionary: rows of dictionary read by all tiles, by its own.
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

    /// The figures of docs/PERFORMANCE.md. Blocks of rows alone, two a thread and at least 16 rows, read the dictionary
    /// twice a thread: 64 times on 32 threads.
    #[test]
    fn the_dictionary_is_read_a_few_times_whatever_the_threads() {
        let rounded = |passes: f64| (passes * 10.0).round() / 10.0;
        assert_eq!(rounded(passes(2048, 6144)), 5.3);
        assert_eq!(rounded(passes(4096, 24576)), 4.7);
        assert_eq!(rounded(passes(4096, 98304)), 4.2);
        assert_eq!(rounded(passes(16384, 1_048_576)), 16.0);
    }
}
