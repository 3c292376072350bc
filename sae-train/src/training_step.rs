//! The training step by itself, without a run around it.

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::ModuleOptimizer;
use burn::tensor::Tensor;
use burn::train::TrainStep;
use sae_data::ActivationBatch;
use sae_model::Sae;
use sae_model::loss::{Coefficients, Loss};
use sae_model::ops::Adam;

use crate::learner::{SaeLearner, Settings};
use crate::numbers::Number;
use crate::trainer::{ADAM_EPSILON, optimizer_of};

/// A model in training: forward, backward, Adam and counters, with a constant learning rate. Data, checkpoints and
/// records are up to the caller.
pub struct TrainingStep {
    learner: SaeLearner,
    optimizer: ModuleOptimizer,
    lr: f64,
}

impl TrainingStep {
    /// Starts from `sae`, on a device with autodiff. The `variance` of the data is `mean ||x - mean(x)||^2`.
    pub fn new(sae: Sae, variance: f64, lr: f64) -> Self {
        let settings = Settings {
            loss: Loss::Fvu,
            variance,
            row_limit: f64::INFINITY,
            held_out_variance: variance,
            frequency_cutoff: 1.0,
            dead_window: usize::MAX,
            coefficients: Coefficients::default(),
        };
        let adam = Adam {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: ADAM_EPSILON,
            unit_rows: false,
        };
        let device = sae.w_dec().device();
        Self {
            optimizer: optimizer_of(&sae, adam),
            learner: SaeLearner::new(sae, settings, &device),
            lr,
        }
    }

    /// Trains on the batch `[B, d]`; returns its mean L0.
    pub fn take(&mut self, activations: Tensor<2>) -> f64 {
        let output = TrainStep::step(&self.learner, ActivationBatch { activations });
        // As in Burn's trainer, the old model is kept while the new one is made.
        let old = self.learner.clone();
        let lr = ModuleLearningRate::from(self.lr);
        self.learner = old.optimize(&mut self.optimizer, lr, output.grads);
        output.item.number(Number::L0)
    }
}
