//! Which rows of a parameter belong to which process.
//!
//! A matrix (the dictionary, the encoder, a projection) and a vector with a number per latent (biases and thresholds, and what training
//! counts of latents) is cut into as many blocks of rows as a batch has parts, and a process owns consecutive blocks. All others are
//! small, and every process has them whole. Adam changes each number by itself, and the lengths of decoder rows are kept row by row: so a step on a
//! slice gives the rows that a step on the whole would.

use std::collections::BTreeMap;
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
    pub(super) fn cut(self, dims: &[usize]) -> bool {
        let is_of_rows = dims.len() == 2 || dims[0] == self.latents;
        is_of_rows && dims[0] >= self.blocks
    }

    /// Blocks of a process.
    pub(super) fn each(self) -> usize {
        self.blocks / self.ranks
    }

    /// Where a block begins, of a parameter with so many rows.
    fn start_of(self, block: usize, rows: usize) -> usize {
        (rows as u128 * block as u128 / self.blocks as u128) as usize
    }

    /// The rows of process `rank`, of so many.
    pub(super) fn of(self, rank: usize, rows: usize) -> Range<usize> {
        let (first, last) = (rank * self.each(), (rank + 1) * self.each());
        self.start_of(first, rows)..self.start_of(last, rows)
    }

    /// The rows of block `i` of process `rank`, counted from its first row.
    pub(super) fn own_block(self, rank: usize, i: usize, rows: usize) -> Range<usize> {
        let (block, first) = (rank * self.each() + i, self.of(rank, rows).start);
        self.start_of(block, rows) - first..self.start_of(block + 1, rows) - first
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

    /// The identities of the parameters of `whole` that are cut, and their numbers of rows.
    pub(super) fn cut_of(self, whole: &SaeLearner) -> BTreeMap<u64, usize> {
        let mut asking = Asking {
            slices: self,
            cut: BTreeMap::new(),
        };
        whole.visit(&mut asking);
        asking.cut
    }

    /// The numbers of a slice that other processes do not have, in the order of the parameters; `cut` are the parameters that are cut.
    pub(super) fn numbers(slice: &SaeLearner, cut: &BTreeMap<u64, usize>) -> Vec<f32> {
        let own = values(slice).into_iter();
        let own = own.filter(|(id, _)| cut.contains_key(id));
        own.flat_map(|(_, values)| values).collect()
    }

    /// All rows of a parameter of this shape: each process's come next in what is left of its numbers.
    pub(super) fn together(self, rest: &mut [&[f32]], rows: usize, width: usize) -> Vec<f32> {
        let mut all = Vec::with_capacity(rows * width);
        for (rank, rest) in rest.iter_mut().enumerate() {
            let (part, behind) = rest.split_at(self.of(rank, rows).len() * width);
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
        if !self.slices.cut(&whole.dims()) {
            return param;
        }
        let rows = self.slices.of(self.rank, whole.dims()[0]);
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
            true => {
                let width = dims[1..].iter().product();
                self.slices.together(&mut self.rest, dims[0], width)
            }
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
    cut: BTreeMap<u64, usize>,
}

impl ModuleVisitor for Asking {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let dims = param.val().dims();
        if self.slices.cut(&dims) {
            self.cut.insert(param.id.val(), dims[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_whole_blocks_and_cover_every_row() {
        for (latents, blocks) in [(10, 4), (7, 7), (4096, 6), (5, 4)] {
            for ranks in (1..=blocks).filter(|ranks| blocks % ranks == 0) {
                let slices = Slices {
                    latents,
                    blocks,
                    ranks,
                };
                let mut at = 0;
                for rank in 0..ranks {
                    let own = slices.of(rank, latents);
                    assert_eq!(own.start, at);
                    at = own.end;
                    let blocks = (0..slices.each()).map(|i| slices.own_block(rank, i, latents));
                    let blocks: Vec<usize> = blocks.flatten().collect();
                    assert_eq!(blocks, (0..own.len()).collect::<Vec<_>>());
                }
                assert_eq!(at, latents);
                assert!(
                    slices.cut(&[latents]) && slices.cut(&[latents, 3]) && slices.cut(&[blocks, 3])
                );
                assert!(
                    !slices.cut(&[latents + 1])
                        && !slices.cut(&[blocks - 1, 3])
                        && !slices.cut(&[1])
                );
            }
        }
    }
}
