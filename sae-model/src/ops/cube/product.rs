//! The encoder's product: scores of a tile of rows and concepts, of which those that may be selected are written down and the
//! others forgotten. `[B, M]` is never stored.
//!
//! A score is *screened*: `z~` is computed in whatever order and precision the product has, and its true value (`rescore` in
//! `settle.rs`, the float32 dot product in one fixed order) lies within a margin
//!
//! ```text
//! |z~ - z| <= e = (2 u + u^2 + 2 (d + 4) 2^-24) ||q|| ||c|| + 2^-22 |bias|
//! ```
//!
//! where factors are rounded by at most u (0 for float32). Rounding the factors moves each product `q_k c_k` by at most
//! `(2 u + u^2) |q_k c_k|`; both values are float32 sums of d products, each off by at most `d 2^-24 sum |q_k c_k|` to first order
//! (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); and `sum |q_k c_k| <= ||q|| ||c||` (Cauchy-Schwarz). A
//! candidate is what may exceed its row's bound: `z~ + e > bound`. So what is selected in the end depends neither on how the
//! screening adds up nor on the card that it runs on.

use cubecl::prelude::*;

use super::units::{UNITS, cube_index, cube_sum, is_non_finite};

/// Rows and concepts of a tile.
pub(super) const TILE: u32 = 64;
/// Units along one side of a cube: each has 4 x 4 scores.
pub(super) const SIDE: u32 = 16;
/// Elements of d that are multiplied at a time.
const DEPTH: u32 = 16;

/// The table of latents `[M, 3]` that the screening reads: what is added to a score, the margin's factor and its constant.
pub(super) const COLUMNS: u32 = 3;

/// A score that no latent takes part with, far below every bound.
pub(super) const MASKED: f32 = -2e38;
/// The bound of rows that have none yet.
pub(super) const UNBOUNDED: f32 = -1e38;

/// `||x||` of every row, `[rows, width] -> [rows]`; not finite where a number is not.
#[cube(launch)]
pub(super) fn row_norms(x: &[f32], norms: &mut [f32], rows: u32, width: u32) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let mut sum = f32::new(0.0);
        let mut k = UNIT_POS;
        while k < width {
            let value = x[(row * width + k) as usize];
            sum += value * value;
            k += UNITS;
        }
        let sum = cube_sum::<f32>(&mut shared, sum);
        if UNIT_POS == 0 {
            norms[row as usize] = sum.sqrt();
        }
    }
}

/// The table of latents, from the norms of the dictionary's rows. `lowest [M]` is what a score must exceed (JumpReLU), and is taken
/// off it.
#[cube(launch)]
pub(super) fn latents_table(
    norms: &[f32],
    bias: &[f32],
    mask: &[f32],
    thresholds: &[f32],
    table: &mut [f32],
    latents: u32,
    margin: f32,
    half_band: f32,
    #[comptime] has_bias: bool,
    #[comptime] has_mask: bool,
    #[comptime] has_thresholds: bool,
) {
    let j = ABSOLUTE_POS as u32;
    if j < latents {
        let mut added = f32::new(0.0);
        if comptime!(has_bias) {
            added = bias[j as usize];
        }
        let mut slack = added.abs();
        if comptime!(has_thresholds) {
            let lowest = thresholds[j as usize] - half_band;
            slack += lowest.abs();
            added -= lowest;
        }
        if comptime!(has_mask) {
            if mask[j as usize] == 0.0 {
                added = f32::new(MASKED);
                slack = f32::new(0.0);
            }
        }
        let at = j * COLUMNS;
        table[at as usize] = added;
        table[(at + 1) as usize] = norms[j as usize] * margin;
        table[(at + 2) as usize] = slack * 2.4e-7; // 2^-22
    }
}

/// The margin of a score: row norm, table, latent.
#[cube]
pub(super) fn margin_of(norm: f32, table: &[f32], j: u32) -> f32 {
    let at = j * COLUMNS;
    norm * table[(at + 1) as usize] + table[(at + 2) as usize]
}

/// Screens the latents `first..last` of every row: appends those that may exceed the row's bound to its candidates, with the lower
/// end of what their score may be, in any order. `counts` counts those for which there is no room, too.
#[cube(launch)]
pub(super) fn screen(
    queries: &[f32],
    dictionary: &[f32],
    table: &[f32],
    norms: &[f32],
    bounds: &[f32],
    counts: &[Atomic<u32>],
    values: &mut [f32],
    indices: &mut [u32],
    rows: u32,
    first: u32,
    last: u32,
    width: u32,
    capacity: u32,
) {
    let mut q = Shared::<[f32]>::new_slice((TILE * DEPTH) as usize);
    let mut c = Shared::<[f32]>::new_slice((TILE * DEPTH) as usize);
    let unit = UNIT_POS_Y * SIDE + UNIT_POS_X;
    let row_0 = CUBE_POS_Y * TILE;
    let latent_0 = first + CUBE_POS_X * TILE;
    let mut sums = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16 {
        sums[i] = f32::new(0.0);
    }
    let mut k_0 = 0u32;
    while k_0 < width {
        sync_cube();
        #[unroll]
        for i in 0..4u32 {
            let at = unit + i * (SIDE * SIDE); // of the tile's 64 x 16 numbers
            let line = at / DEPTH;
            let k = k_0 + at % DEPTH;
            let mut value = f32::new(0.0);
            if row_0 + line < rows && k < width {
                value = queries[((row_0 + line) * width + k) as usize];
            }
            q[(at % DEPTH * TILE + line) as usize] = value;
            let mut value = f32::new(0.0);
            if latent_0 + line < last && k < width {
                value = dictionary[((latent_0 + line) * width + k) as usize];
            }
            c[(at % DEPTH * TILE + line) as usize] = value;
        }
        sync_cube();
        let mut k = 0u32;
        while k < DEPTH {
            #[unroll]
            for i in 0..4u32 {
                let left = q[(k * TILE + UNIT_POS_Y * 4 + i) as usize];
                #[unroll]
                for j in 0..4u32 {
                    let right = c[(k * TILE + UNIT_POS_X * 4 + j) as usize];
                    sums[(i * 4 + j) as usize] += left * right;
                }
            }
            k += 1;
        }
        k_0 += DEPTH;
    }
    #[unroll]
    for i in 0..4u32 {
        let row = row_0 + UNIT_POS_Y * 4 + i;
        if row < rows {
            let norm = norms[row as usize];
            let bound = bounds[row as usize];
            // A row that is not finite is settled without candidates.
            if !is_non_finite(norm) {
                #[unroll]
                for j in 0..4u32 {
                    let latent = latent_0 + UNIT_POS_X * 4 + j;
                    if latent < last {
                        let z = sums[(i * 4 + j) as usize] + table[(latent * COLUMNS) as usize];
                        let e = margin_of(norm, table, latent);
                        if z + e > bound || is_non_finite(z) {
                            let place = counts[row as usize].fetch_add(1);
                            if place < capacity {
                                let at = (row * capacity + place) as usize;
                                values[at] = z - e;
                                indices[at] = latent;
                            }
                        }
                    }
                }
            }
        }
    }
}
