//! The threshold tau of sparsemax, above which scores are in the support: `sum_j max(z_j - tau, 0) = 1`.
//!
//! tau is computed exactly and without a sort (Michelot 1986; Newton's method on the convex piecewise-linear function
//! `sum_j max(z_j - tau, 0) - 1`): start from a lower bound, compute the next one from the scores above it, drop the
//! scores below, and repeat until none is dropped. Each Newton step halves the value or the slope of the function, so
//! the number of passes is bounded by the bits of a float, not by the width of the row. The first steps run in float32
//! over whole rows ([`rough`]), with a margin for rounding. They leave a short list, usually a few times the support,
//! on which the other steps run in float64 ([`exact`]).

use super::select::Candidates;
use super::simd::{self, Simd};

/// Computes `tau - origin`; the candidates that remain are the support.
pub(crate) fn exact(row: &mut Candidates, origin: f64) -> f64 {
    let mut tau = newton(&row.values, f64::NEG_INFINITY, origin);
    loop {
        let before = row.values.len();
        row.retain(|z| f64::from(z) - origin > tau);
        if row.values.len() == before {
            return tau;
        }
        tau = newton(&row.values, f64::NEG_INFINITY, origin);
    }
}

/// From this size on, sums of scores in f64 lose the 1 that is subtracted from them.
const LARGE: f32 = 1e9;

/// The value subtracted from scores before they are added up: zero, or the largest score if it is very large.
pub(crate) fn origin(values: &[f32]) -> f64 {
    let max = largest(values);
    f64::from(if max.abs() < LARGE || !max.is_finite() {
        0.0
    } else {
        max
    })
}

/// The largest value; NaN is ignored.
fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The next float below the largest score, which is always in the support.
pub(crate) fn below_largest(values: &[f32]) -> f32 {
    largest(values).next_down()
}

/// One Newton step towards tau: `(sum - 1) / count` over the scores above `bound`, with `origin` subtracted from each.
pub(crate) fn newton(values: &[f32], bound: f64, origin: f64) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for z in values {
        let z = f64::from(*z);
        sum += if z > bound { z - origin } else { 0.0 };
        count += if z > bound { 1.0 } else { 0.0 };
    }
    (sum - 1.0) / count
}

/// The largest float that is not above `x`.
pub(crate) fn round_down(x: f64) -> f32 {
    let rounded = x as f32;
    if f64::from(rounded) > x {
        rounded.next_down()
    } else {
        rounded
    }
}

/// A lower bound of the tau of `scores`: three Newton steps in f32 from `max - 1` (tau is not lower, because no weight
/// exceeds one). Each step subtracts a margin larger than its rounding error: a lane adds `n / 16` terms of magnitude
/// at most one, so the error of the mean is less than `n / 16 * 2^-24 < 1e-8 n`.
pub(crate) fn rough(simd: Simd, scores: &[f32]) -> f32 {
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
    // At least one ulp below `max`, for the case that `max - 1` rounds up to it.
    round_down(f64::from(max) + f64::from(bound)).min(max.next_down())
}
