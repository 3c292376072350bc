//! The nearest TopK or JumpReLU to a model that a format cannot hold (`--approximate`).
//!
//! Scores in units of x, `S = n z / t`, are linear in the row where there is no encoder bias, whatever its factor n is:
//!
//! ```text
//! S = x0 (E W_K W_Q^T)^T + n b_enc / t       n here: its mean over training rows
//! ```
//!
//! and a latent of sparse attention adds `n a = S` to its row (value = score). Sparsemax keeps the largest scores of a row, so
//! TopK with k the model's mean L0 keeps about the same, and JumpReLU with one threshold on S, chosen as BatchTopK's is so that
//! the mean L0 is the model's. With value = probability a latent is `z - tau`, and tau is taken to be this threshold in every
//! row. Refinement is dropped. Gates are thresholds: `a = r x0 w + b_mag` where `r x0 w + b_mag > b_mag - r b_gate`, for
//! `r = exp(r_mag)`.
//!
//! Everything is fitted on at most [`ROWS`] training rows; held-out rows are for the certificate.

use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData};
use clap::ValueEnum;
use sae_data::ActivationData;
use sae_model::stats::SparsityStats;
use sae_model::{Encoded, Sae, SparseValue};

use super::error::Misfit;
use super::folded::{Folded, Rule, has_gates, sparsemax_value, times, vector};
use crate::model::values;

/// Largest number of training rows that a fit looks at.
const ROWS: usize = 8192;
/// Rows per batch: at first, half of all scores are kept.
const BATCH: usize = 256;

/// What to approximate by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// The k largest scores of each row.
    Topk,
    /// Scores above a threshold.
    Jumprelu,
}

/// The nearest model of this form, and how it was found, in words.
pub(super) fn nearest(
    sae: &Sae,
    form: Form,
    format: &'static str,
    train: Result<&ActivationData, &String>,
) -> Result<(Folded, String)> {
    let own = match sparsemax_value(&sae.config().architecture) {
        None => own_rule(Folded::unrefined(sae, format), form),
        Some(_) => None,
    };
    if let Some(folded) = own {
        let how = format!("its own {}, without refinement", folded.rule.name());
        return Ok((folded, how));
    }
    let train = train.map_err(|reason| {
        anyhow!("--approximate: it is fitted on training rows, which cannot be read: {reason}")
    })?;
    fit(sae, form, format, &train.spread(ROWS))
}

/// The model as it is, where its rule is of this form.
fn own_rule(unrefined: Result<Folded, Misfit>, form: Form) -> Option<Folded> {
    let mut folded = unrefined.ok()?;
    match (form, &folded.rule) {
        (Form::Topk, Rule::TopK { .. }) | (Form::Jumprelu, Rule::JumpRelu { .. }) => {}
        (Form::Jumprelu, Rule::Relu) => folded.rule = zero_threshold(folded.n_latents),
        (Form::Jumprelu, Rule::Gated { .. }) => {
            let (scores, threshold) = ungated(folded)?;
            folded = scores;
            folded.rule = Rule::JumpRelu { threshold };
        }
        _ => return None,
    }
    Some(folded)
}

fn zero_threshold(latents: usize) -> Rule {
    Rule::JumpRelu {
        threshold: vec![0.0; latents],
    }
}

/// The magnitudes of a gated model as scores, and the thresholds that its gates are.
fn ungated(folded: Folded) -> Option<(Folded, Vec<f32>)> {
    let d = folded.d_in;
    let Rule::Gated { r_mag, b_mag } = &folded.rule else {
        return None;
    };
    let factors: Vec<f64> = r_mag.iter().map(|r| f64::from(*r).exp()).collect();
    let rows = folded.w_enc.chunks_exact(d).zip(&factors);
    let w_enc = rows
        .flat_map(|(row, r)| row.iter().map(move |w| (f64::from(*w) * r) as f32))
        .collect();
    let gates = b_mag.iter().zip(&folded.b_enc).zip(&factors);
    let threshold = gates
        .map(|((b, gate), r)| ((f64::from(*b) - r * f64::from(*gate)) as f32).max(0.0))
        .collect();
    let scores = Folded {
        w_enc,
        b_enc: b_mag.clone(),
        rule: Rule::Relu,
        ..folded
    };
    Some((scores, threshold))
}

