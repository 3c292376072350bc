//! Which rows of a parameter belong to which process.
//!
//! A parameter with a row per latent (the dictionary, the encoder, biases and thresholds of latents, and what training counts of
//! them) is cut into as many blocks of rows as a batch has parts, and a process owns consecutive blocks. All others are small, and every
//! process has them whole. Adam changes each number by itself, and the lengths of decoder rows are kept row by row: so a step on a
//! slice gives the rows that a step on the whole would.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use crate::learner::SaeLearner;

/// The slices of every process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slices {
    /// M.
    pub(super) latents: usize,
    /// Number of blocks; the processes divide it.
    pub(super) blocks: usize,
    pub(super) ranks: usize,
}

impl Slices {
    /// Whether a parameter of this shape is cut.
    fn cut(self, dims: &[usize]) -> bool {
        dims.first() == Some(&self.latents)
    }

    fn start_of(self, block: usize) -> usize {
        (self.latents as u128 * block as u128 / self.blocks as u128) as usize
    }

    /// The latents of process `rank`.
    pub(super) fn of(self, rank: usize) -> Range<usize> {
        let each = self.blocks / self.ranks;
        self.start_of(rank * each)..self.start_of((rank + 1) * each)
    }

    /// The rows of a parameter of this shape that process `rank` has.
    fn rows(self, dims: &[usize], rank: usize) -> Range<usize> {
        match self.cut(dims) {
            true => self.of(rank),
            false => 0..dims.first().copied().unwrap_or(1),
        }
    }

    /// The blocks of process `rank`, as ranges of its own latents.
    pub(super) fn own_blocks(self, rank: usize) -> impl Iterator<Item = Range<usize>> {
        let each = self.blocks / self.ranks;
        let first = self.of(rank).start;
        (rank * each..(rank + 1) * each)
            .map(move |block| self.start_of(block) - first..self.start_of(block + 1) - first)
    }

    /// The sum of the squares of all gradients: each message has those of the blocks of its process, then that of what is not cut, which
    /// is the same for all.
    pub(super) fn sum_of_squares(messages: &[Vec<f32>]) -> f32 {
        let blocks = messages.iter().flat_map(|of| &of[..of.len() - 1]);
        let whole = messages[0].last().copied().unwrap_or_default();
        let sum: f64 = blocks.chain([&whole]).map(|sum| f64::from(*sum)).sum();
        sum as f32
    }

    /// The slice of process `rank`.
    pub(super) fn slice(self, learner: SaeLearner, rank: usize) -> SaeLearner {
        learner.map(&mut Cutting { slices: self, rank })
    }

    /// The identities of the parameters of `whole` that are cut.
    pub(super) fn cut_of(self, whole: &SaeLearner) -> BTreeSet<u64> {
        let mut asking = Asking {
            slices: self,
            cut: BTreeSet::new(),
        };
        whole.visit(&mut asking);
        asking.cut
    }

    /// The numbers of a slice that other processes do not have, in the order of the parameters; `cut` are the parameters that are cut.
    pub(super) fn numbers(slice: &SaeLearner, cut: &BTreeSet<u64>) -> Vec<f32> {
        let own = values(slice).into_iter();
        let own = own.filter(|(id, _)| cut.contains(id));
        own.flat_map(|(_, values)| values).collect()
    }

    /// All rows of a parameter of this width: each process's come next in what is left of its numbers.
    pub(super) fn together(self, rest: &mut [&[f32]], width: usize) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.latents * width);
        for (rank, rest) in rest.iter_mut().enumerate() {
            let (part, behind) = rest.split_at(self.of(rank).len() * width);
            all.extend_from_slice(part);
            *rest = behind;
        }
        all
    }

    /// The learner of which `slice` is this process's part: those of all processes are `messages`, each as [`Slices::numbers`] has it.
    pub(super) fn joined(
        self,
        whole: SaeLearner,
        slice: &SaeLearner,
        messages: &[Vec<f32>],
    ) -> SaeLearner {
        let mut joining = Joining {
            slices: self,
            own: values(slice).into_iter(),
            rest: messages.iter().map(|message| &message[..]).collect(),
        };
        let joined = whole.map(&mut joining);
        debug_assert!(joining.rest.iter().all(|rest| rest.is_empty()));
        joined.with_steps_of(slice)
    }
}

/// Takes a tensor's place in a parameter, with the gradient that it had.
fn replaced<const D: usize>(param: Param<Tensor<D>>, value: Tensor<D>) -> Param<Tensor<D>> {
    let trained = param.val().is_require_grad();
    let param = param.map(|_| Tensor::from_inner(value));
    param.set_require_grad(trained)
}

/// Cuts parameters.
struct Cutting {
    slices: Slices,
    rank: usize,
}

impl ModuleMapper for Cutting {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let whole = param.val().inner();
        let rows = self.slices.rows(&whole.dims(), self.rank);
        let slice = whole.narrow(0, rows.start, rows.len());
        replaced(param, slice)
    }
}

/// Puts slices together.
struct Joining<'a> {
    slices: Slices,
    own: std::vec::IntoIter<(u64, Vec<f32>)>,
    /// What is left of each process's numbers.
    rest: Vec<&'a [f32]>,
}

impl ModuleMapper for Joining<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (dims, device) = (param.val().dims(), param.val().inner().device());
        let (_, own) = self.own.next().expect("as many parameters");
        let values = match self.slices.cut(&dims) {
            true => self
                .slices
                .together(&mut self.rest, dims[1..].iter().product()),
            false => own,
        };
        let value = Tensor::from_data(TensorData::new(values, dims), &device);
        replaced(param, value)
    }
}

/// Identity and numbers of each parameter of a learner, in their order.
fn values(learner: &SaeLearner) -> Vec<(u64, Vec<f32>)> {
    let mut reading = Reading(Vec::new());
    learner.visit(&mut reading);
    reading.0
}

/// Reads parameters.
struct Reading(Vec<(u64, Vec<f32>)>);

impl ModuleVisitor for Reading {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        let values = data.try_to_vec().expect("float32 parameters");
        self.0.push((param.id.val(), values));
    }
}

/// Looks for the parameters that are cut.
struct Asking {
    slices: Slices,
    cut: BTreeSet<u64>,
}

impl ModuleVisitor for Asking {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.slices.cut(&param.val().dims()) {
            self.cut.insert(param.id.val());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_whole_blocks_and_cover_every_latent() {
        for (latents, blocks) in [(10, 4), (7, 7), (4096, 6), (5, 4)] {
            for ranks in (1..=blocks).filter(|ranks| blocks % ranks == 0) {
                let slices = Slices {
                    latents,
                    blocks,
                    ranks,
                };
                let mut at = 0;
                for rank in 0..ranks {
                    let own = slices.of(rank);
                    assert_eq!(own.start, at);
                    at = own.end;
                    let blocks: usize = slices.own_blocks(rank).map(|block| block.len()).sum();
                    assert_eq!(blocks, own.len());
                }
                assert_eq!(at, latents);
            }
        }
    }
}
