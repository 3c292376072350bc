//! The selection rules on streamed scores: what to keep of each panel, and what is left at the end of a row.
//!
//! A rule sees the scores of a row in ascending order of the latents, a stretch at a time, and must come to
//! the result it would have come to on the whole row: every candidate that it drops on the way is one that
//! the whole row would drop too.

use super::simd::{self, Simd};
use crate::ops::SparseValue;

/// What is still in the running for one row, ascending by index.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    values: Vec<f32>,
    indices: Vec<u32>,
    /// Scores at or below this are out.
    bound: f32,
    /// Candidates left by the last thinning.
    thinned: usize,
}

impl Candidates {
    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.indices.clear();
        self.bound = f32::NEG_INFINITY;
        self.thinned = 0;
    }

    /// Takes up the scores above a bound.
    fn keep_above(&mut self, simd: Simd, scores: &[f32], bound: f32, first: u32) {
        let (values, indices) = (&mut self.values, &mut self.indices);
        simd::keep_above(simd, scores, bound, first, values, indices);
    }

    /// Keeps the candidates that `wanted` says, which sees each score once, in order.
    fn retain(&mut self, mut wanted: impl FnMut(f32) -> bool) {
        let mut kept = 0;
        for i in 0..self.values.len() {
            if wanted(self.values[i]) {
                self.values[kept] = self.values[i];
                self.indices[kept] = self.indices[i];
                kept += 1;
            }
        }
        self.values.truncate(kept);
        self.indices.truncate(kept);
        self.thinned = kept;
    }

    /// Ends the row with its candidates as they are.
    fn append_to(&self, out: &mut Chosen) {
        out.values.extend_from_slice(&self.values);
        out.indices.extend_from_slice(&self.indices);
    }
}

/// The entries of some rows, ascending by index within each.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) values: Vec<f32>,
    /// Score of each entry, where a rule keeps it; else empty.
    pub(crate) scores: Vec<f32>,
    pub(crate) indices: Vec<u32>,
    /// Where each row ends.
    pub(crate) ends: Vec<usize>,
}

impl Chosen {
    /// Appends further rows.
    pub(crate) fn append(&mut self, rows: Self) {
        let start = self.values.len();
        self.values.extend_from_slice(&rows.values);
        self.scores.extend_from_slice(&rows.scores);
        self.indices.extend_from_slice(&rows.indices);
        self.ends.extend(rows.ends.iter().map(|end| start + end));
    }
}

/// A selection rule.
pub(crate) trait Rule: Sync {
    /// Takes the scores of latents `first..` of a row.
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates);

    /// Called when all rows of a block have seen a panel.
    fn after_panel(&self, _block: &mut [Candidates]) {}

    /// Appends what of a row is active (but not the row's end).
    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen);

    /// Called when all rows of a batch are finished.
    fn finish_batch(&self, _batch: &mut Chosen) {}
}

/// `a = z 1[z > t]`.
pub(crate) struct Threshold(pub(crate) f32);

impl Rule for Threshold {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates) {
        row.keep_above(simd, scores, self.0, first);
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        row.append_to(out);
    }
}

/// `a = z 1[z > theta]` with entries down to `theta - bandwidth / 2`, of value zero.
pub(crate) struct JumpRelu<'a> {
    thresholds: &'a [f32],
    bounds: Vec<f32>,
}

impl<'a> JumpRelu<'a> {
    pub(crate) fn new(thresholds: &'a [f32], bandwidth: f32) -> Self {
        let bounds = thresholds
            .iter()
            .map(|theta| theta - bandwidth / 2.0)
            .collect();
        Self { thresholds, bounds }
    }
}

impl Rule for JumpRelu<'_> {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates) {
        let bounds = &self.bounds[first as usize..][..scores.len()];
        simd::keep_above_each(
            simd,
            scores,
            bounds,
            first,
            &mut row.values,
            &mut row.indices,
        );
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        out.scores.extend_from_slice(&row.values);
        for (z, j) in row.values.iter_mut().zip(&row.indices) {
            *z = if *z <= self.thresholds[*j as usize] {
                0.0
            } else {
                *z
            };
        }
        row.append_to(out);
    }
}

/// The k largest positive scores of a row.
pub(crate) struct TopK(pub(crate) usize);

impl TopK {
    /// Leaves the k largest: everything above the k-th largest score, and of those equal to it the first.
    /// Whatever comes later must exceed it, or lose to an equal one of lower index.
    fn thin(&self, row: &mut Candidates) {
        let Self(k) = *self;
        if row.values.len() <= k {
            return;
        }
        let mut largest = Largest::of(&mut row.values.clone(), k);
        row.retain(|z| largest.wants(z));
        row.bound = largest.nth;
    }
}

/// The n largest of a list: all above the n-th largest, and as many of those equal to it as there is room
/// for, first come, first served. NaN counts as infinity, so that it is seen and not lost.
struct Largest {
    nth: f32,
    /// How many more of those equal to the n-th there is room for.
    room: usize,
}

impl Largest {
    /// Of at least `n >= 1` values, which are left in another order.
    fn of(values: &mut [f32], n: usize) -> Self {
        let (larger, nth, _) =
            values.select_nth_unstable_by(n - 1, |a, b| rank(*b).total_cmp(&rank(*a)));
        let nth = rank(*nth);
        let above = larger.iter().filter(|z| rank(**z) > nth).count();
        Self {
            nth,
            room: n - above,
        }
    }

