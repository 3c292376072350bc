//! What the architecture, the preset and the data imply for keys that are not given.

use sae_data::{ActivationData, Statistics};
use sae_model::loss::Loss;
use sae_model::{Architecture, Preset, SaeConfig};

use super::{Config, ModelConfig, keys};

/// Steps up to which the learning rate of the default preset is [`SHORT_RUN_LR`].
const SHORT_RUN: f64 = 600.0;
const SHORT_RUN_LR: f64 = 6e-3;

/// The default preset's learning rate: `6e-3 (600 / steps)^(2/3)`, and at most 6e-3.
///
/// On SmolLM2 (M = 6,144, seed 0, W_V at a third of the rate) 64 latents were dead after 600 steps at 6e-3, and after 2,000
/// steps 98 at 3.3e-3 and 2 at 2.4e-3, where FVU at equal L0 is 1.5 % larger. The rule gives 2.7e-3 there. Batch and M were
/// not varied (docs/SCIENCE.md).
fn attention_lr(steps: usize) -> f64 {
    SHORT_RUN_LR * (SHORT_RUN / steps as f64).min(1.0).powf(2.0 / 3.0)
}

/// Factor on the learning rate for W_Q, W_K and W_V `[d, d]`, but of the presets of the paper and its code: `2 / sqrt(d)`, at
/// most 1.
///
/// Adam moves every number by up to the learning rate at a step. Numbers of a concept of length one are about `1 / sqrt(d)`;
/// a row of a projection meets d inputs at once, which add up where their steps agree, so that the same step moves its
/// output sqrt(d) times as far (the rule for width of Yang et al. 2022, arXiv 2203.03466). With W_V
/// alone on SmolLM2 (d = 576, M = 6,144, 600 steps, seed 0) 466 latents died with 1, 44 with 0.3 and 12 with 0.1. FVU at equal
/// L0 was least with 0.3 there and with 1 on MiniLM; on the sentences probing was best with 0.05 of 0.05, 0.15 and 0.41
/// (docs/SCIENCE.md).
fn projection_lr(architecture: Architecture, preset: Preset, d_in: usize) -> f64 {
    match (architecture, preset) {
        (Architecture::Attention, Preset::Paper | Preset::Released) => 1.0,
        _ => (2.0 / (d_in as f64).sqrt()).min(1.0),
    }
}

/// Factor on the learning rate for the pre-bias: the root mean square of a number of a centred row,
/// `sqrt(mean ||x - mean(x)||^2 / d)`.
///
/// The pre-bias alone is in the data's unit, and Adam moves every number by up to the learning rate at a step, whatever its
/// gradient. With the same rate for all data, rows of norm 0.001 diverged and rows of norm 1000 did not (docs/SCIENCE.md).
fn pre_bias_lr(d_in: usize, variance: f64) -> f64 {
    (variance / d_in as f64).sqrt()
}

/// What defaults depend on of the training rows, those of huge norm left aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataScale {
    /// Width d.
    pub(crate) d_in: usize,
    /// `sigma^2 = mean ||x - mean(x)||^2`.
    pub(crate) variance: f64,
    /// `||mean(x)|| / sigma`.
    pub(crate) mean_over_sigma: f64,
}

impl DataScale {
    /// Of some data of width `d_in` that nobody has looked at yet: for questions that its numbers have no part in.
    pub(crate) fn unknown(d_in: usize) -> Self {
        Self {
            d_in,
            variance: 1.0,
            mean_over_sigma: f64::INFINITY,
        }
    }

    pub(crate) fn of(typical: &Statistics) -> Self {
        Self {
            d_in: typical.mean.len(),
            variance: typical.variance,
            mean_over_sigma: typical.mean_over_sigma(),
        }
    }
}

impl Config {
    /// Writes out what the architecture and the preset imply for training.
    pub(super) fn complete(&mut self) {
        let (architecture, steps) = (self.model.architecture, self.training.steps);
        // (loss, lr, warm-up steps, decay fraction, beta_1, beta_2, frequency cutoff)
        let (loss, lr, warmup, decay, beta_1, beta_2, cutoff) =
            match (architecture, self.model.preset()) {
                (Architecture::Attention, Preset::Paper) => {
                    (Loss::Mse, 3e-4, 0, 0.0, 0.9, 0.99, 1.0)
                }
                (Architecture::Attention, Preset::Released) => {
                    (Loss::NormWeighted, 4e-4, 500, 0.0, 0.9, 0.999, 0.1)
                }
                (Architecture::Attention | Architecture::MlpSparsemax, _) => {
                    (Loss::Fvu, attention_lr(steps), 150, 0.5, 0.9, 0.99, 1.0)
                }
                _ => (Loss::Fvu, 4e-3, 150, 0.5, 0.9, 0.999, 1.0),
            };
        let penalty = match architecture {
            Architecture::Relu | Architecture::AttentionRelu => 2.0,
            Architecture::Gated => 4.0,
            Architecture::JumpRelu => 1.0,
            _ => 0.0,
        };
        let auxiliary = match architecture {
            Architecture::TopK | Architecture::BatchTopK => 1.0 / 32.0,
            Architecture::Gated => 1.0,
            _ => 0.0,
        };
        let training = &mut self.training;
        training.loss.get_or_insert(loss);
        training.lr.get_or_insert(lr);
        training.warmup_steps.get_or_insert(warmup);
        training.decay_fraction.get_or_insert(decay);
        training.beta_1.get_or_insert(beta_1);
        training.beta_2.get_or_insert(beta_2);
        training.frequency_cutoff.get_or_insert(cutoff);
        training.sparsity_coefficient.get_or_insert(penalty);
        training.sparsity_warmup_steps.get_or_insert(steps / 10);
        training
            .target_l0
            .get_or_insert(32f64.min(self.model.n_latents as f64));
        training.aux_coefficient.get_or_insert(auxiliary);
        training.aux_k.get_or_insert(256);
        training
            .checkpoint_every
            .get_or_insert(training.validate_every);
    }

