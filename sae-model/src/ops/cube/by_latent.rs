//! The entries latent by latent, and sums over the rows of each latent: the gradients of dictionaries, biases and thresholds.
//!
//! Entries are placed by counting, in any order, and then sorted by row within each latent. So every sum has one order of additions,
//! without atomic additions of floats: a run repeats byte for byte.

use cubecl::prelude::*;

use super::units::{UNITS, cube_index, places, uniform};

/// Entries of a latent that are sorted in shared memory. A latent with more is looked for in every row, in order.
const SORTED: u32 = 1024;

/// Counts the entries of each latent.
#[cube(launch)]
pub(super) fn count(
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    tally: &[Atomic<u32>],
    rows: u32,
) {
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = counts[row as usize];
        let mut e = UNIT_POS;
        while e < n {
            tally[indices[(start + e) as usize] as usize].fetch_add(1);
            e += UNITS;
        }
    }
}

/// `offsets [M + 1]`, where each latent's entries begin, and the same as `next [M]`. By one cube: each unit takes consecutive latents.
#[cube(launch)]
pub(super) fn scan(tally: &[u32], offsets: &mut [u32], next: &mut [u32], latents: u32) {
    let mut whole = Shared::<[u32]>::new_slice(UNITS as usize);
    let latents = uniform(&mut whole, latents);
    let share = (latents + UNITS - 1) / UNITS;
    let first = UNIT_POS * share;
    let mut last = first + share;
    if last > latents {
        last = latents;
    }
    let mut own = 0u32;
    let mut j = first;
    while j < last {
        own += tally[j as usize];
        j += 1;
    }
    let (place, total) = places(&mut whole, own);
    let mut at = place;
    let mut j = first;
    while j < last {
        offsets[j as usize] = at;
        next[j as usize] = at;
        at += tally[j as usize];
        j += 1;
    }
    if UNIT_POS == 0 {
        offsets[latents as usize] = total;
    }
}

/// Puts each entry's row and slot where its latent's are, in any order.
#[cube(launch)]
pub(super) fn place(
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    next: &[Atomic<u32>],
    entry_rows: &mut [u32],
    entry_slots: &mut [u32],
    rows: u32,
) {
    let row = cube_index();
    if row < rows {
        let start = starts[row as usize];
        let n = counts[row as usize];
        let mut e = UNIT_POS;
        while e < n {
            let at = next[indices[(start + e) as usize] as usize].fetch_add(1);
            entry_rows[at as usize] = row;
            entry_slots[at as usize] = start + e;
            e += UNITS;
        }
    }
}

/// Sorts `list[from..from + n]` in shared memory. `padded` is the next power of two, at most [`SORTED`].
#[cube]
fn sort_shared(shared: &mut Shared<[u32]>, list: &mut [u32], from: u32, n: u32, padded: u32) {
    sync_cube();
    let mut e = UNIT_POS;
    while e < padded {
        let mut value = 0xffff_ffffu32;
        if e < n {
            value = list[(from + e) as usize];
        }
        shared[e as usize] = value;
        e += UNITS;
    }
    sync_cube();
    let mut size = 2u32;
    while size <= padded {
        let mut stride = size / 2;
        while stride > 0 {
            let mut pair = UNIT_POS;
            while pair < padded / 2 {
                let low = pair / stride * stride * 2 + pair % stride;
                let a = shared[low as usize];
                let b = shared[(low + stride) as usize];
                let ascending = low & size == 0;
                if (ascending && a > b) || (!ascending && a < b) {
                    shared[low as usize] = b;
                    shared[(low + stride) as usize] = a;
                }
                pair += UNITS;
            }
            sync_cube();
            stride /= 2;
        }
        size *= 2;
    }
    let mut e = UNIT_POS;
    while e < n {
        list[(from + e) as usize] = shared[e as usize];
        e += UNITS;
    }
}

/// Brings the entries of each latent into the order of rows, one cube per latent.
#[cube(launch)]
pub(super) fn order(
    starts: &[u32],
    counts: &[u32],
    indices: &[u32],
    offsets: &[u32],
    entry_rows: &mut [u32],
    entry_slots: &mut [u32],
    rows: u32,
    latents: u32,
) {
    let mut shared = Shared::<[u32]>::new_slice(SORTED as usize);
    let latent = cube_index();
    if latent < latents {
        let from = offsets[latent as usize];
        let n = uniform(&mut shared, offsets[(latent + 1) as usize] - from);
        if n > SORTED {
            // Rows in order; of each, the slot that the latent has in it.
            let mut kept = 0u32;
            let mut base = 0u32;
            while base < rows {
                let row = base + UNIT_POS;
                let mut found = 0u32;
                let mut slot = 0u32;
                if row < rows {
                    let mut low = starts[row as usize];
                    let end = low + counts[row as usize];
                    let mut high = end;
                    while low < high {
                        let middle = (low + high) / 2;
                        if indices[middle as usize] < latent {
                            low = middle + 1;
                        } else {
                            high = middle;
                        }
                    }
                    slot = low;
                    if low < end && indices[low as usize] == latent {
                        found = 1u32;
                    }
                }
                let (place, total) = places(&mut shared, found);
                if found == 1 {
                    entry_rows[(from + kept + place) as usize] = row;
                    entry_slots[(from + kept + place) as usize] = slot;
                }
                kept += total;
                base += UNITS;
            }
        } else if n > 1 {
            let mut padded = 2u32;
            while padded < n {
                padded *= 2;
            }
            // Slots ascend with rows, so that both lists sorted by themselves still belong together.
            sort_shared(&mut shared, entry_rows, from, n, padded);
            sort_shared(&mut shared, entry_slots, from, n, padded);
        }
    }
}

/// `A^T X` for one or two pairs of codes and rows, `[B, d] -> [M, d]`: one cube per latent, each unit adds up its columns in the
/// order of rows, first pair first.
#[cube(launch)]
pub(super) fn transposed_times(
    values: &[f32],
    x: &[f32],
    values_2: &[f32],
    x_2: &[f32],
    offsets: &[u32],
    entry_rows: &[u32],
    entry_slots: &[u32],
    out: &mut [f32],
    latents: u32,
    width: u32,
    #[comptime] two: bool,
) {
    let latent = cube_index();
    if latent < latents {
        let from = offsets[latent as usize];
        let to = offsets[(latent + 1) as usize];
        let mut column = UNIT_POS;
        while column < width {
            let mut sum = f32::new(0.0);
            let mut e = from;
            while e < to {
                let at = entry_rows[e as usize] * width + column;
                sum += values[entry_slots[e as usize] as usize] * x[at as usize];
                e += 1;
            }
            if comptime!(two) {
                let mut e = from;
                while e < to {
                    let at = entry_rows[e as usize] * width + column;
                    sum += values_2[entry_slots[e as usize] as usize] * x_2[at as usize];
                    e += 1;
                }
            }
            out[(latent * width + column) as usize] = sum;
            column += UNITS;
        }
    }
}

/// Sums over rows, `[slots] -> [M]`: one unit per latent, in the order of rows.
#[cube(launch)]
pub(super) fn column_sums(
    values: &[f32],
    offsets: &[u32],
    entry_slots: &[u32],
    out: &mut [f32],
    latents: u32,
) {
    let latent = ABSOLUTE_POS as u32;
    if latent < latents {
        let mut sum = f32::new(0.0);
        let mut e = offsets[latent as usize];
        let to = offsets[(latent + 1) as usize];
        while e < to {
            sum += values[entry_slots[e as usize] as usize];
            e += 1;
        }
        out[latent as usize] = sum;
    }
}
