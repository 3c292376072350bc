//! What a process has of a learner that is spread over several.

use burn::optim::GradientsParams;
use burn::train::{Learner, TrainOutput, TrainStep};
use sae_data::ActivationBatch;

use super::own::{Own, Start};
use super::{Apart, Shards, Spread};
use crate::learner::SaeLearner;
use crate::numbers::StepOutput;

/// Its rows of every batch and a slice of what Adam changes, or its latents.
pub(crate) enum Portion {
    Rows(Box<Apart>),
    Latents(Box<Spread>),
}

impl Portion {
    /// Of a learner of which this process has what `shards` says.
    pub(crate) fn new(shards: Shards, start: Start) -> Self {
        match shards.are_latents() {
            true => Self::Latents(Box::new(Spread::new(shards, start))),
            false => Self::Rows(Box::new(Apart::new(shards, start))),
        }
    }

    pub(super) fn shards(&self) -> &Shards {
        match self {
            Self::Rows(apart) => &apart.shards,
            Self::Latents(spread) => &spread.shards,
        }
    }

    pub(super) fn own(&self) -> &Own {
        match self {
            Self::Rows(apart) => &apart.own,
            Self::Latents(spread) => &spread.own,
        }
    }

    pub(super) fn own_mut(&mut self) -> &mut Own {
        match self {
            Self::Rows(apart) => &mut apart.own,
            Self::Latents(spread) => &mut spread.own,
        }
    }

    /// The model: whole, or the latents that are here.
    pub(super) fn model(&self) -> &SaeLearner {
        match self {
            Self::Rows(apart) => &apart.whole,
            Self::Latents(spread) => &spread.own.learner,
        }
    }

    /// A learner for Burn's trainer, which trains this one in its place: the same model, and no moments.
    pub(crate) fn without_moments(&self) -> Learner<SaeLearner> {
        self.own().without_moments(self.model().clone())
    }

    /// A step, of which every process takes its part.
    pub(super) fn train_step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        match self {
            Self::Rows(apart) => apart.shards.train_step(&apart.whole, batch),
            Self::Latents(spread) => TrainStep::step(&spread.own.learner, batch),
        }
    }

    pub(super) fn optimizer_step(&mut self, grads: GradientsParams) {
        match self {
            Self::Rows(apart) => apart.optimizer_step(grads),
            Self::Latents(spread) => spread.own.optimizer_step(grads),
        }
    }
}
