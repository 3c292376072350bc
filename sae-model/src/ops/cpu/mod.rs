//! The CPU kernels behind Burn's Flex and NdArray backends: slices in, vectors out.

pub(crate) mod sparsemax;

use burn::backend::TensorMetadata;
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;

use super::{SaeOps, SparseValue};

/// `[B, M]` of a score tensor.
fn dims(tensor: &impl TensorMetadata) -> [usize; 2] {
    tensor.shape().dims()
}

/// Runs the forward kernel on a contiguous `[B, M]` slice.
fn forward(scores: &[f32], [rows, latents]: [usize; 2], value: SparseValue) -> [TensorData; 2] {
    let mut weights = vec![0.0; rows * latents];
    let mut thresholds = vec![0.0; rows * 2];
    sparsemax::forward(scores, latents, value, &mut weights, &mut thresholds);
    [
        TensorData::new(weights, [rows, latents]),
        TensorData::new(thresholds, [rows, 2]),
    ]
}

/// Runs the backward kernel on contiguous slices.
fn backward(
    scores: &[f32],
    thresholds: &[f32],
    grad: &[f32],
    [rows, latents]: [usize; 2],
    value: SparseValue,
) -> TensorData {
    let mut out = vec![0.0; rows * latents];
    sparsemax::backward(scores, thresholds, grad, latents, value, &mut out);
    TensorData::new(out, [rows, latents])
}

/// The tensor's values; `sparse_attention` has made it float32, `to_contiguous` has laid it out.
fn flex_slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous float32 tensor")
}

impl SaeOps for Flex {
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let scores = scores.to_contiguous();
        let [weights, threshold] = forward(flex_slice(&scores), dims(&scores), value);
        (
            FlexTensor::from_data(weights),
            FlexTensor::from_data(threshold),
        )
    }

    fn sparse_attention_backward(
        scores: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        value: SparseValue,
    ) -> FloatTensor<Self> {
        let (scores, grad) = (scores.to_contiguous(), grad.to_contiguous());
        let dims = dims(&scores);
        FlexTensor::from_data(backward(
            flex_slice(&scores),
            flex_slice(&threshold),
            flex_slice(&grad),
            dims,
            value,
        ))
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn 0.22 announces NdArray's removal; it stays as a second CPU opinion until then.
mod ndarray {
    use super::{FloatTensor, SaeOps, SparseValue, dims};
    use burn::backend::NdArray;
    use burn::backend::ndarray::NdArrayTensor;

    /// The tensor's values in row-major order.
    fn values(tensor: &NdArrayTensor) -> Vec<f32> {
        let NdArrayTensor::F32(storage) = tensor else {
            panic!("a float32 tensor: sparse_attention converts every other type")
        };
        storage.view().iter().copied().collect()
    }

    impl SaeOps for NdArray {
        fn sparse_attention(
            scores: FloatTensor<Self>,
            value: SparseValue,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let [weights, threshold] = super::forward(&values(&scores), dims(&scores), value);
            (
                NdArrayTensor::from_data(weights),
                NdArrayTensor::from_data(threshold),
            )
        }

        fn sparse_attention_backward(
            scores: FloatTensor<Self>,
            threshold: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            value: SparseValue,
        ) -> FloatTensor<Self> {
            NdArrayTensor::from_data(super::backward(
                &values(&scores),
                &values(&threshold),
                &values(&grad),
                dims(&scores),
                value,
            ))
        }
    }
}
