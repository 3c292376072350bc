//! The operations as Burn dispatches them to a backend. The functions in `mod.rs` are what the model calls.
//!
//! Every operation has a default body: the dense sparsemax, the steps on rows and Adam from Burn's primitives
//! (`reference.rs`, `primitives.rs`), the products with codes by the CPU's kernels on the host, because codes lie there. So a
//! backend is correct with an empty `impl` of [`Host`], [`SaeOps`] and
//! [`GradientOps`](super::gradients::GradientOps), and every method that it overrides makes it faster.

use std::borrow::Cow;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, Dispatch, ExtensionType, TensorMetadata, backend_extension,
};
use burn::tensor::TensorData;
use sae_comm::Comm;

use super::SparseValue;
use super::adam::AdamStep;
use super::codes::Pattern;
use super::cpu::rows::Norm;
use super::cpu::simd::Simd;
use super::cpu::{decode, encode};
use super::primitives;
use super::processes;
use super::selection::Selection;

/// A backend's tensors as slices, for kernels that run on the host.
pub(crate) trait Host: Backend {
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
}

impl Host for Dispatch {}

impl<B: Host, C: CheckpointStrategy> Host for Autodiff<B, C> {}

/// Size of dimension `i`.
pub(super) fn size<T: TensorMetadata>(tensor: &T, i: usize) -> usize {
    tensor.shape()[i]
}

/// Result of [`SaeOps::encode`].
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct Encoding<B: Backend> {
    /// Activations `[slots]`.
    pub(crate) values: FloatTensor<B>,
    /// Scores `[slots]`, where the backward pass needs them (JumpReLU), else empty. They carry no gradient.
    pub(crate) scores: FloatTensor<B>,
    pub(crate) pattern: Arc<Pattern>,
}

/// Result of [`SaeOps::attend`].
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct Attended<B: Backend> {
    /// `y [B, d]`.
    pub(crate) output: FloatTensor<B>,
    /// Activations `[slots]`, without gradient.
    pub(crate) values: FloatTensor<B>,
    pub(crate) pattern: Arc<Pattern>,
}

/// Result of [`SaeOps::adam`].
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct AdamUpdate<B: Backend> {
    pub(crate) param: FloatTensor<B>,
    pub(crate) moment_1: FloatTensor<B>,
    pub(crate) moment_2: FloatTensor<B>,
}

