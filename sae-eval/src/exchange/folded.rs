//! A model with everything folded in that other programs do not have: scale, input scale and projections. This is the one
//! place that maps our [`SaeConfig`] and parameters to their tensors, and theirs to ours.
//!
//! With E = W_enc, or W_dec where there is no encoder, and s, t, p, R of the config:
//!
//! ```text
//! x0    = x - b_dec
//! W_enc = t E W_K W_Q^T     [M, d]   row j is what latent j reads
//! W_dec = W_dec W_V         [M, d]   row j is what latent j writes
//!
//! z     = x0 W_enc^T + b_enc         p = 0: the row's factor is s everywhere, so that biases and thresholds times s make
//! a     = rule(z)                    scores, and latents, of rows in units of x (ours times s)
//! x_hat = b_dec + a W_dec
//!
//! z     = (x0 / n) W_enc^T + b_enc   sparsemax: n = s (||x0|| / s)^p within R, as in `sae.rs`
//! a     = n refined(rule(z)) act_scale
//! x_hat = b_dec + a W_dec            rows of W_dec at length one, their lengths in act_scale
//! ```
//!
//! Products are computed in f64 and rounded once. No architecture but those of sae-model is known here.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use sae_model::architectures::{BatchTopK, Gated, JumpRelu, Matryoshka, MlpSparsemax, Relu, TopK};
use sae_model::config::InvalidConfig;
use sae_model::parameters::{B_DEC, B_ENC, W_DEC, W_ENC, W_K, W_Q, W_V};
use sae_model::{AnyArchitecture, Architecture, Sae, SaeConfig, SparseValue};

use super::error::Misfit;
use crate::model::values;

/// Names of parameters that every model has.
const DECODER: &str = W_DEC.name;
const PRE_BIAS: &str = B_DEC.name;
/// Names of parameters that belong to one architecture.
const THRESHOLD: &str = "threshold";
const B_GATE: &str = "b_gate";
const R_MAG: &str = "r_mag";
const B_MAG: &str = "b_mag";

/// A folded model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folded {
    /// Width d.
    pub(super) d_in: usize,
    /// Number of latents M.
    pub(super) n_latents: usize,
    /// W_enc `[M, d]`.
    pub(super) w_enc: Vec<f32>,
    /// b_enc `[M]`; of [`Rule::Gated`], b_gate.
    pub(super) b_enc: Vec<f32>,
    /// W_dec `[M, d]`.
    pub(super) w_dec: Vec<f32>,
    /// b_dec `[d]`.
    pub(super) b_dec: Vec<f32>,
    /// How latents come from scores.
    pub(super) rule: Rule,
}

/// How latents come from scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    /// `a = max(z, 0)`
    Relu,
    /// The k largest scores, as far as they are positive.
    TopK { k: usize },
    /// `a_j = z_j 1[z_j > threshold_j]`, `[M]`.
    JumpRelu { threshold: Vec<f32> },
    /// The same with one threshold; with k and the parts of Matryoshka, for training that goes on.
    BatchTopK {
        k: usize,
        threshold: f32,
        parts: Vec<f64>,
    },
    /// `a_j = ReLU(exp(r_mag_j) (z_j - b_gate_j) + b_mag_j)` where `z_j > 0`.
    Gated { r_mag: Vec<f32>, b_mag: Vec<f32> },
    /// Sparsemax.
    Sparsemax(Sparsemax),
}

impl Rule {
    /// In words.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Relu => "ReLU",
            Self::TopK { .. } => "TopK",
            Self::JumpRelu { .. } => "JumpReLU",
            Self::BatchTopK { .. } => "BatchTopK",
            Self::Gated { .. } => "gates",
            Self::Sparsemax(_) => "sparsemax",
        }
    }
}

/// The rule of sparse attention, and what it needs to know of the scale of rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sparsemax {
    pub(super) value: SparseValue,
    /// t, by which W_enc has been multiplied.
    pub(super) scale: f64,
    /// p.
    pub(super) norm_exponent: f64,
    /// R.
    pub(super) norm_range: Option<f64>,
    /// s.
    pub(super) input_scale: f64,
    /// Steps of refinement.
    pub(super) refinement: usize,
    /// Lengths of the rows of W_dec W_V `[M]`.
    pub(super) act_scale: Vec<f32>,
}

