//! Sparsemax by sorting, made of Burn's primitives: slow, easy to read, and the oracle of the tests.
//!
//! Every step is an ordinary tensor operation, so autodiff derives the backward pass.

use burn::tensor::{Bool, Tensor};

use super::SparseValue;

/// Sparsemax of every row, `[B, M] -> [B, M]` (Martins & Astudillo 2016, algorithm 1).
pub fn sparsemax(z: Tensor<2>) -> Tensor<2> {
    let [_, latents] = z.dims();
    let sorted = z.clone().sort_descending(1); // [B, M]
    let cumulative = sorted.clone().cumsum(1); // [B, M]
    let rank = Tensor::<1, burn::tensor::Int>::arange(1..latents as i64 + 1, &z.device())
        .float()
        .cast(z.dtype())
        .unsqueeze::<2>(); // [1, M]
    let in_support = mask((sorted.clone() * rank + 1.0).greater(cumulative), &z); // [B, M]
    let support = in_support.clone().sum_dim(1); // [B, 1]
    let tau = ((sorted * in_support).sum_dim(1) - 1.0) / support; // [B, 1]
    (z - tau).clamp_min(0.0)
}

/// Sparse attention weights of every row, `[B, M] -> [B, M]`; see [`super::sparse_attention`].
pub fn sparse_attention(z: Tensor<2>, value: SparseValue) -> Tensor<2> {
    let p = sparsemax(z.clone());
    match value {
        SparseValue::Probability => p,
        SparseValue::Score => z.clone() * mask(p.greater_elem(0.0), &z),
    }
}

/// 1 where true and 0 where false, with the float type of `like` and without gradient.
fn mask(condition: Tensor<2, Bool>, like: &Tensor<2>) -> Tensor<2> {
    condition.float().cast(like.dtype()).detach()
}