/// Fits k or the threshold on these rows.
fn fit(
    sae: &Sae,
    form: Form,
    format: &'static str,
    rows: &ActivationData,
) -> Result<(Folded, String)> {
    let sample = Sample::of(sae, rows)?;
    let mut folded = scores(sae, format, sample.mean_norm)?;
    let value = sparsemax_value(&sae.config().architecture);
    let subtracted = value == Some(SparseValue::Probability);
    let threshold = match form == Form::Jumprelu || subtracted {
        true => threshold(&folded, rows, sample.entries)?,
        false => 0.0,
    };
    if subtracted {
        folded.b_enc.iter_mut().for_each(|b| *b -= threshold);
    }
    let k = (sample.l0.round() as usize).clamp(1, folded.n_latents);
    let of = format!("{} training rows, mean L0 {:.2}", rows.rows(), sample.l0);
    let (rule, how) = match form {
        Form::Topk => (Rule::TopK { k }, format!("TopK with k = {k} ({of})")),
        Form::Jumprelu if subtracted => (
            zero_threshold(folded.n_latents),
            format!("JumpReLU with {threshold} taken off all scores ({of})"),
        ),
        Form::Jumprelu => (
            Rule::JumpRelu {
                threshold: vec![threshold; folded.n_latents],
            },
            format!("JumpReLU with the threshold {threshold} ({of})"),
        ),
    };
    folded.rule = rule;
    Ok((folded, how))
}

/// What the model does on training rows.
struct Sample {
    /// Mean L0.
    l0: f64,
    /// Active latents of all rows.
    entries: usize,
    /// Mean of n.
    mean_norm: f64,
}

impl Sample {
    fn of(sae: &Sae, rows: &ActivationData) -> Result<Self> {
        let mut sparsity = SparsityStats::new(sae.config().n_latents);
        let mut norms = 0.0;
        for x in rows.blocks(BATCH) {
            let encoded = encoded(sae, x?);
            norms += values(encoded.input.norms)
                .into_iter()
                .map(f64::from)
                .sum::<f64>();
            sparsity.add_codes(&encoded.latents.on_host());
        }
        Ok(Self {
            l0: sparsity.l0_mean(),
            entries: sparsity.fired().iter().sum::<u64>() as usize,
            mean_norm: norms / rows.rows() as f64,
        })
    }
}

fn encoded(sae: &Sae, x: Vec<f32>) -> Encoded {
    let shape = [x.len() / sae.config().d_in, sae.config().d_in];
    sae.encode(Tensor::from_data(
        TensorData::new(x, shape),
        &Device::flex(),
    ))
}

/// S of the model, as the scores of one with ReLU; `norm` is the mean of n.
fn scores(sae: &Sae, format: &'static str, norm: f64) -> Result<Folded, Misfit> {
    let config = sae.config();
    let value = sparsemax_value(&config.architecture);
    if value.is_none() {
        match Folded::unrefined(sae, format) {
            Ok(own) => {
                let ungated = ungated(own.clone()).map(|(scores, _)| scores);
                return Ok(ungated.unwrap_or(Folded {
                    rule: Rule::Relu,
                    ..own
                }));
            }
            // gates of scores whose unit changes from row to row are no thresholds
            Err(Misfit::Norm { .. }) if !has_gates(sae) => {}
            Err(misfit) => return Err(misfit),
        }
    }
    let unit = match value {
        Some(SparseValue::Score) => config.scale, // a latent is its score without t
        _ => 1.0,
    };
    let bias = vector(sae, sae_model::parameters::B_ENC, config.n_latents);
    Ok(Folded {
        b_enc: times(bias, norm / unit),
        ..Folded::linear(sae, config.scale / unit)
    })
}

/// The threshold above which `wanted` of all positive scores of these rows lie: half-way between the smallest of them and the
/// next; 0 if there are no more.
fn threshold(scores: &Folded, rows: &ActivationData, wanted: usize) -> Result<f32> {
    let above = Folded {
        rule: Rule::BatchTopK {
            k: 1,
            threshold: f32::MIN_POSITIVE,
            parts: Vec::new(),
        },
        ..scores.clone()
    };
    let device = Device::flex();
    let mut above = above.to_sae(&device)?;
    let mut kept: Vec<f32> = Vec::new(); // the wanted + 1 largest so far
    for x in rows.blocks(BATCH) {
        kept.extend(encoded(&above, x?).latents.on_host().host_values());
        if kept.len() > wanted + 1 {
            let descending = |a: &f32, b: &f32| b.total_cmp(a);
            let (_, smallest, _) = kept.select_nth_unstable_by(wanted, descending);
            let smallest = smallest.max(f32::MIN_POSITIVE);
            kept.truncate(wanted + 1);
            above
                .parameters
                .set_vector("threshold", Tensor::from_data([smallest], &device));
        }
    }
    kept.sort_unstable_by(|a, b| b.total_cmp(a));
    Ok(
        match (kept.get(wanted.saturating_sub(1)), kept.get(wanted)) {
            (Some(last), Some(next)) => next + (last - next) / 2.0,
            _ => 0.0,
        },
    )
}
