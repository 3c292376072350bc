//! Ablation of arXiv 2604.14925: attention with ReLU and an L1 penalty instead of sparsemax. It is `relu` whose encoder is the
//! dictionary.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::LOW_ENCODER_BIAS;
use super::{Architecture, Relu};
use crate::loss::{Coefficient, Step, Term};
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
        Relu {}.coefficients()
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        Relu {}.select(scores)
    }

    fn terms(&self) -> &'static [&'static str] {
        Relu {}.terms()
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        Relu {}.losses(step)
    }
}
