//! Ablation of arXiv 2604.14925: attention with ReLU and an L1 penalty instead of sparsemax. The encoder is the dictionary.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::relu::L1;
use super::shared::{self, LOW_ENCODER_BIAS, SPARSITY_WARMUP_STEPS};
use super::{Architecture, SPARSITY};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::Selection;
use crate::parameters::Parameter;
use crate::scores::{Scores, Selected};

/// Attention with ReLU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionRelu {}

impl Architecture for AttentionRelu {
    fn name(&self) -> &'static str {
        "attention_relu"
    }

    fn source(&self) -> &'static str {
        "arXiv 2604.14925, ablation"
    }

    fn switches(&self) -> Map<String, Value> {
        Map::new()
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[LOW_ENCODER_BIAS]
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
        shared::l1(step, step.codes())
    }
}
