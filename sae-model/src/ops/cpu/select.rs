//! The selection rules on streamed scores: what to keep of each tile, and what is left at the end of a row.
//!
//! A rule sees the scores of a row a stretch at a time and must come to the result it would have come to on the
//! whole row: every candidate that it drops on the way is one that the whole row would drop too. Tiles of one
//! round do not see each other's candidates; between rounds each row's are put together, ascending by
//! latent, and bound what the next round may find.

use super::batch_topk::Largest;
use super::simd::{self, Simd};
use super::tau::{below_largest, exact, newton, origin, rough, round_down};
use crate::ops::SparseValue;

/// What is still in the running for one row, ascending by index.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(super) values: Vec<f32>,
    pub(super) indices: Vec<u32>,
    /// Scores at or below this are out.
    pub(super) bound: f32,
    /// Candidates left by the last thinning.
    pub(super) thinned: usize,
}

impl Candidates {
    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.indices.clear();
        self.bound = f32::NEG_INFINITY;
        self.thinned = 0;
    }

    /// What scores of this row have to exceed.
    pub(crate) fn bound(&self) -> f32 {
        self.bound
    }

    /// Number of candidates.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Takes up scores whose latents do not matter.
    pub(super) fn extend(&mut self, scores: impl Iterator<Item = f32>) {
        self.values.extend(scores);
        self.indices.resize(self.values.len(), 0);
    }

    /// Takes up what a tile has found in a row.
    pub(crate) fn take_up(&mut self, found: &Found, row: usize) {
        let entries = found.row(row);
        self.values
            .extend_from_slice(&found.values[entries.clone()]);
        self.indices.extend_from_slice(&found.indices[entries]);
    }

    /// Keeps the candidates that `wanted` says, which sees each score once, in order.
    pub(super) fn retain(&mut self, wanted: impl FnMut(f32) -> bool) {
        retain(&mut self.values, &mut self.indices, 0, wanted);
        self.thinned = self.values.len();
    }

    /// Ends the row with its candidates as they are.
    pub(super) fn append_to(&self, out: &mut Chosen) {
        out.values.extend_from_slice(&self.values);
        out.indices.extend_from_slice(&self.indices);
    }
}

/// Keeps, from `start` on, the entries whose value is wanted.
fn retain(
    values: &mut Vec<f32>,
    indices: &mut Vec<u32>,
    start: usize,
    mut wanted: impl FnMut(f32) -> bool,
) {
    let mut kept = start;
    for i in start..values.len() {
        if wanted(values[i]) {
            values[kept] = values[i];
            indices[kept] = indices[i];
            kept += 1;
        }
    }
    values.truncate(kept);
    indices.truncate(kept);
}

/// What a tile has found, row by row.
#[derive(Debug, Default)]
pub(crate) struct Found {
    values: Vec<f32>,
    indices: Vec<u32>,
    /// Where each row ends.
    ends: Vec<usize>,
}

impl Found {
    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.indices.clear();
        self.ends.clear();
    }

    /// Ends a row.
    pub(crate) fn end_row(&mut self) {
        self.ends.push(self.values.len());
    }

    fn row_start(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn row(&self, row: usize) -> std::ops::Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start..self.ends[row]
    }

    /// Takes up the scores above a bound.
    pub(super) fn keep_above(&mut self, simd: Simd, scores: &[f32], bound: f32, first: u32) {
        let (values, indices) = (&mut self.values, &mut self.indices);
        simd::keep_above(simd, scores, bound, first, values, indices);
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

/// A selection rule.
pub(crate) trait Rule: Sync {
    /// Latents after which candidates are put together for the first time.
    fn first_round(&self) -> usize {
        512
    }

    /// Takes the scores of latents `first..` of a row, where those at or below `bound` are out already.
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found);

    /// Called for every row at the end of a round.
    fn settle(&self, _row: &mut Candidates) {}

    /// Called for all rows at the end of a round; the last one, if `last`.
    fn settle_batch(&self, _rows: &mut [Candidates], _last: bool) {}

    /// Appends what of a row is active (but not the row's end).
    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen);
}

/// `a = z 1[z > t]`.
pub(crate) struct Threshold(pub(crate) f32);

impl Rule for Threshold {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, _bound: f32, found: &mut Found) {
        found.keep_above(simd, scores, self.0, first);
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
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, _bound: f32, found: &mut Found) {
        let bounds = &self.bounds[first as usize..][..scores.len()];
        simd::keep_above_each(
            simd,
            scores,
            bounds,
            first,
            &mut found.values,
            &mut found.indices,
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
    /// Candidates that are worth thinning.
    fn many(&self) -> usize {
        2 * self.0 + 64
    }

    /// Leaves the k largest: everything above the k-th largest score, and of those equal to it the first.
    /// Whatever comes later must exceed it, or lose to an equal one of lower index.
    fn thin(&self, row: &mut Candidates) {
        if row.values.len() <= self.0 {
            return;
        }
        let mut largest = Largest::of(&mut row.values.clone(), self.0);
        row.retain(|z| largest.wants(z));
        row.bound = largest.nth;
    }
}

impl Rule for TopK {
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found) {
        let Self(k) = *self;
        if k == 0 {
            return;
        }
        let start = found.row_start();
        found.keep_above(simd, scores, bound.max(0.0), first);
        if found.values.len() - start > self.many() {
            let mut largest = Largest::of(&mut found.values[start..].to_vec(), k);
            let (values, indices) = (&mut found.values, &mut found.indices);
            retain(values, indices, start, |z| largest.wants(z));
        }
    }

    fn settle(&self, row: &mut Candidates) {
        if row.values.len() > self.many() || row.bound == f32::NEG_INFINITY {
            self.thin(row);
        }
    }

    fn finish_row(&self, row: &mut Candidates, out: &mut Chosen) {
        self.thin(row);
        row.append_to(out);
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
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found) {
        let bound = if bound == f32::NEG_INFINITY {
            rough(simd, scores)
        } else {
            bound
        };
        found.keep_above(simd, scores, bound, first);
    }

    fn settle(&self, row: &mut Candidates) {
        let first = row.bound == f32::NEG_INFINITY;
        if first || row.values.len() >= row.thinned + GROWTH {
            let origin = origin(&row.values);
            let tau = origin + newton(&row.values, f64::from(row.bound), origin);
            if tau.is_finite() {
                row.bound = round_down(tau)
                    .min(below_largest(&row.values))
                    .max(row.bound);
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
        let origin = origin(&row.values);
        let tau = exact(row, origin);
        if self.0 == SparseValue::Probability {
            row.values
                .iter_mut()
                .for_each(|z| *z = (f64::from(*z) - origin - tau) as f32);
        }
        row.append_to(out);
    }
}
