//! The kernels of Burn's CPU backends. Flex hands over its memory; NdArray stays as a second opinion until Burn removes it: it
//! overrides nothing.

use std::borrow::Cow;

use burn::backend::TensorMetadata;
use burn::backend::flex::{Flex, FlexTensor};
use burn::tensor::TensorData;
use rayon::prelude::*;

use super::rows::{self, Norm};
use super::simd::{self, Simd};
use super::sparsemax;
use crate::ops::SparseValue;
use crate::ops::adam::AdamStep;
use crate::ops::backend::{AdamUpdate, Host, SaeOps, size};
use crate::ops::gradients::GradientOps;

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::backend::NdArray;

    impl super::Host for NdArray {}
    impl super::SaeOps for NdArray {}
    impl super::GradientOps for NdArray {}
}

impl Host for Flex {
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
    fn sparse_attention(scores: FlexTensor, value: SparseValue) -> (FlexTensor, FlexTensor) {
        let (rows, latents) = (size(&scores, 0), size(&scores, 1));
        let mut weights = vec![0.0; rows * latents];
        let mut thresholds = vec![0.0; rows * 2];
        let (z, a, t) = (Self::read(&scores), &mut weights, &mut thresholds);
        sparsemax::forward(&z, latents, value, a, t);
        (
            Self::write(weights, &[rows, latents], &scores),
            Self::write(thresholds, &[rows, 2], &scores),
        )
    }

    fn normalize(x: FlexTensor, bias: FlexTensor, norm: Norm) -> (FlexTensor, FlexTensor) {
        let (b, d) = (size(&x, 0), size(&x, 1));
        let (u, norms) = rows::normalize(&Self::read(&x), &Self::read(&bias), d, norm);
        (Self::write(u, &[b, d], &x), Self::write(norms, &[b, 1], &x))
    }

    fn restore(
        y: FlexTensor,
        bias: FlexTensor,
        _u: FlexTensor,
        norms: FlexTensor,
        factor: f32,
        _norm: Norm,
    ) -> FlexTensor {
        let (b, d) = (size(&y, 0), size(&y, 1));
        let (bias, norms) = (Self::read(&bias), Self::read(&norms));
        let out = rows::restore(&Self::read(&y), &bias, &norms, d, factor);
        Self::write(out, &[b, d], &y)
    }

    fn squared_error(x_hat: FlexTensor, x: FlexTensor) -> FlexTensor {
        let sum = rows::squared_error(&Self::read(&x_hat), &Self::read(&x));
        Self::write(vec![sum as f32], &[1], &x)
    }

    fn squared_norm(x: FlexTensor) -> FlexTensor {
        Self::write(vec![rows::squared_norm(&Self::read(&x)) as f32], &[1], &x)
    }

    /// The moments are updated where they lie, if nobody else holds them (copied first, if somebody does).
    fn adam(
        param: FlexTensor,
        grad: FlexTensor,
        moment_1: FlexTensor,
        moment_2: FlexTensor,
        step: AdamStep,
    ) -> AdamUpdate<Self> {
        let shape: Vec<usize> = param.shape().iter().copied().collect();
        let mut moment_1 = contiguous(moment_1);
        let mut moment_2 = contiguous(moment_2);
        let moments = (moment_1.storage_mut(), moment_2.storage_mut());
        let row = match step.unit_rows {
            true => shape[1],
            false => 1,
        };
        let new = adam(step, row, &Self::read(&param), &Self::read(&grad), moments);
        AdamUpdate {
            param: Self::write(new, &shape, &param),
            moment_1,
            moment_2,
        }
    }
}

impl GradientOps for Flex {
    fn normalize_backward(
        u: &FlexTensor,
        norms: &FlexTensor,
        grad: &FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        let (d, norms, grad) = (size(u, 1), Self::read(norms), Self::read(grad));
        let out = rows::normalize_backward(&Self::read(u), &norms, &grad, d, norm);
        Self::write(out, &[d], u)
    }

    fn project_backward(
        (u, q, norms): (&FlexTensor, &FlexTensor, &FlexTensor),
        weight: &FlexTensor,
        grad: &FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        let d = size(u, 1);
        let saved = (&*Self::read(u), &*Self::read(q), &*Self::read(norms));
        let out = rows::project_backward(saved, &Self::read(weight), &Self::read(grad), d, norm);
        Self::write(out, &[d], u)
    }

    fn restore_backward(
        y: &FlexTensor,
        u: &FlexTensor,
        norms: &FlexTensor,
        grad: &FlexTensor,
        factor: f32,
        norm: Norm,
    ) -> (FlexTensor, FlexTensor) {
        let (b, d) = (size(y, 0), size(y, 1));
        let saved = (&*Self::read(y), &*Self::read(u), &*Self::read(norms));
        let (dy, db) = rows::restore_backward(saved, &Self::read(grad), d, factor, norm);
        (Self::write(dy, &[b, d], y), Self::write(db, &[d], y))
    }

    fn squared_error_backward(x_hat: &FlexTensor, x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
        let scale = Self::read(grad)[0];
        let out = rows::squared_error_backward(&Self::read(x_hat), &Self::read(x), scale);
        Self::write(out, &[size(x, 0), size(x, 1)], x)
    }
}

/// The tensor laid out row by row from the start of its memory, without a second handle on it.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 {
        return tensor;
    }
    tensor.to_contiguous()
}

/// Floats of each tensor that one task updates: together they fit in the second-level cache.
const ADAM_CHUNK: usize = 1 << 14;

/// One step of Adam on rows of this width: updates the moments, returns the new parameters.
fn adam(
    step: AdamStep,
    row: usize,
    param: &[f32],
    grad: &[f32],
    (m, v): (&mut [f32], &mut [f32]),
) -> Vec<f32> {
    let _span = tracing::trace_span!("adam").entered();
    let simd = Simd::detect();
    let mut out = vec![0.0; param.len()];
    if row == 0 {
        return out;
    }
    let chunk = (ADAM_CHUNK / row).max(1) * row;
    (
        out.par_chunks_mut(chunk),
        param.par_chunks(chunk),
        grad.par_chunks(chunk),
        m.par_chunks_mut(chunk),
        v.par_chunks_mut(chunk),
    )
        .into_par_iter()
        .for_each(|(out, param, grad, m, v)| match step.unit_rows {
            false => simd::adam(simd, step, param, grad, m, v, out),
            true => {
                let mut across = vec![0.0; row];
                for at in (0..out.len()).step_by(row).map(|start| start..start + row) {
                    let (param, out) = (&param[at.clone()], &mut out[at.clone()]);
                    rows::across(&grad[at.clone()], param, &mut across);
                    simd::adam(
                        simd,
                        step,
                        param,
                        &across,
                        &mut m[at.clone()],
                        &mut v[at],
                        out,
                    );
                    rows::to_unit(out);
                }
            }
        });
    out
}
