//! The dense sparsemax, the steps on rows and Adam, from Burn's primitives: for backends that have no kernels of their own for
//! them.
//!
//! The formulas are those of `reference.rs`, `cpu/rows.rs` and `adam.rs`.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Scalar, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

use super::SparseValue;
use super::adam::AdamStep;
use super::backend::{AdamUpdate, size};
use super::cpu::rows::{Norm, TINY};
use super::reference;

fn times<B: Backend>(x: FloatTensor<B>, factor: f32) -> FloatTensor<B> {
    B::float_mul_scalar(x, Scalar::from(factor))
}

/// `x^2`, element by element.
pub(super) fn square<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_mul(x.clone(), x)
}

/// `[d] -> [1, d]`.
pub(super) fn row<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let width = size(&x, 0);
    B::float_reshape(x, Shape::new([1, width]))
}

/// Sums over the rows, `[B, d] -> [d]`.
fn sum_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let width = size(&x, 1);
    B::float_reshape(B::float_sum_dim(x, 0), Shape::new([width]))
}

/// Dot product of the rows of two, `[B, d]` and `[B, d] -> [B, 1]`.
fn dot<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sum_dim(B::float_mul(a, b), 1)
}

/// `r` brought into the range of a [`Norm`].
fn near<B: Backend>(ratios: FloatTensor<B>, range: f32) -> FloatTensor<B> {
    B::float_clamp(ratios, Scalar::from(1.0 / range), Scalar::from(range))
}

/// n of rows `x0 [B, d]`, `[B, 1]`.
fn norms<B: Backend>(x0: FloatTensor<B>, norm: Norm) -> FloatTensor<B> {
    let lengths = B::float_clamp_min(dot::<B>(x0.clone(), x0), Scalar::from(TINY as f32));
    let ratios = times::<B>(B::float_sqrt(lengths), 1.0 / norm.scale);
    let n = if norm.range.is_finite() {
        let power = Scalar::from(norm.exponent - 1.0);
        let power = B::float_powf_scalar(near::<B>(ratios.clone(), norm.range), power);
        B::float_mul(power, ratios)
    } else {
        B::float_powf_scalar(ratios, Scalar::from(norm.exponent))
    };
    times::<B>(n, norm.scale)
}

/// See [`SaeOps::normalize`](super::backend::SaeOps::normalize).
pub(super) fn normalize<B: Backend>(
    x: FloatTensor<B>,
    bias: FloatTensor<B>,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let x0 = match size(&bias, 0) {
        0 => x,
        _ => B::float_sub(x, row::<B>(bias)),
    };
    let n = norms::<B>(x0.clone(), norm);
    (B::float_div(x0, n.clone()), n)
}

/// See [`SaeOps::restore`](super::backend::SaeOps::restore).
pub(super) fn restore<B: Backend>(
    y: FloatTensor<B>,
    bias: FloatTensor<B>,
    norms: FloatTensor<B>,
    factor: f32,
) -> FloatTensor<B> {
    let x_hat = B::float_mul(y, times::<B>(norms, factor));
    match size(&bias, 0) {
        0 => x_hat,
        _ => B::float_add(x_hat, row::<B>(bias)),
    }
}

/// `p (a . b) u / ||u||^2 [B, d]`, p being the exponent that n of each row follows: what a gradient that reaches x0 through n
/// has along the row.
fn along<B: Backend>(
    dots: FloatTensor<B>,
    u: FloatTensor<B>,
    norms: FloatTensor<B>,
    norm: Norm,
) -> FloatTensor<B> {
    let least = Scalar::from(f32::MIN_POSITIVE);
    let squared = B::float_clamp_min(dot::<B>(u.clone(), u.clone()), least);
    let exponents = if norm.range.is_finite() {
        let lengths = B::float_mul(B::float_sqrt(squared.clone()), norms);
        let ratios = times::<B>(lengths, 1.0 / norm.scale);
        let beyond = B::float_sub(ratios.clone(), near::<B>(ratios, norm.range));
        let beyond = B::float_abs(B::float_sign(beyond)); // 1 beyond the range, where p is 1
        B::float_add_scalar(
            times::<B>(beyond, 1.0 - norm.exponent),
            Scalar::from(norm.exponent),
        )
    } else {
        let (shape, device) = (Shape::new([size(&u, 0), 1]), u.device());
        B::float_full(shape, Scalar::from(norm.exponent), &device, FloatDType::F32)
    };
    let factors = B::float_div(B::float_mul(exponents, dots), squared); // [B, 1]
    B::float_mul(u, factors)
}

