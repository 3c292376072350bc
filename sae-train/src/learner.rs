//! The module that Burn's Learner trains: the autoencoder, and what training keeps count of.
//!
//! State that must survive a checkpoint lives in parameters that no optimizer touches. The firing counts
//! of a batch travel from `step` (which sees the batch) to `optimize` (which may change the module) beside
//! the gradients, under the identity of the counter they update.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Int, Tensor};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use sae_data::ActivationBatch;
use sae_model::loss::{self, Coefficients, Loss, Step, Term};
use sae_model::{Architecture, Forward, Mode, Sae, ops, parameters};

use crate::numbers::{OnDevice, StepOutput};

/// The numbers that a step needs beside the model.
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
    /// Of the architecture's terms of the loss.
    pub(crate) coefficients: Coefficients,
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

/// How held-out rows come out.
pub(crate) struct Look {
    /// `[B, d]`.
    pub(crate) x_hat: Tensor<2>,
    /// Active latents of all rows together.
    pub(crate) active: usize,
    /// Latents that have not fired within the window of training.
    pub(crate) dead: usize,
}

/// Adds up the squares of the gradients of a module's parameters.
struct SquaredGradients<'a> {
    grads: &'a GradientsParams,
    sum: Tensor<1>,
    /// The parameters of which other processes have rows, too, and their sum.
    spread: BTreeSet<u64>,
    of_spread: Tensor<1>,
}

impl ModuleVisitor for SquaredGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.grads.get::<D>(param.id) {
            let sum = match self.spread.contains(&param.id.val()) {
                true => &mut self.of_spread,
                false => &mut self.sum,
            };
            *sum = sum.clone() + ops::squared_norm(gradient);
        }
    }
}

/// The loss that training minimises, in its terms.
struct TrainingLoss {
    reconstruction: Tensor<1>,
    /// The terms that the architecture adds.
    terms: Vec<Term>,
    /// Of the batch, without gradient.
    squared_error: Tensor<1>,
}

impl TrainingLoss {
    fn total(&self) -> Tensor<1> {
        let terms = self.terms.iter().map(|term| term.value.clone());
        terms.fold(self.reconstruction.clone(), |total, term| total + term)
    }
}

impl SaeLearner {
    pub(crate) fn new(sae: Sae, settings: Settings, device: &Device) -> Self {
        let counter = |name, len| {
            let mut counter = Param::from_tensor(Tensor::zeros([len], device));
            counter.id = parameters::id_of(name);
            counter.set_require_grad(false)
        };
        let n_latents = sae.across().own().len();
        Self {
            sae,
            frequency: counter("frequency", n_latents),
            silent: counter("silent", n_latents),
            steps: Param::initialized(parameters::id_of("steps"), Tensor::zeros([1], device)),
            settings,
        }
    }

    /// The reconstruction loss of held-out rows, and without gradient `sum ||x_hat - x||^2`, both `[1]`.
    pub(crate) fn held_out_loss(&self, x: Tensor<2>, x_hat: Tensor<2>) -> (Tensor<1>, Tensor<1>) {
        let Settings {
            loss,
            held_out_variance,
            ..
        } = self.settings;
        loss.with_squared_error(x, x_hat, held_out_variance)
    }

    /// How held-out rows come out.
    pub(crate) fn look(&self, x: Tensor<2>) -> Look {
        let forward = self.sae.forward(x, &Mode::Inference);
        let values = forward.encoded.latents.host_values();
        let across = self.sae.across();
        Look {
            x_hat: forward.x_hat,
            active: across.count(values.iter().filter(|a| **a != 0.0).count()),
            dead: across.count(self.dead().len()),
        }
    }

    /// sigma^2 of the training data.
    pub(crate) fn variance(&self) -> f64 {
        self.settings.variance
    }

    /// The same with the count of batches of another.
    pub(crate) fn with_steps_of(mut self, other: &Self) -> Self {
        self.steps = other.steps.clone();
        self
    }

    /// Batches counted so far.
    fn steps_done(&self) -> usize {
        self.steps.val().into_scalar::<i64>() as usize
    }

    /// 1 for latents that may take part and 0 for those that fire too often `[M]`; empty if no cutoff.
    fn mask(&self) -> Vec<f32> {
        let cutoff = self.settings.frequency_cutoff;
        if cutoff >= 1.0 {
            return Vec::new();
        }
        let mask = self.frequency.val().inner().lower_equal_elem(cutoff);
        mask.float().into_data().iter().collect()
    }

    /// Of the latents that are here, those that have not fired within the window.
    pub(crate) fn dead(&self) -> Vec<u32> {
        let silent: Vec<f32> = self.silent.val().into_data().iter().collect();
        let window = self.settings.dead_window as f32;
        let dead = |(j, steps): (usize, f32)| (steps >= window).then_some(j as u32);
        silent.into_iter().enumerate().filter_map(dead).collect()
    }