impl Folded {
    /// What `sae` does, exactly, for the format of this name.
    ///
    /// # Errors
    /// [`Misfit`] if no rule does it.
    pub(super) fn of(sae: &Sae, format: &'static str) -> Result<Self, Misfit> {
        let architecture = &sae.config().architecture;
        if let Some(value) = sparsemax_value(architecture) {
            return Ok(Self::sparsemax(sae, value));
        }
        let folded = Self::unrefined(sae, format)?;
        match architecture.refinement() {
            0 => Ok(folded),
            steps => Err(Misfit::Refined { steps, format }),
        }
    }

    /// What `sae`, which is not sparsemax, does without its refinement.
    ///
    /// # Errors
    /// [`Misfit`] if no rule does it.
    pub(super) fn unrefined(sae: &Sae, format: &'static str) -> Result<Self, Misfit> {
        let config = sae.config();
        let rule = rule(sae, format)?;
        let (exponent, range) = (config.norm_exponent, config.norm_range.is_some());
        if exponent != 0.0 || range {
            return Err(Misfit::Norm {
                exponent,
                range,
                format,
            });
        }
        let bias = match rule {
            Rule::Gated { .. } => B_GATE,
            _ => B_ENC,
        };
        Ok(Self {
            rule,
            b_enc: times(vector(sae, bias, config.n_latents), config.input_scale),
            ..Self::linear(sae, config.scale)
        })
    }

    /// Encoder and decoder with `factor` in the place of the scale, without bias or rule.
    pub(super) fn linear(sae: &Sae, factor: f64) -> Self {
        let (d, m) = (sae.config().d_in, sae.config().n_latents);
        let w_dec = values(sae.w_dec());
        let w_v = square(sae, W_V.name);
        let encoder = sae.parameters.matrix(W_ENC).map(values);
        let by = between(square(sae, W_Q.name), square(sae, W_K.name), d);
        let w_enc = products(encoder.as_ref().unwrap_or(&w_dec), d, by.as_deref(), |_| {
            factor
        });
        let w_dec = products(&w_dec, d, w_v.as_deref(), |_| 1.0);
        Self {
            d_in: d,
            n_latents: m,
            w_enc: w_enc.0,
            b_enc: vec![0.0; m],
            w_dec: w_dec.0,
            b_dec: vector(sae, B_DEC.name, d),
            rule: Rule::Relu,
        }
    }

    fn sparsemax(sae: &Sae, value: SparseValue) -> Self {
        let config = sae.config();
        let w_v = square(sae, W_V.name);
        let (w_dec, inverse) = products(&values(sae.w_dec()), config.d_in, w_v.as_deref(), |row| {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            if length > 0.0 { 1.0 / length } else { 0.0 }
        });
        let length = |inverse: &f64| if *inverse > 0.0 { 1.0 / inverse } else { 0.0 };
        Self {
            w_dec,
            b_enc: vector(sae, B_ENC, config.n_latents),
            rule: Rule::Sparsemax(Sparsemax {
                value,
                scale: config.scale,
                norm_exponent: config.norm_exponent,
                norm_range: config.norm_range,
                input_scale: config.input_scale,
                refinement: config.architecture.refinement(),
                act_scale: inverse.iter().map(|i| length(i) as f32).collect(),
            }),
            ..Self::linear(sae, config.scale)
        }
    }

    /// Our model that does the same.
    ///
    /// # Errors
    /// [`InvalidConfig`] if there is no such model.
    pub(super) fn to_sae(&self, device: &Device) -> Result<Sae, InvalidConfig> {
        let config = self.config();
        config.validate()?;
        let model = Sae::with_values(&config, device, |parameter, _| {
            Ok::<_, std::convert::Infallible>(self.parameter(parameter.name))
        });
        let Ok(model) = model;
        Ok(model)
    }

