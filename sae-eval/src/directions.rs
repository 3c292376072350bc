//! Decoder directions: the rows of `W_dec W_V`, which latents add to a row of activations. Everything that compares latents by
//! direction compares these at length one.

use burn::tensor::Tensor;
use sae_model::Sae;

/// The decoder directions of all latents at length one, `[M, d]`.
pub(crate) fn directions(sae: &Sae) -> Tensor<2> {
    let w_dec = sae.w_dec();
    unit(match sae.w_v() {
        Some(w_v) => w_dec.matmul(w_v),
        None => w_dec,
    })
}

/// Rows at length one; rows of zeros stay as they are.
pub(crate) fn unit(rows: Tensor<2>) -> Tensor<2> {
    let norms = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12); // [B, 1]
    rows / norms
}
