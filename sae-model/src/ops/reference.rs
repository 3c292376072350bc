//! Sparsemax by sorting, made of Burn's primitives: easy to read, slow, and right on every backend. A backend without a kernel
//! of its own runs it (the default of `SaeOps::sparse_attention`), and the kernels are tested against it.
//!
//! Every step is an ordinary tensor operation, so autodiff derives the backward pass.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Scalar, TensorMetadata};
use burn::tensor::{Tensor, TensorData};

use super::SparseValue;
use super::backend::size;

/// Sparsemax of every row, `[B, M] -> [B, M]` (Martins & Astudillo 2016, algorithm 1).
pub fn sparsemax(z: Tensor<2>) -> Tensor<2> {
    let z = z.into_dispatch();
    Tensor::from_dispatch(above::<Dispatch>(z.clone(), tau::<Dispatch>(z)))
}

/// Sparse attention weights of every row, `[B, M] -> [B, M]`; see [`super::sparse_attention`].
pub fn sparse_attention(z: Tensor<2>, value: SparseValue) -> Tensor<2> {
    let p = sparsemax(z.clone());
    match value {
        SparseValue::Probability => p,
        SparseValue::Score => z * p.sign().detach(),
    }
}

/// Where the support of sparsemax begins in every row, `[B, M] -> [B, 1]`: with `z_(1) >= z_(2) >= ...` the sorted scores and
/// k the largest number for which `1 + k z_(k) > z_(1) + ... + z_(k)`, tau is `(z_(1) + ... + z_(k) - 1) / k`.
pub(super) fn tau<B: Backend>(z: FloatTensor<B>) -> FloatTensor<B> {
    let latents = size(&z, 1);
    let ranks: Vec<f32> = (1..=latents).map(|rank| rank as f32).collect();
    let ranks = B::float_from_data(TensorData::new(ranks, [1, latents]), &z.device());
    let ranks = B::float_cast(ranks, z.dtype().into());
    let one = Scalar::from(1.0f32);
    let sorted = B::float_sort(z, 1, true); // [B, M]
    let cumulative = B::float_cumsum(sorted.clone(), 1); // [B, M]
    let least = B::float_add_scalar(B::float_mul(sorted.clone(), ranks), one);
    let in_support = positive::<B>(B::float_sub(least, cumulative)); // [B, M]
    let sum = B::float_sum_dim(B::float_mul(sorted, in_support.clone()), 1); // [B, 1]
    let support = B::float_sum_dim(in_support, 1); // [B, 1]
    B::float_div(B::float_sub_scalar(sum, one), support)
}

/// `max(z - tau, 0)`, `[B, M]` and `[B, 1] -> [B, M]`.
pub(super) fn above<B: Backend>(z: FloatTensor<B>, tau: FloatTensor<B>) -> FloatTensor<B> {
    B::float_clamp_min(B::float_sub(z, tau), Scalar::from(0.0f32))
}

/// 1 where x is above 0, else 0; without gradient.
pub(super) fn positive<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_sign(B::float_clamp_min(B::float_detach(x), Scalar::from(0.0f32)))
}
