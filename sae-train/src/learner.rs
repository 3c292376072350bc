//! The module that Burn's Learner trains: the autoencoder, and what training keeps count of.
//!
//! State that must survive a checkpoint lives in parameters that no optimizer touches. The firing counts
//! of a batch travel from `step` (which sees the batch) to `optimize` (which may change the module) beside
//! the gradients, under the identity of the counter they update.

use burn::module::{Module, Param};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, ExecutionError, Tensor};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use sae_data::ActivationBatch;
use sae_model::Sae;
use sae_model::loss::Loss;

/// What a step needs to know beside the model.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) loss: Loss,
    /// sigma^2 of the training data, `mean ||x - mean(x)||^2`.
    pub(crate) variance: f64,
    /// sigma^2 of the held-out data.
    pub(crate) held_out_variance: f64,
    /// Latents that fire more often than this are switched off while training; 1 for none.
    pub(crate) frequency_cutoff: f64,
    /// Steps without firing after which a latent counts as dead.
    pub(crate) dead_window: usize,
}

/// A sparse autoencoder in training.
#[derive(Module, Debug)]
pub(crate) struct SaeLearner {
    pub(crate) sae: Sae,
    /// Running firing frequency of each latent `[M]`: mean over the steps so far.
    frequency: Param<Tensor<1>>,
    /// Steps since each latent last fired `[M]`.
    silent: Param<Tensor<1>>,
    /// Steps so far `[1]`.
    steps: Param<Tensor<1>>,
    #[module(skip)]
    settings: Settings,
}

/// The numbers of one batch, on the device until a metric asks for them.
#[derive(Debug)]
pub(crate) struct StepOutput {
    /// The training loss `[1]`.
    pub(crate) loss: Tensor<1>,
    /// `sum ||x - x_hat||^2 / (B sigma^2)` `[1]`: averaged over the held-out rows it is their FVU.
    pub(crate) fvu: Tensor<1>,
    /// Mean number of active latents `[1]`.
    pub(crate) l0: Tensor<1>,
    /// Latents that have not fired within the window, before this batch `[1]`.
    pub(crate) dead: Tensor<1>,
    /// Rows B of the batch.
    pub(crate) rows: usize,
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
            steps: counter(1),
            settings,
        }
    }

    /// Optimizer steps behind this model, those before a resume included.
    pub(crate) fn steps_done(&self) -> usize {
        self.steps.val().into_scalar::<f32>() as usize
    }

    /// 1 for latents that may take part and 0 for those that fire too often, `[1, M]`; none if no cutoff.
    fn keep(&self) -> Option<Tensor<2>> {
        let cutoff = self.settings.frequency_cutoff;
        (cutoff < 1.0).then(|| {
            let keep = self
                .frequency
                .val()
                .inner()
                .lower_equal_elem(cutoff)
                .float();
            Tensor::from_inner(keep.unsqueeze())
        })
    }

    /// Loss and numbers of a batch, and the firing frequency of each latent in it `[M]`.
    fn run(
        &self,
        x: Tensor<2>,
        keep: Option<Tensor<2>>,
        variance: f64,
    ) -> (Tensor<1>, StepOutput, Tensor<1>) {
        let [rows, _] = x.dims();
        let _span = tracing::debug_span!("forward", rows).entered();
        let r = self.sae.reconstruct(x.clone(), keep);
        let loss = self
            .settings
            .loss
            .forward(x.clone(), r.x_hat.clone(), variance);
        let squared_error = (r.x_hat.inner() - x.inner()).square().sum();
        let active = r.encoded.activations.inner().not_equal_elem(0.0).float();
        let fired = active.sum_dim(0).squeeze_dim::<1>(0) / rows as f64; // [M]
        let dead = self
            .silent
            .val()
            .inner()
            .greater_equal_elem(self.settings.dead_window as f64);
        let output = StepOutput {
            loss: loss.clone().inner(),
            fvu: squared_error / (rows as f64 * variance),
            l0: fired.clone().sum(),
            dead: dead.float().sum(),
            rows,
        };
        (loss, output, fired)
    }

    /// Updates the counters with the firing frequencies `[M]` of a batch.
    fn count(mut self, fired: Tensor<1>) -> Self {
        let state = |param: &Param<Tensor<1>>| param.val().inner();
        let steps = state(&self.steps) + 1.0;
        let frequency = state(&self.frequency);
        let frequency = frequency.clone() + (fired.clone() - frequency) / steps.clone();
        let silent = (state(&self.silent) + 1.0) * fired.equal_elem(0.0).float();
        let set =
            |param: Param<Tensor<1>>, value: Tensor<1>| param.map(|_| Tensor::from_inner(value));
        self.steps = set(self.steps, steps);
        self.frequency = set(self.frequency, frequency);
        self.silent = set(self.silent, silent);
        self
    }
}

impl TrainStep for SaeLearner {
    type Input = ActivationBatch;
    type Output = StepOutput;

    fn step(&self, batch: ActivationBatch) -> TrainOutput<StepOutput> {
        let variance = self.settings.variance;
        let (loss, output, fired) = self.run(batch.activations, self.keep(), variance);
        let grads = tracing::debug_span!("backward").in_scope(|| loss.backward());
        let mut output = TrainOutput::new(self, grads, output);
        output.grads.register(self.frequency.id, fired);
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
        let learner = optimizer.step(lr, self, grads);
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
        let variance = self.settings.held_out_variance;
        self.run(batch.activations, None, variance).1
    }
}
