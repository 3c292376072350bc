//! The sparse autoencoder: the equations of the paper, in their order.
//!
//! ```text
//! x0 = x - b ;  n = s (||x0|| / s)^p per row ;  u = x0 / n  (p = 1: unit-norm query; p = 0: n = s;
//!                                                           p = 1 where ||x0|| / s is out of norm_range)
//! q  = u W_Q W_K^T * scale                                  [B, d]
//! z  = q E^T + bias                                         [B, M]   scores; E = C for attention
//! a  = select(z)                                            [B, M]   latent activations, sparse
//!        sparsemax(z)                     value = probability
//!        z / scale * 1[sparsemax(z) > 0]  value = score
//!        ReLU, TopK, ...                  the other architectures (`baselines.rs`)
//! a  = refined(a)                                      [B, M]   at inference, where the config asks for it (`refinement.rs`)
//! x_hat = b + n * (a C) W_V                                 [B, d]
//! ```
//!
//! K = C W_K and V = C W_V are never formed: `(u W_Q)(C W_K)^T = (u W_Q W_K^T) C^T` and
//! `a (C W_V) = (a C) W_V`, which turns products of size M d^2 into products of size B d^2. On the CPU the
//! scores are never stored either (`ops::encode`), and decoding reads the support alone.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};

use crate::config::{Architecture, SaeConfig};
use crate::ops::{self, EncodeOptions, Norm, Selection, SparseCodes, SparseValue};

/// Squared norms below this count as zero, so that a row equal to the pre-bias has a gradient.
pub(crate) const TINY: f64 = 1e-24;

/// How far below zero the dense kernels, which read minus infinity as a fault, see a masked score.
const FAR: f64 = 1e30;

/// A sparse autoencoder: with dynamic attention (arXiv 2604.14925, section 3), or a baseline.
#[derive(Module, Debug)]
pub struct Sae {
    /// Dictionary C `[M, d]`; the decoder of every architecture.
    pub concepts: Param<Tensor<2>>,
    /// W_Q `[d, d]`, row-vector convention (`x W`), as all projections.
    pub w_q: Option<Param<Tensor<2>>>,
    /// W_K `[d, d]`.
    pub w_k: Option<Param<Tensor<2>>>,
    /// W_V `[d, d]`.
    pub w_v: Option<Param<Tensor<2>>>,
    /// Pre-bias b `[d]`.
    pub pre_bias: Option<Param<Tensor<1>>>,
    /// Encoder E `[M, d]`, where it is not the dictionary.
    pub encoder: Option<Param<Tensor<2>>>,
    /// Added to the scores `[M]`.
    pub encoder_bias: Option<Param<Tensor<1>>>,
    /// JumpReLU's thresholds theta `[M]`, never negative.
    pub thresholds: Option<Param<Tensor<1>>>,
    /// Gated: logarithm of each latent's magnitude factor, `r_mag [M]`.
    pub magnitude_scale: Option<Param<Tensor<1>>>,
    /// Gated: `b_mag [M]`.
    pub magnitude_bias: Option<Param<Tensor<1>>>,
    /// BatchTopK: the threshold that takes the batch's place at inference `[1]`; not trained, but measured. 0 as long
    /// as it never was: then each row keeps its k largest.
    pub batch_threshold: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) config: SaeConfig,
}

/// Latent activations a of a batch.
#[derive(Clone, Debug)]
pub enum Activations {
    /// As codes: on the CPU, and for the baselines everywhere.
    Sparse(SparseCodes),
    /// As `[B, M]`: sparse attention on a GPU.
    Dense(Tensor<2>),
}

impl Activations {
    /// Part of the rows on which each latent is active `[M]`, without gradient.
    pub fn firing_frequency(&self) -> Tensor<1> {
        match self {
            Self::Sparse(codes) => {
                let rows = codes.pattern.rows().max(1) as f32;
                let counts = codes.firing_counts();
                let values: Vec<f32> = counts.iter().map(|n| *n as f32 / rows).collect();
                let shape = [values.len()];
                let device = codes.values.device().inner();
                Tensor::from_data(TensorData::new(values, shape), &device)
            }
            Self::Dense(a) => {
                let [rows, _] = a.dims();
                let active = a.clone().inner().not_equal_elem(0.0).float();
                active.sum_dim(0).squeeze_dim::<1>(0) / rows as f64
            }
        }
    }

    /// As codes, on the host.
    pub fn into_codes(self) -> SparseCodes {
        match self {
            Self::Sparse(codes) => codes,
            Self::Dense(a) => {
                let [_, latents] = a.dims();
                let device = a.device();
                let dense: Vec<f32> = a.into_data().iter().collect();
                SparseCodes::from_dense(&dense, latents, &device)
            }
        }
    }
}

/// A batch seen through the dictionary.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Latent activations a.
    pub activations: Activations,
    /// Gated: the gates that are open, with their pre-activations.
    pub gate: Option<SparseCodes>,
    /// Queries q `[B, d]`.
    pub queries: Tensor<2>,
    /// The rows as the model sees them.
    pub input: Input,
    /// [`Training::keep`] of this batch.
    pub(crate) keep: Arc<Vec<f32>>,
}

