//! Operations on any backend whose tensors can be read as slices: the kernels' one way to Burn.
//!
//! The functions here do the work; the macros in `methods.rs` expand to the methods of `SaeOps` that call them.

mod methods;

use std::borrow::Cow;
use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use rayon::prelude::*;

use super::rows::Norm;
use super::simd::{self, AdamStep, Simd};
use super::{decode, encode, gradient, rows, sparsemax};
#[cfg(any(feature = "ndarray", feature = "wgpu"))]
use crate::ops::AdamUpdate;
use crate::ops::codes::Pattern;
use crate::ops::selection::Selection;
use crate::ops::{Attended, Encoding, SparseValue};

#[cfg(any(feature = "ndarray", feature = "wgpu"))]
pub(crate) use methods::adam_op;
pub(crate) use methods::{dense_ops, row_ops, sparse_ops};

/// A backend whose float32 tensors can be read on the host, and made from values there.
pub(crate) trait OnHost: Backend {
    /// The values, row by row.
    fn read(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;
    /// A tensor on the device of `like`.
    fn write(values: Vec<f32>, shape: &[usize], like: &FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Size of dimension `i`.
fn size<T: TensorMetadata>(tensor: &T, i: usize) -> usize {
    tensor.shape()[i]
}

pub(crate) fn sparse_attention<B: OnHost>(
    scores: &FloatTensor<B>,
    value: SparseValue,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (rows, latents) = (size(scores, 0), size(scores, 1));
    let mut weights = vec![0.0; rows * latents];
    let mut thresholds = vec![0.0; rows * 2];
    sparsemax::forward(
        &B::read(scores),
        latents,
        value,
        &mut weights,
        &mut thresholds,
    );
    (
        B::write(weights, &[rows, latents], scores),
        B::write(thresholds, &[rows, 2], scores),
    )
}

pub(crate) fn sparse_attention_backward<B: OnHost>(
    scores: &FloatTensor<B>,
    threshold: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    value: SparseValue,
) -> FloatTensor<B> {
    let (rows, latents) = (size(scores, 0), size(scores, 1));
    let mut out = vec![0.0; rows * latents];
    let (scores_read, threshold, grad) = (B::read(scores), B::read(threshold), B::read(grad));
    sparsemax::backward(&scores_read, &threshold, &grad, latents, value, &mut out);
    B::write(out, &[rows, latents], scores)
}

pub(crate) fn encode<B: OnHost>(
    queries: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    bias: &FloatTensor<B>,
    thresholds: &FloatTensor<B>,
    mask: &[f32],
    selection: Selection,
) -> Encoding<B> {
    let _span = tracing::trace_span!("encode").entered();
    let input = encode::Input {
        queries: &B::read(queries),
        dictionary: &B::read(dictionary),
        bias: &B::read(bias),
        thresholds: &B::read(thresholds),
        mask,
        width: size(queries, 1),
    };
    let encoded = encode::encode(&input, selection);
    let entries = encoded.values.len();
    Encoding {
        values: B::write(encoded.values, &[entries], queries),
        scores: Arc::new(encoded.scores),
        pattern: Arc::new(encoded.pattern),
    }
}

pub(crate) fn score_gradient<B: OnHost>(
    grad: &FloatTensor<B>,
    scores: &[f32],
    thresholds: &FloatTensor<B>,
    pattern: &Pattern,
    selection: Selection,
) -> FloatTensor<B> {
    let _span = tracing::trace_span!("score_gradient").entered();
    let out = gradient::scores(
        &B::read(grad),
        scores,
        &B::read(thresholds),
        pattern,
        selection,
    );
    B::write(out, &[pattern.len()], grad)
}

pub(crate) fn threshold_gradient<B: OnHost>(
    grad: &FloatTensor<B>,
    scores: &[f32],
    thresholds: &FloatTensor<B>,
    pattern: &Pattern,
    bandwidth: f32,
) -> FloatTensor<B> {
    let out = gradient::thresholds(
        &B::read(grad),
        scores,
        &B::read(thresholds),
        pattern,
        bandwidth,
    );
    B::write(out, &[pattern.latents()], grad)
}

pub(crate) fn codes_times<B: OnHost>(
    values: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    pattern: &Pattern,
) -> FloatTensor<B> {
    let _span = tracing::trace_span!("codes_times").entered();
    let d = size(dictionary, 1);
    let out = decode::times(
        &B::read(values),
        pattern,
        &B::read(dictionary),
        d,
        Simd::detect(),
    );
    B::write(out, &[pattern.rows(), d], values)
}

pub(crate) fn codes_dots<B: OnHost>(
    x: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    pattern: &Pattern,
) -> FloatTensor<B> {
    let _span = tracing::trace_span!("codes_dots").entered();
    let d = size(dictionary, 1);
    let out = decode::dots(
        &B::read(x),
        pattern,
        &B::read(dictionary),
        d,
        Simd::detect(),
    );
    B::write(out, &[pattern.len()], x)
}

pub(crate) fn codes_transposed_times<B: OnHost>(
    values: &FloatTensor<B>,
    x: &FloatTensor<B>,
    pattern: &Pattern,
) -> FloatTensor<B> {
    let _span = tracing::trace_span!("codes_transposed_times").entered();
    let d = size(x, 1);
    let (values, rows) = (B::read(values), B::read(x));
    let out = decode::transposed_times(&[(&values, &rows)], pattern, d, Simd::detect());
    B::write(out, &[pattern.latents(), d], x)
}

pub(crate) fn codes_column_sums<B: OnHost>(
    values: &FloatTensor<B>,
    pattern: &Pattern,
) -> FloatTensor<B> {
    let _span = tracing::trace_span!("codes_column_sums").entered();
    let out = decode::column_sums(&B::read(values), pattern);
    B::write(out, &[pattern.latents()], values)
}

pub(crate) fn attend<B: OnHost>(
    queries: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    mask: &[f32],
    value: SparseValue,
) -> Attended<B> {
    let none = B::write(Vec::new(), &[0], queries);
    let selection = Selection::Sparsemax(value);
    let codes = encode::<B>(queries, dictionary, &none, &none, mask, selection);
    let output = codes_times::<B>(&codes.values, dictionary, &codes.pattern);
    Attended {
        output,
        values: codes.values,
        pattern: codes.pattern,
    }
}

/// `(dq, dC)` of `y = a C`, `a` the codes of sparsemax on `z = q C^T`; dq is empty if not wanted.
pub(crate) fn attend_backward<B: OnHost>(
    queries: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    values: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    pattern: &Pattern,
    (selection, want_queries): (Selection, bool),
) -> (FloatTensor<B>, FloatTensor<B>) {
    let _span = tracing::trace_span!("attend_backward").entered();
    let (d, simd) = (size(queries, 1), Simd::detect());
    let (q, c, g) = (B::read(queries), B::read(dictionary), B::read(grad));
    let da = decode::dots(&g, pattern, &c, d, simd);
    let dz = gradient::scores(&da, &[], &[], pattern, selection);
    let dq = if want_queries {
        decode::times(&dz, pattern, &c, d, simd)
    } else {
        Vec::new()
    };
    let dc = decode::transposed_times(&[(&B::read(values), &g), (&dz, &q)], pattern, d, simd);
    let rows = if want_queries { pattern.rows() } else { 0 };
    (
        B::write(dq, &[rows, d], queries),
        B::write(dc, &[pattern.latents(), d], queries),
    )
}

pub(crate) fn normalize<B: OnHost>(
    x: &FloatTensor<B>,
    bias: &FloatTensor<B>,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (b, d) = (size(x, 0), size(x, 1));
    let (u, norms) = rows::normalize(&B::read(x), &B::read(bias), d, norm);
    (B::write(u, &[b, d], x), B::write(norms, &[b, 1], x))
}

pub(crate) fn normalize_backward<B: OnHost>(
    u: &FloatTensor<B>,
    norms: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    norm: Norm,
) -> FloatTensor<B> {
    let d = size(u, 1);
    let out = rows::normalize_backward(&B::read(u), &B::read(norms), &B::read(grad), d, norm);
    B::write(out, &[d], u)
}

pub(crate) fn project_backward<B: OnHost>(
    (u, q, norms): (&FloatTensor<B>, &FloatTensor<B>, &FloatTensor<B>),
    weight: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    norm: Norm,
) -> FloatTensor<B> {
    let d = size(u, 1);
    let saved = (B::read(u), B::read(q), B::read(norms));
    let (along, scaled) =
        rows::project_backward((&saved.0, &saved.1, &saved.2), &B::read(grad), d, norm);
    let weight = B::read(weight);
    let through = weight
        .chunks_exact(d)
        .map(|row| row.iter().zip(&scaled).map(|(w, s)| w * s).sum());
    let bias = along
        .iter()
        .zip(through)
        .map(|(a, t): (&f32, f32)| a - t)
        .collect();
    B::write(bias, &[d], u)
}

pub(crate) fn restore<B: OnHost>(
    y: &FloatTensor<B>,
    bias: &FloatTensor<B>,
    norms: &FloatTensor<B>,
    factor: f32,
) -> FloatTensor<B> {
    let (b, d) = (size(y, 0), size(y, 1));
    let out = rows::restore(&B::read(y), &B::read(bias), &B::read(norms), d, factor);
    B::write(out, &[b, d], y)
}

pub(crate) fn restore_backward<B: OnHost>(
    y: &FloatTensor<B>,
    u: &FloatTensor<B>,
    norms: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    factor: f32,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (b, d) = (size(y, 0), size(y, 1));
    let (y_read, u, norms, grad) = (B::read(y), B::read(u), B::read(norms), B::read(grad));
    let (dy, db) = rows::restore_backward((&y_read, &u, &norms), &grad, d, factor, norm);
    (B::write(dy, &[b, d], y), B::write(db, &[d], y))
}

pub(crate) fn squared_error<B: OnHost>(
    x_hat: &FloatTensor<B>,
    x: &FloatTensor<B>,
) -> FloatTensor<B> {
    let sum = rows::squared_error(&B::read(x_hat), &B::read(x));
    B::write(vec![sum as f32], &[1], x)
}

pub(crate) fn squared_norm<B: OnHost>(x: &FloatTensor<B>) -> FloatTensor<B> {
    B::write(vec![rows::squared_norm(&B::read(x)) as f32], &[1], x)
}

pub(crate) fn squared_error_backward<B: OnHost>(
    x_hat: &FloatTensor<B>,
    x: &FloatTensor<B>,
    grad: &FloatTensor<B>,
) -> FloatTensor<B> {
    let out = rows::squared_error_backward(&B::read(x_hat), &B::read(x), B::read(grad)[0]);
    B::write(out, &[size(x, 0), size(x, 1)], x)
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

#[cfg(any(feature = "ndarray", feature = "wgpu"))]
pub(crate) fn adam_op<B: OnHost>(
    param: &FloatTensor<B>,
    grad: &FloatTensor<B>,
    moment_1: &FloatTensor<B>,
    moment_2: &FloatTensor<B>,
    step: AdamStep,
) -> AdamUpdate<B> {
    let shape: Vec<usize> = param.shape().iter().copied().collect();
    let (mut m, mut v) = (
        B::read(moment_1).into_owned(),
        B::read(moment_2).into_owned(),
    );
    let new = adam(step, &B::read(param), &B::read(grad), &mut m, &mut v);
    AdamUpdate {
        param: B::write(new, &shape, param),
        moment_1: B::write(m, &shape, param),
        moment_2: B::write(v, &shape, param),
    }
}
