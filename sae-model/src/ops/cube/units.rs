//! What the kernels share: how units find their row, and what they compute together.
//!
//! A kernel on rows has one cube (work group) per row and [`UNITS`] units in it. No kernel needs planes (subgroups), and the only
//! atomic operation is the addition of u32: both are what every adapter of WebGPU has. NaN and infinity are recognised by their
//! bits, because shader compilers may assume that neither occurs.

use cubecl::prelude::*;

/// Number of units per cube. A row is read in strides of it, so rows can have any width.
pub(super) const UNITS: u32 = 128;

/// A quiet NaN. It is passed as an argument, because WGSL refuses it as a constant.
pub(super) const NAN_BITS: u32 = 0x7fc0_0000;

/// The index of this cube. Cubes form a grid, because one axis is limited to 65,535.
#[cube]
pub(super) fn cube_index() -> u32 {
    CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X
}

#[cube]
pub(super) fn is_non_finite(x: f32) -> bool {
    (u32::reinterpret(x) >> 23) & 0xff == 0xff
}

/// Sum over the cube of one value per unit; every unit gets it.
#[cube]
pub(super) fn cube_sum<N: Numeric>(shared: &mut Shared<[N]>, value: N) -> N {
    sync_cube(); // all units have read the previous result
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut stride = CUBE_DIM_X / 2;
    while stride > 0 {
        if UNIT_POS < stride {
            let other = shared[(UNIT_POS + stride) as usize];
            shared[UNIT_POS as usize] += other;
        }
        sync_cube();
        stride /= 2;
    }
    workgroup_uniform_load(&shared[0])
}

/// Maximum over the cube of one value per unit; every unit gets it.
#[cube]
pub(super) fn cube_max(shared: &mut Shared<[f32]>, value: f32) -> f32 {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut stride = CUBE_DIM_X / 2;
    while stride > 0 {
        if UNIT_POS < stride {
            let other = shared[(UNIT_POS + stride) as usize];
            if other > shared[UNIT_POS as usize] {
                shared[UNIT_POS as usize] = other;
            }
        }
        sync_cube();
        stride /= 2;
    }
    workgroup_uniform_load(&shared[0])
}

/// A value that all units have, such as the length of a row, in a form that loops with barriers may depend on.
#[cube]
pub(super) fn uniform(shared: &mut Shared<[u32]>, value: u32) -> u32 {
    sync_cube();
    if UNIT_POS == 0 {
        shared[0] = value;
    }
    sync_cube();
    workgroup_uniform_load(&shared[0])
}

/// Number of units before this one whose flag is 1, and of all units: where each unit that keeps something puts it, in order.
#[cube]
pub(super) fn places(shared: &mut Shared<[u32]>, flag: u32) -> (u32, u32) {
    sync_cube();
    shared[UNIT_POS as usize] = flag;
    sync_cube();
    let mut stride = 1u32;
    while stride < CUBE_DIM_X {
        let mut before = 0u32;
        if UNIT_POS >= stride {
            before = shared[(UNIT_POS - stride) as usize];
        }
        sync_cube();
        shared[UNIT_POS as usize] += before;
        sync_cube();
        stride *= 2;
    }
    let place = shared[UNIT_POS as usize] - flag;
    sync_cube();
    (place, workgroup_uniform_load(&shared[(UNITS - 1) as usize]))
}
