//! A learner whose latents, as far as Adam goes, are spread over processes.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::train::Learner;

use super::Shards;
use super::moments::Moments;
use super::own::{Own, Start};
use super::slices::Slices;
use crate::learner::SaeLearner;

/// Every process has the whole model, which is what steps are computed with, and changes its own slice of it.
pub(crate) struct Apart {
    pub(super) shards: Shards,
    slices: Slices,
    /// The parameters that are cut, and their numbers of rows.
    cut: BTreeMap<u64, usize>,
    pub(super) whole: SaeLearner,
    /// The slice, with its moments.
    pub(super) own: Own,
}

impl Apart {
    /// This process's part of a learner that all have.
    pub(super) fn new(shards: Shards, (whole, optimizer, scheduler): Start) -> Self {
        let (slices, rank) = (shards.slices(&whole), shards.comm.rank());
        let cut = slices.cut_of(&whole);
        let record = optimizer.to_record();
        let optimizer = match record.is_empty() {
            true => optimizer,
            false => optimizer.load_record(Moments::of(record, &cut).slice(slices, rank)),
        };
        let slice = slices.slice(whole.clone(), rank);
        Self {
            shards,
            slices,
            cut,
            whole,
            own: Own::new((slice, optimizer, scheduler)),
        }
    }

    /// Changes this process's slice, and hears of the others'.
    pub(super) fn optimizer_step(&mut self, grads: GradientsParams) {
        self.own.optimizer_step(grads);
        let slice = &self.own.learner;
        let all = self.shards.comm.gather(&Slices::numbers(slice, &self.cut));
        self.whole = self.slices.joined(self.whole.clone(), slice, &all);
    }

    /// At process 0, the learner with the moments of all; the others send theirs.
    pub(super) fn gathered(&self) -> Option<Learner<SaeLearner>> {
        let moments = Moments::of(self.own.optimizer.to_record(), &self.cut);
        let comm = self.shards.comm();
        let mut messages = vec![Vec::new(); comm.ranks()];
        messages[0] = moments.numbers();
        let messages = comm.exchange(messages);
        (comm.rank() == 0).then(|| {
            let record = moments.joined(self.slices, &messages);
            let optimizer = self.own.optimizer.clone().load_record(record);
            self.own.to_save(self.whole.clone(), optimizer)
        })
    }
}
