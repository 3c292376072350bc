//! Bounds of rows: they rise while candidates are collected, by what has been found so far.

use cubecl::prelude::*;

use super::product::margin_of;
use super::rank::kth_key;
use super::settle::Rule;
use super::units::{UNITS, cube_index, cube_max, cube_sum, is_non_finite, places, uniform};

/// Bits that a bound needs: the lower ones make it at most 2^-12 lower.
const BOUND_BITS: u32 = 20;

/// A lower bound of the tau of `values[start..start + n]`, as in `cpu/tau.rs`.
#[cube]
fn rough_tau(values: &mut [f32], shared: &mut Shared<[f32]>, start: u32, n: u32, none: f32) -> f32 {
    let mut max = none;
    let mut e = UNIT_POS;
    while e < n {
        let z = values[(start + e) as usize];
        if !is_non_finite(z) && z > max {
            max = z;
        }
        e += UNITS;
    }
    let max = cube_max(shared, max);
    let mut offset = f32::new(-1.0);
    let slack = 1e-4 + 1e-8 * f32::cast_from(n);
    let mut rounds = 3u32;
    while rounds > 0 {
        let mut sum = f32::new(0.0);
        let mut count = f32::new(0.0);
        let mut e = UNIT_POS;
        while e < n {
            let z = values[(start + e) as usize];
            if !is_non_finite(z) && z - max > offset {
                sum += z - max;
                count += 1.0;
            }
            e += UNITS;
        }
        let sum = cube_sum::<f32>(shared, sum);
        let count = cube_sum::<f32>(shared, count);
        let next = (sum - 1.0) / count - slack;
        if count > 0.0 && next > offset {
            offset = next;
        }
        rounds -= 1;
    }
    // A little below the maximum, for the case that `max - 1` rounds up to it.
    let mut bound = max + offset;
    let below = max - max.abs() * 1e-6;
    if bound > below {
        bound = below;
    }
    bound
}

/// Raises a row's bound by what has been found, and drops the candidates at or below it. `most` keeps the largest number of
/// candidates that a row had, or would have had with more room.
#[cube(launch)]
pub(super) fn raise(
    table: &[f32],
    norms: &[f32],
    batch_bound: &[f32],
    bounds: &mut [f32],
    counts: &mut [u32],
    most: &mut [u32],
    values: &mut [f32],
    indices: &mut [u32],
    rows: u32,
    capacity: u32,
    k: u32,
    #[comptime] rule: Rule,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * capacity;
        let counted = uniform(&mut whole, counts[row as usize]);
        let mut n = counted;
        if n > capacity {
            n = capacity;
        }
        let norm = norms[row as usize];
        let old = bounds[row as usize];
        let mut bound = old;
        if comptime!(rule == Rule::Probability || rule == Rule::Score) {
            bound = rough_tau(values, &mut shared, start, n, old);
        } else if comptime!(rule == Rule::TopK) {
            let kth = kth_key(values, &mut shared, start, n, k, BOUND_BITS);
            bound = f32::reinterpret(kth);
        } else if comptime!(rule == Rule::BatchTopK) {
            bound = batch_bound[0];
        }
        if bound < old {
            bound = old;
        }
        sync_cube();
        let mut kept = 0u32;
        let mut base = 0u32;
        while base < n {
            let e = base + UNIT_POS;
            let mut flag = 0u32;
            let mut value = f32::new(0.0);
            let mut latent = 0u32;
            if e < n {
                value = values[(start + e) as usize];
                latent = indices[(start + e) as usize];
                let highest = value + 2.0 * margin_of(norm, table, latent);
                if highest > bound || is_non_finite(value) {
                    flag = 1u32;
                }
            }
            let (place, total) = places(&mut whole, flag);
            if flag == 1 {
                values[(start + kept + place) as usize] = value;
                indices[(start + kept + place) as usize] = latent;
            }
            sync_storage();
            kept += total;
            base += UNITS;
        }
        if UNIT_POS == 0 {
            bounds[row as usize] = bound;
            counts[row as usize] = kept;
            if counted > most[row as usize] {
                most[row as usize] = counted;
            }
        }
    }
}
