//! The CPU kernels, which take slices and return vectors. `ops/kernels.rs` makes operations of them.

mod batch_topk;
mod blocking;
pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod gradient;
mod product;
pub(crate) mod rows;
mod select;
pub(crate) mod simd;
pub(crate) mod sparsemax;
mod tau;

use std::borrow::Cow;

use burn::backend::TensorMetadata;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::TensorData;

use super::adam::AdamStep;
use super::backend::AdamUpdate;
use super::kernels::{self, Kernels};

/// Flex lends its memory, without a copy if it is contiguous.
impl Kernels for Flex {
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

    /// Updates the moments in place, or in a copy if another handle on them exists.
    fn adam(
        param: FlexTensor,
        grad: FlexTensor,
        moment_1: FlexTensor,
        moment_2: FlexTensor,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        let shape: Vec<usize> = param.shape().iter().copied().collect();
        let (mut moment_1, mut moment_2) = (
            moment_1.to_contiguous_owned(),
            moment_2.to_contiguous_owned(),
        );
        let new = kernels::adam(
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

/// Makes a tensor contiguous from the start of its memory, without a second handle on it.
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

/// NdArray uses all defaults. It stays as a check of Flex until Burn removes it.
#[cfg(feature = "ndarray")]
impl Kernels for burn::backend::NdArray {}
