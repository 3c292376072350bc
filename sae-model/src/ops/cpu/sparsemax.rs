//! Dense sparsemax on slices, with rows in parallel. Flex runs both passes, and the backward pass is the default of every
//! backend.

use rayon::prelude::*;

use super::select::Candidates;
use super::simd::{self, Simd};
use super::tau;
use crate::ops::SparseValue;

/// The start of a row's support: `z` is in the support if and only if `z - max > offset`. Both fields are NaN for a row
/// with NaN or infinity.
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
    fn of(row: &[f32], candidates: &mut Candidates) -> Self {
        if !row.iter().all(|z| z.is_finite()) {
            return Self::NAN;
        }
        let simd = Simd::detect();
        let (max, bound) = (simd::maximum(simd, row), tau::rough(simd, row));
        candidates.clear();
        candidates.extend(row.iter().copied().filter(|z| *z > bound));
        let offset = tau::exact(candidates, f64::from(max)) as f32;
        Self { max, offset }
    }

    fn is_nan(self) -> bool {
        self.offset.is_nan()
    }
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
        .for_each_init(
            Candidates::default,
            |candidates, ((row, out), threshold)| {
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
            },
        );
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
        // The worst case for Michelot's method: each pass drops little. It must still finish at once.
        let row: Vec<f32> = (0..100_000).map(|j| -(1.5f32.powi(-(j % 120)))).collect();
        let sum: f64 = weights(&row).iter().map(|w| f64::from(*w)).sum();
        assert!((sum - 1.0).abs() < 1e-3, "sum {sum}");
    }
}
