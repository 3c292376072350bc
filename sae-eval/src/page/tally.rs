//! What the page keeps of each latent while the held-out rows pass: a histogram of its activations, its strongest rows,
//! and a sample of its rows. About 1.5 kB per latent, whatever the number of rows, and the same for every batch size and
//! every order of the rows.
//!
//! Tokens of one passage often have nearly the same activation, and would take all places among the strongest rows. So
//! documents are cut into pieces (`nearby.rs`), of each piece only the strongest row counts, and of rows of two pieces that
//! lie close together, only the stronger one is shown. The largest values of groups can be kept in bounded memory, in
//! any order: a group that was dropped comes back only with a larger value.

use std::ops::Range;

/// Bins of a histogram.
pub(super) const BINS: usize = 24;
/// Rows that are kept for each one that is shown: a shown row rules out at most the pieces before and behind its own.
pub(super) const SPARE: usize = 3;
/// Rows in the sample: four for each tenth of the activations.
const SAMPLE: usize = 40;
/// Parts of equal size into which a latent's rows are cut by activation.
pub(super) const TENTHS: usize = 10;

/// A row on which a latent is active, and the activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Example {
    pub(crate) row: u64,
    pub(crate) value: f32,
}

/// A row that is the strongest of its piece.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ranked {
    row: u64,
    value: f32,
    /// Its place in the piece.
    into: u8,
}

impl Ranked {
    /// The first row of its piece.
    fn piece(&self) -> u64 {
        self.row - u64::from(self.into)
    }

    /// Falls from the strongest row on; of equal ones the first row comes first.
    fn key(&self) -> (f32, std::cmp::Reverse<u64>) {
        (self.value.abs(), std::cmp::Reverse(self.row))
    }
}

/// A row of the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drawn {
    hash: u32,
    example: Example,
}

/// Everything about one latent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Rows with `a_j != 0`.
    pub(crate) fired: u64,
    /// Sum of `|a_j|`.
    pub(super) mass: f64,
    /// Largest `|a_j|`.
    pub(super) max: f32,
    /// The half octave of the last bin: bin `BINS - 1 - i` has `|a_j|` in `[2^((top - i) / 2), 2^((top - i + 1) / 2))`.
    top_bin: i32,
    /// Rows by `|a_j|`; the first bin also has all that is smaller.
    bins: [u32; BINS],
    /// The pieces with the largest `|a_j|`, falling.
    top: Vec<Ranked>,
    /// The rows of the smallest hashes.
    sample: Vec<Drawn>,
}

/// The half octave of a magnitude above zero.
fn half_octave(magnitude: f32) -> i32 {
    (2.0 * f64::from(magnitude).log2()).floor() as i32
}

