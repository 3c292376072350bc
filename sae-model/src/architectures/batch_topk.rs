//! BatchTopK: the `k B` largest scores of a batch of B rows, as far as they are positive (Bussmann et al. 2024,
//! arXiv 2412.06410).
//!
//! At inference a threshold takes the place of the batch: a running mean of the smallest positive latent of each training
//! batch (section 3). As long as none was measured it is 0, and each row keeps its k largest.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{self, AUX_COEFFICIENT, AUX_K, AUXILIARY, REFINEMENT_STEPS};
use super::{Architecture, ENCODER, ENCODER_BIAS, switches_of};
use crate::config::{InvalidConfig, SaeConfig};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::Selection;
use crate::parameters::{Parameter, Parameters, Shape, Start};
use crate::sae::Encoded;
use crate::scores::{Scores, Selected};

/// The threshold that takes the place of the batch at inference `[1]`: measured, not trained.
pub(super) const THRESHOLD: Parameter = Parameter {
    name: "threshold",
    shape: Shape::One,
    start: Start::Constant(0.0),
    trained: false,
    ..Parameter::ALWAYS
};

/// Part of the old threshold that is kept at each step.
const DECAY: f64 = 0.99;
/// Steps after which what the threshold started from counts for less than one per cent (0.99^460).
const SETTLED_AFTER: usize = 460;
/// How far the mean L0 at inference may be from k, as a part of k.
const NEAR_K: f64 = 0.1;

/// BatchTopK.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchTopK {
    /// Active latents per row, on average over a batch.
    pub k: usize,
    /// Steps of refinement at inference.
    pub refinement: usize,
}

impl Default for BatchTopK {
    fn default() -> Self {
        Self {
            k: 32,
            refinement: 0,
        }
    }
}

impl Architecture for BatchTopK {
    fn name(&self) -> &'static str {
        "batch_topk"
    }

    fn source(&self) -> &'static str {
        "arXiv 2412.06410, section 3"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("k", "active latents per row, on average over a batch"),
            REFINEMENT_STEPS,
        ]
    }

    fn check(&self, config: &SaeConfig) -> Result<(), InvalidConfig> {
        shared::check_k(self.k, config)
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS, THRESHOLD]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[AUX_COEFFICIENT, AUX_K]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.select(selection(self.k, scores))
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

    fn observe(&self, batch: &Encoded) -> Option<Tensor<1>> {
        smallest_latent(batch)
    }

    fn after_update(&self, parameters: Parameters, observed: Option<Tensor<1>>) -> Parameters {
        follow(parameters, observed)
    }

    fn notes(&self, steps: usize, l0: f64) -> Option<String> {
        let k = self.k;
        if steps < SETTLED_AFTER {
            Some(format!(
                "the threshold that replaces the batch at inference is a running mean over {SETTLED_AFTER} steps and more, \
                 and has seen {steps}: it has not settled (L0 is {l0:.1}, k = {k})"
            ))
        } else if (l0 - k as f64).abs() > NEAR_K * k as f64 {
            Some(format!(
                "the threshold that replaces the batch at inference has not settled: L0 is {l0:.1}, k = {k}"
            ))
        } else {
            None
        }
    }
}

/// The rule of a batch, or of a row alone at inference.
pub(super) fn selection(k: usize, scores: &Scores<'_>) -> Selection {
    if scores.is_training() {
        return Selection::BatchTopK(k);
    }
    let threshold = scores
        .vector(THRESHOLD.name)
        .map_or(0.0, Tensor::into_scalar::<f32>);
    match threshold {
        0.0 => Selection::TopK(k),
        measured => Selection::Threshold(measured),
    }
}

/// The smallest positive latent of a batch `[1]`; infinite where there is none.
pub(super) fn smallest_latent(batch: &Encoded) -> Option<Tensor<1>> {
    let values = batch.latents.values.clone().inner();
    if values.dims()[0] == 0 {
        return None;
    }
    let not_positive = values.clone().lower_equal_elem(0.0);
    Some(values.mask_fill(not_positive, f32::INFINITY).min())
}

/// Moves the threshold towards the smallest latent of a batch; the first one is taken as it is, and one of a batch without
/// positive latents not at all.
pub(super) fn follow(parameters: Parameters, smallest: Option<Tensor<1>>) -> Parameters {
    let Some(smallest) = smallest else {
        return parameters;
    };
    parameters.map_vector(THRESHOLD.name, |old| {
        let old = old.inner();
        let moved = old.clone() * DECAY as f32 + smallest.clone() * (1.0 - DECAY as f32);
        let new = moved.mask_where(old.clone().equal_elem(0.0), smallest.clone());
        let new = new.mask_where(smallest.greater_elem(f32::MAX), old);
        Tensor::from_inner(new).set_require_grad(false)
    })
}
