//! BatchTopK: the n largest scores of a whole batch, by counting, as `cpu/batch_topk.rs` does.
//!
//! The keys of positive floats (`key` in `rank.rs`) have 31 bits, so three counts, of 11, 11 and 9 bits, find the n-th largest.
//! Counts are whole numbers: the order in which they are added does not matter. The state of the search is `[found, room]`: the bits
//! found so far, and how many of those with these bits are wanted.

use cubecl::prelude::*;

use super::rank::key;
use super::units::{UNITS, cube_index, places, uniform};

/// `(shift, bits)` of the counts.
pub(super) const LEVELS: [(u32, u32); 3] = [(20, 11), (9, 11), (0, 9)];
/// Digits of the first level.
pub(super) const DIGITS: u32 = 1 << 11;

/// Counts the digit at `shift` of the keys whose higher bits are those found.
#[cube(launch)]
pub(super) fn count_digits(
    values: &[f32],
    counts: &[u32],
    state: &[u32],
    tally: &[Atomic<u32>],
    rows: u32,
    capacity: u32,
    #[comptime] shift: u32,
    #[comptime] bits: u32,
) {
    let row = cube_index();
    if row < rows {
        let mut n = counts[row as usize];
        if n > capacity {
            n = capacity;
        }
        let higher = state[0] >> comptime!(shift + bits);
        let mut e = UNIT_POS;
        while e < n {
            let key = key(values[(row * capacity + e) as usize]);
            if key > 0 && key >> comptime!(shift + bits) == higher {
                let digit = (key >> shift) & comptime!((1u32 << bits) - 1);
                tally[digit as usize].fetch_add(1);
            }
            e += UNITS;
        }
    }
}

/// Finds the next digit, and clears the counts. Where there are not n positive values, what is found stays zero and everything is
/// wanted.
#[cube(launch)]
pub(super) fn pick_digit(
    tally: &mut [u32],
    state: &mut [u32],
    bound: &mut [f32],
    #[comptime] shift: u32,
    #[comptime] bits: u32,
) {
    if UNIT_POS == 0 {
        let mut room = state[1];
        let mut digit = comptime!((1u32 << bits) - 1) + u32::new(0);
        while digit > 0 && tally[digit as usize] < room {
            room -= tally[digit as usize];
            digit -= 1;
        }
        state[0] = state[0] | (digit << shift);
        state[1] = room;
        bound[0] = f32::reinterpret(state[0]);
        let mut d = 0u32;
        while d < comptime!(1u32 << bits) {
            tally[d as usize] = 0;
            d += 1;
        }
    }
}

/// How many of the keys equal to the n-th largest each row may keep: those of the first rows are wanted. By one cube.
#[cube(launch)]
pub(super) fn share_room(
    values: &[f32],
    counts: &[u32],
    state: &[u32],
    room_of: &mut [u32],
    rows: u32,
    capacity: u32,
) {
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let rows = uniform(&mut whole, rows);
    let (found, room) = (state[0], state[1]);
    let mut before = 0u32;
    let mut base = 0u32;
    while base < rows {
        let row = base + UNIT_POS;
        let mut equal = 0u32;
        if row < rows {
            let mut e = 0u32;
            while e < counts[row as usize] {
                if key(values[(row * capacity + e) as usize]) == found {
                    equal += 1;
                }
                e += 1;
            }
        }
        let (place, total) = places(&mut whole, equal);
        if row < rows {
            let mut left = 0u32;
            if before + place < room {
                left = room - (before + place);
            }
            room_of[row as usize] = left;
        }
        before += total;
        base += UNITS;
    }
}

/// Keeps the keys above the n-th largest, and of those equal to it the first `room_of` of the row.
#[cube(launch)]
pub(super) fn keep_largest(
    state: &[u32],
    room_of: &[u32],
    counts: &mut [u32],
    values: &mut [f32],
    indices: &mut [u32],
    rows: u32,
    capacity: u32,
) {
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * capacity;
        let n = uniform(&mut whole, counts[row as usize]);
        let found = state[0];
        let room = room_of[row as usize];
        let mut kept = 0u32;
        let mut equals = 0u32;
        let mut base = 0u32;
        while base < n {
            let e = base + UNIT_POS;
            let mut value = f32::new(0.0);
            let mut latent = 0u32;
            let mut rank = 0u32;
            if e < n {
                value = values[(start + e) as usize];
                latent = indices[(start + e) as usize];
                rank = key(value);
            }
            let mut equal = 0u32;
            if e < n && rank == found {
                equal = 1u32;
            }
            let (place, total) = places(&mut whole, equal);
            let mut flag = 0u32;
            if e < n && (rank > found || (equal == 1 && equals + place < room)) {
                flag = 1u32;
            }
            equals += total;
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
            counts[row as usize] = kept;
        }
    }
}
