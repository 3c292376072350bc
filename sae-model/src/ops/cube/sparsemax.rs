//! Sparsemax in CubeCL: one cube (work group) per row, which runs Newton's iteration on the whole row in place.
//!
//! The mathematics is that of `cpu/sparsemax.rs`, with float32 sums of scores minus the row's maximum. NaN and infinity
//! are recognised by their bits, because shader compilers may assume that neither occurs.

use cubecl::prelude::*;

use super::units::{UNITS, cube_index, cube_max, cube_sum, is_non_finite};

/// `tau - max` of the row that starts at `start`, iterated from the lower bound `-1` up to the fixed point.
#[cube]
fn tau_offset(
    scores: &[f32],
    shared: &mut Shared<[f32]>,
    start: u32,
    latents: u32,
    max: f32,
) -> f32 {
    let mut offset = f32::new(-1.0);
    let mut support = f32::new(0.0);
    let mut shrinking = true;
    while shrinking {
        let mut sum = f32::new(0.0);
        let mut count = f32::new(0.0);
        let mut j = UNIT_POS;
        while j < latents {
            let c = scores[(start + j) as usize] - max;
            if c > offset {
                sum += c;
                count += 1.0;
            }
            j += UNITS;
        }
        let sum = cube_sum::<f32>(shared, sum);
        let count = cube_sum::<f32>(shared, count);
        let next = (sum - 1.0) / count;
        shrinking = count != support && next > offset;
        if next > offset {
            offset = next;
        }
        support = count;
    }
    offset
}

/// Writes a row of `threshold [B, 2]`.
#[cube]
fn write_threshold(threshold: &mut [f32], row: u32, max: f32, offset: f32) {
    if UNIT_POS == 0 {
        threshold[(2 * row) as usize] = max;
        threshold[(2 * row + 1) as usize] = offset;
    }
}

/// Forward pass: `scores [B, M]` to `weights [B, M]` and `threshold [B, 2]` (`max`, `tau - max`).
#[cube(launch)]
pub(super) fn forward(
    scores: &[f32],
    weights: &mut [f32],
    threshold: &mut [f32],
    rows: u32,
    latents: u32,
    nan_bits: u32,
    #[comptime] score_value: bool,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * latents;
        let mut max = scores[start as usize];
        let mut bad = f32::new(0.0);
        let mut j = UNIT_POS;
        while j < latents {
            let z = scores[(start + j) as usize];
            if is_non_finite(z) {
                bad = f32::new(1.0);
            } else if z > max {
                max = z;
            }
            j += UNITS;
        }
        let bad = cube_sum::<f32>(&mut shared, bad);
        if bad > 0.0 {
            let nan = f32::reinterpret(nan_bits);
            write_threshold(threshold, row, nan, nan);
            let mut j = UNIT_POS;
            while j < latents {
                weights[(start + j) as usize] = nan;
                j += UNITS;
            }
        } else {
            let max = cube_max(&mut shared, max);
            let offset = tau_offset(scores, &mut shared, start, latents, max);
            write_threshold(threshold, row, max, offset);
            let mut j = UNIT_POS;
            while j < latents {
                let z = scores[(start + j) as usize];
                let mut weight = f32::new(0.0);
                if z - max > offset {
                    if score_value {
                        weight = z;
                    } else {
                        weight = (z - max) - offset;
                    }
                }
                weights[(start + j) as usize] = weight;
                j += UNITS;
            }
        }
    }
}

/// Backward pass: `grad [B, M]` with respect to the weights to `out [B, M]` with respect to the scores.
#[cube(launch)]
pub(super) fn backward(
    scores: &[f32],
    threshold: &[f32],
    grad: &[f32],
    out: &mut [f32],
    rows: u32,
    latents: u32,
    nan_bits: u32,
    #[comptime] score_value: bool,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * latents;
        let max = threshold[(2 * row) as usize];
        let offset = threshold[(2 * row + 1) as usize];
        let mut mean = f32::new(0.0);
        if comptime!(!score_value) {
            let mut sum = f32::new(0.0);
            let mut count = f32::new(0.0);
            let mut j = UNIT_POS;
            while j < latents {
                if scores[(start + j) as usize] - max > offset {
                    sum += grad[(start + j) as usize];
                    count += 1.0;
                }
                j += UNITS;
            }
            let sum = cube_sum::<f32>(&mut shared, sum);
            let count = cube_sum::<f32>(&mut shared, count);
            mean = sum / count;
        }
        let poisoned = is_non_finite(offset);
        let mut j = UNIT_POS;
        while j < latents {
            let mut dz = f32::new(0.0);
            if poisoned {
                dz = f32::reinterpret(nan_bits);
            } else if scores[(start + j) as usize] - max > offset {
                dz = grad[(start + j) as usize] - mean;
            }
            out[(start + j) as usize] = dz;
            j += UNITS;
        }
    }
}
