//! A batch in parts, and a run over several processes.
//!
//! With `training.shards = S` a batch is S parts of the same size. Each part has a gradient of its own, and the step takes their mean,
//! added up over a fixed binary tree (`tree.rs`). So the bytes of a run depend on S, and not on how many processes share the parts:
//! with W of them, process r computes parts `r S/W ..(r + 1) S/W`, and adds them up as far as the tree goes (`gradients.rs`). Each then
//! gets its latents' slice of what the others have, finishes the sum, takes Adam's step on its slice alone (`slices.rs`), and hands
//! the others the new numbers. So the moments of Adam are spread over the processes; they come together when process 0 saves them
//! (`moments.rs`).
//!
//! Process 0 decides. It has the run directory, the dashboard and the validations, and tells the others what comes next
//! (`follow.rs`).

mod apart;
mod follow;
mod gradients;
mod moments;
mod slices;
mod trainee;
mod tree;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::train::{TrainOutput, TrainStep};
use sae_comm::{Comm, Local};
use sae_data::ActivationBatch;

use crate::learner::SaeLearner;
use crate::numbers::StepOutput;
pub(crate) use apart::Apart;
pub(crate) use follow::Follower;
use gradients::Gradients;
use slices::Slices;
pub(crate) use trainee::Trainee;
use tree::Node;

/// How the parts of a batch are shared.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    comm: Arc<dyn Comm>,
    /// S.
    parts: usize,
    /// True when process 0 has told the others that training ends.
    ended: Arc<AtomicBool>,
}

impl Shards {
    /// `parts` parts, which the number of processes divides.
    pub(crate) fn new(comm: Arc<dyn Comm>, parts: usize) -> Self {
        assert!(
            parts.is_multiple_of(comm.ranks()),
            "the processes have equally many parts"
        );
        let ended = Arc::default();
        Self { comm, parts, ended }
    }

    /// All parts in this process.
    pub(crate) fn alone(parts: usize) -> Self {
        Self::new(Arc::new(Local), parts)
    }

    /// Whether other processes wait for this one, which has not told them that training ends.
    pub(crate) fn are_waited_for(&self) -> bool {
        self.are_apart() && !self.ended.load(Ordering::Relaxed)
    }

    /// S.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// The processes.
    pub(crate) fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// True if there are other processes.
    pub(crate) fn are_apart(&self) -> bool {
        self.comm.ranks() > 1
    }

    /// The parts of process `rank`.
    fn parts_of(&self, rank: usize) -> Range<usize> {
        let each = self.parts / self.comm.ranks();
        rank * each..(rank + 1) * each
    }

    /// This process's parts.
    pub(crate) fn own(&self) -> Range<usize> {
        self.parts_of(self.comm.rank())
    }

    /// One step: `batch` is this process's parts, one behind the other. The gradients are those of the whole batch, for this
    /// process's slices of the parameters; the numbers are those of the whole batch, too.
    pub(crate) fn train_step(
        &self,
        learner: &SaeLearner,
        batch: ActivationBatch,
    ) -> TrainOutput<StepOutput> {
        if self.parts == 1 {
            return TrainStep::step(learner, batch);
        }
        let slices = self.slices(learner);
        let rows = batch.activations.dims()[0] / self.own().len();
        let (mut terms, first) = (Vec::new(), self.own().start);
        let part = |part: usize| -> Gradients {
            let start = (part - first) * rows;
            let activations = batch.activations.clone().narrow(0, start, rows);
            let output = TrainStep::step(learner, ActivationBatch { activations });
            terms = output.item.terms().to_vec();
            Gradients::of(learner, output.grads, output.item.into_numbers())
        };
        let total = self.add_up(&slices, part);
        let squares = total.squares(&slices, self.comm.rank());
        let squares = slices.squares(&self.comm.gather(&squares));
        let (grads, numbers) = total.into_parts(learner);
        let size = (self.parts, rows, learner.variance());
        let item = StepOutput::of_parts(numbers, terms, squares, size);
        TrainOutput { grads, item }
    }

    /// The mean over all parts, this process's slice of it.
    fn add_up(&self, slices: &Slices, mut part: impl FnMut(usize) -> Gradients) -> Gradients {
        let root = Node::root(self.parts);
        let own: Vec<Gradients> = root
            .within(&self.own())
            .into_iter()
            .map(|node| {
                let leaf = |node: Node| node.is_leaf().then(|| part(node.first()));
                node.sum(leaf, Gradients::plus)
            })
            .collect();
        let messages = (0..self.comm.ranks()).map(|to| {
            let parts = own.iter().map(|gradients| gradients.for_rank(slices, to));
            parts.flatten().collect::<Vec<f32>>()
        });
        let messages = self.comm.exchange(messages.collect());
        let mut received: Vec<(Node, Gradients)> = Vec::new();
        for (rank, message) in messages.iter().enumerate() {
            let mut rest = &message[..];
            for node in root.within(&self.parts_of(rank)) {
                let (gradients, length) = own[0].read(rest);
                rest = &rest[length..];
                received.push((node, gradients));
            }
        }
        let sum_of = |node: Node| {
            let at = received.iter().position(|(of, _)| *of == node)?;
            Some(received.swap_remove(at).1)
        };
        root.sum(sum_of, Gradients::plus).over(self.parts)
    }

    fn slices(&self, learner: &SaeLearner) -> Slices {
        Slices {
            latents: learner.sae.config().n_latents,
            blocks: self.parts,
            ranks: self.comm.ranks(),
        }
    }
}
