//! Sparsemax on slices: one row at a time, rows in parallel, shared by Flex and NdArray.
//!
//! tau is found exactly, without a sort (Michelot 1986; Newton's method on the convex piecewise-linear
//! function `sum_j max(z_j - tau, 0) - 1`): start from a lower bound, take the mean of what lies above,
//! drop what falls below, until nothing falls. Each Newton step halves the value or the slope of the
//! function, so the number of passes is bounded by the bits of a float, not by the row's width.
//! The first few steps run in float32 over the whole row, branch-free, and leave a margin for rounding; what
//! they let through, usually a few times the support, is a short list on which the rest is exact in float64.

use rayon::prelude::*;

use crate::ops::SparseValue;

/// Where the support of a row begins: `z` is in the support if and only if `z - max > offset`.
/// Both are NaN for a row that holds NaN or infinity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Threshold {
    /// The row's maximum `m`.
    pub(crate) max: f32,
    /// `tau - m`, in `[-1, 0)`.
    pub(crate) offset: f32,
}

impl Threshold {
    const NAN: Self = Self {
        max: f32::NAN,
        offset: f32::NAN,
    };

    /// The threshold of a row; `candidates` is scratch space.
    pub(crate) fn of(row: &[f32], candidates: &mut Vec<f32>) -> Self {
        let Some(max) = finite_max(row) else {
            return Self::NAN;
        };
        let bound = loose_bound(row, max);
        candidates.clear();
        candidates.extend(row.iter().map(|z| z - max).filter(|c| *c > bound));
        let mut offset = Self::lower_bound(candidates);
        loop {
            let before = candidates.len();
            candidates.retain(|c| f64::from(*c) > offset);
            if candidates.len() == before {
                break;
            }
            offset = Self::lower_bound(candidates);
        }
        Self {
            max,
            offset: offset as f32,
        }
    }

    /// tau of a subset of the row, a lower bound of the row's: `(sum - 1) / count`.
    fn lower_bound(candidates: &[f32]) -> f64 {
        let sum: f64 = candidates.iter().map(|c| f64::from(*c)).sum();
        (sum - 1.0) / candidates.len() as f64
    }

    fn is_nan(self) -> bool {
        self.offset.is_nan()
    }
}

/// Independent lanes, so that the compiler can vectorise.
const LANES: usize = 16;

/// A bound below `tau - max` for certain: three Newton steps from -1 (the largest weight is at most one, so
/// tau is no lower), each less a margin above the rounding of its float32 sums: a lane adds `M / 16` terms of
/// magnitude at most one, so the mean is off by less than `M / 16 * 2^-24 < 1e-8 M`.
fn loose_bound(row: &[f32], max: f32) -> f32 {
    let margin = 1e-4 + 1e-8 * row.len() as f32;
    let mut bound = -1.0f32;
    for _ in 0..3 {
        let (mut sum, mut count) = ([0.0f32; LANES], [0.0f32; LANES]);
        let chunks = row.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for lane in 0..LANES {
                let c = chunk[lane] - max;
                sum[lane] += if c > bound { c } else { 0.0 };
                count[lane] += if c > bound { 1.0 } else { 0.0 };
            }
        }
        for z in rest.iter().filter(|z| **z - max > bound) {
            sum[0] += z - max;
            count[0] += 1.0;
        }
        let next = (sum.iter().sum::<f32>() - 1.0) / count.iter().sum::<f32>();
        bound = bound.max(next - margin);
    }
    bound
}

