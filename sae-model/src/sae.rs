//! The cross-attention sparse autoencoder: the equations of the paper, in their order.
//!
//! ```text
//! x0 = x - b ;  n = ||x0|| per row ;  u = x0 / n           (unit-norm query; n = 1 where switched off)
//! q  = u W_Q W_K^T * scale                                  [B, d]
//! z  = q C^T                                                [B, M]   scores
//! a  = sparsemax(z)                       value = probability
//! a  = z / scale * 1[sparsemax(z) > 0]    value = score
//! x_hat = b + n * (a C) W_V                                 [B, d]
//! ```
//!
//! K = C W_K and V = C W_V are never formed: `(u W_Q)(C W_K)^T = (u W_Q W_K^T) C^T` and
//! `a (C W_V) = (a C) W_V`, which turns products of size M d^2 into products of size B d^2.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::config::{ConceptInit, PreBiasInit, ProjectionInit, SaeConfig};
use crate::ops::{self, SparseValue};

/// Squared norms below this count as zero, so that a row equal to the pre-bias has a gradient.
const TINY: f64 = 1e-24;

/// A sparse autoencoder with dynamic attention (arXiv 2604.14925, section 3).
#[derive(Module, Debug)]
pub struct Sae {
    /// Dictionary C `[M, d]`.
    pub concepts: Param<Tensor<2>>,
    /// W_Q `[d, d]`, row-vector convention (`x W`), as all projections.
    pub w_q: Option<Param<Tensor<2>>>,
    /// W_K `[d, d]`.
    pub w_k: Option<Param<Tensor<2>>>,
    /// W_V `[d, d]`.
    pub w_v: Option<Param<Tensor<2>>>,
    /// Pre-bias b `[d]`.
    pub pre_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    config: SaeConfig,
}

/// A batch seen through the dictionary.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Scores z `[B, M]`.
    pub scores: Tensor<2>,
    /// Latent activations a `[B, M]`, zero outside the support.
    pub activations: Tensor<2>,
    /// Norms n `[B, 1]`, where queries have unit norm.
    pub norms: Option<Tensor<2>>,
}

/// A batch, encoded and decoded.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// The encoding.
    pub encoded: Encoded,
    /// x_hat `[B, d]`.
    pub x_hat: Tensor<2>,
}

impl Sae {
    /// A fresh model: a pure function of `config`, `seed` and `mean`, the same on every device.
    ///
    /// `mean [d]` is the mean of the training data, where a pre-bias starts.
    ///
    /// # Panics
    /// If `mean` does not have `config.d_in` entries, or `config` is invalid.
    pub fn init(config: &SaeConfig, seed: u64, mean: &[f32], device: &Device) -> Self {
        config.validate().expect("a validated model config");
        assert_eq!(
            mean.len(),
            config.d_in,
            "the mean has the width of the activations"
        );
        let (m, d) = (config.n_latents, config.d_in);
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
        let bias = match config.init.pre_bias {
            PreBiasInit::Mean => mean.to_vec(),
            PreBiasInit::Zero => vec![0.0; d],
        };
        Self::from_values(
            config.clone(),
            matrix(concepts, [m, d], device),
            projection(config.query_projection, 1),
            projection(config.key_projection, 2),
            projection(config.value_projection, 3),
            config
                .pre_bias
                .then(|| Tensor::from_data(TensorData::new(bias, [d]), device)),
        )
    }

    /// Assembles a model from its parameters; shapes are the caller's promise.
    pub(crate) fn from_values(
        config: SaeConfig,
        concepts: Tensor<2>,
        w_q: Option<Tensor<2>>,
        w_k: Option<Tensor<2>>,
        w_v: Option<Tensor<2>>,
        pre_bias: Option<Tensor<1>>,
    ) -> Self {
        Self {
            concepts: Param::from_tensor(concepts),
            w_q: w_q.map(Param::from_tensor),
            w_k: w_k.map(Param::from_tensor),
            w_v: w_v.map(Param::from_tensor),
            pre_bias: pre_bias.map(Param::from_tensor),
            config,
        }
    }

    /// The architecture.
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    /// Encodes `x [B, d]`.
    pub fn encode(&self, x: Tensor<2>) -> Encoded {
        self.encode_with(x, None)
    }

    /// Encodes `x [B, d]` with the scores of some latents set to zero.
    ///
    /// `keep [1, M]` is 1 for a latent that may take part and 0 for one that is switched off: the released
    /// code does so, while training, with latents that fire on more than a tenth of the data.
    pub fn encode_with(&self, x: Tensor<2>, keep: Option<Tensor<2>>) -> Encoded {
        let x0 = match &self.pre_bias {
            Some(b) => x - b.val().unsqueeze::<2>(), // [B, d]
            None => x,
        };
        let norms = self.config.unit_norm.then(|| row_norms(x0.clone())); // [B, 1]
        let u = match &norms {
            Some(n) => x0 / n.clone(),
            None => x0,
        };
        let q = match &self.w_q {
            Some(w_q) => u.matmul(w_q.val()), // [B, d]
            None => u,
        };
        let q = match &self.w_k {
            Some(w_k) => q.matmul(w_k.val().transpose()), // [B, d]
            None => q,
        };
        let q = scaled(q, self.config.scale);
        let mut scores = q.matmul(self.concepts.val().transpose()); // [B, d] [d, M] -> [B, M]
        if let Some(keep) = keep {
            scores = scores * keep;
        }
        let weights = ops::sparse_attention(scores.clone(), self.config.value);
        let activations = match self.config.value {
            SparseValue::Probability => weights,
            SparseValue::Score => scaled(weights, 1.0 / self.config.scale),
        };
        Encoded {
            scores,
            activations,
            norms,
        }
    }

    /// Decodes latent activations `[B, M]` (with `norms [B, 1]` of the same rows) to `x_hat [B, d]`.
    pub fn decode(&self, activations: Tensor<2>, norms: Option<Tensor<2>>) -> Tensor<2> {
        let mut x_hat = activations.matmul(self.concepts.val()); // [B, M] [M, d] -> [B, d]
        if let Some(w_v) = &self.w_v {
            x_hat = x_hat.matmul(w_v.val());
        }
        if let Some(n) = norms {
            x_hat = x_hat * n;
        }
        if let Some(b) = &self.pre_bias {
            x_hat = x_hat + b.val().unsqueeze::<2>();
        }
        x_hat
    }

    /// Encodes and decodes `x [B, d]`; for `keep` see [`Sae::encode_with`].
    pub fn reconstruct(&self, x: Tensor<2>, keep: Option<Tensor<2>>) -> Reconstructed {
        let encoded = self.encode_with(x, keep);
        let x_hat = self.decode(encoded.activations.clone(), encoded.norms.clone());
        Reconstructed { encoded, x_hat }
    }
}

/// `||x||` of every row, `[B, d] -> [B, 1]`.
pub(crate) fn row_norms(x: Tensor<2>) -> Tensor<2> {
    x.square().sum_dim(1).clamp_min(TINY).sqrt()
}

fn scaled(x: Tensor<2>, factor: f64) -> Tensor<2> {
    if factor == 1.0 { x } else { x * factor }
}

fn matrix(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
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
