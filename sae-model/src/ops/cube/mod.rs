//! Codes and their products on Burn's GPU backends, by kernels in CubeCL that are the same for WGSL and CUDA.
//!
//! `encode.rs` makes codes, which stay on the device (`entries.rs`); `decode.rs` has the products row by row, `by_latent.rs` those
//! latent by latent. The CPU's kernels are the oracle of the tests (`ops/tests/codes.rs`).

// Kernels: CubeCL compiles them, an argument for each buffer.
#![allow(
    clippy::too_many_arguments,
    clippy::assign_op_pattern,
    clippy::collapsible_if,
    clippy::manual_div_ceil,
    clippy::manual_is_multiple_of,
    clippy::implicit_saturating_sub
)]

mod adam;
mod batch;
mod by_latent;
mod decode;
mod encode;
mod entries;
#[cfg(all(test, feature = "cuda"))]
mod nvrtc;
mod product;
mod raise;
mod rank;
mod rows;
mod settle;
mod sink;
mod sparsemax;
mod sums;
mod support;
mod units;

use std::sync::Arc;

use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

#[cfg(test)]
pub(super) use encode::{Screening, screen_by, start_with_room};
pub(super) use entries::DeviceEntries;

use super::adam::AdamStep;
use super::backend::{AdamUpdate, Encoding, Host, SaeOps, size};
use super::codes::Pattern;
use super::cpu::rows::Norm;
use super::gradients::GradientOps;
use super::{Selection, SparseValue};
use entries::{empty, zeros};
use rows::Side;
use sums::Summand;
use units::{NAN_BITS, UNITS};

/// Maximum number of cubes along one axis of a launch (WebGPU's limit).
const MAX_CUBES: u32 = 65_535;

/// A grid with at least `cubes` cubes.
fn grid(cubes: usize) -> CubeCount {
    let cubes = index(cubes).max(1);
    CubeCount::Static(cubes.min(MAX_CUBES), cubes.div_ceil(MAX_CUBES), 1)
}

/// A grid with at least one cube per row.
fn one_cube_per_row(rows: usize) -> CubeCount {
    grid(rows)
}

/// A grid with at least one unit per element.
fn elementwise(elements: usize) -> (CubeCount, CubeDim) {
    let units = 2 * UNITS;
    (
        grid(elements.div_ceil(units as usize)),
        CubeDim::new_1d(units),
    )
}

/// A size as the kernels' 32-bit indices have it.
fn index(size: usize) -> u32 {
    u32::try_from(size).unwrap_or_else(|_| {
        panic!("a tensor of {size} numbers is too large for a GPU's kernels: use a smaller batch or fewer latents")
    })
}

/// The shape `[B, M]`, checked against the kernels' indices.
fn dims(tensor: &CubeTensor) -> [usize; 2] {
    let [rows, columns] = tensor.shape().dims();
    index(rows * columns);
    [rows, columns]
}

fn empty_like(tensor: &CubeTensor, dims: [usize; 2]) -> CubeTensor {
    empty_device_contiguous_dtype(
        tensor.client.clone(),
        tensor.device.clone(),
        dims.into(),
        tensor.dtype,
    )
}

/// A vector that has numbers.
fn filled(vector: CubeTensor) -> Option<CubeTensor> {
    (size(&vector, 0) > 0).then(|| into_contiguous(vector))
}

