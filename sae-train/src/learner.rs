//! The module that Burn's Learner trains: the autoencoder, and what training keeps count of.
//!
//! State that must survive a checkpoint lives in parameters that no optimizer touches. The firing counts
//! of a batch travel from `step` (which sees the batch) to `optimize` (which may change the module) beside
//! the gradients, under the identity of the counter they update.

use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, ExecutionError, Int, Tensor};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use sae_data::ActivationBatch;
use sae_model::loss::{self, Loss};
use sae_model::{Reconstructed, Sae, Training, ops};

use crate::collapse::Seen;

/// What a step needs to know beside the model.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) loss: Loss,
    /// sigma^2 of the training data, `mean ||x - mean(x)||^2`.
    pub(crate) variance: f64,
    /// Norm beyond which rows count as rows of this norm in what training minimises (`loss::row_factors`).
    pub(crate) row_limit: f64,
    /// sigma^2 of the held-out rows that a validation looks at.
    pub(crate) held_out_variance: f64,
    /// Latents that fire more often than this are switched off while training; 1 for none.
    pub(crate) frequency_cutoff: f64,
    /// Steps without firing after which a latent counts as dead.
    pub(crate) dead_window: usize,
    /// Weight of the sparsity penalty, reached after the warm-up steps.
    pub(crate) sparsity_coefficient: f64,
    pub(crate) sparsity_warmup_steps: usize,
    /// L0 that JumpReLU's penalty aims at.
    pub(crate) target_l0: f64,
    /// Weight of the auxiliary reconstruction, and the dead latents that it may use.
    pub(crate) aux_coefficient: f64,
    pub(crate) aux_k: usize,
}

/// A sparse autoencoder in training.
#[derive(Module, Debug)]
pub(crate) struct SaeLearner {
    pub(crate) sae: Sae,
    /// Running firing frequency of each latent `[M]`: mean over the steps so far.
    frequency: Param<Tensor<1>>,
    /// Steps since each latent last fired `[M]`.
    silent: Param<Tensor<1>>,
    /// Batches counted so far `[1]`: steps, but for those passed over.
    steps: Param<Tensor<1, Int>>,
    #[module(skip)]
    settings: Settings,
}

/// The numbers of one batch, on the device until a metric asks for them.
#[derive(Debug)]
pub(crate) struct StepOutput {
    /// What training minimises `[1]`, the sum of the terms below; in a validation the first alone.
    pub(crate) loss: Tensor<1>,
    /// The reconstruction loss `[1]`.
    pub(crate) reconstruction_loss: Tensor<1>,
    /// The sparsity penalty times its coefficient at this step `[1]`, in training, where there is one.
    pub(crate) sparsity_loss: Option<Tensor<1>>,
    /// The auxiliary reconstruction's loss times its coefficient `[1]`, in training, where there is one.
    pub(crate) auxiliary_loss: Option<Tensor<1>>,
    /// `sum ||x - x_hat||^2 / (B sigma^2)` `[1]`: averaged over the held-out rows it is their FVU. In training rows
    /// beyond [`Settings::row_limit`] count as rows at it.
    pub(crate) fvu: Tensor<1>,
    /// Mean number of active latents `[1]`.
    pub(crate) l0: Tensor<1>,
    /// Latents that have not fired within the window, before this batch `[1]`.
    pub(crate) dead: Tensor<1>,
    /// Sum of the squares of all gradients `[1]`; zero in a validation.
    pub(crate) squared_gradients: Tensor<1>,
    /// Rows B of the batch.
    pub(crate) rows: usize,
}

impl StepOutput {
    /// Whether the loss and every gradient is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        let sum = self.loss.clone() + self.squared_gradients.clone();
        sum.into_scalar::<f32>().is_finite()
    }

    /// What a collapse would show in.
    pub(crate) fn seen(&self) -> Seen {
        let number = |tensor: &Tensor<1>| tensor.clone().into_scalar::<f64>();
        Seen {
            l0: number(&self.l0),
            fvu: number(&self.fvu),
            dead: number(&self.dead),
        }
    }

    /// For a message: `the loss is NaN`.
    pub(crate) fn what_is_not_finite(&self) -> String {
        match self.loss.clone().into_scalar::<f32>() {
            loss if loss.is_finite() => {
                format!("the loss is {loss}, but a gradient is NaN or infinite")
            }
            loss => format!("the loss is {loss}"),
        }
    }
}

/// Adds up the squares of the gradients of a module's parameters.
struct SquaredGradients<'a> {
    grads: &'a GradientsParams,
    sum: Tensor<1>,
}

