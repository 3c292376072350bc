//! JumpReLU: a learned threshold per latent and a penalty on L0 (Rajamanoharan et al. 2024, arXiv 2407.14435).
//!
//! ```text
//! a_j = z_j 1[z_j > theta_j]
//! ```
//!
//! Thresholds learn through a rectangle of width epsilon, the bandwidth (equations 11 and 12).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::shared::{FIRING_SCORE, SPARSITY_WARMUP_STEPS};
use super::{Architecture, ENCODER, ENCODER_BIAS, SPARSITY, switches_of};
use crate::config::{InvalidConfig, SaeConfig, is_positive_f32};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::{self, Selection, SparseCodes};
use crate::parameters::{Parameter, Parameters, Shape, Start};
use crate::scores::{Scores, Selected};

/// Thresholds theta `[M]`, never negative.
const THRESHOLD: Parameter = Parameter {
    name: "threshold",
    shape: Shape::Latents,
    start: Start::Constant(FIRING_SCORE),
    ..Parameter::ALWAYS
};

/// Weight of the penalty.
const COEFFICIENT: Coefficient = Coefficient {
    name: "sparsity_coefficient",
    meaning: "weight of the distance of L0 from target_l0",
    default: |_| 1.0,
    ..Coefficient::WEIGHT
};

/// L0 that the penalty aims at.
const TARGET_L0: Coefficient = Coefficient {
    name: "target_l0",
    meaning: "active latents per row that the penalty aims at",
    default: |run| 32f64.min(run.n_latents as f64),
    check: |l0, run| {
        let possible = l0 > 0.0 && l0 <= run.n_latents as f64;
        (!possible).then_some(
            "the L0 to aim at lies above 0 and is at most model.n_latents, for example 32",
        )
    },
    ..Coefficient::WEIGHT
};

/// JumpReLU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JumpRelu {
    /// Width epsilon of the rectangle through which thresholds learn.
    pub bandwidth: f64,
}

impl Default for JumpRelu {
    fn default() -> Self {
        Self { bandwidth: 1.0 }
    }
}

impl Architecture for JumpRelu {
    fn name(&self) -> &'static str {
        "jumprelu"
    }

    fn source(&self) -> &'static str {
        "arXiv 2407.14435, section 3"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn meanings(&self) -> &'static [(&'static str, &'static str)] {
        &[(
            "bandwidth",
            "width of the rectangle through which the thresholds learn",
        )]
    }

    fn check(&self, _config: &SaeConfig) -> Result<(), InvalidConfig> {
        match is_positive_f32(self.bandwidth) {
            true => Ok(()),
            false => Err(InvalidConfig {
                key: "bandwidth",
                value: self.bandwidth.to_string(),
                remedy: "JumpReLU needs a positive bandwidth, for example 1",
            }),
        }
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS, THRESHOLD]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[COEFFICIENT, SPARSITY_WARMUP_STEPS, TARGET_L0]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        let bandwidth = self.bandwidth as f32;
        scores.select_above(THRESHOLD.name, Selection::JumpRelu { bandwidth })
    }

    fn terms(&self) -> &'static [&'static str] {
        &[SPARSITY]
    }

    /// `(L0 / target_l0 - 1)^2` with the batch's mean L0, whose gradient is that of equation 12:
    /// `dL0 / dtheta_j = -1 / epsilon * mean over rows of 1[|z_j - theta_j| < epsilon / 2]`.
    ///
    /// It aims at an L0 (as in the update of Rajamanoharan et al. that dictionary_learning trains) because Adam takes a
    /// penalty's size out of its gradient: whatever the coefficient of L0 itself, the thresholds climb at about the same
    /// pace (docs/SCIENCE.md).
    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        let codes = step.codes();
        let Some(theta) = step.sae.parameters.vector(THRESHOLD.name) else {
            return Vec::new();
        };
        let l0 = step.sae.across().sum(self.l0(codes, theta));
        let l0 = l0 / codes.pattern.rows() as f64;
        let penalty = (l0 / step.coefficients.get(TARGET_L0.name) - 1.0).square();
        vec![Term {
            name: SPARSITY,
            value: penalty * step.risen(COEFFICIENT.name),
        }]
    }

    fn after_update(&self, parameters: Parameters, _observed: Option<Tensor<1>>) -> Parameters {
        parameters.map_vector(THRESHOLD.name, |theta| {
            Tensor::from_inner(theta.inner().clamp_min(0.0)).require_grad()
        })
    }
}

impl JumpRelu {
    /// Number of active entries `[1]`, with the straight-through gradient for the thresholds `[M]`.
    fn l0(&self, codes: &SparseCodes, thresholds: Tensor<1>) -> Tensor<1> {
        let bandwidth = self.bandwidth as f32;
        let values = codes.values.clone().inner();
        let l0 = ops::sum(values.not_equal_elem(0.0).float());
        let theta = codes.at_entries(thresholds.clone().inner());
        let distance = (codes.scores.clone().inner() - theta).abs();
        let near = distance.lower_elem(bandwidth / 2.0).float();
        let slope = ops::column_sums(near, &codes.pattern) * (-1.0 / bandwidth);
        // A value of L0 and a gradient of `slope`: the linear term cancels, its derivative does not.
        let linear = ops::sum(thresholds * Tensor::from_inner(slope));
        linear.clone() - linear.detach() + Tensor::from_inner(l0)
    }
}
