//! A batch in parts, and a run over several processes, which share the rows of every batch or the latents.
//!
//! # Rows
//!
//! With `training.shards = S` a batch is S parts of the same size. Each part has a gradient of its own, and the step takes their mean,
//! added up over a fixed binary tree (`tree.rs`). So the bytes of a run depend on S, and not on how many processes share the parts:
//! with W of them, process r computes parts `r S/W ..(r + 1) S/W`, and adds them up as far as the tree goes (`gradients.rs`). Each then
//! gets its rows of what the others have, finishes the sum (`exchange.rs`), takes Adam's step on its slice alone (`slices.rs`), and hands
//! the others the new numbers. So the moments of Adam are spread over the processes; they come together when process 0 saves them
//! (`moments.rs`). `rounding.rs` is gradients in bf16.
//!
//! # Latents
//!
//! With `training.latent_shards = W` each of W processes has a W-th of the latents, and sees every batch whole ([`sae_model::Across`]):
//! for dictionaries that one memory does not hold. Each keeps the moments of its latents, and writes its own part of a checkpoint
//! (`spread.rs`). The bytes of a run depend on W.
//!
//! # Who says what comes next
//!
//! Process 0 decides. It has the run directory, the dashboard and the validations, and tells the others what comes next
//! (`follow.rs`).

mod apart;
mod exchange;
mod follow;
mod gradients;
mod moments;
mod own;
mod portion;
mod rounding;
mod slices;
mod spread;
mod trainee;
mod tree;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{panic, thread};

use burn::train::{TrainOutput, TrainStep};
use sae_comm::{Comm, Local};
use sae_data::ActivationBatch;
use sae_model::{Across, Sae};

use crate::checkpoint::RestoreError;
use crate::config::PartGradients;
use crate::failure::{Failure, chain};
use crate::learner::SaeLearner;
use crate::numbers::StepOutput;
use apart::Apart;
use exchange::Exchange;
use follow::Command;
pub(crate) use follow::Follower;
use gradients::{Gradients, Layout};
pub(crate) use own::Start;
pub(crate) use portion::Portion;
use rounding::Rounding;
use slices::Slices;
use spread::Spread;
pub(crate) use trainee::Trainee;
use tree::Node;

/// The exit code of Rust's programs that panic.
const PANIC: u8 = 101;

