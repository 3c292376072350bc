//! What a sparse autoencoder is made of: the switches of DESIGN §2, and the named presets that set them.

use serde::{Deserialize, Serialize};

use crate::ops::SparseValue;

/// Named starting points; every switch can be overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// arXiv 2604.14925 as written: W_Q, W_K, W_V, scale 1/sqrt(d), attention weights, no pre-bias.
    Paper,
    /// The authors' released code: unit-norm query, no W_Q, scale 1, gated scores, no pre-bias.
    Released,
    /// What works best here: `released` with a pre-bias, identity W_K and W_V and unit concepts at start.
    Default,
}

impl Preset {
    /// The preset's model for activations of width `d_in` and a dictionary of `n_latents` concepts.
    pub fn config(self, d_in: usize, n_latents: usize) -> SaeConfig {
        let released = SaeConfig {
            d_in,
            n_latents,
            value: SparseValue::Score,
            scale: 1.0,
            unit_norm: true,
            query_projection: false,
            key_projection: true,
            value_projection: true,
            pre_bias: false,
            init: InitConfig {
                concepts: ConceptInit::Kaiming,
                projections: ProjectionInit::Kaiming,
                pre_bias: PreBiasInit::Mean,
            },
        };
        match self {
            Self::Released => released,
            Self::Paper => SaeConfig {
                value: SparseValue::Probability,
                scale: 1.0 / (d_in as f64).sqrt(),
                unit_norm: false,
                query_projection: true,
                ..released
            },
            Self::Default => SaeConfig {
                pre_bias: true,
                init: InitConfig {
                    concepts: ConceptInit::Unit,
                    projections: ProjectionInit::Identity,
                    pre_bias: PreBiasInit::Mean,
                },
                ..released
            },
        }
    }
}

/// The architecture of one sparse autoencoder, and how its parameters start.
///
/// `cfg.json` of a saved model is this, written out in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeConfig {
    /// Width d of the activations.
    pub d_in: usize,
    /// Number of latents M, the rows of the dictionary.
    pub n_latents: usize,
    /// What a latent in the support contributes.
    pub value: SparseValue,
    /// Factor t on the scores before sparsemax: larger is sparser.
    pub scale: f64,
    /// Whether queries are divided by their norm, and reconstructions multiplied by it.
    pub unit_norm: bool,
    /// Whether there is a W_Q `[d, d]`.
    pub query_projection: bool,
    /// Whether there is a W_K `[d, d]`.
    pub key_projection: bool,
    /// Whether there is a W_V `[d, d]`.
    pub value_projection: bool,
    /// Whether there is a pre-bias `[d]`, subtracted from the input and added to the output.
    pub pre_bias: bool,
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
pub enum ConceptInit {
    /// Rows of length one in random directions.
    Unit,
    /// Uniform in ±sqrt(6 / M): `kaiming_uniform_(C.T)` in torch, as in the released code.
    Kaiming,
}

/// How W_Q, W_K and W_V `[d, d]` start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectionInit {
    /// The identity: concepts start as their own keys and values.
    Identity,
    /// Uniform in ±sqrt(6 / d): `kaiming_uniform_` in torch, as in the released code.
    Kaiming,
}

/// How the pre-bias `[d]` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// What to do about it.
    pub remedy: &'static str,
}

impl SaeConfig {
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
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return invalid(
                "scale",
                self.scale.to_string(),
                "the score scale must be a positive number; 1 is the default, larger is sparser",
            );
        }
        Ok(())
    }
}