impl ModuleVisitor for SquaredGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.grads.get::<D>(param.id) {
            self.sum = self.sum.clone() + ops::squared_norm(gradient);
        }
    }
}

/// The terms of the training loss, each with its weight in it `[1]`.
struct Terms {
    reconstruction: Tensor<1>,
    sparsity: Option<Tensor<1>>,
    auxiliary: Option<Tensor<1>>,
    /// Of the batch, without gradient.
    fvu: Tensor<1>,
}

impl Terms {
    fn total(&self) -> Tensor<1> {
        let more = self.sparsity.iter().chain(&self.auxiliary).cloned();
        more.fold(self.reconstruction.clone(), |total, term| total + term)
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl SaeLearner {
    pub(crate) fn new(sae: Sae, settings: Settings, device: &Device) -> Self {
        let counter =
            |len| Param::from_tensor(Tensor::zeros([len], device)).set_require_grad(false);
        let n_latents = sae.config().n_latents;
        Self {
            sae,
            frequency: counter(n_latents),
            silent: counter(n_latents),
            steps: Param::initialized(ParamId::new(), Tensor::zeros([1], device)),
            settings,
        }
    }

    /// sigma^2 of the rows that a validation looks at.
    pub(crate) fn held_out_variance(&self) -> f64 {
        self.settings.held_out_variance
    }

    /// Batches counted so far.
    fn steps_done(&self) -> usize {
        self.steps.val().into_scalar::<i64>() as usize
    }

    /// 1 for latents that may take part and 0 for those that fire too often `[M]`; empty if no cutoff.
    fn keep(&self) -> Vec<f32> {
        let cutoff = self.settings.frequency_cutoff;
        if cutoff >= 1.0 {
            return Vec::new();
        }
        let keep = self.frequency.val().inner().lower_equal_elem(cutoff);
        keep.float().into_data().iter().collect()
    }

    /// Latents that have not fired within the window.
    pub(crate) fn dead(&self) -> Vec<u32> {
        let silent: Vec<f32> = self.silent.val().into_data().iter().collect();
        let window = self.settings.dead_window as f32;
        let dead = |(j, steps): (usize, f32)| (steps >= window).then_some(j as u32);
        silent.into_iter().enumerate().filter_map(dead).collect()
    }

    /// The numbers of a batch of `rows` rows, whose loss is its reconstruction's alone.
    fn measure(
        &self,
        reconstruction_loss: Tensor<1>,
        fvu: Tensor<1>,
        fired: &Tensor<1>,
        rows: usize,
    ) -> StepOutput {
        let window = self.settings.dead_window as f64;
        let dead = self.silent.val().inner().greater_equal_elem(window);
        StepOutput {
            loss: reconstruction_loss.clone(),
            reconstruction_loss,
            sparsity_loss: None,
            auxiliary_loss: None,
            fvu,
            l0: fired.clone().sum(),
            dead: dead.float().sum(),
            squared_gradients: Tensor::zeros([1], &self.silent.val().inner().device()),
            rows,
        }
    }

    fn squared_gradients(&self, grads: &GradientsParams) -> Tensor<1> {
        let sum = Tensor::zeros([1], &self.silent.val().inner().device());
        let mut visitor = SquaredGradients { grads, sum };
        self.visit(&mut visitor);
        visitor.sum
    }

    /// What training minimises, term by term, and the batch's FVU.
    fn loss(&self, x: &Tensor<2>, r: &Reconstructed) -> Terms {
        let Settings {
            loss,
            variance,
            aux_coefficient,
            aux_k,
            ..
        } = self.settings;
        let [rows, _] = x.dims();
        let factors = loss::row_factors(x.clone(), self.settings.row_limit);
        let bounded = |x: Tensor<2>| match &factors {
            Some(factors) => x * factors.clone(),
            None => x,
        };
        let (reconstruction, squared_error) =
            loss.with_squared_error(bounded(x.clone()), bounded(r.x_hat.clone()), variance);
        let penalty = self.sae.penalty(&r.encoded, self.settings.target_l0);
        let mut auxiliary = None;
        if aux_coefficient > 0.0 {
            // only the k largest of a row leave latents behind that the others must take along
            let dead = match self.sae.config().architecture.has_k() {
                true => self.dead(),
                false => Vec::new(),
            };
            auxiliary = self.sae.auxiliary(x, &r.x_hat, &r.encoded, &dead, aux_k);
        }
        Terms {
            reconstruction,
            sparsity: penalty.map(|penalty| penalty * self.sparsity_coefficient()),
            auxiliary: auxiliary.map(|(target, reconstruction)| {
                loss.forward(bounded(target), bounded(reconstruction), variance) * aux_coefficient
            }),
            fvu: squared_error / (rows as f64 * variance),
        }
    }

    /// Weight of the sparsity penalty at this step.
    fn sparsity_coefficient(&self) -> f64 {
        let warmup = self.settings.sparsity_warmup_steps.max(1);
        let risen = (self.steps_done() + 1) as f64 / warmup as f64;
        self.settings.sparsity_coefficient * risen.min(1.0)
    }

    /// Updates the counters with the firing frequencies `[M]` of a batch.
    fn count(mut self, fired: Tensor<1>) -> Self {
        let state = |param: &Param<Tensor<1>>| param.val().inner();
        let steps = self.steps.val() + 1;
        let frequency = state(&self.frequency);
        let frequency =
            frequency.clone() + (fired.clone() - frequency) / steps.clone().float().inner();
        let silent = (state(&self.silent) + 1.0) * fired.equal_elem(0.0).float();
        let set =
            |param: Param<Tensor<1>>, value: Tensor<1>| param.map(|_| Tensor::from_inner(value));
        self.steps = self.steps.map(|_| steps);
        self.frequency = set(self.frequency, frequency);
        self.silent = set(self.silent, silent);
        self
    }
}

impl TrainStep for SaeLearner {
    type Input = ActivationBatch;
    type Output = StepOutput;

    fn step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        let x = batch.activations;
        let training = Training {
            keep: Arc::new(self.keep()),
        };
        let r = tracing::debug_span!("forward")
            .in_scope(|| self.sae.reconstruct_training(x.clone(), &training));
        let fired = r.encoded.activations.firing_frequency();
        let terms = self.loss(&x, &r);
        let loss = terms.total();
        let reconstruction = terms.reconstruction.inner();
        let output = StepOutput {
            loss: loss.clone().inner(),
            sparsity_loss: terms.sparsity.map(Tensor::inner),
            auxiliary_loss: terms.auxiliary.map(Tensor::inner),
            ..self.measure(reconstruction, terms.fvu, &fired, x.dims()[0])
        };
        let smallest = self.sae.smallest_activation(&r.encoded);
        drop(r);
        let grads = tracing::debug_span!("backward").in_scope(|| loss.backward());
        let mut output = TrainOutput::new(self, grads, output);
        output.item.squared_gradients = self.squared_gradients(&output.grads);
        output.grads.register(self.frequency.id, fired);
        if let (Some(threshold), Some(smallest)) = (&self.sae.batch_threshold, smallest) {
            output.grads.register(threshold.id, smallest);
        }
        output
    }

    fn optimize(
        self,
        optimizer: &mut ModuleOptimizer,
        lr: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        let _span = tracing::debug_span!("optimize").entered();
        let fired = grads.remove::<1>(self.frequency.id);
        let threshold = self
            .sae
            .batch_threshold
            .as_ref()
            .map(|threshold| threshold.id);
        let smallest = threshold.and_then(|id| grads.remove::<1>(id));
        let unit_norm = self.sae.config().unit_norm_decoder;
        let concepts = self.sae.concepts.id;
        if unit_norm && let Some(gradient) = grads.remove::<2>(concepts) {
            grads.register(concepts, self.sae.across_concepts(gradient));
        }
        let mut learner = optimizer.step(lr, self, grads);
        if unit_norm {
            learner.sae = learner.sae.with_unit_concepts();
        }
        learner.sae = learner.sae.with_thresholds_above_zero();
        if let Some(smallest) = smallest {
            learner.sae = learner.sae.follow_threshold(smallest);
        }
        match fired {
            Some(fired) => learner.count(fired),
            None => learner,
        }
    }
}

impl InferenceStep for SaeLearner {
    type Input = ActivationBatch;
    type Output = StepOutput;

    fn step(&self, batch: ActivationBatch) -> StepOutput {
        let x = batch.activations;
        let variance = self.settings.held_out_variance;
        let r = self.sae.reconstruct(x.clone());
        let fired = r.encoded.activations.firing_frequency();
        let [rows, _] = x.dims();
        let (loss, squared_error) = self.settings.loss.with_squared_error(x, r.x_hat, variance);
        self.measure(loss, squared_error / (rows as f64 * variance), &fired, rows)
    }
}

#[cfg(test)]
mod tests;