    /// The config of [`Folded::to_sae`].
    fn config(&self) -> SaeConfig {
        let mut config = SaeConfig::new(self.architecture(), self.d_in, self.n_latents);
        config.scale = 1.0;
        config.norm_exponent = 0.0;
        config.norm_range = None;
        config.input_scale = 1.0;
        config.query_projection = false;
        config.key_projection = false;
        config.value_projection = false;
        config.pre_bias = true;
        config.encoder_bias = true;
        config.unit_norm_decoder = false;
        if let Rule::Sparsemax(rule) = &self.rule {
            config.scale = rule.scale;
            config.norm_exponent = rule.norm_exponent;
            config.norm_range = rule.norm_range;
            config.input_scale = rule.input_scale;
            config.encoder_bias = self.b_enc.iter().any(|bias| *bias != 0.0);
            config.pre_bias = self.b_dec.iter().any(|bias| *bias != 0.0);
        }
        config
    }

    fn architecture(&self) -> AnyArchitecture {
        match &self.rule {
            Rule::Relu => Relu {}.into(),
            Rule::TopK { k } => TopK {
                k: *k,
                refinement: 0,
            }
            .into(),
            Rule::JumpRelu { .. } => JumpRelu::default().into(),
            Rule::BatchTopK { k, parts, .. } if parts.is_empty() => BatchTopK {
                k: *k,
                refinement: 0,
            }
            .into(),
            Rule::BatchTopK { k, parts, .. } => Matryoshka {
                k: *k,
                parts: parts.clone(),
                refinement: 0,
            }
            .into(),
            Rule::Gated { .. } => Gated {}.into(),
            Rule::Sparsemax(rule) => MlpSparsemax {
                value: rule.value,
                refinement: rule.refinement,
            }
            .into(),
        }
    }

    /// The values of a parameter of [`Folded::to_sae`].
    fn parameter(&self, name: &str) -> Vec<f32> {
        let d = self.d_in;
        match (name, &self.rule) {
            (W_ENC, Rule::Sparsemax(rule)) => {
                products(&self.w_enc, d, None, |_| 1.0 / rule.scale).0
            }
            (W_ENC, _) => self.w_enc.clone(),
            (DECODER, Rule::Sparsemax(rule)) => {
                let rows = self.w_dec.chunks_exact(d).zip(&rule.act_scale);
                rows.flat_map(|(row, length)| row.iter().map(move |v| v * length))
                    .collect()
            }
            (DECODER, _) => self.w_dec.clone(),
            (PRE_BIAS, _) => self.b_dec.clone(),
            (B_ENC | B_GATE, _) => self.b_enc.clone(),
            (THRESHOLD, Rule::JumpRelu { threshold }) => threshold.clone(),
            (THRESHOLD, Rule::BatchTopK { threshold, .. }) => vec![*threshold],
            (R_MAG, Rule::Gated { r_mag, .. }) => r_mag.clone(),
            (B_MAG, Rule::Gated { b_mag, .. }) => b_mag.clone(),
            _ => unreachable!("the architectures above have no other parameters"),
        }
    }
}

/// The value of latents, where sparsemax selects them.
pub(super) fn sparsemax_value(architecture: &AnyArchitecture) -> Option<SparseValue> {
    match architecture {
        AnyArchitecture::Attention(own) => Some(own.value),
        AnyArchitecture::MlpSparsemax(own) => Some(own.value),
        _ => None,
    }
}

/// Whether gates choose the latents.
pub(super) fn has_gates(sae: &Sae) -> bool {
    sae.parameters.vector(B_GATE).is_some() || sae.parameters.vector(R_MAG).is_some()
}

