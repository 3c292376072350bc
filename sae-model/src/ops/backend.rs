//! What Burn dispatches: the operations as a backend has them. The functions in `mod.rs` are what the model calls.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, ExtensionType, backend_extension};

use super::SparseValue;
use super::adam::AdamStep;
use super::codes::Pattern;
use super::cpu::rows::{self, Norm};
use super::cpu::simd::Simd;
use super::cpu::{decode, encode};
use super::kernels::{Kernels, size};
use super::selection::Selection;

/// What [`SaeOps::encode`] returns.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct Encoding<B: Backend> {
    /// Activations `[entries]`.
    pub(crate) values: FloatTensor<B>,
    /// Scores of the entries, where the backward pass needs them (JumpReLU), else empty.
    pub(crate) scores: Arc<Vec<f32>>,
    pub(crate) pattern: Arc<Pattern>,
}

/// What [`SaeOps::attend`] returns.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct Attended<B: Backend> {
    /// `y [B, d]`.
    pub(crate) output: FloatTensor<B>,
    /// Activations `[entries]`, without gradient.
    pub(crate) values: FloatTensor<B>,
    pub(crate) pattern: Arc<Pattern>,
}

/// What [`SaeOps::adam`] returns.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct AdamUpdate<B: Backend> {
    pub(crate) param: FloatTensor<B>,
    pub(crate) moment_1: FloatTensor<B>,
    pub(crate) moment_2: FloatTensor<B>,
}

/// The operations that Burn's backends are extended with; all tensors are float32. `kernels.rs` implements them for every
/// backend that is listed, `autodiff/` adds the gradients.
#[backend_extension(Flex, NdArray: cfg(feature = "ndarray"), Cube: cfg(feature = "wgpu"), Autodiff)]
pub(crate) trait SaeOps: Backend {
    /// `scores [B, M] -> (weights [B, M], threshold [B, 2])`.
    ///
    /// The threshold holds, for each row, its maximum `m` and `tau - m`: kept apart, because their sum would
    /// lose the small part when scores are large. It carries no gradient.
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Codes of `z = q E^T + bias` where the mask is not 0: queries `[B, d]`, dictionary `[M, d]`; bias, JumpReLU's
    /// thresholds and mask are `[M]`, or empty where there are none.
    fn encode(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        thresholds: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        selection: Selection,
    ) -> Encoding<Self>;

    /// Codes A times a dictionary, `A D`: values `[entries]`, dictionary `[M, d]` -> `[B, d]`.
    fn codes_times(
        values: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self>;

    /// `x_i . d_j` at every entry (i, j): x `[B, d]`, dictionary `[M, d]` -> `[entries]`.
    fn codes_dots(
        x: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self>;

    /// Codes a of sparsemax on `z = q C^T` where the mask is not 0, and `y = a C`: queries `[B, d]`, dictionary `[M, d]`.
    fn attend(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        value: SparseValue,
    ) -> Attended<Self>;

    /// `(u [B, d], n [B, 1])`: `u = (x - b) / n`; bias `[d]` or empty. u carries a gradient for the bias
    /// alone, n none (see `restore`).
    fn normalize(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `q = u W [B, d]` with u and n of `normalize`; carries gradients for W `[d, d]` and, past u, for the bias.
    fn project(
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;

    /// `x_hat = b + factor * n * y [B, d]`; carries gradients for y, and for the bias with what reaches it
    /// through n.
    fn restore(
        y: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        u: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        factor: f32,
        norm: Norm,
    ) -> FloatTensor<Self>;

    /// `sum (x_hat - x)^2 [1]`; carries a gradient for x_hat alone.
    fn squared_error(x_hat: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `sum x^2 [1]` of a tensor of any shape; carries no gradient.
    fn squared_norm(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// One step of Adam on tensors of one shape, in one pass over memory.
    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamStep,
    ) -> AdamUpdate<Self>;
}

/// For every backend, from its kernels.
impl<B: Kernels> SaeOps for B {
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        <Self as Kernels>::sparse_attention(&scores, value)
    }

    fn encode(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        thresholds: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        selection: Selection,
    ) -> Encoding<Self> {
        let _span = tracing::trace_span!("encode").entered();
        let input = encode::Input {
            queries: &Self::read(&queries),
            dictionary: &Self::read(&dictionary),
            bias: &Self::read(&bias),
            thresholds: &Self::read(&thresholds),
            mask: &mask,
            width: size(&queries, 1),
        };
        let encoded = encode::encode(&input, selection);
        let entries = encoded.values.len();
        Encoding {
            values: Self::write(encoded.values, &[entries], &queries),
            scores: Arc::new(encoded.scores),
            pattern: Arc::new(encoded.pattern),
        }
    }

    fn codes_times(
        values: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("codes_times").entered();
        let d = size(&dictionary, 1);
        let out = decode::times(
            &Self::read(&values),
            &pattern,
            &Self::read(&dictionary),
            d,
            Simd::detect(),
        );
        Self::write(out, &[pattern.rows(), d], &values)
    }

    fn codes_dots(
        x: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("codes_dots").entered();
        let d = size(&dictionary, 1);
        let out = decode::dots(
            &Self::read(&x),
            &pattern,
            &Self::read(&dictionary),
            d,
            Simd::detect(),
        );
        Self::write(out, &[pattern.len()], &x)
    }

    fn attend(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        value: SparseValue,
    ) -> Attended<Self> {
        let none = Self::write(Vec::new(), &[0], &queries);
        let selection = Selection::Sparsemax(value);
        let codes = Self::encode(
            queries,
            dictionary.clone(),
            none.clone(),
            none,
            mask,
            selection,
        );
        let output = Self::codes_times(codes.values.clone(), dictionary, codes.pattern.clone());
        Attended {
            output,
            values: codes.values,
            pattern: codes.pattern,
        }
    }

    fn normalize(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (b, d) = (size(&x, 0), size(&x, 1));
        let (u, norms) = rows::normalize(&Self::read(&x), &Self::read(&bias), d, norm);
        (Self::write(u, &[b, d], &x), Self::write(norms, &[b, 1], &x))
    }

    fn project(
        u: FloatTensor<Self>,
        _bias: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        _norms: FloatTensor<Self>,
        _norm: Norm,
    ) -> FloatTensor<Self> {
        Self::float_matmul(u, weight)
    }

    fn restore(
        y: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        _u: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        factor: f32,
        _norm: Norm,
    ) -> FloatTensor<Self> {
        let (b, d) = (size(&y, 0), size(&y, 1));
        let out = rows::restore(
            &Self::read(&y),
            &Self::read(&bias),
            &Self::read(&norms),
            d,
            factor,
        );
        Self::write(out, &[b, d], &y)
    }

    fn squared_error(x_hat: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let sum = rows::squared_error(&Self::read(&x_hat), &Self::read(&x));
        Self::write(vec![sum as f32], &[1], &x)
    }

    fn squared_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::write(vec![rows::squared_norm(&Self::read(&x)) as f32], &[1], &x)
    }

    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        <Self as Kernels>::adam(param, grad, moment_1, moment_2, step)
    }
}