/// Maximum of a row, or `None` if any of its entries is NaN or infinite.
fn finite_max(row: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut poison = [0.0f32; LANES]; // 0 * x is 0 if finite, NaN if not
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            max[lane] = if chunk[lane] > max[lane] {
                chunk[lane]
            } else {
                max[lane]
            };
            poison[lane] += chunk[lane] * 0.0;
        }
    }
    for &x in chunks.remainder() {
        max[0] = if x > max[0] { x } else { max[0] };
        poison[0] += x * 0.0;
    }
    let finite = poison.iter().all(|p| *p == 0.0);
    finite.then(|| max.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// Forward pass: `scores [B, M]` to `weights [B, M]` and `threshold [B, 2]` (`max`, `tau - max`).
pub(crate) fn forward(
    scores: &[f32],
    latents: usize,
    value: SparseValue,
    weights: &mut [f32],
    thresholds: &mut [f32],
) {
    if scores.is_empty() {
        return;
    }
    scores
        .par_chunks_exact(latents)
        .zip(weights.par_chunks_exact_mut(latents))
        .zip(thresholds.par_chunks_exact_mut(2))
        .for_each_init(Vec::new, |candidates, ((row, out), threshold)| {
            let t = Threshold::of(row, candidates);
            threshold.copy_from_slice(&[t.max, t.offset]);
            match value {
                _ if t.is_nan() => out.fill(f32::NAN),
                SparseValue::Probability => {
                    for (w, z) in out.iter_mut().zip(row) {
                        *w = ((z - t.max) - t.offset).max(0.0);
                    }
                }
                SparseValue::Score => {
                    for (w, z) in out.iter_mut().zip(row) {
                        *w = if z - t.max > t.offset { *z } else { 0.0 };
                    }
                }
            }
        });
}

/// Backward pass: `grad [B, M]` with respect to the weights to `out [B, M]` with respect to the scores.
pub(crate) fn backward(
    scores: &[f32],
    thresholds: &[f32],
    grad: &[f32],
    latents: usize,
    value: SparseValue,
    out: &mut [f32],
) {
    if scores.is_empty() {
        return;
    }
    scores
        .par_chunks_exact(latents)
        .zip(grad.par_chunks_exact(latents))
        .zip(thresholds.par_chunks_exact(2))
        .zip(out.par_chunks_exact_mut(latents))
        .for_each(|(((row, grad), threshold), out)| {
            let (max, offset) = (threshold[0], threshold[1]);
            if offset.is_nan() {
                out.fill(f32::NAN);
                return;
            }
            let mean = match value {
                SparseValue::Probability => support_mean(row, grad, max, offset),
                SparseValue::Score => 0.0,
            };
            for ((dz, z), g) in out.iter_mut().zip(row).zip(grad) {
                *dz = if z - max > offset { g - mean } else { 0.0 };
            }
        });
}

/// Mean of `grad` over the support of the row.
fn support_mean(row: &[f32], grad: &[f32], max: f32, offset: f32) -> f32 {
    let (mut sum, mut count) = (0.0f64, 0u32);
    for (z, g) in row.iter().zip(grad) {
        if z - max > offset {
            sum += f64::from(*g);
            count += 1;
        }
    }
    (sum / f64::from(count)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(row: &[f32]) -> Vec<f32> {
        let (mut w, mut t) = (vec![0.0; row.len()], vec![0.0; 2]);
        forward(row, row.len(), SparseValue::Probability, &mut w, &mut t);
        w
    }

    #[test]
    fn hand_computed_rows() {
        // tau = (1.0 + 0.8 - 1) / 2 = 0.4
        let w = weights(&[1.0, 0.8, 0.1]);
        assert!((w[0] - 0.6).abs() < 1e-6 && (w[1] - 0.4).abs() < 1e-6 && w[2] == 0.0);
        assert_eq!(weights(&[-7.5]), [1.0]);
        assert_eq!(weights(&[3.0, 3.0]), [0.5, 0.5]);
        assert_eq!(weights(&[3.0, 1.0]), [1.0, 0.0]);
        assert_eq!(weights(&[0.0; 4]), [0.25; 4]);
        assert_eq!(weights(&[1e4, 1e4 - 0.5]), [0.75, 0.25]);
    }

    #[test]
    fn support_stays_consistent_when_rounding_reaches_the_threshold() {
        // A tie at the threshold, up to rounding: every weight is non-negative and they sum to one.
        for width in [3usize, 33, 4099] {
            let row: Vec<f32> = (0..width).map(|j| (j % 3) as f32 * 1e-7).collect();
            let w = weights(&row);
            let sum: f64 = w.iter().map(|w| f64::from(*w)).sum();
            assert!((sum - 1.0).abs() < 1e-3, "width {width}: sum {sum}");
        }
    }

    #[test]
    fn non_finite_rows_become_nan_and_leave_their_neighbours() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for position in [0, 16, 18] {
                let mut z = vec![0.25f32; 3 * 19];
                z[19 + position] = bad;
                let (mut w, mut t) = (vec![0.0; z.len()], vec![0.0; 6]);
                forward(&z, 19, SparseValue::Score, &mut w, &mut t);
                assert!(w[19..38].iter().all(|w| w.is_nan()));
                assert!(w[..19].iter().chain(&w[38..]).all(|w| *w == 0.25));
                let mut dz = vec![0.0; z.len()];
                backward(&z, &t, &vec![1.0; z.len()], 19, SparseValue::Score, &mut dz);
                assert!(dz[19..38].iter().all(|g| g.is_nan()));
                assert!(dz[..19].iter().chain(&dz[38..]).all(|g| *g == 1.0));
            }
        }
    }

    #[test]
    fn geometric_rows_need_few_passes() {
        // The worst case for Michelot's method: each pass drops little. Finishes at once all the same.
        let row: Vec<f32> = (0..100_000).map(|j| -(1.5f32.powi(-(j % 120)))).collect();
        let sum: f64 = weights(&row).iter().map(|w| f64::from(*w)).sum();
        assert!((sum - 1.0).abs() < 1e-3, "sum {sum}");
    }
}