    /// Whether `z` is among the largest; to be asked once for each value.
    fn wants(&mut self, z: f32) -> bool {
        if rank(z) == self.nth && self.room > 0 {
            self.room -= 1;
            return true;
        }
        rank(z) > self.nth
    }
}

/// What a value is compared by.
fn rank(z: f32) -> f32 {
    if z.is_nan() { f32::INFINITY } else { z }
}

impl Rule for TopK {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates) {
        if self.0 == 0 {
            return;
        }
        let bound = row.bound.max(0.0);
        row.keep_above(simd, scores, bound, first);
        if row.values.len() > 2 * self.0 + 64 {
            self.thin(row);
        }
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        self.thin(row);
        row.append_to(out);
    }
}

/// The n largest positive scores of a batch.
pub(crate) struct BatchTopK(pub(crate) usize);

impl Rule for BatchTopK {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates) {
        let bound = row.bound.max(0.0);
        row.keep_above(simd, scores, bound, first);
    }

    /// The n-th largest score of a block is a lower bound of the batch's. Equal ones stay, for the end to decide.
    fn after_panel(&self, block: &mut [Candidates]) {
        let total: usize = block.iter().map(|row| row.values.len()).sum();
        if self.0 == 0 || total <= 2 * self.0 {
            return;
        }
        let mut all: Vec<f32> = block
            .iter()
            .flat_map(|row| row.values.iter().copied())
            .collect();
        let bound = Largest::of(&mut all, self.0).nth.next_down();
        for row in block {
            row.retain(|z| simd::passes(z, bound));
            row.bound = bound;
        }
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        row.append_to(out);
    }

    fn finish_batch(&self, batch: &mut Chosen) {
        let Self(n) = *self;
        if batch.values.len() <= n {
            return;
        }
        let mut largest = match n {
            0 => Largest {
                nth: f32::INFINITY,
                room: 0,
            },
            n => Largest::of(&mut batch.values.clone(), n),
        };
        let (mut start, mut kept) = (0, 0);
        for end in &mut batch.ends {
            for entry in start..*end {
                if largest.wants(batch.values[entry]) {
                    batch.values[kept] = batch.values[entry];
                    batch.indices[kept] = batch.indices[entry];
                    kept += 1;
                }
            }
            (start, *end) = (*end, kept);
        }
        batch.values.truncate(kept);
        batch.indices.truncate(kept);
    }
}

/// The support of sparsemax.
///
/// tau of any part of a row is a lower bound of the row's tau, so a score at or below it is out for good. The
/// bound starts at a rough tau of the first panel and follows the candidates as they grow; the exact tau of
/// the few that are left ends it (Michelot 1986, in f64). No sort anywhere.
pub(crate) struct Sparsemax(pub(crate) SparseValue);

/// New candidates after which the bound is computed again.
const GROWTH: usize = 128;

impl Rule for Sparsemax {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, row: &mut Candidates) {
        if row.bound == f32::NEG_INFINITY {
            row.bound = rough_tau(simd, scores);
        }
        row.keep_above(simd, scores, row.bound, first);
        if row.values.len() >= row.thinned + GROWTH {
            let tau = newton(&row.values, f64::from(row.bound));
            if tau.is_finite() {
                row.bound = round_down(tau).max(row.bound);
                let bound = row.bound;
                row.retain(|z| simd::passes(z, bound));
            }
        }
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        if let Some(i) = row.values.iter().position(|z| !z.is_finite()) {
            out.values.push(f32::NAN);
            out.indices.push(row.indices[i]);
            return;
        }
        let mut tau = newton(&row.values, f64::NEG_INFINITY);
        loop {
            let before = row.values.len();
            row.retain(|z| f64::from(z) > tau);
            if row.values.len() == before {
                break;
            }
            tau = newton(&row.values, f64::NEG_INFINITY);
        }
        if self.0 == SparseValue::Probability {
            row.values
                .iter_mut()
                .for_each(|z| *z = (f64::from(*z) - tau) as f32);
        }
        row.append_to(out);
    }
}

/// One Newton step towards tau: `(sum - 1) / count` over the scores above `bound`.
fn newton(values: &[f32], bound: f64) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for z in values {
        let z = f64::from(*z);
        sum += if z > bound { z } else { 0.0 };
        count += if z > bound { 1.0 } else { 0.0 };
    }
    (sum - 1.0) / count
}

/// The largest float that is not above `x`.
fn round_down(x: f64) -> f32 {
    let rounded = x as f32;
    if f64::from(rounded) > x {
        rounded.next_down()
    } else {
        rounded
    }
}

/// A lower bound of the tau of `scores`: three Newton steps in f32 from `max - 1` (no weight exceeds one, so
/// tau is no lower), each less a margin above its rounding. A lane adds `n / 16` terms of magnitude at most
/// one, so the mean is off by less than `n / 16 * 2^-24 < 1e-8 n`.
fn rough_tau(simd: Simd, scores: &[f32]) -> f32 {
    let max = simd::maximum(simd, scores);
    if !max.is_finite() {
        return f32::NEG_INFINITY;
    }
    let margin = 1e-4 + 1e-8 * scores.len() as f32;
    let mut bound = -1.0f32;
    for _ in 0..3 {
        let (sum, count) = simd::sum_above(simd, scores, max, bound);
        bound = bound.max((sum - 1.0) / count - margin);
    }
    // At least one ulp of `max` below, where `max - 1` would round up.
    round_down(f64::from(max) + f64::from(bound)).min(max.next_down())
}
