//! What becomes of a row's candidates: bounds rise while they are collected (`raise`), and in the end their scores are computed
//! again in one order of additions, and the rule of selection chooses among those (`settle`).
//!
//! Candidates arrive in any order. Their set may differ from one run to the next, too, for a bound that is a rounding error higher
//! drops one more; but every latent that the rule selects is among them, so the codes are always the same.

use cubecl::prelude::*;

use super::product::margin_of;
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

/// Units that add up one dot product.
const LANES: u32 = 16;
/// The order of positive floats is that of their bits: the sign is not among them.
const KEY_BITS: u32 = 31;
/// Bits that a bound needs: the lower ones make it at most 2^-12 lower.
const BOUND_BITS: u32 = 20;

/// The rank of a value: its bits, 0 where it is not positive, and that of infinity for NaN, so that it is not lost.
#[cube]
pub(super) fn key(value: f32) -> u32 {
    let mut key = 0u32;
    if is_non_finite(value) {
        key = 0x7f80_0000u32;
    } else if value > 0.0 {
        key = u32::reinterpret(value);
    }
    key
}

/// The k-th largest key of `values[start..start + n]`, rounded down to its highest `bits` bits; 0 where fewer than k are positive.
#[cube]
fn kth_key(
    values: &mut [f32],
    shared: &mut Shared<[f32]>,
    start: u32,
    n: u32,
    k: u32,
    #[comptime] bits: u32,
) -> u32 {
    let mut found = 0u32;
    let mut bit = 0x4000_0000u32;
    let mut left = u32::new(0) + bits;
    while left > 0 {
        let trial = found | bit;
        let mut count = f32::new(0.0);
        let mut e = UNIT_POS;
        while e < n {
            if key(values[(start + e) as usize]) >= trial {
                count += 1.0;
            }
            e += UNITS;
        }
        let count = cube_sum(shared, count);
        if count >= f32::cast_from(k) {
            found = trial;
        }
        bit = bit >> 1;
        left -= 1;
    }
    found
}

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
        let sum = cube_sum(shared, sum);
        let count = cube_sum(shared, count);
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
                if (a > b) == ascending {
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

/// The scores of the candidates, by [`group_dot`]. Returns whether one of them is not finite.
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

/// `(max, sum, count)` of the support of sparsemax, `c = z - max` in it where `c count > sum - 1`: without the division, whose
/// rounding would decide about scores at the threshold.
#[cube]
fn support(values: &mut [f32], shared: &mut Shared<[f32]>, start: u32, n: u32) -> (f32, f32, f32) {
    let mut max = values[start as usize];
    let mut e = UNIT_POS;
    while e < n {
        let z = values[(start + e) as usize];
        if z > max {
            max = z;
        }
        e += UNITS;
    }
    let max = cube_max(shared, max);
    let mut all = f32::new(0.0);
    let mut e = UNIT_POS;
    while e < n {
        all += values[(start + e) as usize] - max;
        e += UNITS;
    }
    let mut sum = cube_sum(shared, all);
    let mut count = f32::cast_from(n);
    let mut shrinking = true;
    while shrinking {
        let mut part = f32::new(0.0);
        let mut members = f32::new(0.0);
        let mut e = UNIT_POS;
        while e < n {
            let c = values[(start + e) as usize] - max;
            if c * count > sum - 1.0 {
                part += c;
                members += 1.0;
            }
            e += UNITS;
        }
        let part = cube_sum(shared, part);
        let members = cube_sum(shared, members);
        shrinking = members < count;
        sum = part;
        count = members;
    }
    (max, sum, count)
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
        let mut level = threshold + 0.0;
        let mut shift = f32::new(0.0);
        let mut offset = f32::new(0.0);
        let mut kth = 0u32;
        let mut room = 0u32;
        if comptime!(rule == Rule::Probability || rule == Rule::Score) {
            let (max, sum, count) = support(values, &mut shared, start, n);
            shift = max;
            level = sum - 1.0;
            offset = count;
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
            room = k - u32::cast_from(cube_sum(&mut shared, above));
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
                    let c = z - shift;
                    if c * offset > level {
                        flag = 1u32;
                    }
                    if comptime!(rule == Rule::Probability) {
                        value = c - level / offset;
                    }
                } else if comptime!(rule == Rule::Threshold) {
                    if z > level {
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