/// What processes share, and how.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    comm: Arc<dyn Comm>,
    /// S.
    parts: usize,
    /// True if it is the latents, and not the rows of a batch.
    latents: bool,
    /// Where the gradients of parts are rounded.
    rounding: Option<Arc<Rounding>>,
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
        Self {
            comm,
            parts,
            latents: false,
            rounding: None,
            ended: Arc::default(),
        }
    }

    /// Every process has some of the latents, and every row.
    pub(crate) fn of_latents(comm: Arc<dyn Comm>) -> Self {
        Self {
            comm,
            parts: 1,
            latents: true,
            rounding: None,
            ended: Arc::default(),
        }
    }

    /// All parts in this process.
    pub(crate) fn alone(parts: usize) -> Self {
        Self::new(Arc::new(Local), parts)
    }

    /// The same, with gradients of parts of this precision.
    pub(crate) fn with_gradients(self, precision: PartGradients) -> Self {
        let rounding = (precision == PartGradients::Bf16).then(Arc::default);
        Self { rounding, ..self }
    }

    /// Whether other processes wait for this one, which has not told them that training ends.
    pub(crate) fn are_waited_for(&self) -> bool {
        self.are_apart() && !self.ended.load(Ordering::Relaxed)
    }

    /// Whether processes share the latents.
    pub(crate) fn are_latents(&self) -> bool {
        self.latents
    }

    /// How this many latents are spread.
    pub(crate) fn across(&self, latents: usize) -> Across {
        match self.latents {
            true => Across::new(self.comm.clone(), latents),
            false => Across::alone(latents),
        }
    }

    /// Tells the others, from process 0, that training ends.
    pub(crate) fn end(&self) {
        Command::End.tell(self.comm());
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Lets a panic of this thread, which trains, end all processes: the others would wait for this one for ever. A thread of Burn's may
    /// panic without harm, as its dashboard does where there is no terminal after all.
    pub(crate) fn end_all_on_panic(&self) {
        if !self.are_apart() {
            return;
        }
        // MPI ends when its last handle is dropped: the hook, which is never dropped, has none.
        let (comm, trains) = (Arc::downgrade(&self.comm), thread::current().id());
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            usual(info);
            if let Some(comm) = comm.upgrade().filter(|_| thread::current().id() == trains) {
                comm.abort(PANIC);
            }
        }));
    }

    /// All rows of a parameter of a model whose latents are spread, at process 0, as little-endian float32.
    pub(crate) fn collected(&self, sae: &Sae, name: &str) -> Vec<u8> {
        Command::Collect(name.into()).tell(self.comm());
        spread::collected(sae, name)
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
        if self.latents {
            return 0..self.parts;
        }
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
        let rows = batch.activations.dims()[0] / self.own().len();
        let (mut terms, first) = (Vec::new(), self.own().start);
        let part = |part: usize| -> Gradients {
            let start = (part - first) * rows;
            let activations = batch.activations.clone().narrow(0, start, rows);
            let output = TrainStep::step(learner, ActivationBatch { activations });
            terms = output.item.terms().to_vec();
            let mut gradients = Gradients::of(learner, output.grads, output.item.into_numbers());
            if let Some(rounding) = &self.rounding {
                rounding.round(part, learner, gradients.tensors_mut());
            }
            gradients
        };
        let own = self.own_sums(part);
        let (layout, rank) = (self.layout(learner, &own), self.comm.rank());
        let total = layout
            .read(&Exchange::new(self, &layout).sum(own), rank)
            .over(self.parts);
        let squares = Slices::sum_of_squares(&self.comm.gather(&layout.squares(&total, rank)));
        let (grads, numbers) = total.into_parts(learner);
        let size = (self.parts, rows, learner.variance());
        let item = StepOutput::of_parts(numbers, terms, squares, size);
        if let Some(rounding) = self.rounding.as_ref().filter(|_| !item.is_finite()) {
            rounding.forget();
        }
        TrainOutput { grads, item }
    }

    /// The sums of this process's parts, as far as the tree goes.
    fn own_sums(&self, mut part: impl FnMut(usize) -> Gradients) -> Vec<Gradients> {
        let nodes = Node::root(self.parts).within(&self.own());
        let sum = |node: Node| {
            let leaf = |node: Node| node.is_leaf().then(|| part(node.first()));
            node.sum(leaf, Gradients::plus)
        };
        nodes.into_iter().map(sum).collect()
    }

    /// The layout of messages, on which all processes agree.
    fn layout(&self, learner: &SaeLearner, own: &[Gradients]) -> Layout {
        let lengths: Vec<Vec<usize>> = own.iter().map(Gradients::lengths).collect();
        let written = serde_json::to_vec(&lengths).expect("plain numbers");
        let all = self.comm.gather_bytes(&written);
        let read = |written: &Vec<u8>| -> Vec<Vec<usize>> {
            serde_json::from_slice(written)
                .expect("what another process of this version has written")
        };
        let all: Vec<Vec<usize>> = all.iter().flat_map(read).collect();
        Layout::agreed(learner, self.slices(learner), &all, own[0].numbers())
    }

    /// Whether gradients are sent in two bytes: those of a part are bf16, sums of several are not.
    fn packs(&self) -> bool {
        self.rounding.is_some() && self.parts == self.comm.ranks()
    }

    /// Writes what rounding has taken away from the gradients of this process's parts into a checkpoint, and hears whether all have
    /// written theirs.
    ///
    /// # Errors
    /// The first that a process has met.
    fn write_rounding(&self, staging: &Path, learner: &SaeLearner) -> Result<(), Failure> {
        let Some(rounding) = &self.rounding else {
            return Ok(());
        };
        let mut own = self.own();
        let written = own.try_for_each(|part| rounding.write(staging, part, learner));
        self.all_have(written, staging)
    }

    /// Reads it from the checkpoint in `dir`.
    pub(crate) fn read_rounding(
        &self,
        dir: &Path,
        learner: &SaeLearner,
    ) -> Result<(), RestoreError> {
        let Some(rounding) = &self.rounding else {
            return Ok(());
        };
        let mut own = self.own();
        let read = own.try_for_each(|part| rounding.read(dir, part, learner));
        read.map_err(|(path, reason)| RestoreError::Record { path, reason })
    }

    /// Hears whether all processes have written their part of a checkpoint.
    fn all_have(&self, written: Result<(), Failure>, staging: &Path) -> Result<(), Failure> {
        let said = match &written {
            Ok(()) => String::new(),
            Err(failure) => chain(failure), // with the number that tells a full disk
        };
        let all = self.comm.gather_bytes(said.as_bytes());
        match all.iter().find(|said| !said.is_empty()) {
            None => Ok(()),
            Some(said) => Err(Failure::write_message(
                staging,
                &String::from_utf8_lossy(said),
            )),
        }
    }

    fn slices(&self, learner: &SaeLearner) -> Slices {
        Slices {
            latents: learner.sae.config().n_latents,
            blocks: self.parts,
            ranks: self.comm.ranks(),
        }
    }
}
