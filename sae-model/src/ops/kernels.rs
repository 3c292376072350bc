//! What a backend has to bring: nothing. Every kernel has a default that runs on the host, on slices.
//!
//! A backend that is listed in `backend_extension` and implements [`Kernels`] with an empty body is correct for every
//! operation, forward and backward; a method that it overrides makes it fast. Flex hands over its memory,
//! others copy. `backend.rs` makes the operations of them, `autodiff/` the backward passes.

use std::borrow::Cow;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::SparseValue;
use super::adam::AdamStep;
use super::backend::AdamUpdate;
use super::codes::Pattern;
use super::cpu::rows::{self, Norm};
use super::cpu::simd::{self, Simd};
use super::cpu::{decode, gradient, sparsemax};
use super::selection::Selection;

/// The kernels of a backend, all with defaults.
pub(crate) trait Kernels: Backend {
    /// The values of a float32 tensor, row by row.
    fn read(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        let data = burn::tensor::read_sync(Self::float_into_data(tensor.clone()));
        let data = data.expect("reading a tensor of this device");
        let values: Vec<f32> = data.try_to_vec().expect("a float32 tensor");
        let bytes = size_of_val(values.as_slice());
        tracing::trace!(target: "sae_model::host", bytes, "read from the device");
        Cow::Owned(values)
    }

    /// A tensor on the device of `like`.
    fn write(values: Vec<f32>, shape: &[usize], like: &FloatTensor<Self>) -> FloatTensor<Self> {
        let data = TensorData::new(values, shape.to_vec());
        Self::float_from_data(data, &like.device())
    }

