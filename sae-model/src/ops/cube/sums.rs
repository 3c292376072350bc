//! Sums of whole tensors, in an order that the shape alone decides. Burn's own adds with float atomics on GPUs, in the order in which
//! work groups end.

use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::entries::{empty, zeros};
use super::units::{UNITS, cube_index, cube_sum};
use super::{grid, index};

/// Numbers that one cube adds up.
const CHUNK: u32 = 64 * UNITS;

/// What is added up of each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Summand {
    /// `x`.
    Itself,
    /// `x^2`.
    Square,
    /// `(x - y)^2`.
    SquaredDifference,
}

/// Sums of chunks of [`CHUNK`] numbers.
#[cube(launch)]
pub(super) fn partial_sums(
    x: &[f32],
    y: &[f32],
    out: &mut [f32],
    elements: u32,
    #[comptime] summand: Summand,
) {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let chunk = cube_index();
    let start = chunk * CHUNK;
    if start < elements {
        let mut sum = f32::new(0.0);
        let mut end = start + CHUNK;
        if elements - start < CHUNK {
            end = elements;
        }
        let mut i = start + UNIT_POS;
        while i < end {
            let mut value = x[i as usize];
            if comptime!(summand == Summand::SquaredDifference) {
                value -= y[i as usize];
            }
            if comptime!(summand != Summand::Itself) {
                value = value * value;
            }
            sum += value;
            i += UNITS;
        }
        let sum = cube_sum::<f32>(&mut shared, sum);
        if UNIT_POS == 0 {
            out[chunk as usize] = sum;
        }
    }
}

/// `sum` of all numbers, `[1]`; y is for [`Summand::SquaredDifference`] and as long as x.
pub(super) fn sum(x: CubeTensor, y: Option<CubeTensor>, summand: Summand) -> CubeTensor {
    let (mut x, y) = (into_contiguous(x), y.map(into_contiguous));
    let (mut y, mut summand) = (y.unwrap_or_else(|| x.clone()), summand);
    loop {
        let elements = x.shape().num_elements();
        if elements == 0 {
            return zeros(&x, 1, DType::F32);
        }
        let chunks = elements.div_ceil(CHUNK as usize);
        let out = empty(&x, chunks, DType::F32);
        partial_sums::launch(
            &x.client.clone(),
            grid(chunks),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            y.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            index(elements),
            summand,
        );
        if chunks == 1 {
            return out;
        }
        (x, y, summand) = (out.clone(), out, Summand::Itself);
    }
}