/// The operations that Burn's backends are extended with; all tensors are float32. `autodiff/` adds the gradients.
#[backend_extension(Flex, NdArray: cfg(feature = "ndarray"), Cube: cfg(feature = "cube"), Autodiff)]
pub(crate) trait SaeOps: Host {
    /// `scores [B, M] -> (weights [B, M], threshold [B, 2])`.
    ///
    /// The threshold holds, for each row, its maximum `m` and `tau - m`: kept apart, because their sum would
    /// lose the small part when scores are large. It carries no gradient.
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitives::sparse_attention::<Self>(scores, value)
    }

    /// Codes of `z = q E^T + bias` where the mask is not 0: queries `[B, d]`, dictionary `[M, d]`; bias, JumpReLU's
    /// thresholds and mask are `[M]`, or empty where there are none.
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
        let (entries, entries_of_scores) = (encoded.values.len(), encoded.scores.len());
        Encoding {
            values: Self::write(encoded.values, &[entries], &queries),
            scores: Self::write(encoded.scores, &[entries_of_scores], &queries),
            pattern: Arc::new(encoded.pattern),
        }
    }

    /// Codes A times a dictionary, `A D`: values `[slots]`, dictionary `[M, d]` -> `[B, d]`.
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

    /// `x_i . d_j` at every entry (i, j): x `[B, d]`, dictionary `[M, d]` -> `[slots]`.
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

    /// `vector [M]` at the latent of each entry, `[slots]`; carries a gradient for it.
    fn at_entries(vector: FloatTensor<Self>, pattern: Arc<Pattern>) -> FloatTensor<Self> {
        let values = Self::read(&vector);
        let gathered: Vec<f32> = pattern
            .indices()
            .iter()
            .map(|j| values[*j as usize])
            .collect();
        Self::write(gathered, &[pattern.len()], &vector)
    }

    /// One number per row, `[B, 1]`, at each entry of the row, `[slots]`.
    fn rows_at_entries(per_row: FloatTensor<Self>, pattern: Arc<Pattern>) -> FloatTensor<Self> {
        let values = Self::read(&per_row);
        let rows = values.iter().zip(pattern.row_lengths());
        let repeated = rows.flat_map(|(value, length)| std::iter::repeat_n(*value, length));
        Self::write(repeated.collect(), &[pattern.len()], &per_row)
    }

    /// Column sums of codes: values `[slots]` -> `[M]`.
    fn codes_column_sums(values: FloatTensor<Self>, pattern: Arc<Pattern>) -> FloatTensor<Self> {
        let _span = tracing::trace_span!("codes_column_sums").entered();
        let out = decode::column_sums(&Self::read(&values), &pattern);
        Self::write(out, &[pattern.latents()], &values)
    }

    /// Latents a of sparsemax on `z = q C^T` where the mask is not 0, and `y = a C`: queries `[B, d]`, dictionary `[M, d]`.
    fn attend(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        value: SparseValue,
    ) -> Attended<Self> {
        attended::<Self>(queries, dictionary, mask, value)
    }

    /// `(u [B, d], n [B, 1])`: `u = (x - b) / n`; bias `[d]` or empty. u carries a gradient for the bias
    /// alone, n none (see `restore`).
    fn normalize(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitives::normalize::<Self>(x, bias, norm)
    }

    /// `q = u W [B, d]` with u and n of `normalize`; carries gradients for W `[d, d]` and, past u, for the bias.
    fn project(
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let _ = (bias, norms, norm); // for the gradient
        Self::float_matmul(u, weight)
    }

    /// `x_hat = b + factor * n * y [B, d]`; carries gradients for y, and for the bias with what reaches it
    /// through n.
    fn restore(
        y: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        u: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        factor: f32,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let _ = (u, norm); // for the gradient
        primitives::restore::<Self>(y, bias, norms, factor)
    }

    /// `sum (x_hat - x)^2 [1]`; carries a gradient for x_hat alone.
    fn squared_error(x_hat: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::squared_norm(Self::float_sub(x_hat, x))
    }

    /// `sum x^2 [1]` of a tensor of any shape; carries no gradient.
    fn squared_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_sum(primitives::square::<Self>(x))
    }

    /// The sum of all numbers `[1]` of a tensor of any shape.
    fn sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_sum(x)
    }

    /// The sum over all processes, the same bits in each; carries a gradient for this process's summand.
    fn sum_over(x: FloatTensor<Self>, comm: Arc<dyn Comm>) -> FloatTensor<Self> {
        processes::total_of::<Self>(&x, &*comm)
    }

    /// x as it is, the same in all processes; its gradient is the sum of those of all.
    fn given_to(x: FloatTensor<Self>, comm: Arc<dyn Comm>) -> FloatTensor<Self> {
        let _ = comm; // for the gradient
        x
    }

    /// The attention weights of scores `[slots]`, as they are given, of rows that go on in other processes: `sizes[i]` latents are in
    /// the support of row i. Carries the gradient of sparsemax for the scores.
    fn spread_weights(
        scores: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        pattern: Arc<Pattern>,
        sizes: Arc<Vec<usize>>,
        comm: Arc<dyn Comm>,
    ) -> FloatTensor<Self> {
        let _ = (scores, pattern, sizes, comm); // for the gradient
        weights
    }

    /// One step of Adam on tensors of one shape, in one pass over memory.
    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        primitives::adam::<Self>(param, grad, moment_1, moment_2, step)
    }
}

/// [`SaeOps::attend`], one operation after the other.
pub(super) fn attended<B: SaeOps>(
    queries: FloatTensor<B>,
    dictionary: FloatTensor<B>,
    mask: Arc<Vec<f32>>,
    value: SparseValue,
) -> Attended<B> {
    let none = B::write(Vec::new(), &[0], &queries);
    let selection = Selection::Sparsemax(value);
    let codes = B::encode(
        queries,
        dictionary.clone(),
        none.clone(),
        none,
        mask,
        selection,
    );
    let output = B::codes_times(codes.values.clone(), dictionary, codes.pattern.clone());
    Attended {
        output,
        values: codes.values,
        pattern: codes.pattern,
    }
}
