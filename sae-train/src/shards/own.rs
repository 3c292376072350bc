//! What a process trains by itself: parameters, their moments, and the schedule.

use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::train::{Learner, TrainStep};
use sae_model::ops::Adam;

use crate::learner::SaeLearner;

/// A learner, or a slice of one.
pub(crate) struct Own {
    pub(super) learner: SaeLearner,
    pub(super) optimizer: ModuleOptimizer,
    pub(super) scheduler: ModuleLrScheduler,
    lr: ModuleLearningRate,
}

/// Model, optimizer and schedule, fresh or from a checkpoint.
pub(crate) type Start = (SaeLearner, ModuleOptimizer, ModuleLrScheduler);

impl Own {
    pub(super) fn new((learner, optimizer, scheduler): Start) -> Self {
        Self {
            learner,
            optimizer,
            scheduler,
            lr: 0.0.into(),
        }
    }

    pub(super) fn lr_step(&mut self) {
        self.lr = self.scheduler.step();
    }

    pub(super) fn lr(&self) -> ModuleLearningRate {
        self.lr.clone()
    }

    pub(super) fn optimizer_step(&mut self, grads: GradientsParams) {
        let learner = self.learner.clone();
        self.learner = learner.optimize(&mut self.optimizer, self.lr.clone(), grads);
    }

    /// With this model and this optimizer, as Burn saves it.
    pub(super) fn to_save(
        &self,
        model: SaeLearner,
        optimizer: ModuleOptimizer,
    ) -> Learner<SaeLearner> {
        Learner::new(model, optimizer, self.scheduler.clone())
    }

    /// A learner for Burn's trainer where another is trained in its place: the model, and no moments.
    pub(super) fn without_moments(&self, model: SaeLearner) -> Learner<SaeLearner> {
        let none = Adam {
            beta_1: 0.0,
            beta_2: 0.0,
            epsilon: 0.0,
            unit_rows: false,
        };
        self.to_save(model, none.into())
    }
}
