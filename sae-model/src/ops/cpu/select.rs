//! The selection rules on streamed scores: which scores of a tile become candidates, and which candidates a row keeps
//! in the end.
//!
//! A rule sees the scores of a row one stretch at a time and must give the result for the whole row: it drops a
//! candidate only if the whole row would drop it, too. The tiles of one round do not see each other's candidates. After
//! each round, the candidates of each row are merged, in ascending order of latents, and bound the candidates of the
//! next round.

use super::batch_topk::Largest;
use super::simd::{self, Simd};
use super::tau::{below_largest, exact, newton, origin, rough, round_down};
use crate::ops::SparseValue;

/// The candidates of one row, in ascending order of index.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(super) values: Vec<f32>,
    pub(super) indices: Vec<u32>,
    /// Scores at or below this are dropped.
    pub(super) bound: f32,
    /// Number of candidates after the last thinning.
    pub(super) thinned: usize,
}

impl Candidates {
    /// These scores, under their places.
    pub(crate) fn of(values: Vec<f32>) -> Self {
        Self {
            indices: (0..values.len() as u32).collect(),
            thinned: values.len(),
            values,
            bound: f32::NEG_INFINITY,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.indices.clear();
        self.bound = f32::NEG_INFINITY;
        self.thinned = 0;
    }

    /// The bound that scores of this row must exceed.
    pub(crate) fn bound(&self) -> f32 {
        self.bound
    }

    /// Number of candidates.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Adds scores whose latents do not matter.
    pub(super) fn extend(&mut self, scores: impl Iterator<Item = f32>) {
        self.values.extend(scores);
        self.indices.resize(self.values.len(), 0);
    }

    /// Adds the candidates that a tile has found in a row.
    pub(crate) fn take_up(&mut self, found: &Found, row: usize) {
        let entries = found.row(row);
        self.values
            .extend_from_slice(&found.values[entries.clone()]);
        self.indices.extend_from_slice(&found.indices[entries]);
    }

    /// Keeps the candidates that `wanted` accepts; `wanted` sees each score once, in order.
    pub(super) fn retain(&mut self, wanted: impl FnMut(f32) -> bool) {
        retain(&mut self.values, &mut self.indices, 0, wanted);
        self.thinned = self.values.len();
    }

    /// Appends the candidates to `out` as they are.
    pub(super) fn append_to(&self, out: &mut Chosen) {
        out.values.extend_from_slice(&self.values);
        out.indices.extend_from_slice(&self.indices);
    }
}

/// Of the entries from `start` on, keeps those whose value is wanted.
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

/// The candidates that a tile has found, row by row.
#[derive(Debug, Default)]
pub(crate) struct Found {
    values: Vec<f32>,
    indices: Vec<u32>,
    /// The end of each row in the lists.
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

    /// Adds the scores above a bound.
    pub(super) fn keep_above(&mut self, simd: Simd, scores: &[f32], bound: f32, first: u32) {
        let (values, indices) = (&mut self.values, &mut self.indices);
        simd::keep_above(simd, scores, bound, first, values, indices);
    }
}

/// The entries of some rows, in ascending order of index within each row.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) values: Vec<f32>,
    /// Score of each entry, if the rule keeps it; else empty.
    pub(crate) scores: Vec<f32>,
    pub(crate) indices: Vec<u32>,
    /// The end of each row in the lists.
    pub(crate) ends: Vec<usize>,
}

/// A selection rule.
pub(crate) trait Rule: Sync {
    /// Number of latents after which candidates are merged for the first time.
    fn first_round(&self) -> usize {
        512
    }

    /// Adds the candidates among the scores of latents `first..` of a row. Scores at or below `bound` are not needed.
    fn feed(&self, simd: Simd, scores: &[f32], first: u32, bound: f32, found: &mut Found);

    /// Called for every row at the end of a round.
    fn settle(&self, _row: &mut Candidates) {}

    /// Called once for all rows at the end of a round; `last` marks the last round.
    fn settle_batch(&self, _rows: &mut [Candidates], _last: bool) {}

    /// Appends the active entries of a row (but not the row's end).
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

/// `a = z 1[z > theta]`. Scores between `theta - bandwidth / 2` and theta become entries of value zero.
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
    /// Rows with more candidates than this are worth thinning.
    fn many(&self) -> usize {
        2 * self.0 + 64
    }

    /// Keeps the k largest: every score above the k-th largest, and the first of those equal to it. Later scores must
    /// exceed it, because of equal scores the one with the lower index wins.
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
/// The tau of any part of a row is a lower bound of the row's tau, so a score at or below it can be dropped. The bound
/// starts at a rough tau of the first tile and rises as candidates are added. In the end, the exact tau of the few
/// remaining candidates is computed (Michelot 1986, in f64). Nothing is sorted.
pub(crate) struct Sparsemax(pub(crate) SparseValue);

/// Number of new candidates after which the bound is computed again.
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