/// A batch before the dictionary.
#[derive(Clone, Debug)]
pub struct Input {
    /// u `[B, d]`.
    pub u: Tensor<2>,
    /// n `[B, 1]`.
    pub norms: Tensor<2>,
}

/// A batch, encoded and decoded.
#[derive(Clone, Debug)]
pub struct Reconstructed {
    /// The encoding.
    pub encoded: Encoded,
    /// x_hat `[B, d]`.
    pub x_hat: Tensor<2>,
}

/// What training does differently from inference.
#[derive(Clone, Debug, Default)]
pub struct Training {
    /// 1 for latents that may take part, 0 for those that are not selected whatever their score, as if it were minus
    /// infinity `[M]`; empty for all. Where all are 0, nothing is selected. The released code sets the scores of
    /// latents that fire on more than a tenth of the data to zero, which with its value (the score) is the same.
    pub keep: Arc<Vec<f32>>,
}

impl Sae {
    /// What the model is made of.
    pub fn config(&self) -> &SaeConfig {
        &self.config
    }

    /// Encodes `x [B, d]`.
    pub fn encode(&self, x: Tensor<2>) -> Encoded {
        let input = self.normalize(x);
        let queries = self.queries(&input);
        self.select(queries, input, None)
    }

    /// Encodes and decodes `x [B, d]`.
    pub fn reconstruct(&self, x: Tensor<2>) -> Reconstructed {
        self.reconstruct_with(x, None)
    }

    /// Encodes and decodes `x [B, d]` as in training.
    pub fn reconstruct_training(&self, x: Tensor<2>, training: &Training) -> Reconstructed {
        self.reconstruct_with(x, Some(training))
    }

    fn reconstruct_with(&self, x: Tensor<2>, training: Option<&Training>) -> Reconstructed {
        let input = self.normalize(x);
        let queries = self.queries(&input);
        if self.attends_sparsely(&queries) && !self.refines(training) {
            return self.attend(queries, &input, training);
        }
        let encoded = self.select(queries, input, training);
        let x_hat = self.decode(&encoded.activations, &encoded.input);
        Reconstructed { encoded, x_hat }
    }

    /// `x0 = x - b`, `u = x0 / n`.
    fn normalize(&self, x: Tensor<2>) -> Input {
        let bias = self.pre_bias.as_ref().map(Param::val);
        if ops::is_cpu(&x.device()) {
            let (u, norms) = ops::normalize(x, bias, self.norm());
            return Input { u, norms };
        }
        let x0 = match bias {
            Some(b) => x - b.unsqueeze::<2>(), // [B, d]
            None => x,
        };
        let Norm {
            exponent,
            scale,
            range,
        } = self.norm();
        let ratios = row_norms(x0.clone()) / scale; // [B, 1]
        let norms = if range.is_finite() {
            let near = ratios.clone().clamp(1.0 / range, range);
            near.powf_scalar(exponent - 1.0) * ratios * scale
        } else {
            ratios.powf_scalar(exponent) * scale
        };
        Input {
            u: x0 / norms.clone(),
            norms,
        }
    }

    /// What rows are divided by.
    fn norm(&self) -> Norm {
        Norm {
            exponent: self.config.norm_exponent as f32,
            scale: self.config.input_scale as f32,
            range: self.config.norm_range.map_or(f32::INFINITY, |r| r as f32),
        }
    }

    /// `q = u W_Q W_K^T * scale`, `[B, d]`.
    fn queries(&self, input: &Input) -> Tensor<2> {
        let u = input.u.clone();
        let w_q = self.w_q.as_ref().map(Param::val);
        let w_k = self.w_k.as_ref().map(|w_k| w_k.val().transpose());
        let w = match (w_q, w_k) {
            (Some(w_q), Some(w_k)) => w_q.matmul(w_k), // d^3, so that only one product is B d^2
            (Some(w), None) | (None, Some(w)) => w,
            (None, None) => return scaled(u, self.config.scale),
        };
        let q = if ops::is_cpu(&u.device()) {
            let bias = self.pre_bias.as_ref().map(Param::val);
            ops::project((u, input.norms.clone()), bias, w, self.norm())
        } else {
            u.matmul(w)
        };
        scaled(q, self.config.scale)
    }

    /// Whether one dictionary encodes, by sparsemax, and decodes: then a training step needs fewer passes.
    fn attends_sparsely(&self, queries: &Tensor<2>) -> bool {
        self.config.architecture == Architecture::Attention
            && self.encoder_bias.is_none()
            && ops::is_cpu(&queries.device())
    }

    /// Whether the values of the selected latents are refined: at inference, where the config asks for it.
    fn refines(&self, training: Option<&Training>) -> bool {
        training.is_none() && self.config.refinement > 0
    }

    fn attend(
        &self,
        queries: Tensor<2>,
        input: &Input,
        training: Option<&Training>,
    ) -> Reconstructed {
        let keep = training.map_or_else(Arc::default, |training| training.keep.clone());
        let (y, mut codes) = ops::attend(
            queries.clone(),
            self.concepts.val(),
            keep.clone(),
            self.config.value,
        );
        codes.values = divided(codes.values, self.value_scale());
        let x_hat = self.restore(y, input, 1.0 / self.value_scale());
        let encoded = Encoded {
            activations: Activations::Sparse(codes),
            gate: None,
            queries,
            input: input.clone(),
            keep,
        };
        Reconstructed { encoded, x_hat }
    }