impl Host for Cube {}

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
                CubeDim::new_1d(UNITS),
                scores.into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                threshold.clone().into_buffer_arg(),
                rows as u32,
                latents as u32,
                NAN_BITS,
                value == SparseValue::Score,
            );
        }
        (weights, threshold)
    }

    fn encode(
        queries: CubeTensor,
        dictionary: CubeTensor,
        bias: CubeTensor,
        thresholds: CubeTensor,
        mask: Arc<Vec<f32>>,
        selection: Selection,
    ) -> Encoding<Self> {
        let _span = tracing::trace_span!("encode").entered();
        let (queries, dictionary) = (into_contiguous(queries), into_contiguous(dictionary));
        let ([rows, width], [latents, _]) = (dims(&queries), dims(&dictionary));
        if rows * latents == 0 {
            let none = empty(&queries, 0, DType::F32);
            return Encoding {
                values: none.clone(),
                scores: none,
                pattern: Arc::new(Pattern::new(latents, vec![0; rows + 1], Vec::new())),
            };
        }
        let mask = (!mask.is_empty()).then(|| Self::write(mask.to_vec(), &[latents], &queries));
        let input = encode::Input {
            bias: filled(bias),
            thresholds: filled(thresholds),
            mask,
            shape: [rows, latents, width],
            queries,
            dictionary,
        };
        let encoded = encode::encode(&input, selection);
        let scores = encoded.scores;
        Encoding {
            scores: scores.unwrap_or_else(|| empty(&encoded.values, 0, DType::F32)),
            values: encoded.values,
            pattern: Arc::new(Pattern::of_device(
                (rows, latents),
                encoded.stride,
                encoded.entries,
            )),
        }
    }

    fn codes_times(
        values: CubeTensor,
        dictionary: CubeTensor,
        pattern: Arc<Pattern>,
    ) -> CubeTensor {
        let _span = tracing::trace_span!("codes_times").entered();
        times(&values, dictionary, &pattern)
    }

    fn codes_dots(x: CubeTensor, dictionary: CubeTensor, pattern: Arc<Pattern>) -> CubeTensor {
        let _span = tracing::trace_span!("codes_dots").entered();
        dots(x, dictionary, &pattern)
    }

    fn at_entries(vector: CubeTensor, pattern: Arc<Pattern>) -> CubeTensor {
        gathered(vector, &pattern, false)
    }

    fn rows_at_entries(per_row: CubeTensor, pattern: Arc<Pattern>) -> CubeTensor {
        gathered(per_row, &pattern, true)
    }

    fn codes_column_sums(values: CubeTensor, pattern: Arc<Pattern>) -> CubeTensor {
        let _span = tracing::trace_span!("codes_column_sums").entered();
        let values = into_contiguous(values);
        pattern.on_device(&values).column_sums(&values)
    }

    fn normalize(x: CubeTensor, bias: CubeTensor, norm: Norm) -> (CubeTensor, CubeTensor) {
        rows::normalized(x, bias, norm)
    }

    fn restore(
        y: CubeTensor,
        bias: CubeTensor,
        _u: CubeTensor,
        norms: CubeTensor,
        factor: f32,
        _norm: Norm,
    ) -> CubeTensor {
        rows::restored(y, Some(bias), norms, factor)
    }

    fn squared_error(x_hat: CubeTensor, x: CubeTensor) -> CubeTensor {
        sums::sum(x_hat, Some(x), Summand::SquaredDifference)
    }

    fn squared_norm(x: CubeTensor) -> CubeTensor {
        sums::sum(x, None, Summand::Square)
    }

    fn sum(x: CubeTensor) -> CubeTensor {
        sums::sum(x, None, Summand::Itself)
    }

    fn adam(
        param: CubeTensor,
        grad: CubeTensor,
        moment_1: CubeTensor,
        moment_2: CubeTensor,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        adam::update([param, grad, moment_1, moment_2], step)
    }
}

/// `A D`; see [`SaeOps::codes_times`].
fn times(values: &CubeTensor, dictionary: CubeTensor, pattern: &Pattern) -> CubeTensor {
    let (values, dictionary) = (into_contiguous(values.clone()), into_contiguous(dictionary));
    let [_, width] = dims(&dictionary);
    let entries = pattern.on_device(&values);
    let rows = entries.rows();
    let out = empty_like(&dictionary, [rows, width]);
    if rows * width > 0 {
        decode::times::launch(
            &values.client.clone(),
            one_cube_per_row(rows),
            CubeDim::new_1d(UNITS),
            values.into_buffer_arg(),
            dictionary.into_buffer_arg(),
            entries.starts.clone().into_buffer_arg(),
            entries.counts.clone().into_buffer_arg(),
            entries.indices.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            rows as u32,
            width as u32,
        );
    }
    out
}

