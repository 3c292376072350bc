//! Adam in one pass over memory: the formula stands in `ops/adam.rs`.

use burn::backend::{Cube, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::units::{UNITS, cube_index, cube_sum};
use super::{dims, elementwise, index, one_cube_per_row};
use crate::ops::adam::AdamStep;
use crate::ops::backend::AdamUpdate;
use crate::ops::cpu::rows::TINY;

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

/// The new parameter and moments of a parameter, its gradient and its moments.
pub(super) fn update(old: [CubeTensor; 4], step: AdamStep) -> AdamUpdate<Cube> {
    let [param, grad, moment_1, moment_2] = old.map(into_contiguous);
    let shape = param.shape();
    let elements = shape.num_elements();
    let like = || {
        let (client, device) = (param.client.clone(), param.device.clone());
        empty_device_contiguous_dtype(client, device, shape.clone(), param.dtype)
    };
    let new = [like(), like(), like()];
    if elements > 0 {
        let client = param.client.clone();
        let rows = step.unit_rows.then(|| dims(&param));
        let [param, grad, moment_1, moment_2] =
            [param, grad, moment_1, moment_2].map(CubeTensor::into_buffer_arg);
        let [new_param, new_1, new_2] = new.clone().map(CubeTensor::into_buffer_arg);
        let (rest_1, rest_2) = (1.0 - step.beta_1, 1.0 - step.beta_2);
        match rows {
            Some([rows, width]) => step_on_rows::launch(
                &client,
                one_cube_per_row(rows),
                CubeDim::new_1d(UNITS),
                param,
                grad,
                moment_1,
                moment_2,
                new_param,
                new_1,
                new_2,
                rows as u32,
                width as u32,
                step.beta_1,
                step.beta_2,
                rest_1,
                rest_2,
                step.epsilon,
                step.lr,
                step.correction_2,
                TINY as f32,
            ),
            None => {
                let (cubes, units) = elementwise(elements);
                self::step::launch(
                    &client,
                    cubes,
                    units,
                    param,
                    grad,
                    moment_1,
                    moment_2,
                    new_param,
                    new_1,
                    new_2,
                    index(elements),
                    step.beta_1,
                    step.beta_2,
                    rest_1,
                    rest_2,
                    step.epsilon,
                    step.lr,
                    step.correction_2,
                );
            }
        }
    }
    let [param, moment_1, moment_2] = new;
    AdamUpdate {
        param,
        moment_1,
        moment_2,
    }
}
