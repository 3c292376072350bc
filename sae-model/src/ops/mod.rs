//! The operations that Burn's backends are extended with.
//!
//! *Sparse codes* (`codes`): [`encode`] scores a batch against a dictionary and keeps what a [`Selection`]
//! wants, without ever storing `[B, M]`; [`decode`] multiplies codes by a dictionary. Their backward passes
//! are products of the same kind (`cpu/decode.rs`). They run on the CPU, for every backend: Flex hands
//! over its memory, others copy (correct, but no way to train on a GPU).
//!
//! *Sparse attention weights* ([`sparse_attention`]) are the dense form, `[B, M] -> [B, M]`, that GPUs use.
//! Sparsemax projects a row of scores onto the probability simplex (Martins & Astudillo 2016):
//!
//! ```text
//! sparsemax(z) = argmin_{p in simplex} ||p - z||^2 = max(z - tau, 0),   tau: sum_j max(z_j - tau, 0) = 1
//! ```
//!
//! From primitives this takes a sort and a cumulative sum of every row, each stored for the backward
//! pass. Here it is one kernel per kind of device: an exact tau without sorting (`cpu`, `cube`), a closed-form
//! backward pass (`autodiff`). The sort-based version (`reference`) is what a backend without a kernel runs, and the oracle of the
//! tests.
//!
//! A row that holds NaN or infinity gets NaN weights (and NaN gradients) and leaves its neighbours alone.

mod adam;
mod autodiff;
mod backend;
mod codes;
pub(crate) mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod few_rows;
mod gradients;
mod precision;
mod primitives;
pub(crate) mod processes;
pub mod reference;
mod selection;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Device, Tensor};
use sae_comm::Comm;
use serde::{Deserialize, Serialize};

pub use adam::Adam;
pub use codes::{Pattern, SparseCodes};
pub(crate) use few_rows::product;
pub use precision::{Precision, set_precision};
pub use selection::Selection;

use backend::SaeOps;
pub(crate) use cpu::rows::{Norm, TINY};

/// `||x||` of every row, `[B, d] -> [B, 1]`.
pub(crate) fn row_norms(x: Tensor<2>) -> Tensor<2> {
    x.square().sum_dim(1).clamp_min(TINY).sqrt()
}

/// The values of the latents in the support of sparsemax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SparseValue {
    /// The attention weight itself: `a = sparsemax(z)` (the paper).
    Probability,
    /// The score, with the support as a gate: `a = z * 1[sparsemax(z) > 0]` (the authors' code).
    /// The support is a constant of the backward pass.
    Score,
}

/// The parts of the scores of [`encode`] beside queries and dictionary.
#[derive(Clone, Debug, Default)]
pub struct EncodeOptions {
    /// Added to the scores `[M]`.
    pub bias: Option<Tensor<1>>,
    /// Thresholds theta `[M]` of [`Selection::JumpRelu`].
    pub thresholds: Option<Tensor<1>>,
    /// 1 for latents that take part, 0 for those that are not selected whatever their score, as if it were minus
    /// infinity `[M]`; empty for all.
    pub mask: Arc<Vec<f32>>,
}

/// Sparse codes of `z = q E^T + bias`, among the latents that the mask lets take part: queries q `[B, d]`, dictionary E
/// `[M, d]`, float32.
///
/// Differentiable in queries, dictionary, bias and thresholds; what was selected is a constant of the backward
/// pass, except where [`Selection`] says otherwise. Scores are computed a tile of rows and concepts at a time and
/// `[B, M]` is never stored; on the CPU the codes of a row depend neither on the number of threads nor (but for
/// [`Selection::BatchTopK`]) on the other rows.
///
/// # Panics
/// If shapes do not fit, or [`Selection::JumpRelu`] comes without thresholds.
pub fn encode(
    queries: Tensor<2>,
    dictionary: Tensor<2>,
    options: EncodeOptions,
    selection: Selection,
) -> SparseCodes {
    let [latents, d] = dictionary.dims();
    assert_eq!(queries.dims()[1], d, "queries as wide as the dictionary");
    let device = queries.device();
    for vector in [&options.bias, &options.thresholds].into_iter().flatten() {
        assert_eq!(vector.dims(), [latents], "one number per latent");
    }
    assert!(
        options.thresholds.is_some() || !matches!(selection, Selection::JumpRelu { .. }),
        "JumpReLU has one threshold per latent"
    );
    assert!(
        options.mask.is_empty() || options.mask.len() == latents,
        "a mask for every latent"
    );
    let encoding = Dispatch::encode(
        queries.into_dispatch(),
        dictionary.into_dispatch(),
        or_empty(options.bias, &device),
        or_empty(options.thresholds, &device),
        options.mask,
        selection,
    );
    SparseCodes {
        values: Tensor::from_dispatch(encoding.values),
        pattern: encoding.pattern,
        scores: Tensor::from_dispatch(encoding.scores),
    }
}

