//! What becomes of a row's candidates in the end: their scores are computed again in one order of additions, and the rule of selection
//! chooses among those.
//!
//! Candidates arrive in any order, and their set differs with the product that found them. Every latent that the rule selects is
//! among them, and nothing is computed from the others (`support.rs`): so the codes are always the same, bit for bit.

use cubecl::prelude::*;

use super::decode::{LANES, group_dot};
use super::rank::{KEY_BITS, key, kth_key};
use super::support::{contains, excess, support};
use super::units::{UNITS, cube_index, cube_max, cube_sum, is_non_finite, places, uniform};

/// The rules of selection, as kernels are compiled for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rule {
    /// `a` is the probability.
    Probability,
    /// `a` is the score.
    Score,
    /// Above a threshold.
    Threshold,
    /// The k largest of a row.
    TopK,
    /// The k B largest of a batch: a row keeps all that are positive (see `batch.rs`).
    BatchTopK,
    /// Above a threshold per latent.
    JumpRelu,
}

/// Sorts `indices[start..start + n]` in ascending order; there is room for the next power of two.
#[cube]
fn sort(indices: &mut [u32], start: u32, n: u32) {
    let mut padded = 1u32;
    while padded < n {
        padded *= 2;
    }
    let mut e = n + UNIT_POS;
    while e < padded {
        indices[(start + e) as usize] = 0xffff_ffffu32;
        e += UNITS;
    }
    sync_storage();
    let mut size = 2u32;
    while size <= padded {
        let mut stride = size / 2;
        while stride > 0 {
            let mut pair = UNIT_POS;
            while pair < padded / 2 {
                let low = pair / stride * stride * 2 + pair % stride;
                let a = indices[(start + low) as usize];
                let b = indices[(start + low + stride) as usize];
                let ascending = low & size == 0;
                if (ascending && a > b) || (!ascending && a < b) {
                    indices[(start + low) as usize] = b;
                    indices[(start + low + stride) as usize] = a;
                }
                pair += UNITS;
            }
            sync_storage();
            stride /= 2;
        }
        size *= 2;
    }
}

/// The scores of the candidates, by [`group_dot()`]. Returns whether one of them is not finite.
#[cube]
fn rescore(
    shared: &mut Shared<[f32]>,
    queries: &[f32],
    dictionary: &[f32],
    bias: &[f32],
    values: &mut [f32],
    indices: &mut [u32],
    at: (u32, u32, u32),
    width: u32,
    #[comptime] has_bias: bool,
) -> bool {
    let (row, start, n) = at;
    let mut bad = f32::new(0.0);
    let mut base = 0u32;
    while base < n {
        let e = base + UNIT_POS / LANES;
        let wanted = e < n;
        let mut latent = 0u32;
        if wanted {
            latent = indices[(start + e) as usize];
        }
        let (q, c) = (row * width, latent * width);
        let mut z = group_dot(shared, queries, q, dictionary, c, width, wanted);
        if wanted && UNIT_POS % LANES == 0 {
            if comptime!(has_bias) {
                z += bias[latent as usize];
            }
            values[(start + e) as usize] = z;
            if is_non_finite(z) {
                bad = f32::new(1.0);
            }
        }
        base += UNITS / LANES;
    }
    sync_storage();
    cube_max(shared, bad) > 0.0
}