/// `x_i . d_j` at every entry; see [`SaeOps::codes_dots`].
fn dots(x: CubeTensor, dictionary: CubeTensor, pattern: &Pattern) -> CubeTensor {
    let (x, dictionary) = (into_contiguous(x), into_contiguous(dictionary));
    let [_, width] = dims(&x);
    let entries = pattern.on_device(&x);
    let out = zeros(&x, entries.slots(), DType::F32);
    if !entries.is_empty() {
        decode::dots::launch(
            &x.client.clone(),
            one_cube_per_row(entries.rows()),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            dictionary.into_buffer_arg(),
            entries.starts.clone().into_buffer_arg(),
            entries.counts.clone().into_buffer_arg(),
            entries.indices.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            entries.rows() as u32,
            width as u32,
        );
    }
    out
}

/// `vector` at the latents of entries, or at their rows.
fn gathered(vector: CubeTensor, pattern: &Pattern, of_rows: bool) -> CubeTensor {
    let vector = into_contiguous(vector);
    let entries = pattern.on_device(&vector);
    let out = zeros(&vector, entries.slots(), DType::F32);
    if !entries.is_empty() {
        decode::gather::launch(
            &vector.client.clone(),
            one_cube_per_row(entries.rows()),
            CubeDim::new_1d(UNITS),
            vector.into_buffer_arg(),
            entries.starts.clone().into_buffer_arg(),
            entries.counts.clone().into_buffer_arg(),
            entries.indices.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            entries.rows() as u32,
            of_rows,
        );
    }
    out
}

/// `A^T X` of one or two pairs (A, X), `[M, d]`.
fn transposed_times(
    (values, x): (CubeTensor, CubeTensor),
    second: Option<(CubeTensor, CubeTensor)>,
    pattern: &Pattern,
) -> CubeTensor {
    let [_, width] = dims(&x);
    let entries = pattern.on_device(&x);
    let latents = pattern.latents();
    let out = empty_like(&x, [latents, width]);
    index(latents * width);
    let by_latent = entries.by_latent();
    let two = second.is_some();
    let (values_2, x_2) = second.unwrap_or_else(|| (values.clone(), x.clone()));
    let laid_out = |tensor| into_contiguous(tensor).into_buffer_arg();
    if latents * width > 0 {
        by_latent::transposed_times::launch(
            &out.client,
            one_cube_per_row(latents),
            CubeDim::new_1d(UNITS),
            laid_out(values),
            laid_out(x),
            laid_out(values_2),
            laid_out(x_2),
            by_latent.offsets.clone().into_buffer_arg(),
            by_latent.rows.clone().into_buffer_arg(),
            by_latent.slots.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            latents as u32,
            width as u32,
            two,
        );
    }
    out
}

