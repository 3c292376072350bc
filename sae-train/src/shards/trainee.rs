//! What a training loop trains: a learner of this process, or one that is spread over several.

use std::sync::atomic::Ordering;

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use burn::train::{Learner, TrainOutput};
use sae_data::ActivationBatch;

use super::follow::Command;
use super::{Apart, Shards};
use crate::learner::SaeLearner;
use crate::numbers::StepOutput;

/// A learner in training, seen from process 0.
pub(crate) enum Trainee {
    /// In this process.
    Here {
        learner: Box<Learner<SaeLearner>>,
        shards: Shards,
    },
    /// With processes that do what this one tells them.
    Apart(Box<Apart>),
}

impl Trainee {
    /// A learner of this process, on a device.
    pub(crate) fn here(mut learner: Learner<SaeLearner>, shards: Shards, device: &Device) -> Self {
        learner.fork(device);
        let learner = Box::new(learner);
        Self::Here { learner, shards }
    }

    pub(crate) fn model(&self) -> SaeLearner {
        match self {
            Self::Here { learner, .. } => learner.model(),
            Self::Apart(apart) => apart.model(),
        }
    }

    pub(crate) fn lr_step(&mut self) {
        match self {
            Self::Here { learner, .. } => learner.lr_step(),
            Self::Apart(apart) => apart.lr_step(),
        }
    }

    pub(crate) fn lr_current(&self) -> ModuleLearningRate {
        match self {
            Self::Here { learner, .. } => learner.lr_current(),
            Self::Apart(apart) => apart.lr_current(),
        }
    }

    pub(crate) fn train_step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        match self {
            Self::Here { learner, shards } => shards.train_step(&learner.model(), batch),
            Self::Apart(apart) => {
                Command::Step.tell(apart.comm());
                apart.train_step(batch)
            }
        }
    }

    pub(crate) fn optimizer_step(&mut self, grads: GradientsParams) {
        match self {
            Self::Here { learner, .. } => learner.optimizer_step(grads),
            Self::Apart(apart) => apart.optimizer_step(grads),
        }
    }

    /// Hands on the learner with all that a checkpoint has of it.
    pub(crate) fn save(&self, save: impl FnOnce(&Learner<SaeLearner>)) {
        match self {
            Self::Here { learner, .. } => save(learner),
            Self::Apart(apart) => {
                Command::Save.tell(apart.comm());
                save(&apart.gathered().expect("process 0"));
            }
        }
    }

    /// Tells the others, if there are any, that training ends.
    pub(crate) fn end(&self) {
        if let Self::Apart(apart) = self {
            Command::End.tell(apart.comm());
            apart.shards().ended.store(true, Ordering::Relaxed);
        }
    }
}
