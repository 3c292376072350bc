//! The gradients of the operations, in closed form. The public operations are those of `backend.rs`; only `autodiff/` calls
//! these.

use burn::backend::tensor::FloatTensor;

use super::SparseValue;
use super::backend::{SaeOps, size};
use super::codes::Pattern;
use super::cpu::rows::Norm;
use super::cpu::simd::Simd;
use super::cpu::{decode, gradient, sparsemax};
use super::primitives;
use super::selection::Selection;

/// The gradients of a backend, all with defaults.
pub(crate) trait GradientOps: SaeOps {
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

    /// `d loss / d z` at the entries, from `grad [slots]` with respect to their values.
    fn score_gradient(
        grad: &FloatTensor<Self>,
        scores: &FloatTensor<Self>,
        thresholds: &FloatTensor<Self>,
        pattern: &Pattern,
        selection: Selection,
    ) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("score_gradient").entered();
        let out = gradient::scores(
            &Self::read(grad),
            &Self::read(scores),
            &Self::read(thresholds),
            pattern,
            selection,
        );
        Self::write(out, &[pattern.len()], grad)
    }

    /// `d loss / d theta [M]` of JumpReLU, from `grad [slots]`.
    fn threshold_gradient(
        grad: &FloatTensor<Self>,
        scores: &FloatTensor<Self>,
        thresholds: &FloatTensor<Self>,
        pattern: &Pattern,
        bandwidth: f32,
    ) -> FloatTensor<Self> {
        let out = gradient::thresholds(
            &Self::read(grad),
            &Self::read(scores),
            &Self::read(thresholds),
            pattern,
            bandwidth,
        );
        Self::write(out, &[pattern.latents()], grad)
    }

    /// Codes transposed times rows, `A^T X`: values `[slots]`, x `[B, d]` -> `[M, d]`.
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

    /// `db [d]` of [`SaeOps::normalize`], from the gradient with respect to u.
    fn normalize_backward(
        u: &FloatTensor<Self>,
        norms: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let (u, norms, grad) = (u.clone(), norms.clone(), grad.clone());
        primitives::normalize_backward::<Self>(u, norms, grad, norm)
    }

    /// `db [d]` of [`SaeOps::project`].
    fn project_backward(
        (u, _q, norms): (&FloatTensor<Self>, &FloatTensor<Self>, &FloatTensor<Self>),
        weight: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let du = Self::float_matmul(grad.clone(), Self::float_transpose(weight.clone()));
        Self::normalize_backward(u, norms, &du, norm)
    }

    /// `(dy [B, d], db [d])` of [`SaeOps::restore`].
    fn restore_backward(
        y: &FloatTensor<Self>,
        u: &FloatTensor<Self>,
        norms: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
        factor: f32,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let saved = (y.clone(), u.clone(), norms.clone());
        primitives::restore_backward::<Self>(saved, grad.clone(), factor, norm)
    }

    /// `2 grad (x_hat - x)`.
    fn squared_error_backward(
        x_hat: &FloatTensor<Self>,
        x: &FloatTensor<Self>,
        grad: &FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        primitives::squared_error_backward::<Self>(x_hat.clone(), x.clone(), grad.clone())
    }
}
