//! Adam in one pass over memory: the formula stands in `ops/adam.rs`.

use cubecl::prelude::*;

use super::units::{UNITS, cube_index, cube_sum};

/// The new parameter and moments of one number.
#[cube]
fn updated(
    param: f32,
    grad: f32,
    moments: (f32, f32),
    betas: (f32, f32),
    rests: (f32, f32),
    step: (f32, f32, f32),
) -> (f32, f32, f32) {
    let (epsilon, lr, correction_2) = step;
    let m = betas.0 * moments.0 + rests.0 * grad;
    let v = betas.1 * moments.1 + rests.1 * (grad * grad);
    let p = param - lr * (m / ((v * correction_2).sqrt() + epsilon));
    (p, m, v)
}

/// One step on every element.
#[cube(launch)]
pub(super) fn step(
    param: &[f32],
    grad: &[f32],
    moment_1: &[f32],
    moment_2: &[f32],
    new_param: &mut [f32],
    new_moment_1: &mut [f32],
    new_moment_2: &mut [f32],
    elements: u32,
    beta_1: f32,
    beta_2: f32,
    rest_1: f32,
    rest_2: f32,
    epsilon: f32,
    lr: f32,
    correction_2: f32,
) {
    let i = ABSOLUTE_POS as u32;
    if i < elements {
        let at = i as usize;
        let (p, m, v) = updated(
            param[at],
            grad[at],
            (moment_1[at], moment_2[at]),
            (beta_1, beta_2),
            (rest_1, rest_2),
            (epsilon, lr, correction_2),
        );
        new_moment_1[at] = m;
        new_moment_2[at] = v;
        new_param[at] = p;
    }
}

/// One step on rows that keep length one, a cube per row: what of the gradient lies along a row is left out, and the row is scaled to
/// length one after it.
#[cube(launch)]
pub(super) fn step_on_rows(
    param: &[f32],
    grad: &[f32],
    moment_1: &[f32],
    moment_2: &[f32],
    new_param: &mut [f32],
    new_moment_1: &mut [f32],
    new_moment_2: &mut [f32],
    rows: u32,
    width: u32,
    beta_1: f32,
    beta_2: f32,
    rest_1: f32,
    rest_2: f32,
    epsilon: f32,
    lr: f32,
    correction_2: f32,
    tiny: f32,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * width;
        let mut dots = f32::new(0.0);
        let mut k = UNIT_POS;
        while k < width {
            let at = (start + k) as usize;
            dots += grad[at] * param[at];
            k += UNITS;
        }
        let along = cube_sum::<f32>(&mut shared, dots);
        let mut squares = f32::new(0.0);
        let mut k = UNIT_POS;
        while k < width {
            let at = (start + k) as usize;
            let (p, m, v) = updated(
                param[at],
                grad[at] - along * param[at],
                (moment_1[at], moment_2[at]),
                (beta_1, beta_2),
                (rest_1, rest_2),
                (epsilon, lr, correction_2),
            );
            new_moment_1[at] = m;
            new_moment_2[at] = v;
            new_param[at] = p;
            squares += p * p;
            k += UNITS;
        }
        let mut squared = cube_sum::<f32>(&mut shared, squares);
        if squared < tiny {
            squared = tiny;
        }
        let length = squared.sqrt();
        let mut k = UNIT_POS;
        while k < width {
            let at = (start + k) as usize;
            new_param[at] = new_param[at] / length; // this unit's own
            k += UNITS;
        }
    }
}
