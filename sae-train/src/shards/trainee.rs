//! What a training loop trains: a learner of this process, or one that is spread over several.

use std::path::Path;

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn::train::{InferenceStep, Learner, TrainOutput};
use sae_data::ActivationBatch;

use super::follow::Command;
use super::spread::is_finite;
use super::{Portion, Shards, Spread};
use crate::failure::Failure;
use crate::learner::{Look, SaeLearner};
use crate::numbers::StepOutput;

/// A learner in training, seen from process 0.
pub(crate) enum Trainee {
    /// In this process.
    Here {
        learner: Box<Learner<SaeLearner>>,
        shards: Shards,
    },
    /// With other processes, which are told what to do.
    Together(Portion),
}

impl Trainee {
    /// A learner of this process, on a device.
    pub(crate) fn here(mut learner: Learner<SaeLearner>, shards: Shards, device: &Device) -> Self {
        learner.fork(device);
        let learner = Box::new(learner);
        Self::Here { learner, shards }
    }

    /// The model; where latents are spread over processes, what is here of it.
    pub(crate) fn model(&self) -> SaeLearner {
        match self {
            Self::Here { learner, .. } => learner.model(),
            Self::Together(portion) => portion.model().clone(),
        }
    }

    pub(crate) fn lr_step(&mut self) {
        match self {
            Self::Here { learner, .. } => learner.lr_step(),
            Self::Together(portion) => portion.own_mut().lr_step(),
        }
    }

    pub(crate) fn lr_current(&self) -> ModuleLearningRate {
        match self {
            Self::Here { learner, .. } => learner.lr_current(),
            Self::Together(portion) => portion.own().lr(),
        }
    }

    pub(crate) fn train_step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        match self {
            Self::Here { learner, shards } => shards.train_step(&learner.model(), batch),
            Self::Together(portion) => {
                Command::Step.tell(portion.shards().comm());
                portion.train_step(batch)
            }
        }
    }

    pub(crate) fn optimizer_step(&mut self, grads: GradientsParams) {
        match self {
            Self::Here { learner, .. } => learner.optimizer_step(grads),
            Self::Together(portion) => portion.optimizer_step(grads),
        }
    }

    /// The latents of this process, if others have some, too.
    fn spread(&self) -> Option<&Spread> {
        match self {
            Self::Together(Portion::Latents(spread)) => Some(spread),
            _ => None,
        }
    }

    /// The numbers of a batch of held-out rows; `model` is the one of now, without gradients.
    pub(crate) fn validate(&self, model: &SaeLearner, batch: ActivationBatch) -> StepOutput {
        match self.spread() {
            Some(spread) => {
                let x = batch.activations;
                Command::Validate.tell_with(spread.shards.comm(), &x);
                spread.validate(x)
            }
            None => InferenceStep::step(model, batch),
        }
    }

    /// How held-out rows come out.
    pub(crate) fn look(&self, x: Tensor<2>) -> Look {
        match self.spread() {
            Some(spread) => {
                Command::Look.tell_with(spread.shards.comm(), &x);
                spread.look(x)
            }
            None => self.model().valid().look(x),
        }
    }

    /// Whether every parameter is finite.
    pub(crate) fn is_finite(&self) -> bool {
        match self.spread() {
            Some(spread) => {
                Command::CheckFinite.tell(spread.shards.comm());
                spread.is_finite()
            }
            None => is_finite(&self.model()),
        }
    }

    /// Hands on the learner with all that this process writes of it into a checkpoint; the others have written theirs into `staging`.
    ///
    /// # Errors
    /// If another process cannot write.
    pub(crate) fn save(
        &self,
        staging: &Path,
        save: impl FnOnce(&Learner<SaeLearner>),
    ) -> Result<(), Failure> {
        match self {
            Self::Here { learner, shards } => {
                shards.write_rounding(staging, &learner.model())?;
                save(learner);
            }
            Self::Together(portion) => {
                Command::Save(staging.into()).tell(portion.shards().comm());
                match portion {
                    Portion::Rows(apart) => {
                        apart.shards.write_rounding(staging, &apart.whole)?;
                        save(&apart.gathered().expect("process 0"));
                    }
                    Portion::Latents(spread) => {
                        spread.write_part(staging)?;
                        save(&spread.to_save());
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the others, if there are any, that training ends; `model_is_next` if it has reached its last step, and what they have of
    /// the model is to be collected.
    pub(crate) fn end(&self, model_is_next: bool) {
        match self {
            Self::Here { .. } => {}
            Self::Together(Portion::Latents(_)) if model_is_next => {}
            Self::Together(portion) => portion.shards().end(),
        }
    }
}
