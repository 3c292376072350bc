//! Finds the n largest scores: of a row, and of a whole batch on all threads.
//!
//! The n-th largest score of a batch is found by counting, without a copy of the candidates. Positive floats are in the
//! same order as their bits, so three counts (of 11, 11 and 10 bits) determine it. The counts of parts are whole
//! numbers, so they can be added in any order.

use rayon::prelude::*;

use super::select::{Candidates, Chosen, Found, Rule};
use super::simd::{self, Simd};

/// Minimum number of rows per task.
const GRAIN: usize = 16;

/// The n largest values of a list: all that exceed the n-th largest, and the first of those equal to it, up to n in
/// total. NaN counts as infinity, so that it is not lost.
pub(super) struct Largest {
    pub(super) nth: f32,
    /// How many more values equal to the n-th are wanted.
    room: usize,
}

impl Largest {
    /// The n largest of at least `n >= 1` values, which are reordered.
    pub(super) fn of(values: &mut [f32], n: usize) -> Self {
        let (larger, nth, _) =
            values.select_nth_unstable_by(n - 1, |a, b| rank(*b).total_cmp(&rank(*a)));
        let nth = rank(*nth);
        let above = larger.iter().filter(|z| rank(**z) > nth).count();
        Self {
            nth,
            room: n - above,
        }
    }

    /// The n largest candidates of a batch. There are at least `n >= 1`, and all are positive or NaN.
    fn of_batch(rows: &[Candidates], n: usize) -> Self {
        let (mut found, mut room) = (0u32, n);
        for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
            let counts = count(rows, found, shift, bits);
            let mut digit = counts.len() - 1;
            while counts[digit] < room {
                room -= counts[digit];
                digit -= 1;
            }
            found |= (digit as u32) << shift;
        }
        Self {
            nth: f32::from_bits(found),
            room,
        }
    }

    /// Returns whether `z` is among the largest. It must be called once for each value.
    pub(super) fn wants(&mut self, z: f32) -> bool {
        if rank(z) == self.nth && self.room > 0 {
            self.room -= 1;
            return true;
        }
        rank(z) > self.nth
    }
}

/// Counts how often each value of the `bits` bits from `shift` on occurs among the candidates whose higher bits equal
/// those of `found`.
fn count(rows: &[Candidates], found: u32, shift: u32, bits: u32) -> Vec<usize> {
    let above = shift + bits;
    let higher = |key: u32| u64::from(key) >> above;
    let add = |mut counts: Vec<usize>, row: &Candidates| {
        for z in &row.values {
            let key = rank(*z).to_bits();
            if higher(key) == higher(found) {
                counts[(key >> shift) as usize & ((1 << bits) - 1)] += 1;
            }
        }
        counts
    };
    let none = || vec![0; 1 << bits];
    let sum = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let rows = rows.par_iter().with_min_len(4 * GRAIN);
    rows.fold(none, add).reduce(none, sum)
}

/// The key by which values are compared.
fn rank(z: f32) -> f32 {
    if z.is_nan() { f32::INFINITY } else { z }
}

/// The n largest positive scores of a batch of `rows` rows.
pub(crate) struct BatchTopK {
    pub(crate) n: usize,
    pub(crate) rows: usize,
}

impl Rule for BatchTopK {
    /// The first round keeps every positive score. It has about 2 k latents, so that the batch has few times
    /// `n = k B` candidates.
    fn first_round(&self) -> usize {
        (2 * self.n / self.rows.max(1))
            .next_multiple_of(64)
            .clamp(64, 512)
    }

    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found) {
        if self.n > 0 {
            found.keep_above(simd, scores, bound.max(0.0), first);
        }
    }

    /// The n-th largest score so far is a lower bound of the final one. Scores equal to it stay until the last round
    /// decides.
    fn settle_batch(&self, rows: &mut [Candidates], last: bool) {
        let total: usize = rows.iter().map(Candidates::len).sum();
        if self.n == 0 || total <= self.n {
            return;
        }
        let largest = Largest::of_batch(rows, self.n);
        if last {
            return keep(rows, &largest);
        }
        let bound = largest.nth.next_down();
        rows.par_iter_mut().with_min_len(GRAIN).for_each(|row| {
            row.retain(|z| simd::passes(z, bound));
            row.bound = bound;
        });
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        row.append_to(out);
    }
}

/// Keeps the largest candidates; of those equal to the n-th, it keeps the ones of the first rows.
fn keep(rows: &mut [Candidates], largest: &Largest) {
    let nth = largest.nth;
    let equal = |row: &Candidates| row.values.iter().filter(|z| rank(**z) == nth).count();
    let mut left: Vec<usize> = rows.par_iter().with_min_len(GRAIN).map(equal).collect();
    let mut room = largest.room;
    for equal in &mut left {
        *equal = (*equal).min(room);
        room -= *equal;
    }
    let rows = rows.par_iter_mut().zip(left).with_min_len(GRAIN);
    rows.for_each(|(row, room)| {
        let mut largest = Largest { nth, room };
        row.retain(|z| largest.wants(z));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counting and selecting agree, with ties, infinities and NaN.
    #[test]
    fn counting_agrees_with_selecting() {
        let values = |i: usize| match i % 97 {
            96 => f32::NAN,
            95 => f32::INFINITY,
            94 => f32::from_bits(1),
            j => (j % 13) as f32 * 0.37 + (i % 7) as f32 * 1e-6 + 1e-3,
        };
        let mut all: Vec<f32> = (0..1000).map(values).collect();
        let rows: Vec<Candidates> = all
            .chunks(10)
            .map(|values| Candidates {
                values: values.to_vec(),
                ..Candidates::default()
            })
            .collect();
        for n in [1, 2, 10, 22, 300, 999, 1000] {
            let (counted, selected) = (Largest::of_batch(&rows, n), Largest::of(&mut all, n));
            assert_eq!(
                (counted.nth, counted.room),
                (selected.nth, selected.room),
                "n = {n}"
            );
        }
    }
}
