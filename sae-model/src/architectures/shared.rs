//! The parts that several architectures share: parameters, coefficients, terms of the loss.

use burn::tensor::{Int, Tensor, TensorData};

use crate::config::{InvalidConfig, SaeConfig};
use crate::loss::{Coefficient, Step, Term};
use crate::ops::{self, EncodeOptions, Selection, SparseCodes};
use crate::parameters::{B_ENC, Parameter, Shape, Start, W_DEC, W_ENC};

/// Where latents of a penalised model begin to fire at start: JumpReLU's thresholds, and the others' biases with
/// a minus. Scores start with a variance of about one, so that a latent fires on some 2 % of the rows and not
/// on half of them (the idea is that of Conerly et al. 2025, "Dictionary Learning Optimization Techniques").
pub(super) const FIRING_SCORE: f32 = 2.0;

/// W_enc `[M, d]`, where it is not the dictionary; starts as the same rows.
pub const ENCODER: Parameter = Parameter {
    name: W_ENC,
    shape: Shape::Dictionary,
    start: Start::Decoder,
    ..Parameter::ALWAYS
};
/// b_enc `[M]`, added to the scores.
pub const ENCODER_BIAS: Parameter = Parameter {
    name: B_ENC,
    shape: Shape::Latents,
    start: Start::Constant(0.0),
    when: |config| config.encoder_bias,
    ..Parameter::ALWAYS
};
/// The same, starting so that few latents fire.
pub(super) const LOW_ENCODER_BIAS: Parameter = Parameter {
    start: Start::Constant(-FIRING_SCORE),
    ..ENCODER_BIAS
};

/// Name of the term that brings sparsity.
pub const SPARSITY: &str = "sparsity_loss";
/// Name of the auxiliary reconstruction's term.
pub(super) const AUXILIARY: &str = "auxiliary_loss";

/// Steps over which the weight of a sparsity penalty rises.
pub(super) const SPARSITY_WARMUP_STEPS: Coefficient = Coefficient {
    name: "sparsity_warmup_steps",
    meaning: "steps over which sparsity_coefficient rises linearly from zero",
    default: |run| (run.steps / 10) as f64,
    ..Coefficient::COUNT
};
/// Weight of [`explain_with_dead`].
pub(super) const AUX_COEFFICIENT: Coefficient = Coefficient {
    name: "aux_coefficient",
    meaning: "weight of the reconstruction of what is left over, by dead latents",
    default: |_| 1.0 / 32.0,
    ..Coefficient::WEIGHT
};
/// Latents of [`explain_with_dead`].
pub(super) const AUX_K: Coefficient = Coefficient {
    name: "aux_k",
    meaning: "dead latents per row that may explain what is left over",
    default: |_| 256.0,
    ..Coefficient::COUNT
};

/// The meaning of the switch `refinement`.
pub(super) const REFINEMENT_STEPS: (&str, &str) = (
    "refinement",
    "steps by which inference refines the values of the selected latents",
);

/// Fails unless k is a number of latents.
pub(super) fn check_k(k: usize, config: &SaeConfig) -> Result<(), InvalidConfig> {
    match (1..=config.n_latents).contains(&k) {
        true => Ok(()),
        false => Err(InvalidConfig {
            key: "k",
            value: k.to_string(),
            remedy: "this architecture needs a k between 1 and n_latents, for example 32",
        }),
    }
}

/// The L1 penalty: mean over rows of `sum_j a_j / d`, times its coefficient (decoder rows have length one).
///
/// It is divided by the width d, as FVU is in these units (inputs are scaled to `mean ||u||^2 = d`), so that coefficients
/// have the size that the papers use beside a sum of squares.
pub(super) fn l1(step: &Step<'_>, codes: Option<&SparseCodes>) -> Vec<Term> {
    let Some(codes) = codes else {
        return Vec::new();
    };
    let per_row = (codes.pattern.rows() * step.sae.config().d_in) as f64;
    vec![Term {
        name: SPARSITY,
        value: step.sae.across().sum(ops::sum(codes.values.clone())) / per_row
            * step.risen("sparsity_coefficient"),
    }]
}

/// The `aux_k` best of the dead latents explain what the model has left over (arXiv 2406.04093, appendix A.2). Latents
/// that the mask leaves out take no part.
pub(super) fn explain_with_dead(step: &Step<'_>) -> Vec<Term> {
    let weight = step.coefficients.get(AUX_COEFFICIENT.name);
    let k = step.coefficients.get(AUX_K.name) as usize;
    if weight <= 0.0 || k == 0 {
        return Vec::new();
    }
    let Some(explained) = by_dead(step, k) else {
        return Vec::new();
    };
    let residual = step.x.clone() - step.forward.x_hat.clone();
    vec![Term {
        name: AUXILIARY,
        value: step.distance(residual.detach(), explained) * weight,
    }]
}

/// The reconstruction by the k best dead latents of each row, `[B, d]`; none where no latent is dead.
fn by_dead(step: &Step<'_>, k: usize) -> Option<Tensor<2>> {
    let takes_part = |j: &u32| step.mask.get(*j as usize) != Some(&0.0);
    let dead = step.dead().into_iter().filter(takes_part);
    let ids: Vec<i32> = dead.map(|j| j as i32).collect();
    let (count, across) = (ids.len(), step.sae.across());
    let (parameters, encoded) = (&step.sae.parameters, &step.forward.encoded);
    let selection = Selection::TopK(match across.count(count) {
        0 => return None,
        all => k.min(all),
    });
    let restored = |explained| {
        let explained = step.sae.valued(across.sum(explained));
        Some(explained * encoded.input.norms.clone())
    };
    if count == 0 {
        let [rows, d] = encoded.queries.dims();
        across.selects_nothing(rows, selection);
        return restored(Tensor::zeros([rows, d], &encoded.queries.device()));
    }
    let ids = TensorData::new(ids, [count]);
    let ids = Tensor::<1, Int>::from_data(ids, &encoded.queries.device());
    let rows = |name| Some(parameters.matrix(name)?.select(0, ids.clone())); // [dead, d]
    let options = EncodeOptions {
        bias: parameters
            .vector(B_ENC)
            .map(|bias| bias.select(0, ids.clone())),
        ..EncodeOptions::default()
    };
    let codes = across.encode(encoded.queries.clone(), rows(W_ENC)?, options, selection);
    restored(ops::decode(&codes, rows(W_DEC.name)?))
}
