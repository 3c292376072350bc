//! Order among scores: the k-th largest of a row, without a sort.

use cubecl::prelude::*;

use super::units::{UNITS, cube_sum, is_non_finite};

/// The order of positive floats is that of their bits: the sign is not among them.
pub(super) const KEY_BITS: u32 = 31;

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
pub(super) fn kth_key(
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
        let count = cube_sum::<f32>(shared, count);
        if count >= f32::cast_from(k) {
            found = trial;
        }
        bit = bit >> 1;
        left -= 1;
    }
    found
}
