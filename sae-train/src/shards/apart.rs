//! A learner whose latents, as far as Adam goes, are spread over processes.

use std::collections::BTreeSet;

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use burn::train::{Learner, TrainOutput, TrainStep};
use sae_comm::Comm;
use sae_data::ActivationBatch;

use super::slices::Slices;
use super::{Shards, moments};
use crate::learner::SaeLearner;
use crate::numbers::StepOutput;

/// Every process has the whole model, which is what steps are computed with, and changes its own slice of it.
pub(crate) struct Apart {
    shards: Shards,
    slices: Slices,
    /// The parameters that are cut.
    cut: BTreeSet<u64>,
    whole: SaeLearner,
    slice: SaeLearner,
    /// With the moments of the slice.
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
    lr: ModuleLearningRate,
}

/// The parameters that are cut.
struct Cut {
    slices: Slices,
    ids: BTreeSet<u64>,
}

impl ModuleVisitor for Cut {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.slices.cut(&param.val().dims()) {
            self.ids.insert(param.id.val());
        }
    }
}

impl Apart {
    /// This process's part of a learner that all have, fresh or from a checkpoint.
    pub(crate) fn new(
        shards: Shards,
        (whole, optimizer, scheduler): (SaeLearner, ModuleOptimizer, ModuleLrScheduler),
    ) -> Self {
        let (slices, rank) = (shards.slices(&whole), shards.comm.rank());
        let mut cut = Cut {
            slices,
            ids: BTreeSet::new(),
        };
        whole.visit(&mut cut);
        let record = optimizer.to_record();
        let optimizer = match record.is_empty() {
            true => optimizer,
            false => optimizer.load_record(moments::cut(record, slices, rank)),
        };
        Self {
            slice: slices.slice(whole.clone(), rank),
            shards,
            slices,
            cut: cut.ids,
            whole,
            optimizer,
            scheduler,
            lr: 0.0.into(),
        }
    }

    /// The processes.
    pub(super) fn comm(&self) -> &dyn Comm {
        self.shards.comm()
    }

    /// How the parts of a batch are shared.
    pub(super) fn shards(&self) -> &Shards {
        &self.shards
    }

    /// The whole model.
    pub(crate) fn model(&self) -> SaeLearner {
        self.whole.clone()
    }

    pub(crate) fn lr_step(&mut self) {
        self.lr = self.scheduler.step();
    }

    pub(crate) fn lr_current(&self) -> ModuleLearningRate {
        self.lr.clone()
    }

    /// See [`Shards::train_step`].
    pub(crate) fn train_step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        self.shards.train_step(&self.whole, batch)
    }

    /// Changes this process's slice, and hears of the others'.
    pub(crate) fn optimizer_step(&mut self, grads: GradientsParams) {
        let slice = self.slice.clone();
        self.slice = slice.optimize(&mut self.optimizer, self.lr.clone(), grads);
        let own = self.slices.numbers(&self.slice, &self.whole);
        let all = self.shards.comm.gather(&own);
        self.whole = self.slices.joined(self.whole.clone(), &self.slice, &all);
    }

    /// At process 0, the learner with the moments of all; the others send theirs.
    pub(crate) fn gathered(&self) -> Option<Learner<SaeLearner>> {
        let is_cut = |id: u64| self.cut.contains(&id);
        let own = moments::numbers(self.optimizer.to_record(), &is_cut);
        let (comm, mut messages) = (self.shards.comm(), Vec::new());
        messages.resize(comm.ranks(), Vec::new());
        messages[0] = own;
        let messages = comm.exchange(messages);
        (comm.rank() == 0).then(|| {
            let record = self.optimizer.to_record();
            let record = moments::joined(record, &messages, self.slices, &is_cut);
            let optimizer = self.optimizer.clone().load_record(record);
            Learner::new(self.model(), optimizer, self.scheduler.clone())
        })
    }
}
