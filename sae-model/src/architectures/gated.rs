//! Gated: gates choose the latents, magnitudes are made separately (Rajamanoharan et al. 2024, arXiv 2404.16014).
//!
//! ```text
//! gate  g = z = q W_enc^T + b_gate
//! a_j     = ReLU(exp(r_mag_j) (z_j - b_gate_j) + b_mag_j)   where g_j > 0   (section 3.2)
//! ```

use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{self, AUXILIARY, FIRING_SCORE, SPARSITY_WARMUP_STEPS};
use super::{Architecture, ENCODER, ENCODER_BIAS, SPARSITY};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::{self, Selection, SparseCodes};
use crate::parameters::{Parameter, Shape, Start, W_DEC, W_V};
use crate::scores::{Scores, Selected};

/// The gates' bias `[M]`.
const GATE_BIAS: Parameter = Parameter {
    name: "b_gate",
    start: Start::Constant(-FIRING_SCORE),
    ..ENCODER_BIAS
};
/// Logarithm of each latent's magnitude factor `[M]`.
const MAGNITUDE: Parameter = Parameter {
    name: "r_mag",
    shape: Shape::Latents,
    start: Start::Constant(0.0),
    ..Parameter::ALWAYS
};
/// The magnitudes' bias `[M]`.
const MAGNITUDE_BIAS: Parameter = Parameter {
    name: "b_mag",
    ..MAGNITUDE
};

const L1: Coefficient = Coefficient {
    name: "sparsity_coefficient",
    meaning: "weight of the L1 penalty on the gates",
    default: |_| 4.0,
    ..Coefficient::WEIGHT
};
const AUX_COEFFICIENT: Coefficient = Coefficient {
    name: "aux_coefficient",
    meaning: "weight of the reconstruction of the input by the gates",
    default: |_| 1.0,
    ..Coefficient::WEIGHT
};

/// Gates and magnitudes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gated {}

impl Architecture for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn source(&self) -> &'static str {
        "arXiv 2404.16014, section 3.2 and equation 8"
    }

    fn switches(&self) -> Map<String, Value> {
        Map::new()
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, GATE_BIAS, MAGNITUDE, MAGNITUDE_BIAS]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[L1, SPARSITY_WARMUP_STEPS, AUX_COEFFICIENT]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        let gate = scores.codes(GATE_BIAS.name, Selection::Threshold(0.0));
        Selected {
            latents: magnitudes(scores, &gate),
            gate: Some(gate),
        }
    }

    fn terms(&self) -> &'static [&'static str] {
        &[SPARSITY, AUXILIARY]
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        let gate = step.forward.encoded.gate.as_ref();
        let mut terms = shared::l1(step, gate);
        let weight = step.coefficients.get(AUX_COEFFICIENT.name);
        if let Some(gate) = gate.filter(|_| weight > 0.0) {
            terms.push(Term {
                name: AUXILIARY,
                value: step.distance(step.x.clone(), by_gates(step, gate)) * weight,
            });
        }
        terms
    }
}

/// The open gates' latents.
fn magnitudes(scores: &Scores<'_>, gate: &SparseCodes) -> SparseCodes {
    let at_entries = |name| Some(gate.at_entries(scores.vector(name)?));
    let shared = match at_entries(GATE_BIAS.name) {
        Some(bias) => gate.values.clone() - bias,
        None => gate.values.clone(),
    };
    let always = "a gated model has magnitudes";
    let factor = at_entries(MAGNITUDE.name).expect(always).exp();
    let values = shared * factor + at_entries(MAGNITUDE_BIAS.name).expect(always);
    gate.with_values(activation::relu(values))
}

/// The reconstruction of the input by the open gates' pre-activations, through a decoder that does not learn from it,
/// `[B, d]`.
fn by_gates(step: &Step<'_>, gate: &SparseCodes) -> Tensor<2> {
    let parameters = &step.sae.parameters;
    let matrix = |name| parameters.matrix(name).map(Tensor::detach);
    let w_dec = matrix(W_DEC.name).expect("every model has a decoder");
    let frozen = step.sae.across().sum(ops::decode(gate, w_dec));
    let frozen = match matrix(W_V.name) {
        Some(w_v) => frozen.matmul(w_v),
        None => frozen,
    };
    let frozen = frozen * step.forward.encoded.input.norms.clone();
    match parameters.vector(crate::parameters::B_DEC.name) {
        Some(bias) => frozen + bias.detach().unsqueeze(),
        None => frozen,
    }
}
