//! The gradients of parts, on the host: added up, cut, and sent.

use std::ops::Range;
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
#[derive(Debug)]
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
        if !other.values.is_empty() {
            self.values = added(self.values, other.values);
        }
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

    /// The numbers that process `rank` gets, in the order of the layout; zeros where this part has none.
    pub(super) fn for_rank(&self, layout: &Layout, rank: usize) -> Vec<f32> {
        let mut message = Vec::with_capacity(layout.length(rank));
        for (tensor, of) in self.tensors.iter().zip(&layout.tensors) {
            let rows = of.numbers(&layout.slices, rank);
            match tensor.values.is_empty() {
                true => message.resize(message.len() + rows.len(), 0.0),
                false => message.extend_from_slice(&tensor.values[rows]),
            }
        }
        message.extend_from_slice(&self.numbers);
        message
    }

    /// How many numbers there are per parameter, for [`Layout::agreed`].
    pub(super) fn lengths(&self) -> Vec<usize> {
        let lengths = self.tensors.iter().map(|tensor| tensor.values.len());
        lengths.collect()
    }

    /// Sums of the squares of this process's gradients: one per block of latents, then one of what is not cut.
    pub(super) fn squares(&self, slices: &Slices, rank: usize) -> Vec<f32> {
        let trained = || {
            let all = self.kinds.iter().zip(&self.tensors);
            all.filter(|(kind, _)| kind.trained)
        };
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let blocks: Vec<_> = slices.own_blocks(rank).collect();
        let of_block = |block: &Range<usize>| -> f32 {
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

/// How the numbers of a message follow each other.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    slices: Slices,
    kinds: Arc<[Kind]>,
    tensors: Vec<Piece>,
    numbers: usize,
}

/// The place of a parameter in a message.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Numbers of all rows.
    length: usize,
    width: usize,
    cut: bool,
}

impl Piece {
    /// The numbers of process `rank`.
    fn numbers(&self, slices: &Slices, rank: usize) -> Range<usize> {
        let rows = slices.of(rank);
        match self.cut {
            true => rows.start * self.width..rows.end * self.width,
            false => 0..self.length,
        }
    }
}

impl Layout {
    /// The layout for gradients like this one, of which the parts have so many numbers per parameter: some may have none.
    pub(super) fn agreed(like: &Gradients, slices: Slices, of_parts: &[Vec<usize>]) -> Self {
        let piece = |(i, kind): (usize, &Kind)| {
            let lengths = of_parts.iter().map(|lengths| lengths[i]);
            let length = lengths.max().unwrap_or_default();
            Piece {
                length,
                width: kind.width,
                cut: length == slices.latents * kind.width,
            }
        };
        Self {
            slices,
            tensors: like.kinds.iter().enumerate().map(piece).collect(),
            kinds: like.kinds.clone(),
            numbers: like.numbers.len(),
        }
    }

    /// Number of numbers in a message to process `rank`.
    pub(super) fn length(&self, rank: usize) -> usize {
        let pieces = self.tensors.iter();
        let lengths = pieces.map(|piece| piece.numbers(&self.slices, rank).len());
        lengths.sum::<usize>() + self.numbers
    }

    /// What a message to process `rank` says.
    pub(super) fn read(&self, message: &[f32], rank: usize) -> Gradients {
        let mut rest = message;
        let tensors = self.tensors.iter().map(|piece| {
            let (values, behind) = rest.split_at(piece.numbers(&self.slices, rank).len());
            rest = behind;
            Values {
                values: values.to_vec(),
                cut: piece.cut,
            }
        });
        let tensors = tensors.collect();
        Gradients {
            tensors,
            kinds: self.kinds.clone(),
            numbers: rest.to_vec(),
        }
    }
}

/// `a + b`, number by number.
pub(super) fn added(mut a: Vec<f32>, b: Vec<f32>) -> Vec<f32> {
    let pairs = a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK));
    pairs.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a += b));
    a
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
