//! The gradients of parts, on the host: added up, cut, and sent.

use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::slices::Slices;
use crate::learner::SaeLearner;

/// Numbers that one thread adds up.
const CHUNK: usize = 1 << 16;

/// What the step of a part hands on: per parameter of the learner its gradient, and what training counts; then the numbers of the
/// part.
#[derive(Clone, Debug)]
pub(super) struct Gradients {
    kinds: Arc<[Kind]>,
    tensors: Vec<Values>,
    numbers: Vec<f32>,
}

/// What is known of a parameter.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Numbers per row.
    width: usize,
    /// Whether it has a gradient; others are what training counts.
    trained: bool,
}

/// The numbers for one parameter; none if the part has nothing for it.
#[derive(Clone, Debug, Default)]
struct Values {
    values: Vec<f32>,
    /// Whether each latent has a row in it, and processes have slices.
    cut: bool,
}

impl Values {
    fn plus(mut self, other: Self) -> Self {
        if self.values.is_empty() {
            return other;
        }
        let others = other.values.par_chunks(CHUNK);
        let pairs = self.values.par_chunks_mut(CHUNK).zip(others);
        pairs.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
        self
    }
}

impl Gradients {
    /// Those of a part.
    pub(super) fn of(learner: &SaeLearner, grads: GradientsParams, numbers: Vec<f32>) -> Self {
        let latents = learner.sae.config().n_latents;
        let mut taking = Taking {
            grads,
            latents,
            kinds: Vec::new(),
            tensors: Vec::new(),
        };
        learner.visit(&mut taking);
        Self {
            kinds: taking.kinds.into(),
            tensors: taking.tensors,
            numbers,
        }
    }

    pub(super) fn plus(mut self, other: Self) -> Self {
        let pairs = self.tensors.into_iter().zip(other.tensors);
        self.tensors = pairs.map(|(a, b)| a.plus(b)).collect();
        let pairs = self.numbers.iter_mut().zip(other.numbers);
        pairs.for_each(|(a, b)| *a += b);
        self
    }

    /// Divided by a number of parts.
    pub(super) fn over(mut self, parts: usize) -> Self {
        let parts = parts as f32;
        for values in self.tensors.iter_mut().map(|tensor| &mut tensor.values) {
            let chunks = values.par_chunks_mut(CHUNK);
            chunks.for_each(|chunk| chunk.iter_mut().for_each(|value| *value /= parts));
        }
        self.numbers.iter_mut().for_each(|number| *number /= parts);
        self
    }

    /// What process `rank` gets: per parameter the length, whether it is cut, and the rows; then the numbers.
    pub(super) fn for_rank(&self, slices: &Slices, rank: usize) -> Vec<f32> {
        let mut message = Vec::new();
        for (kind, Values { values, cut }) in self.kinds.iter().zip(&self.tensors) {
            let rows = slices.of(rank);
            let part = match cut {
                true => &values[rows.start * kind.width..rows.end * kind.width],
                false => &values[..],
            };
            message.push(as_number(part.len()));
            message.push(as_number(usize::from(*cut)));
            message.extend_from_slice(part);
        }
        message.extend_from_slice(&self.numbers);
        message
    }

    /// The gradients in a message of [`Gradients::for_rank`], of a learner like this one.
    pub(super) fn read(&self, message: &[f32]) -> (Self, usize) {
        let mut at = 0;
        let mut next = |count: usize| {
            at += count;
            &message[at - count..at]
        };
        let tensors = self.kinds.iter().map(|_| {
            let header = next(2);
            let (length, cut) = (as_count(header[0]), as_count(header[1]) == 1);
            let values = next(length).to_vec();
            Values { values, cut }
        });
        let tensors = tensors.collect();
        let numbers = next(self.numbers.len()).to_vec();
        let kinds = self.kinds.clone();
        let read = Self {
            kinds,
            tensors,
            numbers,
        };
        (read, at)
    }

    /// Sums of the squares of this process's gradients: one per block of latents, then one of what is not cut.
    pub(super) fn squares(&self, slices: &Slices, rank: usize) -> Vec<f32> {
        let trained = || {
            let all = self.kinds.iter().zip(&self.tensors);
            all.filter(|(kind, _)| kind.trained)
        };
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let blocks: Vec<_> = slices.own_blocks(rank).collect();
        let of_block = |block: &std::ops::Range<usize>| -> f32 {
            let cut = trained().filter(|(_, tensor)| tensor.cut);
            let sums = cut.map(|(kind, tensor)| {
                square(&tensor.values[block.start * kind.width..block.end * kind.width])
            });
            sums.sum::<f64>() as f32
        };
        let mut sums: Vec<f32> = blocks.par_iter().map(of_block).collect();
        let whole = trained().filter(|(_, tensor)| !tensor.cut);
        sums.push(whole.map(|(_, tensor)| square(&tensor.values)).sum::<f64>() as f32);
        sums
    }

    /// As Burn's optimizer takes them, on the learner's device; and the numbers.
    pub(super) fn into_parts(self, learner: &SaeLearner) -> (GradientsParams, Vec<f32>) {
        let mut giving = Giving {
            tensors: self.tensors.into_iter(),
            grads: GradientsParams::new(),
        };
        learner.visit(&mut giving);
        (giving.grads, self.numbers)
    }
}

/// A count among numbers, by its bits: they are moved and not computed with.
fn as_number(count: usize) -> f32 {
    f32::from_bits(u32::try_from(count).expect("fewer than 2^32 numbers in a slice"))
}

fn as_count(number: f32) -> usize {
    number.to_bits() as usize
}

/// Takes gradients out of Burn's.
struct Taking {
    grads: GradientsParams,
    latents: usize,
    kinds: Vec<Kind>,
    tensors: Vec<Values>,
}

impl ModuleVisitor for Taking {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        self.kinds.push(Kind {
            width: tensor.dims()[1..].iter().product(),
            trained: tensor.is_require_grad(),
        });
        let values = match self.grads.remove::<D>(param.id) {
            None => Values::default(),
            Some(grad) => Values {
                cut: grad.dims()[0] == self.latents,
                values: grad.into_data().try_to_vec().expect("float32 gradients"),
            },
        };
        self.tensors.push(values);
    }
}

/// Gives them back.
struct Giving {
    tensors: std::vec::IntoIter<Values>,
    grads: GradientsParams,
}

impl ModuleVisitor for Giving {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Values { values, .. } = self.tensors.next().expect("as many parameters");
        if values.is_empty() {
            return;
        }
        let tensor = param.val().inner();
        let mut dims = tensor.dims();
        dims[0] = values.len() / dims[1..].iter().product::<usize>();
        let data = TensorData::new(values, dims);
        let grad = Tensor::<D>::from_data(data, &tensor.device());
        self.grads.register(param.id, grad);
    }
}
