//! Gradients of the selection rules with respect to the scores and thresholds of entries.

use crate::ops::SparseValue;
use crate::ops::codes::Pattern;
use crate::ops::selection::Selection;

/// `d loss / d z` of every entry. The formulas are at [`Selection`] and
/// [`sparse_attention`](crate::ops::sparse_attention).
///
/// Only JumpReLU uses `scores` and `thresholds`.
pub(crate) fn scores(
    grad: &[f32],
    scores: &[f32],
    thresholds: &[f32],
    pattern: &Pattern,
    selection: Selection,
) -> Vec<f32> {
    let mut out = grad.to_vec();
    match selection {
        Selection::Sparsemax(SparseValue::Probability) => {
            for row in 0..pattern.rows() {
                let row = &mut out[pattern.row(row)];
                let sum: f64 = row.iter().map(|g| f64::from(*g)).sum();
                let mean = (sum / row.len() as f64) as f32;
                row.iter_mut().for_each(|g| *g -= mean);
            }
        }
        Selection::JumpRelu { .. } => {
            for ((g, z), j) in out.iter_mut().zip(scores).zip(pattern.indices()) {
                *g = if *z <= thresholds[*j as usize] {
                    0.0
                } else {
                    *g
                };
            }
        }
        Selection::Sparsemax(SparseValue::Score)
        | Selection::Threshold(_)
        | Selection::TopK(_)
        | Selection::BatchTopK(_) => {}
    }
    out
}

/// `dtheta_j = -sum_rows da theta_j / epsilon 1[|z - theta_j| < epsilon / 2]` (arXiv 2407.14435, equation 11).
pub(crate) fn thresholds(
    grad: &[f32],
    scores: &[f32],
    thresholds: &[f32],
    pattern: &Pattern,
    bandwidth: f32,
) -> Vec<f32> {
    let mut sums = vec![0.0f64; thresholds.len()];
    for ((g, z), j) in grad.iter().zip(scores).zip(pattern.indices()) {
        let theta = thresholds[*j as usize];
        if (z - theta).abs() < bandwidth / 2.0 {
            sums[*j as usize] -= f64::from(*g) * f64::from(theta) / f64::from(bandwidth);
        }
    }
    sums.into_iter().map(|s| s as f32).collect()
}