/// A number from a latent and a row that looks random: splitmix64's mixing (Steele, Lea & Flood 2014).
pub(super) fn hash(latent: u32, row: u64) -> u32 {
    let mut z = (row ^ (u64::from(latent) << 40) ^ (u64::from(latent) >> 24)).wrapping_add(1);
    z = z.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

impl Tally {
    /// Adds the activation of latent `latent` on a row, the place `into` of a piece; zero and what is not finite count as
    /// not active. At most `most` pieces are kept, the same number in each call.
    pub(super) fn add(&mut self, latent: u32, (row, into): (u64, u8), value: f32, most: usize) {
        let magnitude = value.abs();
        if magnitude == 0.0 || !magnitude.is_finite() {
            return;
        }
        self.count(magnitude);
        self.rank(Ranked { row, value, into }, most);
        self.draw(hash(latent, row), Example { row, value });
    }

    fn count(&mut self, magnitude: f32) {
        let bin = half_octave(magnitude);
        if self.fired == 0 {
            self.top_bin = bin;
        } else if bin > self.top_bin {
            self.shift((bin - self.top_bin) as usize);
            self.top_bin = bin;
        }
        let below = (self.top_bin - bin) as usize;
        let place = (BINS - 1).saturating_sub(below);
        self.bins[place] = self.bins[place].saturating_add(1);
        self.fired += 1;
        self.mass += f64::from(magnitude);
        self.max = self.max.max(magnitude);
    }

    /// Moves all bins down by `by`; the first one takes what would fall out.
    fn shift(&mut self, by: usize) {
        let mut moved = [0u32; BINS];
        for (bin, count) in self.bins.iter().enumerate() {
            let to = &mut moved[bin.saturating_sub(by)];
            *to = to.saturating_add(*count);
        }
        self.bins = moved;
    }

    fn rank(&mut self, ranked: Ranked, most: usize) {
        let before = |other: &Ranked| other.key() > ranked.key();
        if self.top.len() >= most && self.top.last().is_some_and(before) {
            return;
        }
        match self.top.iter().position(|r| r.piece() == ranked.piece()) {
            Some(at) if before(&self.top[at]) => return,
            Some(at) => {
                self.top.remove(at);
            }
            None => self.top.truncate(most.saturating_sub(1)),
        }
        let place = self.top.partition_point(before);
        self.top.insert(place, ranked);
    }

    fn draw(&mut self, hash: u32, example: Example) {
        let key = |d: &Drawn| (d.hash, d.example.row);
        let before = |d: &Drawn| key(d) < (hash, example.row);
        if self.sample.len() == SAMPLE && self.sample.last().is_some_and(before) {
            return;
        }
        let place = self.sample.partition_point(before);
        self.sample.truncate(SAMPLE - 1);
        self.sample.insert(place, Drawn { hash, example });
    }

    /// Mean of `|a_j|` over the rows on which it is active.
    pub(super) fn mean(&self) -> f64 {
        self.mass / self.fired as f64
    }

    /// The histogram without empty bins at its ends: the half octave of its first bin, and the counts.
    pub(super) fn histogram(&self) -> (i32, &[u32]) {
        let first = self.bins.iter().position(|n| *n > 0).unwrap_or(BINS);
        let lowest = self.top_bin + 1 - BINS as i32;
        (lowest + first as i32, &self.bins[first..])
    }

    /// The rows with the largest `|a_j|`, at most `most` of them, without those that are `near` a stronger one of them.
    pub(super) fn strongest(&self, most: usize, near: impl Fn(u64) -> Range<u64>) -> Vec<Example> {
        let (mut taken, mut kept) = (Vec::<Range<u64>>::new(), Vec::new());
        for Ranked { row, value, .. } in self.top.iter().copied() {
            if kept.len() == most {
                break;
            }
            if !taken.iter().any(|near| near.contains(&row)) {
                taken.push(near(row));
                kept.push(Example { row, value });
            }
        }
        kept
    }

    /// One row of each tenth of the activations in the sample, strongest first; fewer if there are fewer rows.
    pub(super) fn tenths(&self) -> Vec<Example> {
        let mut sample: Vec<Example> = self.sample.iter().map(|d| d.example).collect();
        sample.sort_by(|a, b| {
            b.value
                .abs()
                .total_cmp(&a.value.abs())
                .then(a.row.cmp(&b.row))
        });
        let n = sample.len();
        match n {
            0..=TENTHS => sample,
            _ => (0..TENTHS)
                .map(|t| sample[(2 * t + 1) * n / (2 * TENTHS)])
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(rows: impl Iterator<Item = (u64, f32)>) -> Tally {
        let mut tally = Tally::default();
        rows.for_each(|(row, value)| tally.add(3, (row, 0), value, TOP));
        tally
    }

    const TOP: usize = 10;
    /// Rows of a piece, and the distance within which rows are near each other, in the tests.
    const PIECE: u64 = 4;

    /// The rows near a row, of documents of `document` rows.
    fn near(row: u64, document: u64) -> Range<u64> {
        let start = row / document * document;
        (row.saturating_sub(PIECE - 1)).max(start)..(row + PIECE).min(start + document)
    }

    /// The strongest rows of all, by the definition: the strongest of each piece, and of these none near a stronger one.
    fn oracle(values: &[f32], document: u64, most: usize) -> Vec<u64> {
        let piece = |row: u64| (row / document, row % document / PIECE);
        let stronger = |a: u64, b: u64| {
            let [x, y] = [a, b].map(|row| values[row as usize].abs());
            x > y || (x == y && a < b)
        };
        let rows = || (0..values.len() as u64).filter(|row| values[*row as usize] != 0.0);
        let alone = |row: &u64| !rows().any(|r| piece(r) == piece(*row) && stronger(r, *row));
        let mut left: Vec<u64> = rows().filter(alone).collect();
        let mut kept = Vec::new();
        while let Some(best) = left
            .iter()
            .copied()
            .reduce(|a, b| if stronger(b, a) { b } else { a })
            && kept.len() < most
        {
            left.retain(|row| !near(best, document).contains(row));
            kept.push(best);
        }
        kept
    }

    #[test]
    fn bins_are_half_octaves() {
        let tally = tally(
            [
                (0, 1.0),
                (1, 1.5),
                (2, -2.0),
                (3, 0.0),
                (4, f32::NAN),
                (5, 1e-9),
            ]
            .into_iter(),
        );
        assert_eq!((tally.fired, tally.max), (4, 2.0));
        let (first, counts) = tally.histogram();
        assert_eq!(first, 2 + 1 - BINS as i32);
        assert_eq!(counts[0], 1, "far below: the first bin");
        assert_eq!(
            counts[BINS - 3..],
            [1, 1, 1],
            "[1, 1.41), [1.41, 2), [2, 2.83)"
        );
        assert_eq!(
            tally
                .strongest(2, |row| row..row + 1)
                .iter()
                .map(|e| e.row)
                .collect::<Vec<_>>(),
            [2, 1]
        );
    }

    #[test]
    fn one_example_of_each_tenth() {
        let tally = tally((0..4000).map(|row| (row, (row as f32 + 1.0) / 4000.0)));
        let tenths = tally.tenths();
        assert_eq!(tenths.len(), TENTHS);
        for (i, example) in tenths.iter().enumerate() {
            let expected = 0.95 - 0.1 * i as f32;
            assert!((example.value - expected).abs() < 0.15, "{i}: {example:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_rows_does_not_matter(values in prop::collection::vec(-3f32..40.0, 0..200)) {
            let rows = || (0u64..).zip(values.iter().copied());
            let forward = tally(rows());
            let mut back: Vec<_> = rows().collect();
            back.reverse();
            let backward = tally(back.into_iter());
            prop_assert_eq!(&forward.bins, &backward.bins);
            prop_assert_eq!(&forward.top, &backward.top);
            prop_assert_eq!(&forward.sample, &backward.sample);
            let mut all: Vec<f32> = values.iter().map(|v| v.abs()).filter(|v| *v > 0.0).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            all.truncate(TOP);
            prop_assert_eq!(forward.top.iter().map(|r| r.value.abs()).collect::<Vec<_>>(), all);
            prop_assert_eq!(forward.bins.iter().map(|n| u64::from(*n)).sum::<u64>(), forward.fired);
        }

        #[test]
        fn no_two_of_the_strongest_rows_lie_close_together(
            // few different values, so that there are ties
            values in prop::collection::vec((-9i8..40).prop_map(|v| f32::from(v.max(0) / 3)), 0..300),
            document in 1u64..40,
            most in 1usize..8,
            order in any::<u64>(),
        ) {
            let into = |row: u64| (row % document % PIECE) as u8;
            let mut rows: Vec<u64> = (0..values.len() as u64).collect();
            for _ in 0..2 {
                let mut tally = Tally::default();
                for row in &rows {
                    tally.add(3, (*row, into(*row)), values[*row as usize], SPARE * most);
                }
                prop_assert!(tally.top.len() <= SPARE * most);
                let strongest = tally.strongest(most, |row| near(row, document));
                let strongest: Vec<u64> = strongest.iter().map(|e| e.row).collect();
                prop_assert_eq!(strongest, oracle(&values, document, most));
                rows.sort_by_key(|row| hash(order as u32, *row));
            }
        }
    }
}