/// The rule of an architecture other than sparsemax, in units of x.
fn rule(sae: &Sae, format: &'static str) -> Result<Rule, Misfit> {
    let (m, s) = (sae.config().n_latents, sae.config().input_scale);
    let threshold = |count: usize| -> Result<Vec<f32>, Misfit> {
        let own = vector(sae, THRESHOLD, count);
        match own.iter().position(|value| *value < 0.0) {
            None => Ok(times(own, s)),
            Some(latent) => Err(Misfit::Negative {
                latent,
                value: own[latent],
                format,
            }),
        }
    };
    let of_batch = |k: usize| match threshold(1)?[0] {
        0.0 => Ok(Rule::TopK { k }), // never measured: each row keeps its k largest
        measured => Ok(Rule::JumpRelu {
            threshold: vec![measured; m],
        }),
    };
    match &sae.config().architecture {
        AnyArchitecture::Relu(_) | AnyArchitecture::AttentionRelu(_) => Ok(Rule::Relu),
        AnyArchitecture::TopK(own) => Ok(Rule::TopK { k: own.k }),
        AnyArchitecture::BatchTopK(own) => of_batch(own.k),
        AnyArchitecture::Matryoshka(own) => of_batch(own.k),
        AnyArchitecture::JumpRelu(_) => Ok(Rule::JumpRelu {
            threshold: threshold(m)?,
        }),
        AnyArchitecture::Gated(_) => Ok(Rule::Gated {
            r_mag: vector(sae, R_MAG, m),
            b_mag: times(vector(sae, B_MAG, m), s),
        }),
        other => Err(Misfit::Selection {
            architecture: other.describe(),
            format,
        }),
    }
}

/// A vector of the model; zeros where there is none.
pub(super) fn vector(sae: &Sae, name: &str, count: usize) -> Vec<f32> {
    let own: Option<Tensor<1>> = sae.parameters.vector(name);
    own.map_or_else(|| vec![0.0; count], values)
}

/// A matrix `[d, d]` of the model, in f64.
fn square(sae: &Sae, name: &str) -> Option<Vec<f64>> {
    let own = sae.parameters.matrix(name).map(values)?;
    Some(own.into_iter().map(f64::from).collect())
}

/// `W_K W_Q^T`, as far as there are the two.
fn between(w_q: Option<Vec<f64>>, w_k: Option<Vec<f64>>, d: usize) -> Option<Vec<f64>> {
    let turned = |w: &[f64]| -> Vec<f64> { (0..d * d).map(|i| w[i % d * d + i / d]).collect() };
    match (w_q, w_k) {
        (None, w_k) => w_k,
        (Some(w_q), None) => Some(turned(&w_q)),
        (Some(w_q), Some(w_k)) => {
            let w_q = turned(&w_q);
            let mut product = vec![0.0; d * d];
            product
                .par_chunks_exact_mut(d)
                .zip(w_k.par_chunks_exact(d))
                .for_each(|(out, row)| accumulate(row.iter().copied(), &w_q, out));
            Some(product)
        }
    }
}

/// The rows of `rows by`, each times the factor that `factor` gives it, and the factors: in f64, rounded once.
fn products(
    rows: &[f32],
    d: usize,
    by: Option<&[f64]>,
    factor: impl Fn(&[f64]) -> f64 + Sync,
) -> (Vec<f32>, Vec<f64>) {
    let mut made = vec![0.0f32; rows.len()];
    let factors = made
        .par_chunks_exact_mut(d)
        .zip(rows.par_chunks_exact(d))
        .map_init(
            || vec![0.0f64; d],
            |wide, (made, row)| {
                let row = row.iter().map(|v| f64::from(*v));
                match by {
                    Some(by) => {
                        wide.fill(0.0);
                        accumulate(row, by, wide);
                    }
                    None => wide.iter_mut().zip(row).for_each(|(to, v)| *to = v),
                }
                let factor = factor(wide);
                let scaled = wide.iter().map(|v| (v * factor) as f32);
                made.iter_mut().zip(scaled).for_each(|(to, v)| *to = v);
                factor
            },
        )
        .collect();
    (made, factors)
}

/// `out += row by`
fn accumulate(row: impl Iterator<Item = f64>, by: &[f64], out: &mut [f64]) {
    let d = out.len();
    for (v, by) in row.zip(by.chunks_exact(d)) {
        out.iter_mut().zip(by).for_each(|(out, b)| *out += v * b);
    }
}

/// The values times a factor, rounded once.
pub(super) fn times(values: Vec<f32>, factor: f64) -> Vec<f32> {
    let scaled = values.into_iter().map(|v| (f64::from(v) * factor) as f32);
    scaled.collect()
}
