//! Products of codes with dense rows, and what else is done at entries row by row: one cube per row.

use cubecl::prelude::*;

use super::units::{UNITS, cube_index, cube_sum, uniform};

/// `A D`, values at a pattern times a dictionary `[M, d]` -> `[B, d]`: each unit adds up its columns in the order of the entries.
#[cube(launch)]
pub(super) fn times(
    values: &[f32],
    dictionary: &[f32],
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    out: &mut [f32],
    rows: u32,
    width: u32,
) {
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let end = start + counts[row as usize];
        let mut column = UNIT_POS;
        while column < width {
            let mut sum = f32::new(0.0);
            let mut e = start;
            while e < end {
                let at = indices[e as usize] * width + column;
                sum += values[e as usize] * dictionary[at as usize];
                e += 1;
            }
            out[(row * width + column) as usize] = sum;
            column += UNITS;
        }
    }
}

/// Units that add up one dot product.
pub(super) const LANES: u32 = 16;

/// `x . y` of two rows by the [`LANES`] units of a group, in an order that the width alone decides. The group's first unit gets it.
/// All units of the cube take part; those of a group that wants nothing read nothing.
#[cube]
pub(super) fn group_dot(
    shared: &mut Shared<[f32]>,
    x: &[f32],
    x_at: u32,
    y: &[f32],
    y_at: u32,
    width: u32,
    wanted: bool,
) -> f32 {
    let lane = UNIT_POS % LANES;
    let mut sum = f32::new(0.0);
    if wanted {
        let mut k = lane;
        while k < width {
            sum += x[(x_at + k) as usize] * y[(y_at + k) as usize];
            k += LANES;
        }
    }
    sync_cube();
    shared[UNIT_POS as usize] = sum;
    sync_cube();
    let mut total = f32::new(0.0);
    if lane == 0 {
        let mut l = 0u32;
        while l < LANES {
            total += shared[(UNIT_POS + l) as usize];
            l += 1;
        }
    }
    total
}

/// `x_i . d_j` at every entry: x `[B, d]`, dictionary `[M, d]` -> `[slots]`.
#[cube(launch)]
pub(super) fn dots(
    x: &[f32],
    dictionary: &[f32],
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    out: &mut [f32],
    rows: u32,
    width: u32,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = uniform(&mut whole, counts[row as usize]);
        let mut base = 0u32;
        while base < n {
            let e = base + UNIT_POS / LANES;
            let wanted = e < n;
            let mut at = 0u32;
            if wanted {
                at = indices[(start + e) as usize] * width;
            }
            let dot = group_dot(&mut shared, x, row * width, dictionary, at, width, wanted);
            if wanted && UNIT_POS % LANES == 0 {
                out[(start + e) as usize] = dot;
            }
            base += UNITS / LANES;
        }
    }
}

/// `vector [M]` at the latent of each entry, or `vector [B]` of its row; other slots are left as they are.
#[cube(launch)]
pub(super) fn gather(
    vector: &[f32],
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    out: &mut [f32],
    rows: u32,
    #[comptime] of_rows: bool,
) {
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = counts[row as usize];
        let mut e = UNIT_POS;
        while e < n {
            let mut from = row;
            if comptime!(!of_rows) {
                from = indices[(start + e) as usize];
            }
            out[(start + e) as usize] = vector[from as usize];
            e += UNITS;
        }
    }
}

/// `dz` of sparsemax's probabilities: the gradient minus its mean over the row's support.
#[cube(launch)]
pub(super) fn centred(grad: &[f32], starts: &[u32], counts: &[u32], out: &mut [f32], rows: u32) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = uniform(&mut whole, counts[row as usize]);
        let mut sum = f32::new(0.0);
        let mut e = UNIT_POS;
        while e < n {
            sum += grad[(start + e) as usize];
            e += UNITS;
        }
        let mean = cube_sum::<f32>(&mut shared, sum) / f32::cast_from(n);
        let mut e = UNIT_POS;
        while e < n {
            out[(start + e) as usize] = grad[(start + e) as usize] - mean;
            e += UNITS;
        }
    }
}

/// JumpReLU's gradients at entries: `dz = da 1[z > theta]`, or `-da theta / bandwidth 1[|z - theta| < bandwidth / 2]`, whose column
/// sums are `dtheta`.
#[cube(launch)]
pub(super) fn jumps(
    grad: &[f32],
    scores: &[f32],
    thresholds: &[f32],
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    out: &mut [f32],
    rows: u32,
    bandwidth: f32,
    #[comptime] of_thresholds: bool,
) {
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = counts[row as usize];
        let mut e = UNIT_POS;
        while e < n {
            let at = (start + e) as usize;
            let theta = thresholds[indices[at] as usize];
            let mut value = grad[at];
            if comptime!(of_thresholds) {
                value = -value * theta / bandwidth;
                if (scores[at] - theta).abs() >= bandwidth / 2.0 {
                    value = f32::new(0.0);
                }
            } else if scores[at] <= theta {
                value = f32::new(0.0);
            }
            out[at] = value;
            e += UNITS;
        }
    }
}