/// Scores the candidates again, lets the rule choose, and leaves what it chose in ascending order of latents.
#[cube(launch)]
pub(super) fn settle(
    queries: &[f32],
    dictionary: &[f32],
    bias: &[f32],
    thresholds: &[f32],
    norms: &[f32],
    counts: &mut [u32],
    most: &mut [u32],
    values: &mut [f32],
    indices: &mut [u32],
    scores: &mut [f32],
    rows: u32,
    width: u32,
    capacity: u32,
    k: u32,
    threshold: f32,
    half_band: f32,
    nan_bits: u32,
    #[comptime] rule: Rule,
    #[comptime] has_bias: bool,
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
        let mut poisoned = false;
        if is_non_finite(norms[row as usize]) {
            // No candidates: the row gets one entry, of latent 0, that poisons what is made of it.
            poisoned = true;
            n = 1u32;
            if UNIT_POS == 0 {
                indices[start as usize] = 0u32;
            }
        }
        let n = uniform(&mut whole, n);
        sort(indices, start, n);
        let at = (row, start, n);
        let bad = rescore(
            &mut shared,
            queries,
            dictionary,
            bias,
            values,
            indices,
            at,
            width,
            has_bias,
        );
        poisoned = poisoned || bad;
        let mut kth = 0u32;
        let mut room = 0u32;
        let mut max = f32::new(0.0);
        let mut scale = f32::new(1.0);
        let mut count = 0u32;
        let mut high = 0u32;
        let mut low = 0u32;
        if comptime!(rule == Rule::Probability || rule == Rule::Score) {
            let of_row = support(values, &mut shared, &mut whole, start, n);
            max = of_row.0;
            scale = of_row.1;
            count = of_row.2;
            high = of_row.3;
            low = of_row.4;
        } else if comptime!(rule == Rule::TopK) {
            kth = kth_key(values, &mut shared, start, n, k, KEY_BITS);
            let mut above = f32::new(0.0);
            let mut e = UNIT_POS;
            while e < n {
                if key(values[(start + e) as usize]) > kth {
                    above += 1.0;
                }
                e += UNITS;
            }
            room = k - u32::cast_from(cube_sum::<f32>(&mut shared, above));
        }
        let mut kept = 0u32;
        let mut equals = 0u32;
        let mut base = 0u32;
        while base < n {
            let e = base + UNIT_POS;
            let mut flag = 0u32;
            let mut z = f32::new(0.0);
            let mut value = f32::new(0.0);
            let mut latent = 0u32;
            if e < n {
                z = values[(start + e) as usize];
                latent = indices[(start + e) as usize];
                value = z;
                if comptime!(rule == Rule::Probability || rule == Rule::Score) {
                    if contains(max, scale, count, high, low, z) {
                        flag = 1u32;
                    }
                    if comptime!(rule == Rule::Probability) {
                        value = excess(max, scale, count, high, low, z);
                    }
                } else if comptime!(rule == Rule::Threshold) {
                    if z > threshold {
                        flag = 1u32;
                    }
                } else if comptime!(rule == Rule::BatchTopK) {
                    if z > 0.0 {
                        flag = 1u32;
                    }
                } else if comptime!(rule == Rule::JumpRelu) {
                    let theta = thresholds[latent as usize];
                    if z > theta - half_band {
                        flag = 1u32;
                    }
                    if z <= theta {
                        value = f32::new(0.0);
                    }
                }
            }
            if comptime!(rule == Rule::TopK) {
                let mut equal = 0u32;
                if e < n && kth > 0 && key(z) == kth {
                    equal = 1u32;
                }
                let (place, total) = places(&mut whole, equal);
                if e < n && (key(z) > kth || (equal == 1 && equals + place < room)) {
                    flag = 1u32;
                }
                equals += total;
            }
            if poisoned && e < n {
                flag = 1u32;
                value = f32::reinterpret(nan_bits);
                z = value;
            }
            let (place, total) = places(&mut whole, flag);
            if flag == 1 {
                values[(start + kept + place) as usize] = value;
                indices[(start + kept + place) as usize] = latent;
                if comptime!(rule == Rule::JumpRelu) {
                    scores[(start + kept + place) as usize] = z;
                }
            }
            sync_storage();
            kept += total;
            base += UNITS;
        }
        if UNIT_POS == 0 {
            counts[row as usize] = kept;
            if counted > most[row as usize] {
                most[row as usize] = counted;
            }
        }
    }
}

/// `[largest of most, largest of counts]`, by one cube: whether the candidates had room, and how many slots a row needs.
#[cube(launch)]
pub(super) fn largest(most: &[u32], counts: &[u32], out: &mut [u32], rows: u32) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut a = f32::new(0.0);
    let mut b = f32::new(0.0);
    let mut row = UNIT_POS;
    while row < rows {
        // Exact: a row has fewer than 2^24 latents.
        a = a.max(f32::cast_from(most[row as usize]));
        b = b.max(f32::cast_from(counts[row as usize]));
        row += UNITS;
    }
    let a = cube_max(&mut shared, a);
    let b = cube_max(&mut shared, b);
    if UNIT_POS == 0 {
        out[0] = u32::cast_from(a);
        out[1] = u32::cast_from(b);
    }
}

/// Copies the entries of every row from `capacity` to `stride` slots, with zeros behind them.
#[cube(launch)]
pub(super) fn compact(
    counts: &[u32],
    values: &[f32],
    indices: &[u32],
    to_values: &mut [f32],
    to_indices: &mut [u32],
    slots: u32,
    capacity: u32,
    stride: u32,
) {
    let slot = ABSOLUTE_POS as u32;
    if slot < slots {
        let (row, e) = (slot / stride, slot % stride);
        let mut value = f32::new(0.0);
        let mut latent = 0u32;
        if e < counts[row as usize] {
            value = values[(row * capacity + e) as usize];
            latent = indices[(row * capacity + e) as usize];
        }
        to_values[slot as usize] = value;
        to_indices[slot as usize] = latent;
    }
}