/// JumpReLU's gradients at entries; see [`decode::jumps()`].
fn jumps(
    grad: &CubeTensor,
    scores: &CubeTensor,
    thresholds: &CubeTensor,
    pattern: &Pattern,
    bandwidth: Option<f32>,
) -> CubeTensor {
    let entries = pattern.on_device(grad);
    let out = zeros(grad, entries.slots(), DType::F32);
    if !entries.is_empty() {
        decode::jumps::launch(
            &grad.client,
            one_cube_per_row(entries.rows()),
            CubeDim::new_1d(UNITS),
            into_contiguous(grad.clone()).into_buffer_arg(),
            into_contiguous(scores.clone()).into_buffer_arg(),
            into_contiguous(thresholds.clone()).into_buffer_arg(),
            entries.starts.clone().into_buffer_arg(),
            entries.counts.clone().into_buffer_arg(),
            entries.indices.clone().into_buffer_arg(),
            out.clone().into_buffer_arg(),
            entries.rows() as u32,
            bandwidth.unwrap_or(1.0),
            bandwidth.is_some(),
        );
    }
    out
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
                CubeDim::new_1d(UNITS),
                scores.into_buffer_arg(),
                into_contiguous(threshold.clone()).into_buffer_arg(),
                grad.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                rows as u32,
                latents as u32,
                NAN_BITS,
                value == SparseValue::Score,
            );
        }
        out
    }

    fn score_gradient(
        grad: &CubeTensor,
        scores: &CubeTensor,
        thresholds: &CubeTensor,
        pattern: &Pattern,
        selection: Selection,
    ) -> CubeTensor {
        let _span = tracing::trace_span!("score_gradient").entered();
        match selection {
            Selection::Sparsemax(SparseValue::Probability) => {
                let grad = into_contiguous(grad.clone());
                let entries = pattern.on_device(&grad);
                let out = zeros(&grad, entries.slots(), DType::F32);
                if !entries.is_empty() {
                    decode::centred::launch(
                        &grad.client.clone(),
                        one_cube_per_row(entries.rows()),
                        CubeDim::new_1d(UNITS),
                        grad.into_buffer_arg(),
                        entries.starts.clone().into_buffer_arg(),
                        entries.counts.clone().into_buffer_arg(),
                        out.clone().into_buffer_arg(),
                        entries.rows() as u32,
                    );
                }
                out
            }
            Selection::JumpRelu { .. } => jumps(grad, scores, thresholds, pattern, None),
            _ => grad.clone(),
        }
    }

    fn threshold_gradient(
        grad: &CubeTensor,
        scores: &CubeTensor,
        thresholds: &CubeTensor,
        pattern: &Pattern,
        bandwidth: f32,
    ) -> CubeTensor {
        let parts = jumps(grad, scores, thresholds, pattern, Some(bandwidth));
        pattern.on_device(grad).column_sums(&parts)
    }

    fn codes_transposed_times(
        values: &CubeTensor,
        x: &CubeTensor,
        pattern: &Pattern,
    ) -> CubeTensor {
        let _span = tracing::trace_span!("codes_transposed_times").entered();
        transposed_times((values.clone(), x.clone()), None, pattern)
    }

    fn normalize_backward(
        u: &CubeTensor,
        norms: &CubeTensor,
        grad: &CubeTensor,
        norm: Norm,
    ) -> CubeTensor {
        let (pair, rows) = ((u.clone(), grad.clone()), (u.clone(), norms.clone()));
        rows::bias_gradient(pair, rows, grad.clone(), (norm, 1.0), Side::Normalize)
    }

    fn restore_backward(
        y: &CubeTensor,
        u: &CubeTensor,
        norms: &CubeTensor,
        grad: &CubeTensor,
        factor: f32,
        norm: Norm,
    ) -> (CubeTensor, CubeTensor) {
        let dy = rows::restored(grad.clone(), None, norms.clone(), factor);
        let (pair, rows) = ((y.clone(), grad.clone()), (u.clone(), norms.clone()));
        let db = rows::bias_gradient(pair, rows, grad.clone(), (norm, factor), Side::Restore);
        (dy, db)
    }

    fn squared_error_backward(x_hat: &CubeTensor, x: &CubeTensor, grad: &CubeTensor) -> CubeTensor {
        rows::squared_error_gradient(x_hat.clone(), x.clone(), grad.clone())
    }

    fn attend_backward(
        queries: &CubeTensor,
        dictionary: &CubeTensor,
        values: &CubeTensor,
        grad: &CubeTensor,
        pattern: &Pattern,
        (selection, want_queries): (Selection, bool),
    ) -> (CubeTensor, CubeTensor) {
        let _span = tracing::trace_span!("attend_backward").entered();
        let none = empty(queries, 0, DType::F32);
        let da = dots(grad.clone(), dictionary.clone(), pattern);
        let dz = Self::score_gradient(&da, &none, &none, pattern, selection);
        let dq = match want_queries {
            true => times(&dz, dictionary.clone(), pattern),
            false => empty_like(queries, [0, size(queries, 1)]),
        };
        let dc = transposed_times(
            (values.clone(), grad.clone()),
            Some((dz, queries.clone())),
            pattern,
        );
        (dq, dc)
    }
}
