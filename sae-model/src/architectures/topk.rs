//! TopK: the k largest scores of each row, as far as they are positive (Gao et al. 2024, arXiv 2406.04093, section 2.3).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{self, AUX_COEFFICIENT, AUX_K, AUXILIARY, REFINEMENT_STEPS};
use super::{Architecture, ENCODER, ENCODER_BIAS, switches_of};
use crate::config::{InvalidConfig, SaeConfig};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::Selection;
use crate::parameters::Parameter;
use crate::scores::{Scores, Selected};

/// TopK.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopK {
    /// Active latents per row.
    pub k: usize,
    /// Steps of refinement at inference.
    pub refinement: usize,
}

impl Default for TopK {
    fn default() -> Self {
        Self {
            k: 32,
            refinement: 0,
        }
    }
}

impl Architecture for TopK {
    fn name(&self) -> &'static str {
        "topk"
    }

    fn source(&self) -> &'static str {
        "arXiv 2406.04093, section 2.3 and appendix A.2"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[("k", "active latents per row"), REFINEMENT_STEPS]
    }

    fn check(&self, config: &SaeConfig) -> Result<(), InvalidConfig> {
        shared::check_k(self.k, config)
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[AUX_COEFFICIENT, AUX_K]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.select(Selection::TopK(self.k))
    }

    fn refinement(&self) -> usize {
        self.refinement
    }

    fn asked_l0(&self) -> Option<usize> {
        Some(self.k)
    }

    fn terms(&self) -> &'static [&'static str] {
        &[AUXILIARY]
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        shared::explain_with_dead(step)
    }
}