    /// What selected scores are divided by to become activations.
    fn value_scale(&self) -> f64 {
        match self.config.value {
            SparseValue::Score if self.config.architecture.is_sparsemax() => self.config.scale,
            _ => 1.0,
        }
    }

    /// Latent activations of queries `[B, d]`; for gated models also the open gates.
    fn select(&self, queries: Tensor<2>, input: Input, training: Option<&Training>) -> Encoded {
        let keep = training.map_or_else(Arc::default, |training| training.keep.clone());
        let architecture = self.config.architecture;
        let (activations, gate) = if architecture.is_attention()
            && architecture.is_sparsemax()
            && !ops::is_cpu(&queries.device())
        {
            let dense = self.dense_attention(queries.clone(), &keep);
            (Activations::Dense(dense), None)
        } else {
            let encoder = self.encoder.as_ref().unwrap_or(&self.concepts).val();
            let options = EncodeOptions {
                bias: self.encoder_bias.as_ref().map(Param::val),
                thresholds: self.thresholds.as_ref().map(Param::val),
                mask: keep.clone(),
            };
            let selection = self.selection(training.is_some());
            let mut codes = ops::encode(queries.clone(), encoder, options, selection);
            codes.values = divided(codes.values, self.value_scale());
            match self.magnitudes(&codes) {
                Some(open) => (Activations::Sparse(open), Some(codes)),
                None => (Activations::Sparse(codes), None),
            }
        };
        let activations = match self.refines(training) {
            true => self.refined(activations, &input),
            false => activations,
        };
        Encoded {
            activations,
            gate,
            queries,
            input,
            keep,
        }
    }

    /// Sparse attention as dense tensors: for GPUs. `[B, d] -> [B, M]`
    fn dense_attention(&self, q: Tensor<2>, keep: &[f32]) -> Tensor<2> {
        let device = q.device();
        let mut scores = q.matmul(self.concepts.val().transpose()); // [B, d] [d, M] -> [B, M]
        if let Some(bias) = &self.encoder_bias {
            scores = scores + bias.val().unsqueeze::<2>();
        }
        let scale = 1.0 / self.value_scale();
        if keep.is_empty() {
            return scaled(ops::sparse_attention(scores, self.config.value), scale);
        }
        let keep = TensorData::new(keep.to_vec(), [1, keep.len()]);
        let keep = Tensor::<2>::from_data(keep, &device);
        scores = scores * keep.clone() + (keep.clone() - 1.0) * FAR;
        // Where all latents are masked, sparsemax would choose among them.
        let weights = ops::sparse_attention(scores, self.config.value) * keep;
        scaled(weights, scale)
    }

    /// The rule that makes activations of scores.
    fn selection(&self, training: bool) -> Selection {
        self.config.architecture.selection(
            &self.config,
            training,
            self.batch_threshold.as_ref().map(|t| t.val()),
        )
    }

    /// Decodes latent activations of rows that came as `input` to `x_hat [B, d]`.
    pub fn decode(&self, activations: &Activations, input: &Input) -> Tensor<2> {
        self.restore(self.combined(activations), input, 1.0)
    }

    /// `a C`, `[B, d]`.
    pub(crate) fn combined(&self, activations: &Activations) -> Tensor<2> {
        match activations {
            Activations::Sparse(codes) => ops::decode(codes, self.concepts.val()), // [B, d]
            Activations::Dense(a) => a.clone().matmul(self.concepts.val()), // [B, M] [M, d] -> [B, d]
        }
    }

    /// `y W_V`, `[B, d]`.
    pub(crate) fn valued(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.w_v {
            Some(w_v) => y.matmul(w_v.val()),
            None => y,
        }
    }

    /// `x_hat = b + n * y W_V * factor`, `[B, d]`.
    fn restore(&self, y: Tensor<2>, input: &Input, factor: f64) -> Tensor<2> {
        let y = self.valued(y);
        let bias = self.pre_bias.as_ref().map(Param::val);
        let Input { u, norms } = input.clone();
        if ops::is_cpu(&y.device()) {
            return ops::restore(y, bias, (u, norms), factor, self.norm());
        }
        let x_hat = scaled(y, factor) * norms;
        match bias {
            Some(b) => x_hat + b.unsqueeze::<2>(),
            None => x_hat,
        }
    }
}

/// `||x||` of every row, `[B, d] -> [B, 1]`.
pub(crate) fn row_norms(x: Tensor<2>) -> Tensor<2> {
    x.square().sum_dim(1).clamp_min(TINY).sqrt()
}

fn scaled(x: Tensor<2>, factor: f64) -> Tensor<2> {
    if factor == 1.0 { x } else { x * factor }
}

fn divided(x: Tensor<1>, by: f64) -> Tensor<1> {
    if by == 1.0 { x } else { x / by }
}
