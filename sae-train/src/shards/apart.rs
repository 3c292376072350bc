//! A learner whose latents, as far as Adam goes, are spread over processes.

use std::collections::BTreeMap;

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::train::{Learner, TrainOutput, TrainStep};
use sae_data::ActivationBatch;

use super::moments::Moments;
use super::slices::Slices;
use super::{Shards, without_moments};
use crate::learner::SaeLearner;
use crate::numbers::StepOutput;

/// Every process has the whole model, which is what steps are computed with, and changes its own slice of it.
pub(crate) struct Apart {
    shards: Shards,
    slices: Slices,
    /// The parameters that are cut, and their numbers of rows.
    cut: BTreeMap<u64, usize>,
    whole: SaeLearner,
    slice: SaeLearner,
    /// With the moments of the slice.
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
    lr: ModuleLearningRate,
}

impl Apart {
    /// This process's part of a learner that all have, fresh or from a checkpoint.
    pub(crate) fn new(
        shards: Shards,
        (whole, optimizer, scheduler): (SaeLearner, ModuleOptimizer, ModuleLrScheduler),
    ) -> Self {
        let (slices, rank) = (shards.slices(&whole), shards.comm.rank());
        let cut = slices.cut_of(&whole);
        let record = optimizer.to_record();
        let optimizer = match record.is_empty() {
            true => optimizer,
            false => optimizer.load_record(Moments::of(record, &cut).slice(slices, rank)),
        };
        Self {
            slice: slices.slice(whole.clone(), rank),
            shards,
            slices,
            cut,
            whole,
            optimizer,
            scheduler,
            lr: 0.0.into(),
        }
    }

    /// How the parts of a batch are shared.
    pub(super) fn shards(&self) -> &Shards {
        &self.shards
    }

    /// A learner for Burn's trainer, which trains this one in its place.
    pub(crate) fn without_moments(&self) -> Learner<SaeLearner> {
        without_moments(self.model(), self.scheduler.clone())
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
        let own = Slices::numbers(&self.slice, &self.cut);
        let all = self.shards.comm.gather(&own);
        self.whole = self.slices.joined(self.whole.clone(), &self.slice, &all);
    }

    /// At process 0, the learner with the moments of all; the others send theirs.
    pub(crate) fn gathered(&self) -> Option<Learner<SaeLearner>> {
        let moments = Moments::of(self.optimizer.to_record(), &self.cut);
        let comm = self.shards.comm();
        let mut messages = vec![Vec::new(); comm.ranks()];
        messages[0] = moments.numbers();
        let messages = comm.exchange(messages);
        (comm.rank() == 0).then(|| {
            let record = moments.joined(self.slices, &messages);
            let optimizer = self.optimizer.clone().load_record(record);
            Learner::new(self.model(), optimizer, self.scheduler.clone())
        })
    }
}
