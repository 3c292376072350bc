//! Launches the CubeCL kernels of Burn's GPU backends.

mod sparsemax;

use burn::backend::{Cube, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use super::SparseValue;
use super::backend::{Host, SaeOps};
use super::gradients::GradientOps;

/// Maximum number of cubes along one axis of a launch (WebGPU's limit).
const MAX_CUBES: u32 = 65_535;

/// A grid with at least one cube per row.
fn one_cube_per_row(rows: usize) -> CubeCount {
    let rows = u32::try_from(rows)
        .expect("a batch has fewer than 2^32 rows")
        .max(1);
    CubeCount::Static(rows.min(MAX_CUBES), rows.div_ceil(MAX_CUBES), 1)
}

/// The shape `[B, M]`, checked against the kernels' 32-bit indices.
fn dims(tensor: &CubeTensor) -> [usize; 2] {
    let [rows, latents] = tensor.shape().dims();
    assert!(
        u32::try_from(rows * latents).is_ok(),
        "a batch of {rows} rows by {latents} latents has more than 2^32 scores; use a smaller batch"
    );
    [rows, latents]
}

fn empty_like(tensor: &CubeTensor, dims: [usize; 2]) -> CubeTensor {
    empty_device_contiguous_dtype(
        tensor.client.clone(),
        tensor.device.clone(),
        dims.into(),
        tensor.dtype,
    )
}

/// Codes are made on the host: correct for every architecture, but a GPU waits for it. Sparse attention stays on the GPU, as
/// `[B, M]`.
impl Host for Cube {
    const DENSE: bool = true;
}

impl SaeOps for Cube {
    fn sparse_attention(scores: CubeTensor, value: SparseValue) -> (CubeTensor, CubeTensor) {
        let scores = into_contiguous(scores);
        let [rows, latents] = dims(&scores);
        let weights = empty_like(&scores, [rows, latents]);
        let threshold = empty_like(&scores, [rows, 2]);
        if rows * latents > 0 {
            sparsemax::forward::launch(
                &scores.client.clone(),
                one_cube_per_row(rows),
                CubeDim::new_1d(sparsemax::UNITS),
                scores.into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                threshold.clone().into_buffer_arg(),
                rows as u32,
                latents as u32,
                sparsemax::NAN_BITS,
                value == SparseValue::Score,
            );
        }
        (weights, threshold)
    }
}

impl GradientOps for Cube {
    fn sparse_attention_backward(
        scores: &CubeTensor,
        threshold: &CubeTensor,
        grad: &CubeTensor,
        value: SparseValue,
    ) -> CubeTensor {
        let (scores, grad) = (
            into_contiguous(scores.clone()),
            into_contiguous(grad.clone()),
        );
        let [rows, latents] = dims(&scores);
        let out = empty_like(&scores, [rows, latents]);
        if rows * latents > 0 {
            sparsemax::backward::launch(
                &scores.client.clone(),
                one_cube_per_row(rows),
                CubeDim::new_1d(sparsemax::UNITS),
                scores.into_buffer_arg(),
                into_contiguous(threshold.clone()).into_buffer_arg(),
                grad.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                rows as u32,
                latents as u32,
                sparsemax::NAN_BITS,
                value == SparseValue::Score,
            );
        }
        out
    }
}