    /// One step of Adam, into new memory.
    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        let shape: Vec<usize> = param.shape().iter().copied().collect();
        let (mut m, mut v) = (
            Self::read(&moment_1).into_owned(),
            Self::read(&moment_2).into_owned(),
        );
        let new = adam(
            step,
            &Self::read(&param),
            &Self::read(&grad),
            &mut m,
            &mut v,
        );
        AdamUpdate {
            param: Self::write(new, &shape, &param),
            moment_1: Self::write(m, &shape, &param),
            moment_2: Self::write(v, &shape, &param),
        }
    }

    /// See [`SaeOps::sparse_attention`](super::backend::SaeOps::sparse_attention).
    fn sparse_attention(
        scores: &FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (rows, latents) = (size(scores, 0), size(scores, 1));
        let mut weights = vec![0.0; rows * latents];
        let mut thresholds = vec![0.0; rows * 2];
        sparsemax::forward(
            &Self::read(scores),
            latents,
            value,
            &mut weights,
            &mut thresholds,
        );
        (
            Self::write(weights, &[rows, latents], scores),
            Self::write(thresholds, &[rows, 2], scores),
        )
    }

    /// `(scores [B, M], threshold [B, 2], grad [B, M]) -> d loss / d scores [B, M]`.
    fn sparse_attention_backward(
        scores: &FloatTensor<Self>,
        threshold: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        value: SparseValue,
    ) -> FloatTensor<Self> {
        let (rows, latents) = (size(scores, 0), size(scores, 1));
        let mut out = vec![0.0; rows * latents];
        let (scores_read, threshold, grad) =
            (Self::read(scores), Self::read(threshold), Self::read(grad));
        sparsemax::backward(&scores_read, &threshold, &grad, latents, value, &mut out);
        Self::write(out, &[rows, latents], scores)
    }

    /// `d loss / d z` at the entries, from `grad [entries]` with respect to their values.
    fn score_gradient(
        grad: &FloatTensor<Self>,
        scores: &[f32],
        thresholds: &FloatTensor<Self>,
        pattern: &Pattern,
        selection: Selection,
    ) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("score_gradient").entered();
        let out = gradient::scores(
            &Self::read(grad),
            scores,
            &Self::read(thresholds),
            pattern,
            selection,
        );
        Self::write(out, &[pattern.len()], grad)
    }

    /// `d loss / d theta [M]` of JumpReLU, from `grad [entries]`.
    fn threshold_gradient(
        grad: &FloatTensor<Self>,
        scores: &[f32],
        thresholds: &FloatTensor<Self>,
        pattern: &Pattern,
        bandwidth: f32,
    ) -> FloatTensor<Self> {
        let out = gradient::thresholds(
            &Self::read(grad),
            scores,
            &Self::read(thresholds),
            pattern,
            bandwidth,
        );
        Self::write(out, &[pattern.latents()], grad)
    }

    /// Codes transposed times rows, `A^T X`: values `[entries]`, x `[B, d]` -> `[M, d]`.
    fn codes_transposed_times(
        values: &FloatTensor<Self>,
        x: &FloatTensor<Self>,
        pattern: &Pattern,
    ) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("codes_transposed_times").entered();
        let d = size(x, 1);
        let (values, rows) = (Self::read(values), Self::read(x));
        let out = decode::transposed_times(&[(&values, &rows)], pattern, d, Simd::detect());
        Self::write(out, &[pattern.latents(), d], x)
    }

    /// Column sums of codes: values `[entries]` -> `[M]`.
    fn codes_column_sums(values: &FloatTensor<Self>, pattern: &Pattern) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("codes_column_sums").entered();
        let out = decode::column_sums(&Self::read(values), pattern);
        Self::write(out, &[pattern.latents()], values)
    }

    /// `(dq, dC)` of `y = a C`, `a` the codes of sparsemax on `z = q C^T`; dq is empty if not wanted.
    fn attend_backward(
        queries: &FloatTensor<Self>,
        dictionary: &FloatTensor<Self>,
        values: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        pattern: &Pattern,
        (selection, want_queries): (Selection, bool),
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let _span = tracing::trace_span!("attend_backward").entered();
        let (d, simd) = (size(queries, 1), Simd::detect());
        let (q, c, g) = (
            Self::read(queries),
            Self::read(dictionary),
            Self::read(grad),
        );
        let da = decode::dots(&g, pattern, &c, d, simd);
        let dz = gradient::scores(&da, &[], &[], pattern, selection);
        let dq = if want_queries {
            decode::times(&dz, pattern, &c, d, simd)
        } else {
            Vec::new()
        };
        let dc =
            decode::transposed_times(&[(&Self::read(values), &g), (&dz, &q)], pattern, d, simd);
        let rows = if want_queries { pattern.rows() } else { 0 };
        (
            Self::write(dq, &[rows, d], queries),
            Self::write(dc, &[pattern.latents(), d], queries),
        )
    }

    /// `db [d]` of [`SaeOps::normalize`](super::backend::SaeOps::normalize), from the gradient with respect to u.
    fn normalize_backward(
        u: &FloatTensor<Self>,
        norms: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let d = size(u, 1);
        let out = rows::normalize_backward(
            &Self::read(u),
            &Self::read(norms),
            &Self::read(grad),
            d,
            norm,
        );
        Self::write(out, &[d], u)
    }

    /// `db [d]` of [`SaeOps::project`](super::backend::SaeOps::project).
    fn project_backward(
        (u, q, norms): (&FloatTensor<Self>, &FloatTensor<Self>, &FloatTensor<Self>),
        weight: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let d = size(u, 1);
        let saved = (Self::read(u), Self::read(q), Self::read(norms));
        let (along, scaled) =
            rows::project_backward((&saved.0, &saved.1, &saved.2), &Self::read(grad), d, norm);
        let weight = Self::read(weight);
        let through = weight
            .chunks_exact(d)
            .map(|row| row.iter().zip(&scaled).map(|(w, s)| w * s).sum());
        let bias = along
            .iter()
            .zip(through)
            .map(|(a, t): (&f32, f32)| a - t)
            .collect();
        Self::write(bias, &[d], u)
    }

    /// `(dy [B, d], db [d])` of [`SaeOps::restore`](super::backend::SaeOps::restore).
    fn restore_backward(
        y: &FloatTensor<Self>,
        u: &FloatTensor<Self>,
        norms: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        factor: f32,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (b, d) = (size(y, 0), size(y, 1));
        let (y_read, u, norms, grad) = (
            Self::read(y),
            Self::read(u),
            Self::read(norms),
            Self::read(grad),
        );
        let (dy, db) = rows::restore_backward((&y_read, &u, &norms), &grad, d, factor, norm);
        (Self::write(dy, &[b, d], y), Self::write(db, &[d], y))
    }

    /// `2 grad (x_hat - x)`.
    fn squared_error_backward(
        x_hat: &FloatTensor<Self>,
        x: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let out =
            rows::squared_error_backward(&Self::read(x_hat), &Self::read(x), Self::read(grad)[0]);
        Self::write(out, &[size(x, 0), size(x, 1)], x)
    }
}

/// Size of dimension `i`.
pub(super) fn size<T: TensorMetadata>(tensor: &T, i: usize) -> usize {
    tensor.shape()[i]
}

/// Floats of each tensor that one task updates: together they fit in the second-level cache.
const ADAM_CHUNK: usize = 1 << 14;

/// One step of Adam: updates the moments, returns the new parameters.
pub(crate) fn adam(
    step: AdamStep,
    param: &[f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) -> Vec<f32> {
    let _span = tracing::trace_span!("adam").entered();
    let simd = Simd::detect();
    let mut out = vec![0.0; param.len()];
    (
        out.par_chunks_mut(ADAM_CHUNK),
        param.par_chunks(ADAM_CHUNK),
        grad.par_chunks(ADAM_CHUNK),
        m.par_chunks_mut(ADAM_CHUNK),
        v.par_chunks_mut(ADAM_CHUNK),
    )
        .into_par_iter()
        .for_each(|(out, param, grad, m, v)| simd::adam(simd, step, param, grad, m, v, out));
    out
}
