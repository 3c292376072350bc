//! How a model's parameters start: a pure function of config, seed and the mean of the data.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::Sae;
use crate::config::{Architecture, ConceptInit, PreBiasInit, ProjectionInit, SaeConfig};

/// Where latents of a penalised model begin to fire at start: JumpReLU's thresholds, and the others' biases with
/// a minus. Scores start with a variance of about one, so that a latent fires on some 2 % of the rows and not
/// on half of them (the idea is that of Conerly et al. 2025, "Dictionary Learning Optimization Techniques").
const FIRING_SCORE: f32 = 2.0;

impl Sae {
    /// A fresh model, the same on every device.
    ///
    /// `mean [d]` is the mean of the training data, where a pre-bias starts. Encoder and decoder start as the
    /// same rows.
    ///
    /// # Panics
    /// If `mean` does not have `config.d_in` entries, or `config` is invalid.
    pub fn init(config: &SaeConfig, seed: u64, mean: &[f32], device: &Device) -> Self {
        config.validate().expect("a validated model config");
        let (m, d) = (config.n_latents, config.d_in);
        assert_eq!(mean.len(), d, "the mean has the width of the activations");
        let projection = |wanted: bool, stream| {
            wanted.then(|| {
                let values = match config.init.projections {
                    ProjectionInit::Identity => identity(d),
                    ProjectionInit::Kaiming => kaiming_uniform(d * d, d, rng(seed, stream)),
                };
                matrix(values, [d, d], device)
            })
        };
        let concepts = match config.init.concepts {
            ConceptInit::Unit => unit_rows(m, d, rng(seed, 0)),
            ConceptInit::Kaiming => kaiming_uniform(m * d, m, rng(seed, 0)),
        };
        let encoder = (!config.architecture.is_attention()).then(|| concepts.clone());
        let bias = match config.init.pre_bias {
            PreBiasInit::Mean => mean.to_vec(),
            PreBiasInit::Zero => vec![0.0; d],
        };
        let encoder_bias = match config.architecture {
            Architecture::Relu | Architecture::AttentionRelu | Architecture::Gated => -FIRING_SCORE,
            _ => 0.0,
        };
        let is = |architecture| config.architecture == architecture;
        let vector =
            |wanted: bool, value: f32, len: usize| wanted.then(|| vector(vec![value; len], device));
        Self {
            concepts: matrix(concepts, [m, d], device),
            w_q: projection(config.query_projection, 1),
            w_k: projection(config.key_projection, 2),
            w_v: projection(config.value_projection, 3),
            pre_bias: config.pre_bias.then(|| self::vector(bias, device)),
            encoder: encoder.map(|encoder| matrix(encoder, [m, d], device)),
            encoder_bias: vector(config.encoder_bias, encoder_bias, m),
            thresholds: vector(is(Architecture::JumpRelu), FIRING_SCORE, m),
            magnitude_scale: vector(is(Architecture::Gated), 0.0, m),
            magnitude_bias: vector(is(Architecture::Gated), 0.0, m),
            batch_threshold: vector(is(Architecture::BatchTopK), 0.0, 1)
                .map(|threshold| threshold.set_require_grad(false)),
            config: config.clone(),
        }
    }
}

fn matrix(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

fn vector(values: Vec<f32>, device: &Device) -> Param<Tensor<1>> {
    let shape = [values.len()];
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// One generator a parameter, so that adding a parameter does not move the others.
fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

fn identity(d: usize) -> Vec<f32> {
    (0..d * d)
        .map(|i| if i / d == i % d { 1.0 } else { 0.0 })
        .collect()
}

/// Rows of length one in uniformly random directions, `[m, d]`.
fn unit_rows(m: usize, d: usize, mut rng: ChaCha8Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(m * d);
    for _ in 0..m {
        let row: Vec<f64> = (0..d).map(|_| StandardNormal.sample(&mut rng)).collect();
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        values.extend(row.iter().map(|v| (v / norm) as f32));
    }
    values
}

/// Uniform in ±sqrt(6 / fan_in) (He et al. 2015, with torch's default gain).
fn kaiming_uniform(len: usize, fan_in: usize, mut rng: ChaCha8Rng) -> Vec<f32> {
    let bound = (6.0 / fan_in as f64).sqrt();
    let uniform = Uniform::new_inclusive(-bound, bound).expect("a positive bound");
    (0..len).map(|_| uniform.sample(&mut rng) as f32).collect()
}
