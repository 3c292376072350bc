//! Sparse attention weights as one custom Burn operation.
//!
//! Sparsemax projects a row of scores onto the probability simplex (Martins & Astudillo 2016):
//!
//! ```text
//! sparsemax(z) = argmin_{p in simplex} ||p - z||^2 = max(z - tau, 0),   tau: sum_j max(z_j - tau, 0) = 1
//! ```
//!
//! From primitives this takes a sort and a cumulative sum of every row, each stored for the backward
//! pass. Here it is one kernel a device: an exact tau without sorting (`cpu`, `cube`), a closed-form
//! backward pass (`autodiff`), and the sort-based version (`reference`, tests only) as the oracle.
//!
//! A row that holds NaN or infinity gets NaN weights (and NaN gradients) and leaves its neighbours alone.

mod autodiff;
pub(crate) mod cpu;
#[cfg(feature = "wgpu")]
mod cube;
#[cfg(test)]
mod reference;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// What the latents in the support of sparsemax contribute to the reconstruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SparseValue {
    /// The attention weight itself: `a = sparsemax(z)` (the paper).
    Probability,
    /// The score, with the support as a gate: `a = z * 1[sparsemax(z) > 0]` (the authors' code).
    /// The support is a constant of the backward pass.
    Score,
}

/// The operations that Burn's backends are extended with.
///
/// `threshold` is a float tensor `[B, 2]` that holds, for each row, its maximum `m` and `tau - m`: kept
/// apart, because their sum would lose the small part when scores are large.
#[backend_extension(Flex, NdArray: cfg(feature = "ndarray"), Cube: cfg(feature = "wgpu"), Autodiff)]
pub(crate) trait SaeOps: Backend {
    /// `scores [B, M] -> (weights [B, M], threshold [B, 2])`; float32, the threshold carries no gradient.
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `(scores [B, M], threshold [B, 2], grad [B, M]) -> d loss / d scores [B, M]`.
    fn sparse_attention_backward(
        scores: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        value: SparseValue,
    ) -> FloatTensor<Self>;
}

/// Sparse attention weights of every row, `[B, M] -> [B, M]`.
///
/// With `S = { j : sparsemax(z)_j > 0 }`:
///
/// - [`SparseValue::Probability`]: `a = max(z - tau, 0)`, backward `dz = 1_S * (da - mean_S(da))`;
/// - [`SparseValue::Score`]: `a = z * 1_S`, backward `dz = 1_S * da`.
///
/// Computed in float32; other float types are converted and converted back.
///
/// Source: Martins & Astudillo 2016 (arXiv 1602.02068), equations 2 to 4 and 14; the score value is that
/// of the code released with arXiv 2604.14925.
pub fn sparse_attention(scores: Tensor<2>, value: SparseValue) -> Tensor<2> {
    let dtype = scores.dtype();
    let scores = if dtype == DType::F32 {
        scores
    } else {
        scores.cast(DType::F32)
    };
    let (weights, _threshold) = Dispatch::sparse_attention(scores.into_dispatch(), value);
    let weights = Tensor::from_dispatch(weights);
    if dtype == DType::F32 {
        weights
    } else {
        weights.cast(dtype)
    }
}

/// Sparsemax of every row, `[B, M] -> [B, M]`: [`sparse_attention`] with [`SparseValue::Probability`].
pub fn sparsemax(scores: Tensor<2>) -> Tensor<2> {
    sparse_attention(scores, SparseValue::Probability)
}

#[cfg(test)]
mod tests;
