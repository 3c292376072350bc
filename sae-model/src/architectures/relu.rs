//! ReLU and an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity"): `a = max(z, 0)`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{self, LOW_ENCODER_BIAS, SPARSITY_WARMUP_STEPS};
use super::{Architecture, ENCODER, SPARSITY};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::Selection;
use crate::parameters::Parameter;
use crate::scores::{Scores, Selected};

/// Weight of the L1 penalty.
const L1: Coefficient = Coefficient {
    name: "sparsity_coefficient",
    meaning: "weight of the L1 penalty",
    default: |_| 2.0,
    ..Coefficient::WEIGHT
};

/// ReLU and an L1 penalty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Relu {}

impl Architecture for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn source(&self) -> &'static str {
        "Bricken et al. 2023, Towards Monosemanticity"
    }

    fn switches(&self) -> Map<String, Value> {
        Map::new()
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, LOW_ENCODER_BIAS]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[L1, SPARSITY_WARMUP_STEPS]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.select(Selection::Threshold(0.0))
    }

    fn terms(&self) -> &'static [&'static str] {
        &[SPARSITY]
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        shared::l1(step, Some(step.codes()))
    }
}
