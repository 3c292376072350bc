//! The row-wise steps before and after the dictionary, and their gradients. The formulas stand in `ops/cpu/rows.rs`.
//!
//! Every sum is added up in an order that the shape alone decides.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::entries::empty;
use super::units::{UNITS, cube_index, cube_sum};
use super::{dims, elementwise, empty_like, index, one_cube_per_row};
use crate::ops::cpu::rows::{Norm, TINY};

/// Rows that one unit adds up per column.
const BLOCK: u32 = 64;

/// How n follows the length of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// s for every row.
    Constant,
    /// `s (r / s)^p`.
    Power,
    /// The same within a range, and proportional to r outside.
    PowerInRange,
}

impl Form {
    fn of(norm: Norm) -> Self {
        match norm.range.is_finite() {
            true => Self::PowerInRange,
            false if norm.exponent == 0.0 => Self::Constant,
            false => Self::Power,
        }
    }
}

/// `ratio` brought into the range from `1 / range` to `range`.
#[cube]
fn near(ratio: f32, range: f32) -> f32 {
    let mut near = ratio;
    if near > range {
        near = range;
    }
    if near < 1.0 / range {
        near = 1.0 / range;
    }
    near
}

/// `u = (x - b) / n`, and n of each row.
#[cube(launch)]
pub(super) fn normalize(
    x: &[f32],
    bias: &[f32],
    u: &mut [f32],
    norms: &mut [f32],
    rows: u32,
    width: u32,
    exponent: f32,
    scale: f32,
    range: f32,
    tiny: f32,
    #[comptime] has_bias: bool,
    #[comptime] form: Form,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * width;
        let mut n = scale;
        if comptime!(form != Form::Constant) {
            let mut squares = f32::new(0.0);
            let mut k = UNIT_POS;
            while k < width {
                let mut x0 = x[(start + k) as usize];
                if comptime!(has_bias) {
                    x0 -= bias[k as usize];
                }
                squares += x0 * x0;
                k += UNITS;
            }
            let mut squared = cube_sum::<f32>(&mut shared, squares);
            if squared < tiny {
                squared = tiny;
            }
            let ratio = squared.sqrt() / scale;
            if comptime!(form == Form::PowerInRange) {
                let near = near(ratio, range);
                n = scale * near.powf(exponent) * (ratio / near);
            } else {
                n = scale * ratio.powf(exponent);
            }
        }
        let mut k = UNIT_POS;
        while k < width {
            let mut x0 = x[(start + k) as usize];
            if comptime!(has_bias) {
                x0 -= bias[k as usize];
            }
            u[(start + k) as usize] = x0 / n;
            k += UNITS;
        }
        if UNIT_POS == 0 {
            norms[row as usize] = n;
        }
    }
}

/// `out = factor n x + b`: x_hat of y, and with no bias the gradient of y.
#[cube(launch)]
pub(super) fn restore(
    x: &[f32],
    bias: &[f32],
    norms: &[f32],
    out: &mut [f32],
    elements: u32,
    width: u32,
    factor: f32,
    #[comptime] has_bias: bool,
) {
    let i = ABSOLUTE_POS as u32;
    if i < elements {
        let mut value = norms[(i / width) as usize] * factor * x[i as usize];
        if comptime!(has_bias) {
            value += bias[(i % width) as usize];
        }
        out[i as usize] = value;
    }
}

/// `p (a . b) / ||u||^2` of each row, p being the exponent that its n follows: times u, what a gradient that reaches x0 through n
/// has along the row.
#[cube(launch)]
pub(super) fn along(
    a: &[f32],
    b: &[f32],
    u: &[f32],
    norms: &[f32],
    out: &mut [f32],
    rows: u32,
    width: u32,
    exponent: f32,
    scale: f32,
    range: f32,
    factor: f32,
    #[comptime] form: Form,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let row = cube_index();
    if row < rows {
        let start = row * width;
        let mut dots = f32::new(0.0);
        let mut squares = f32::new(0.0);
        let mut k = UNIT_POS;
        while k < width {
            let at = (start + k) as usize;
            dots += a[at] * b[at];
            squares += u[at] * u[at];
            k += UNITS;
        }
        let dot = cube_sum::<f32>(&mut shared, dots);
        let mut squared = cube_sum::<f32>(&mut shared, squares);
        if squared < f32::MIN_POSITIVE {
            squared = f32::new(f32::MIN_POSITIVE);
        }
        let mut p = exponent;
        if comptime!(form == Form::PowerInRange) {
            let ratio = squared.sqrt() * norms[row as usize] / scale;
            if near(ratio, range) != ratio {
                p = f32::new(1.0);
            }
        }
        if UNIT_POS == 0 {
            out[row as usize] = p * factor * dot / squared;
        }
    }
}

/// What is added up over the rows for the gradient of the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// `-(g - f u) / n`, f of [`along()`].
    Normalize,
    /// `g - f u`.
    Restore,
}

/// Sums over blocks of [`BLOCK`] rows, `[blocks, d]`.
#[cube(launch)]
pub(super) fn bias_sums(
    grad: &[f32],
    u: &[f32],
    factors: &[f32],
    norms: &[f32],
    out: &mut [f32],
    rows: u32,
    width: u32,
    #[comptime] side: Side,
) {
    let i = ABSOLUTE_POS as u32;
    let block = i / width;
    let column = i % width;
    let first = block * BLOCK;
    if first < rows {
        let mut sum = f32::new(0.0);
        let mut row = first;
        while row < rows && row < first + BLOCK {
            let at = (row * width + column) as usize;
            let value = grad[at] - factors[row as usize] * u[at];
            if comptime!(side == Side::Normalize) {
                sum -= value / norms[row as usize];
            } else {
                sum += value;
            }
            row += 1;
        }
        out[i as usize] = sum;
    }
}

