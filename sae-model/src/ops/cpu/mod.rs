//! The CPU kernels, and the operations of `SaeOps` made of them: slices in, vectors out.

mod batch_topk;
mod blocking;
mod decode;
mod encode;
mod gradient;
mod product;
pub(crate) mod rows;
mod select;
pub(crate) mod simd;
pub(crate) mod sparsemax;

pub(crate) mod host;

use burn::backend::TensorMetadata;
use burn::backend::flex::{Flex, FlexTensor};
use burn::backend::tensor::FloatTensor;
use burn::tensor::TensorData;
use std::borrow::Cow;
use std::sync::Arc;

use super::{AdamUpdate, SaeOps};
use crate::ops;
use host::OnHost;
use simd::AdamStep;

impl OnHost for Flex {
    fn read(tensor: &FlexTensor) -> Cow<'_, [f32]> {
        match tensor.as_slice() {
            Some(values) => Cow::Borrowed(values),
            None => {
                let laid_out = tensor.to_contiguous();
                Cow::Owned(laid_out.as_slice().expect("a float32 tensor").to_vec())
            }
        }
    }

    fn write(values: Vec<f32>, shape: &[usize], _like: &FlexTensor) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(values, shape.to_vec()))
    }
}

impl SaeOps for Flex {
    host::dense_ops!();
    host::sparse_ops!();
    host::row_ops!();

    /// The moments are updated where they lie, if nobody else holds them (copied first, if somebody does).
    fn adam(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        let shape: Vec<usize> = param.shape().iter().copied().collect();
        let (mut moment_1, mut moment_2) = (
            moment_1.to_contiguous_owned(),
            moment_2.to_contiguous_owned(),
        );
        let new = host::adam(
            step,
            &Self::read(&param),
            &Self::read(&grad),
            moment_1.storage_mut(),
            moment_2.storage_mut(),
        );
        AdamUpdate {
            param: Self::write(new, &shape, &param),
            moment_1,
            moment_2,
        }
    }
}

/// A tensor laid out row by row from the start of its memory, without a second handle on it.
trait ContiguousOwned {
    fn to_contiguous_owned(self) -> Self;
}

impl ContiguousOwned for FlexTensor {
    fn to_contiguous_owned(self) -> Self {
        if self.is_contiguous() && self.layout().start_offset() == 0 {
            return self;
        }
        self.to_contiguous()
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn 0.22 announces NdArray's removal; it stays as a second CPU opinion until then.
mod ndarray {
    use super::{Arc, Cow, FloatTensor, OnHost, SaeOps, TensorData, host, ops};
    use burn::backend::NdArray;
    use burn::backend::ndarray::NdArrayTensor;

    impl OnHost for NdArray {
        fn read(tensor: &NdArrayTensor) -> Cow<'_, [f32]> {
            let NdArrayTensor::F32(storage) = tensor else {
                panic!("a float32 tensor")
            };
            Cow::Owned(storage.view().iter().copied().collect())
        }

        fn write(values: Vec<f32>, shape: &[usize], _like: &NdArrayTensor) -> NdArrayTensor {
            NdArrayTensor::from_data(TensorData::new(values, shape.to_vec()))
        }
    }

    impl SaeOps for NdArray {
        host::dense_ops!();
        host::sparse_ops!();
        host::row_ops!();
        host::adam_op!();
    }
}