    /// Whether the model has a pre-bias: who sets one of its keys wants one, where there may be one.
    fn pre_bias(&self, data: DataScale) -> bool {
        let usual = |ratio| {
            let m = &self.model;
            m.architecture.pre_bias(m.preset(), ratio)
        };
        let asked = self.model.init_pre_bias.is_some() || self.training.pre_bias_lr.is_some();
        let unless_told = usual(data.mean_over_sigma) || (asked && usual(f64::INFINITY));
        self.model.pre_bias.unwrap_or(unless_told)
    }

    /// The model for activations like these.
    pub(crate) fn sae_config(&self, data: DataScale) -> SaeConfig {
        let (m, DataScale { d_in, variance, .. }) = (&self.model, data);
        let mut config = m.architecture.config(m.preset(), d_in, m.n_latents);
        let set = |field: &mut bool, value: Option<bool>| *field = value.unwrap_or(*field);
        set(&mut config.query_projection, m.query_projection);
        set(&mut config.key_projection, m.key_projection);
        set(&mut config.value_projection, m.value_projection);
        config.pre_bias = self.pre_bias(data);
        set(&mut config.encoder_bias, m.encoder_bias);
        set(&mut config.unit_norm_decoder, m.unit_norm_decoder);
        config.refinement = m.refinement.unwrap_or(config.refinement);
        config.k = m.k.or(config.k);
        config.bandwidth = m.bandwidth.or(config.bandwidth);
        config.value = m.value.unwrap_or(config.value);
        config.scale = m.scale.unwrap_or(config.scale);
        config.norm_exponent = m.norm_exponent.unwrap_or(config.norm_exponent);
        config.norm_range = m.norm_range.or(config.norm_range);
        let usual = m.architecture.input_scale(m.preset(), d_in, variance);
        config.input_scale = m.input_scale.unwrap_or(usual);
        config.init.concepts = m.init_concepts.unwrap_or(config.init.concepts);
        config.init.projections = m.init_projections.unwrap_or(config.init.projections);
        config.init.pre_bias = m.init_pre_bias.unwrap_or(config.init.pre_bias);
        config
    }

    /// The config with every default written out, for these training activations and the typical ones among them.
    /// Its paths are absolute, so that it means the same wherever it is read.
    pub(crate) fn resolved(
        &self,
        train: &ActivationData,
        typical: &Statistics,
        check_rows: usize,
    ) -> Self {
        let mut config = self.resolved_model(DataScale::of(typical));
        config.data = config.data.absolute();
        config.data.check_rows = Some(check_rows);
        let runs_dir = std::path::absolute(&config.runs_dir);
        config.runs_dir = runs_dir.unwrap_or(config.runs_dir);
        let plan = config.data.streaming(self.seed).plan(train);
        config.data.block_rows = Some(plan.block_rows());
        config
    }

    pub(super) fn resolved_model(&self, data: DataScale) -> Self {
        let DataScale { d_in, variance, .. } = data;
        let sae = self.sae_config(data);
        let mut config = self.clone();
        config.model = ModelConfig {
            architecture: self.model.architecture,
            preset: Some(self.model.preset()),
            n_latents: sae.n_latents,
            k: sae.k,
            bandwidth: sae.bandwidth,
            value: Some(sae.value),
            scale: Some(sae.scale),
            norm_exponent: Some(sae.norm_exponent),
            input_scale: Some(sae.input_scale),
            norm_range: sae.norm_range,
            query_projection: Some(sae.query_projection),
            key_projection: Some(sae.key_projection),
            value_projection: Some(sae.value_projection),
            pre_bias: Some(sae.pre_bias),
            encoder_bias: Some(sae.encoder_bias),
            unit_norm_decoder: Some(sae.unit_norm_decoder),
            refinement: Some(sae.refinement),
            init_concepts: Some(sae.init.concepts),
            init_projections: Some(sae.init.projections),
            init_pre_bias: Some(sae.init.pre_bias),
        };
        let projections = projection_lr(self.model.architecture, self.model.preset(), d_in);
        let training = &mut config.training;
        training.projection_lr.get_or_insert(projections);
        training
            .pre_bias_lr
            .get_or_insert(pre_bias_lr(d_in, variance));
        keys::without_unused(&config, &sae)
    }
}
