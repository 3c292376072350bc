//! Matryoshka BatchTopK: the first latents of a dictionary are a dictionary of their own (Bussmann et al. 2025,
//! arXiv 2503.17547, section 3).
//!
//! ```text
//! a = BatchTopK(z)                                        of all M latents
//! L = sum over m in { m_1 < m_2 < ... < M } of ||x - x_hat(a_1, ..., a_m)||^2
//! ```
//!
//! Selection and threshold are those of `batch_topk`.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::batch_topk::{self, BatchTopK, THRESHOLD};
use super::shared::{self, AUX_COEFFICIENT, AUX_K, AUXILIARY, REFINEMENT_STEPS};
use super::{Architecture, ENCODER, ENCODER_BIAS, switches_of};
use crate::config::{InvalidConfig, SaeConfig};
use crate::loss::{Coefficient, Step, Term};
use crate::parameters::{Parameter, Parameters};
use crate::sae::Encoded;
use crate::scores::{Scores, Selected};

/// Name of the term of the smaller dictionaries.
const NESTED: &str = "nested_loss";

/// Matryoshka BatchTopK.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matryoshka {
    /// Active latents per row, on average over a batch.
    pub k: usize,
    /// Sizes of the smaller dictionaries, as parts of M.
    pub parts: Vec<f64>,
    /// Steps of refinement at inference.
    pub refinement: usize,
}

impl Default for Matryoshka {
    fn default() -> Self {
        Self {
            k: 32,
            parts: vec![1.0 / 16.0, 1.0 / 8.0, 1.0 / 4.0, 1.0 / 2.0],
            refinement: 0,
        }
    }
}

impl Matryoshka {
    /// The same without smaller dictionaries.
    fn flat(&self) -> BatchTopK {
        BatchTopK {
            k: self.k,
            refinement: self.refinement,
        }
    }
}

impl Architecture for Matryoshka {
    fn name(&self) -> &'static str {
        "matryoshka"
    }

    fn source(&self) -> &'static str {
        "arXiv 2503.17547, section 3, on BatchTopK (arXiv 2412.06410)"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("k", "active latents per row, on average over a batch"),
            (
                "parts",
                "sizes of the smaller dictionaries, as parts of n_latents",
            ),
            REFINEMENT_STEPS,
        ]
    }

    fn check(&self, config: &SaeConfig) -> Result<(), InvalidConfig> {
        shared::check_k(self.k, config)?;
        match self.parts.iter().all(|part| *part > 0.0 && *part < 1.0) {
            true => Ok(()),
            false => Err(InvalidConfig {
                key: "parts",
                value: format!("{:?}", self.parts),
                remedy: "parts of the dictionary lie between 0 and 1, for example [0.25, 0.5]",
            }),
        }
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS, THRESHOLD]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[AUX_COEFFICIENT, AUX_K]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        self.flat().select(scores)
    }

    fn refinement(&self) -> usize {
        self.refinement
    }

    fn asked_l0(&self) -> Option<usize> {
        Some(self.k)
    }

    fn terms(&self) -> &'static [&'static str] {
        &[NESTED, AUXILIARY]
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        let latents = step.sae.config().n_latents as f64;
        let sizes = self.parts.iter().map(|part| (part * latents).ceil() as u32);
        let losses = sizes.map(|size| {
            let first = step.sae.below(step.codes(), size);
            let x_hat = step.sae.decode(&first, &step.forward.encoded.input);
            step.distance(step.x.clone(), x_hat)
        });
        let nested = losses.reduce(|sum, loss| sum + loss);
        let nested = nested.map(|value| Term {
            name: NESTED,
            value,
        });
        nested
            .into_iter()
            .chain(shared::explain_with_dead(step))
            .collect()
    }

    fn observe(&self, batch: &Encoded) -> Option<Tensor<1>> {
        batch_topk::smallest_latent(batch)
    }

    fn after_update(&self, parameters: Parameters, observed: Option<Tensor<1>>) -> Parameters {
        batch_topk::follow(parameters, observed)
    }

    fn notes(&self, steps: usize, l0: f64) -> Option<String> {
        self.flat().notes(steps, l0)
    }
}
