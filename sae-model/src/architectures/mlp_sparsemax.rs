//! Ablation of arXiv 2604.14925: a separate encoder, from whose scores sparsemax chooses.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::attention::{PRE_BIAS_FROM, best_found};
use super::shared::REFINEMENT_STEPS;
use super::{Architecture, Attention, ENCODER, ENCODER_BIAS, switches_of};
use crate::config::SaeConfig;
use crate::ops::SparseValue;
use crate::parameters::Parameter;
use crate::recipe::Recipe;
use crate::scores::{Scores, Selected};

/// A separate encoder and sparsemax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpSparsemax {
    /// The value of a latent in the support of sparsemax.
    pub value: SparseValue,
    /// Steps of refinement at inference.
    pub refinement: usize,
}

impl Default for MlpSparsemax {
    fn default() -> Self {
        let Attention {
            value, refinement, ..
        } = Attention::default();
        Self { value, refinement }
    }
}

impl Architecture for MlpSparsemax {
    fn name(&self) -> &'static str {
        "mlp_sparsemax"
    }

    fn source(&self) -> &'static str {
        "arXiv 2604.14925, ablation"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "value",
                "what a selected latent contributes: its score, or its probability",
            ),
            REFINEMENT_STEPS,
        ]
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS]
    }

    fn config(&self, usual: SaeConfig) -> SaeConfig {
        best_found(usual)
    }

    /// Rows of length about one.
    fn input_scale(&self, _d_in: usize, variance: f64) -> f64 {
        variance.sqrt()
    }

    fn pre_bias(&self, mean_over_sigma: f64) -> bool {
        mean_over_sigma >= PRE_BIAS_FROM
    }

    fn recipe(&self, steps: usize, d_in: usize) -> Recipe {
        Recipe::sparsemax(steps, d_in)
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.sparsemax(self.value)
    }

    fn refinement(&self) -> usize {
        self.refinement
    }
}
