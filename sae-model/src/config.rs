//! The config of a sparse autoencoder: the switches that every architecture has, and an architecture with its own.

use serde::{Deserialize, Serialize};

use crate::architectures::{AnyArchitecture, Architecture};

/// More steps than this are a mistake.
const MAX_REFINEMENT: usize = 100;

/// The config of one sparse autoencoder, and how its parameters start.
///
/// `cfg.json` of a saved model is this, written out in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeConfig {
    /// Width d of the activations.
    pub d_in: usize,
    /// Number of latents M, the rows of the dictionary.
    pub n_latents: usize,
    /// How latents come from scores.
    pub architecture: AnyArchitecture,
    /// Factor t on the scores: larger makes sparsemax sparser.
    pub scale: f64,
    /// p: inputs are divided by `n = s (||x0|| / s)^p`, and reconstructions multiplied by it. 1 is the
    /// unit-norm query, 0 divides by the same s everywhere; with 2, rows of large norm get more latents.
    pub norm_exponent: f64,
    /// s.
    pub input_scale: f64,
    /// R: p holds for rows with `||x0|| / s` in `[1 / R, R]`. Beyond it is 1, so that u keeps the length that it has at
    /// that end, and a row of huge norm gets no dense code. None: p holds for every row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_range: Option<f64>,
    /// Whether there is a W_Q `[d, d]`.
    pub query_projection: bool,
    /// Whether there is a W_K `[d, d]`.
    pub key_projection: bool,
    /// Whether there is a W_V `[d, d]`.
    pub value_projection: bool,
    /// Whether there is a pre-bias `[d]`, subtracted from the input and added to the output.
    pub pre_bias: bool,
    /// Whether there is an encoder bias `[M]`, added to the scores.
    #[serde(default)]
    pub encoder_bias: bool,
    /// Whether training keeps the rows of the dictionary at length one.
    #[serde(default)]
    pub unit_norm_decoder: bool,
    /// How the parameters start.
    pub init: InitConfig,
}

/// How the parameters start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// The dictionary.
    pub concepts: ConceptInit,
    /// W_Q, W_K and W_V.
    pub projections: ProjectionInit,
    /// The pre-bias.
    pub pre_bias: PreBiasInit,
}

/// How the dictionary C `[M, d]` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ConceptInit {
    /// Rows of length one in random directions.
    Unit,
    /// Uniform in ±sqrt(6 / M): `kaiming_uniform_(C.T)` in torch, as in the released code.
    Kaiming,
}

/// How W_Q, W_K and W_V `[d, d]` start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ProjectionInit {
    /// The identity: concepts start as their own keys and values.
    Identity,
    /// Uniform in ±sqrt(6 / d): `kaiming_uniform_` in torch, as in the released code.
    Kaiming,
}

/// How the pre-bias `[d]` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PreBiasInit {
    /// The mean of the training data.
    Mean,
    /// Zero.
    Zero,
}

/// A value that no model can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("model.{key} = {value}: {remedy}")]
pub struct InvalidConfig {
    /// Name of the field.
    pub key: &'static str,
    /// Its value, as written.
    pub value: String,
    /// The remedy.
    pub remedy: &'static str,
}

impl SaeConfig {
    /// The usual model of this architecture for activations of width `d_in` and a dictionary of `n_latents` concepts.
    ///
    /// It is meant for activations of variance d (`input_scale` is 1); see [`Architecture::input_scale`] and
    /// [`Architecture::pre_bias`]. Where the architecture says nothing else, there are no projections, a pre-bias, an encoder
    /// bias and decoder rows of length one, and encoder and decoder start as the same random unit rows.
    pub fn new(architecture: impl Into<AnyArchitecture>, d_in: usize, n_latents: usize) -> Self {
        let architecture = architecture.into();
        let usual = Self {
            d_in,
            n_latents,
            architecture: architecture.clone(),
            scale: 1.0,
            norm_exponent: 0.0,
            input_scale: 1.0,
            norm_range: None,
            query_projection: false,
            key_projection: false,
            value_projection: false,
            pre_bias: true,
            encoder_bias: true,
            unit_norm_decoder: true,
            init: InitConfig {
                concepts: ConceptInit::Unit,
                projections: ProjectionInit::Identity,
                pre_bias: PreBiasInit::Mean,
            },
        };
        architecture.config(usual)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first value that no model can have.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, value: String, remedy| Err(InvalidConfig { key, value, remedy });
        if self.d_in == 0 {
            return invalid("d_in", "0".into(), "activations need at least one column");
        }
        if self.n_latents == 0 {
            return invalid(
                "n_latents",
                "0".into(),
                "a dictionary needs at least one latent; a common choice is 4 to 32 times the width",
            );
        }
        if !is_positive_f32(self.scale) {
            return invalid(
                "scale",
                self.scale.to_string(),
                "the score scale must be a positive number, such as 1; larger is sparser",
            );
        }
        if !(-4.0..=4.0).contains(&self.norm_exponent) {
            return invalid(
                "norm_exponent",
                self.norm_exponent.to_string(),
                "must lie between -4 and 4; 1 gives queries of length one, 0 leaves lengths as they are",
            );
        }
        if !is_positive_f32(self.input_scale) {
            return invalid(
                "input_scale",
                self.input_scale.to_string(),
                "inputs are divided by this number, so it must be positive, and finite in float32; its default follows the \
                 variance of the training rows",
            );
        }
        if let Some(range) = self.norm_range
            && !(range >= 1.0 && is_positive_f32(range))
        {
            return invalid(
                "norm_range",
                range.to_string(),
                "must be at least 1, for example 4; without it norm_exponent holds for every row",
            );
        }
        let refinement = self.architecture.refinement();
        if refinement > MAX_REFINEMENT {
            return invalid(
                "refinement",
                refinement.to_string(),
                "at most 100 steps, for example 2",
            );
        }
        self.architecture.check(self)
    }
}

/// Whether a number is positive and finite as the model sees it, in float32.
pub(crate) fn is_positive_f32(value: f64) -> bool {
    let value = value as f32;
    value.is_finite() && value > 0.0
}