    /// The numbers of a batch whose loss is its reconstruction's alone.
    fn measure(
        &self,
        (reconstruction_loss, squared_error): (Tensor<1>, Tensor<1>),
        fired: &Tensor<1>,
    ) -> OnDevice {
        let window = self.settings.dead_window as f64;
        let dead = self.silent.val().inner().greater_equal_elem(window);
        let across = self.sae.across();
        OnDevice {
            loss: reconstruction_loss.clone(),
            reconstruction_loss,
            squared_error,
            l0: across.sum(ops::sum(fired.clone())),
            dead: across.sum(ops::sum(dead.float())),
            squared_gradients: Tensor::zeros([1], &self.silent.val().inner().device()),
            terms: Vec::new(),
        }
    }

    fn squared_gradients(&self, grads: &GradientsParams) -> Tensor<1> {
        let (across, zero) = (
            self.sae.across(),
            Tensor::zeros([1], &self.silent.val().inner().device()),
        );
        let mut visitor = SquaredGradients {
            grads,
            sum: zero.clone(),
            spread: BTreeSet::new(),
            of_spread: zero,
        };
        if !across.is_apart() {
            self.visit(&mut visitor);
            return visitor.sum;
        }
        let spread = parameters::table(self.sae.config()).into_iter();
        let spread = spread.filter(|parameter| parameter.shape.is_of_latents());
        visitor.spread = spread.map(|p| parameters::id_of(p.name).val()).collect();
        self.visit(&mut visitor);
        visitor.sum + across.sum(visitor.of_spread)
    }

    /// The terms of what training minimises, and the batch's squared error.
    fn loss(&self, x: &Tensor<2>, forward: &Forward, mask: &[f32]) -> TrainingLoss {
        let Settings { loss, variance, .. } = self.settings;
        let factors = loss::row_factors(x.clone(), self.settings.row_limit);
        let bounded = |x: Tensor<2>| match &factors {
            Some(factors) => x * factors.clone(),
            None => x,
        };
        let (reconstruction, squared_error) =
            loss.with_squared_error(bounded(x.clone()), bounded(forward.x_hat.clone()), variance);
        let distance = |target, other| loss.forward(bounded(target), bounded(other), variance);
        let (dead, steps_done) = (|| self.dead(), || self.steps_done());
        let step = Step::new(
            (&self.sae, x, forward),
            (mask, &steps_done),
            &self.settings.coefficients,
            &dead,
            &distance,
        );
        TrainingLoss {
            reconstruction,
            terms: self.sae.config().architecture.losses(&step),
            squared_error,
        }
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
        let mask = Arc::new(self.mask());
        let mode = Mode::Training { mask: mask.clone() };
        let forward =
            tracing::debug_span!("forward").in_scope(|| self.sae.forward(x.clone(), &mode));
        let fired = forward.encoded.latents.firing_frequency();
        let losses = self.loss(&x, &forward, &mask);
        let loss = losses.total();
        let without_gradient = |term: Term| Term {
            value: term.value.inner(),
            ..term
        };
        let reconstruction = (losses.reconstruction.inner(), losses.squared_error);
        let numbers = OnDevice {
            loss: loss.clone().inner(),
            terms: losses.terms.into_iter().map(without_gradient).collect(),
            ..self.measure(reconstruction, &fired)
        };
        let observed = self.sae.config().architecture.observe(&forward.encoded);
        let observed = self.sae.across().least(observed);
        drop(forward);
        let grads = tracing::debug_span!("backward").in_scope(|| loss.backward());
        let grads = GradientsParams::from_grads(grads, self);
        let numbers = OnDevice {
            squared_gradients: self.squared_gradients(&grads),
            ..numbers
        };
        let item = StepOutput::new(numbers, self.settings.variance, x.dims()[0]);
        let mut output = TrainOutput { grads, item };
        output.grads.register(self.frequency.id, fired);
        if let Some(observed) = observed {
            output.grads.register(self.silent.id, observed);
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
        let observed = grads.remove::<1>(self.silent.id);
        let mut learner = optimizer.step(lr, self, grads);
        learner.sae = learner.sae.after_update(observed);
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
        let forward = self.sae.forward(x.clone(), &Mode::Inference);
        let fired = forward.encoded.latents.firing_frequency();
        let [rows, _] = x.dims();
        let losses = self.held_out_loss(x, forward.x_hat);
        let numbers = self.measure(losses, &fired);
        StepOutput::new(numbers, self.settings.held_out_variance, rows)
    }
}

#[cfg(test)]
mod tests;