/// `db [d]` of [`normalize`]: `dx0 = (du - p u (u . du) / ||u||^2) / n`, `db = -sum of dx0`.
pub(super) fn normalize_backward<B: Backend>(
    u: FloatTensor<B>,
    norms: FloatTensor<B>,
    grad: FloatTensor<B>,
    norm: Norm,
) -> FloatTensor<B> {
    let dots = dot::<B>(u.clone(), grad.clone());
    let along = along::<B>(dots, u, norms.clone(), norm);
    times::<B>(
        sum_rows::<B>(B::float_div(B::float_sub(grad, along), norms)),
        -1.0,
    )
}

/// `(dy, db)` of [`restore`]: `dy = factor n grad`, and the bias's, which also reaches it through n.
pub(super) fn restore_backward<B: Backend>(
    (y, u, norms): (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    grad: FloatTensor<B>,
    factor: f32,
    norm: Norm,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dots = times::<B>(dot::<B>(y, grad.clone()), factor);
    let along = along::<B>(dots, u, norms.clone(), norm);
    let db = sum_rows::<B>(B::float_sub(grad.clone(), along));
    (B::float_mul(grad, times::<B>(norms, factor)), db)
}

/// `2 grad (x_hat - x)`, `grad [1]`.
pub(super) fn squared_error_backward<B: Backend>(
    x_hat: FloatTensor<B>,
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let error = B::float_sub(x_hat, x);
    B::float_mul(error, times::<B>(row::<B>(grad), 2.0))
}

/// See [`SaeOps::sparse_attention`](super::backend::SaeOps::sparse_attention). A row that holds NaN or infinity becomes NaN.
pub(super) fn sparse_attention<B: Backend>(
    scores: FloatTensor<B>,
    value: SparseValue,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let zero_or_nan = B::float_sub(scores.clone(), scores.clone());
    let zero_or_nan = B::float_sum_dim(zero_or_nan, 1); // [B, 1]
    let most = B::float_max_dim(scores.clone(), 1); // [B, 1]
    let z = B::float_sub(scores.clone(), most.clone());
    let tau = reference::tau::<B>(z.clone());
    let p = reference::above::<B>(z, tau.clone());
    let weights = match value {
        SparseValue::Probability => p,
        SparseValue::Score => B::float_mul(scores, reference::positive::<B>(p)),
    };
    let threshold = B::float_cat(vec![most, tau], 1); // [B, 2]
    (
        B::float_add(weights, zero_or_nan.clone()),
        B::float_add(threshold, zero_or_nan),
    )
}

/// Rows at length one, `[M, d]`.
fn unit_rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let squared = dot::<B>(x.clone(), x.clone());
    let lengths = B::float_sqrt(B::float_clamp_min(squared, Scalar::from(TINY as f32)));
    B::float_div(x, lengths)
}

/// One step of Adam.
pub(super) fn adam<B: Backend>(
    param: FloatTensor<B>,
    mut grad: FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    step: AdamStep,
) -> AdamUpdate<B> {
    let mixed =
        |old, new, beta: f32| B::float_add(times::<B>(old, beta), times::<B>(new, 1.0 - beta));
    if step.unit_rows {
        let along = dot::<B>(grad.clone(), param.clone()); // [M, 1]
        grad = B::float_sub(grad, B::float_mul(param.clone(), along));
    }
    let moment_1 = mixed(moment_1, grad.clone(), step.beta_1);
    let moment_2 = mixed(moment_2, square::<B>(grad), step.beta_2);
    let root = B::float_sqrt(times::<B>(moment_2.clone(), step.correction_2));
    let root = B::float_add_scalar(root, Scalar::from(step.epsilon));
    let change = times::<B>(B::float_div(moment_1.clone(), root), step.lr);
    let param = B::float_sub(param, change);
    AdamUpdate {
        param: match step.unit_rows {
            true => unit_rows::<B>(param),
            false => param,
        },
        moment_1,
        moment_2,
    }
}