/// Sums over the rows of `[rows, d]`, `[d]`.
#[cube(launch)]
pub(super) fn column_sums(x: &[f32], out: &mut [f32], rows: u32, width: u32) {
    let column = ABSOLUTE_POS as u32;
    if column < width {
        let mut sum = f32::new(0.0);
        let mut row = 0u32;
        while row < rows {
            sum += x[(row * width + column) as usize];
            row += 1;
        }
        out[column as usize] = sum;
    }
}

/// `2 grad (x_hat - x)`, one grad for all.
#[cube(launch)]
pub(super) fn error_gradient(
    x_hat: &[f32],
    x: &[f32],
    grad: &[f32],
    out: &mut [f32],
    elements: u32,
) {
    let i = ABSOLUTE_POS as u32;
    if i < elements {
        let at = i as usize;
        out[at] = 2.0 * grad[0] * (x_hat[at] - x[at]);
    }
}

/// See [`SaeOps::normalize`](crate::ops::backend::SaeOps::normalize).
pub(super) fn normalized(x: CubeTensor, bias: CubeTensor, norm: Norm) -> (CubeTensor, CubeTensor) {
    let x = into_contiguous(x);
    let [rows, width] = dims(&x);
    let (u, norms) = (empty_like(&x, [rows, width]), empty_like(&x, [rows, 1]));
    if rows * width > 0 {
        let has_bias = bias.shape().num_elements() > 0;
        normalize::launch(
            &x.client.clone(),
            one_cube_per_row(rows),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            bias_or(bias, &norms),
            u.clone().into_buffer_arg(),
            norms.clone().into_buffer_arg(),
            rows as u32,
            width as u32,
            norm.exponent,
            norm.scale,
            norm.range,
            TINY as f32,
            has_bias,
            Form::of(norm),
        );
    }
    (u, norms)
}

/// A bias as an argument of a kernel, or something in its place that is not empty.
fn bias_or(bias: CubeTensor, other: &CubeTensor) -> BufferArg {
    match bias.shape().num_elements() {
        0 => other.clone().into_buffer_arg(),
        _ => into_contiguous(bias).into_buffer_arg(),
    }
}

/// `factor n x + b`.
pub(super) fn restored(
    x: CubeTensor,
    bias: Option<CubeTensor>,
    norms: CubeTensor,
    factor: f32,
) -> CubeTensor {
    let (x, norms) = (into_contiguous(x), into_contiguous(norms));
    let [rows, width] = dims(&x);
    let out = empty_like(&x, [rows, width]);
    if rows * width > 0 {
        let bias = bias.filter(|bias| bias.shape().num_elements() > 0);
        let has_bias = bias.is_some();
        let (cubes, units) = elementwise(rows * width);
        restore::launch(
            &x.client.clone(),
            cubes,
            units,
            x.into_buffer_arg(),
            into_contiguous(bias.unwrap_or_else(|| norms.clone())).into_buffer_arg(),
            norms.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            index(rows * width),
            width as u32,
            factor,
            has_bias,
        );
    }
    out
}

/// The gradient of the bias, `[d]`: the sums over the rows of what `side` says, with the factors of [`along()`] of a and b.
pub(super) fn bias_gradient(
    (a, b): (CubeTensor, CubeTensor),
    (u, norms): (CubeTensor, CubeTensor),
    grad: CubeTensor,
    (norm, factor): (Norm, f32),
    side: Side,
) -> CubeTensor {
    let [a, b, u, norms, grad] = [a, b, u, norms, grad].map(into_contiguous);
    let [rows, width] = dims(&u);
    let client = u.client.clone();
    if rows * width == 0 {
        return super::zeros(&u, width, DType::F32);
    }
    let factors = empty(&u, rows, DType::F32);
    along::launch(
        &client,
        one_cube_per_row(rows),
        CubeDim::new_1d(UNITS),
        a.into_buffer_arg(),
        b.into_buffer_arg(),
        u.clone().into_buffer_arg(),
        norms.clone().into_buffer_arg(),
        factors.clone().into_buffer_arg(),
        rows as u32,
        width as u32,
        norm.exponent,
        norm.scale,
        norm.range,
        factor,
        Form::of(norm),
    );
    let blocks = rows.div_ceil(BLOCK as usize);
    let of_blocks = empty(&u, blocks * width, DType::F32);
    let (cubes, units) = elementwise(blocks * width);
    bias_sums::launch(
        &client,
        cubes,
        units,
        grad.into_buffer_arg(),
        u.into_buffer_arg(),
        factors.into_buffer_arg(),
        norms.into_buffer_arg(),
        of_blocks.clone().into_buffer_arg(),
        rows as u32,
        width as u32,
        side,
    );
    let out = empty(&of_blocks, width, DType::F32);
    let (cubes, units) = elementwise(width);
    column_sums::launch(
        &client,
        cubes,
        units,
        of_blocks.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        blocks as u32,
        width as u32,
    );
    out
}

/// `2 grad (x_hat - x)`.
pub(super) fn squared_error_gradient(
    x_hat: CubeTensor,
    x: CubeTensor,
    grad: CubeTensor,
) -> CubeTensor {
    let [x_hat, x, grad] = [x_hat, x, grad].map(into_contiguous);
    let [rows, width] = dims(&x);
    let out = empty_like(&x, [rows, width]);
    if rows * width > 0 {
        let (cubes, units) = elementwise(rows * width);
        error_gradient::launch(
            &x.client.clone(),
            cubes,
            units,
            x_hat.into_buffer_arg(),
            x.into_buffer_arg(),
            grad.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            index(rows * width),
        );
    }
    out
}
