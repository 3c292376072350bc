//! Sparse attention: concepts are keys and values, sparsemax chooses (arXiv 2604.14925, section 3).
//!
//! ```text
//! a = sparsemax(z)                     value = "probability": the paper
//! a = z / scale * 1[sparsemax(z) > 0]  value = "score": the released code
//! ```
//!
//! The encoder is the dictionary.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::REFINEMENT_STEPS;
use super::{Architecture, ENCODER_BIAS, switches_of};
use crate::config::{ConceptInit, ProjectionInit, SaeConfig};
use crate::loss::Loss;
use crate::ops::SparseValue;
use crate::parameters::Parameter;
use crate::recipe::Recipe;
use crate::scores::{Attended, Scores, Selected};

/// t of the default preset, chosen so that L0 comes out between 20 and 50 (docs/SCIENCE.md).
const SCALE: f64 = 0.7;
/// Steps of refinement of the default preset (docs/SCIENCE.md).
const REFINEMENT: usize = 2;
/// `||mean(x)|| / sigma` from which on sparsemax needs a pre-bias: with a heavier mean latents die without one, with a
/// lighter one concepts carry classes better without it (docs/SCIENCE.md).
pub(super) const PRE_BIAS_FROM: f64 = 1.0 / 3.0;

/// Named starting points; every switch can be overridden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Preset {
    /// arXiv 2604.14925 as written: W_Q, W_K, W_V, scale 1/sqrt(d), attention weights, no pre-bias.
    Paper,
    /// The authors' released code: unit-norm query, no W_Q, scale 1, gated scores, no pre-bias.
    Released,
    /// The best that was found here (docs/SCIENCE.md): gated scores, queries and keys as they are, a W_V that starts at the
    /// identity, a pre-bias where the mean weighs much, unit concepts at start, and more latents for rows of large norm.
    #[default]
    Default,
}

/// Sparse attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Attention {
    /// Where the switches start from.
    pub preset: Preset,
    /// The value of a latent in the support of sparsemax.
    pub value: SparseValue,
    /// Steps of refinement at inference.
    pub refinement: usize,
}

/// [`Attention`] with what the preset implies left out.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    preset: Preset,
    value: Option<SparseValue>,
    refinement: Option<usize>,
}

impl From<Written> for Attention {
    fn from(written: Written) -> Self {
        let usual = Self::from(written.preset);
        Self {
            value: written.value.unwrap_or(usual.value),
            refinement: written.refinement.unwrap_or(usual.refinement),
            ..usual
        }
    }
}

impl From<Preset> for Attention {
    fn from(preset: Preset) -> Self {
        let (value, refinement) = match preset {
            Preset::Paper => (SparseValue::Probability, 0),
            Preset::Released => (SparseValue::Score, 0),
            Preset::Default => (SparseValue::Score, REFINEMENT),
        };
        Self {
            preset,
            value,
            refinement,
        }
    }
}

impl Default for Attention {
    fn default() -> Self {
        Self::from(Preset::Default)
    }
}

/// Switches of the default preset that `mlp_sparsemax` shares.
pub(super) fn best_found(usual: SaeConfig) -> SaeConfig {
    let mut config = usual;
    config.scale = SCALE;
    config.norm_exponent = 2.0;
    config.norm_range = Some(4.0);
    config.unit_norm_decoder = false;
    config
}

impl Architecture for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn source(&self) -> &'static str {
        "arXiv 2604.14925, section 3"
    }

    fn describe(&self) -> String {
        format!("attention ({:?} preset)", self.preset).to_lowercase()
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "preset",
                "where the switches start from: default, released (the authors' code) or paper",
            ),
            (
                "value",
                "what a selected latent contributes: its score, or its probability",
            ),
            REFINEMENT_STEPS,
        ]
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER_BIAS]
    }

    fn config(&self, usual: SaeConfig) -> SaeConfig {
        let mut config = usual;
        config.encoder_bias = false;
        config.value_projection = true;
        if self.preset == Preset::Default {
            return best_found(config);
        }
        config.unit_norm_decoder = false;
        config.pre_bias = false;
        config.norm_exponent = 1.0;
        config.key_projection = true;
        config.init.concepts = ConceptInit::Kaiming;
        config.init.projections = ProjectionInit::Kaiming;
        if self.preset == Preset::Paper {
            config.scale = 1.0 / (config.d_in as f64).sqrt();
            config.norm_exponent = 0.0;
            config.query_projection = true;
        }
        config
    }

    /// Rows of length about one; the presets of the paper and of its code see rows as they are.
    fn input_scale(&self, _d_in: usize, variance: f64) -> f64 {
        match self.preset {
            Preset::Default => variance.sqrt(),
            _ => 1.0,
        }
    }

    fn pre_bias(&self, mean_over_sigma: f64) -> bool {
        self.preset == Preset::Default && mean_over_sigma >= PRE_BIAS_FROM
    }

    fn recipe(&self, steps: usize, d_in: usize) -> Recipe {
        let baseline = Recipe::baseline(d_in);
        match self.preset {
            Preset::Default => Recipe::sparsemax(steps, d_in),
            Preset::Paper => Recipe {
                loss: Loss::Mse,
                lr: 3e-4,
                projection_lr: 1.0,
                warmup_steps: 0,
                decay_fraction: 0.0,
                beta_2: 0.99,
                ..baseline
            },
            Preset::Released => Recipe {
                loss: Loss::NormWeighted,
                lr: 4e-4,
                projection_lr: 1.0,
                warmup_steps: 500,
                decay_fraction: 0.0,
                frequency_cutoff: 0.1,
                ..baseline
            },
        }
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.sparsemax(self.value)
    }

    fn attend(&self, scores: &Scores<'_>) -> Option<Attended> {
        scores.attend(self.value)
    }

    fn refinement(&self) -> usize {
        self.refinement
    }
}