/// Codes times a dictionary D `[M, d]`, `[B, d]`; differentiable in the codes' values and the dictionary.
///
/// # Panics
/// If the dictionary does not have a row for each latent.
pub fn decode(codes: &SparseCodes, dictionary: Tensor<2>) -> Tensor<2> {
    assert_eq!(
        dictionary.dims()[0],
        codes.pattern.latents(),
        "one row of the dictionary per latent"
    );
    Tensor::from_dispatch(Dispatch::codes_times(
        codes.values.clone().into_dispatch(),
        dictionary.into_dispatch(),
        codes.pattern.clone(),
    ))
}

/// `x_i . d_j` at every entry (i, j) of a pattern, `[entries]`: x `[B, d]`, dictionary D `[M, d]`. Carries no gradient.
///
/// # Panics
/// If shapes do not fit.
pub(crate) fn dots(x: Tensor<2>, dictionary: Tensor<2>, pattern: &Arc<Pattern>) -> Tensor<1> {
    assert_eq!(
        [x.dims()[0], dictionary.dims()[0]],
        [pattern.rows(), pattern.latents()],
        "one row of x per row of the codes, and one row of the dictionary per latent"
    );
    Tensor::from_dispatch(Dispatch::codes_dots(
        x.into_dispatch(),
        dictionary.into_dispatch(),
        pattern.clone(),
    ))
}

/// `vector [M]` at the latent of each entry of a pattern, `[slots]`; differentiable.
pub(crate) fn at_entries(vector: Tensor<1>, pattern: &Arc<Pattern>) -> Tensor<1> {
    let vector = vector.into_dispatch();
    Tensor::from_dispatch(Dispatch::at_entries(vector, pattern.clone()))
}

/// One number per row, `[B, 1]`, at each entry of the row, `[slots]`. Carries no gradient.
pub(crate) fn rows_at_entries(per_row: Tensor<2>, pattern: &Arc<Pattern>) -> Tensor<1> {
    let per_row = per_row.into_dispatch();
    Tensor::from_dispatch(Dispatch::rows_at_entries(per_row, pattern.clone()))
}

/// Sums over the rows of values at a pattern, `[slots] -> [M]`. Carries no gradient.
pub(crate) fn column_sums(values: Tensor<1>, pattern: &Arc<Pattern>) -> Tensor<1> {
    let values = values.into_dispatch();
    Tensor::from_dispatch(Dispatch::codes_column_sums(values, pattern.clone()))
}

/// Sparse attention: latents a of sparsemax on `z = q C^T` where the mask is not 0, and `y = a C`.
///
/// The same as [`encode`] and [`decode`]. Its gradient is made in one pass over the concepts and stored once, and the codes
/// returned carry none.
pub(crate) fn attend(
    queries: Tensor<2>,
    dictionary: Tensor<2>,
    mask: Arc<Vec<f32>>,
    value: SparseValue,
) -> (Tensor<2>, SparseCodes) {
    assert_eq!(
        queries.dims()[1],
        dictionary.dims()[1],
        "queries as wide as the dictionary"
    );
    let (queries, dictionary) = (queries.into_dispatch(), dictionary.into_dispatch());
    let attended = Dispatch::attend(queries, dictionary, mask, value);
    let y = Tensor::from_dispatch(attended.output);
    let values: Tensor<1> = Tensor::from_dispatch(attended.values);
    let scores = Tensor::zeros([0], &values.device());
    let codes = SparseCodes {
        values,
        pattern: attended.pattern,
        scores,
    };
    (y, codes)
}

