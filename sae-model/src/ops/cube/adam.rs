//! Adam in one pass over memory: the formula stands in `ops/adam.rs`.

use cubecl::prelude::*;

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
        let g = grad[at];
        let m = beta_1 * moment_1[at] + rest_1 * g;
        let v = beta_2 * moment_2[at] + rest_2 * (g * g);
        new_moment_1[at] = m;
        new_moment_2[at] = v;
        new_param[at] = param[at] - lr * (m / ((v * correction_2).sqrt() + epsilon));
    }
}
