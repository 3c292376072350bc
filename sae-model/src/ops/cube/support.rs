//! The support of sparsemax among a row's candidates, by whole numbers.
//!
//! Which candidates a row has beside its support depends on the product that found them, and on their order of arrival. Nothing that
//! is computed here may depend on them. So distances below the maximum are whole numbers, of 2^-30: their sums are exact in any order,
//! and so are their comparisons, and Newton's iteration ends at the one support whatever set it starts from that contains it.
//!
//! ```text
//! q_j = floor(2^30 (max - z_j)) ;  j in S  <=>  q_j |S| < sum of q over S + 2^30       (z_j > tau)
//! ```

use cubecl::prelude::*;

use super::units::{UNITS, cube_max, cube_sum};

/// Sums and products are in two parts, of 15 bits and the rest.
const LOW_BITS: u32 = 15;
const LOW: u32 = (1 << LOW_BITS) - 1;
/// Candidates whose sums of distances of 30 bits fit into the two parts; more of them have distances of 20.
const MANY: u32 = 1 << 16;
/// 2^30 and 2^20 without the lower part.
const ONE: u32 = 1 << 15;
const ONE_OF_MANY: u32 = 1 << 5;
/// The distance of what is too far below the maximum to be in any support.
const FAR: u32 = 0xffff_ffff;

/// How far a score is below the maximum.
#[cube]
fn distance(max: f32, scale: f32, z: f32) -> u32 {
    let mut distance = u32::new(0) + FAR;
    if max - z < 1.0 {
        distance = u32::cast_from((max - z) * scale);
    }
    distance
}

/// Whether a distance times `count` is less than `(high, low)`.
#[cube]
fn is_less(distance: u32, count: u32, high: u32, low: u32) -> bool {
    let low_part = (distance & LOW) * count;
    let high_part = (distance >> LOW_BITS) * count + (low_part >> LOW_BITS);
    let less = high_part < high || (high_part == high && (low_part & LOW) < low);
    distance != FAR && less
}

/// Whether a score is in a [`support()`].
#[cube]
pub(super) fn contains(max: f32, scale: f32, count: u32, high: u32, low: u32, z: f32) -> bool {
    is_less(distance(max, scale, z), count, high, low)
}

/// `z - tau` of a score in a [`support()`].
#[cube]
pub(super) fn excess(max: f32, scale: f32, count: u32, high: u32, low: u32, z: f32) -> f32 {
    let sum = f32::cast_from(high) * 32768.0 + f32::cast_from(low); // 2^15
    let mut excess = (z - max) + sum / scale / f32::cast_from(count);
    if excess < 0.0 {
        excess = f32::new(0.0);
    }
    excess
}

/// The support S of `values[start..start + n]`, of which there is at least one: the maximum, distances per one, `|S|`, and
/// `sum of q over S + scale` in two parts.
#[cube]
pub(super) fn support(
    values: &mut [f32],
    shared: &mut Shared<[f32]>,
    whole: &mut Shared<[u32]>,
    start: u32,
    n: u32,
) -> (f32, f32, u32, u32, u32) {
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
    let mut scale = f32::new(1073741824.0); // 2^30
    let mut one = u32::new(0) + ONE;
    if n > MANY {
        scale = f32::new(1048576.0); // 2^20
        one = u32::new(0) + ONE_OF_MANY;
    }
    // at first, everything that is not far
    let mut high = u32::new(0) + FAR;
    let mut low = 0u32;
    let mut count = 1u32;
    let mut before = u32::new(0) + FAR;
    let mut shrinking = true;
    while shrinking {
        let mut highs = 0u32;
        let mut lows = 0u32;
        let mut members = 0u32;
        let mut e = UNIT_POS;
        while e < n {
            let q = distance(max, scale, values[(start + e) as usize]);
            if is_less(q, count, high, low) {
                highs += q >> LOW_BITS;
                lows += q & LOW;
                members += 1;
            }
            e += UNITS;
        }
        let highs = cube_sum::<u32>(whole, highs);
        let lows = cube_sum::<u32>(whole, lows);
        count = cube_sum::<u32>(whole, members);
        shrinking = count < before;
        before = count;
        high = highs + (lows >> LOW_BITS) + one;
        low = lows & LOW;
    }
    (max, scale, count, high, low)
}