/// A vector as operations take it: empty where there is none.
fn or_empty(vector: Option<Tensor<1>>, device: &Device) -> FloatTensor<Dispatch> {
    let vector = vector.unwrap_or_else(|| Tensor::zeros([0], device));
    vector.into_dispatch()
}

/// `(u [B, d], n [B, 1])` of `x [B, d]`: `u = (x - b) / n`, `n = s (||x - b|| / s)^p`, with a gradient for the bias alone: x is
/// data. See [`restore`].
pub(crate) fn normalize(
    x: Tensor<2>,
    bias: Option<Tensor<1>>,
    norm: Norm,
) -> (Tensor<2>, Tensor<2>) {
    let bias = or_empty(bias, &x.device());
    let (u, norms) = Dispatch::normalize(x.into_dispatch(), bias, norm);
    (Tensor::from_dispatch(u), Tensor::from_dispatch(norms))
}

/// `q = u W` with u and n of [`normalize`], differentiable in W `[d, d]` and the bias. The bias's gradient goes past
/// u (`project_backward` in `cpu/rows.rs`), which saves the product `dq W^T`.
pub(crate) fn project(
    (u, norms): (Tensor<2>, Tensor<2>),
    bias: Option<Tensor<1>>,
    weight: Tensor<2>,
    norm: Norm,
) -> Tensor<2> {
    let (bias, rows) = (or_empty(bias, &u.device()), u.dims()[0]);
    let (u, weight, norms) = (
        few_rows::filled(u, 0.0).into_dispatch(),
        weight.into_dispatch(),
        few_rows::filled(norms, 1.0).into_dispatch(),
    );
    let projected = Dispatch::project(u, bias, weight, norms, norm);
    few_rows::first(Tensor::from_dispatch(projected), rows)
}

/// `x_hat = b + factor * n * y`, with u and n of [`normalize`]; the bias has a gradient through n, too.
pub(crate) fn restore(
    y: Tensor<2>,
    bias: Option<Tensor<1>>,
    (u, norms): (Tensor<2>, Tensor<2>),
    factor: f64,
    norm: Norm,
) -> Tensor<2> {
    let bias = or_empty(bias, &y.device());
    let (y, u, norms) = (y.into_dispatch(), u.into_dispatch(), norms.into_dispatch());
    Tensor::from_dispatch(Dispatch::restore(y, bias, u, norms, factor as f32, norm))
}

/// `sum (x_hat - x)^2`, `[B, d] -> [1]`; differentiable in x_hat alone.
pub(crate) fn squared_error(x_hat: Tensor<2>, x: Tensor<2>) -> Tensor<1> {
    let sum = Dispatch::squared_error(x_hat.into_dispatch(), x.into_dispatch());
    Tensor::from_dispatch(sum)
}

/// `sum x^2 [1]` of a tensor of any shape, in float32 and without gradient: NaN or infinite exactly if a number is,
/// or if the sum does not fit, and then Adam's second moment may not either.
pub fn squared_norm<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::squared_norm(x.into_dispatch()))
}

/// The sum of all numbers `[1]` of a tensor of any shape, in an order that its shape alone decides; differentiable.
pub fn sum<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::sum(x.into_dispatch()))
}

/// The sum over all processes, the same bits in each; differentiable in this process's summand.
pub(crate) fn sum_over<const D: usize>(x: Tensor<D>, comm: Arc<dyn Comm>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::sum_over(x.into_dispatch(), comm))
}

/// x as it is, the same in all processes; its gradient is the sum of those of all processes.
pub(crate) fn given_to(x: Tensor<2>, comm: Arc<dyn Comm>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::given_to(x.into_dispatch(), comm))
}

/// Whether sparse codes are the fast way on this device: everywhere but on GPUs.
pub fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    {
        let device = device.clone().inner();
        !matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
    }
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        true
    }
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
