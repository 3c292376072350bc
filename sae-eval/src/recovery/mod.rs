//! Recovery of known concepts: compares decoder directions with the concepts that synthetic data was made of, and the
//! rows on which latents are active with the rows that contain these concepts.

use anyhow::{Context, Result};
use burn::tensor::{Tensor, TensorData};
use sae_data::{ActivationData, Truth};
use sae_model::Sae;

use crate::criteria::bootstrap::{Draws, Interval, Means};
use crate::criteria::sample::Sample;
use crate::criteria::scores::{Answers, Scores};
use crate::criteria::{RESAMPLES, estimate};
use crate::directions::unit;
use crate::matching::{Matcher, Pairs};
use crate::report::criteria::{Estimate, SampleOf};
use crate::report::recovery::{Match, Recovery};
use crate::run::Run;

/// A concept is recovered if the cosine with its latent is above this.
const RECOVERED: f32 = 0.9;
/// Cosines computed at a time: 64 MiB.
const AT_A_TIME: usize = 1 << 24;
/// Rows of true strengths read at a time.
const ROWS: usize = 1024;

/// Measures recovery, if the true concepts are known; `alive` is the number of latents that are active on some held-out
/// row.
pub(crate) fn measure(run: &Run, held_out: &Sample, alive: usize) -> Result<Option<Recovery>> {
    let Some(truth) = &run.data.truth else {
        return Ok(None);
    };
    let matcher = matched(&run.sae, truth, run.config.model.n_latents);
    let pairs = matcher.pairs();
    let mut metrics = directions(&matcher, &pairs, alive);
    let mut firing = vec![None; pairs.len()];
    if let Some(codes) = &truth.codes {
        let (interval, each) = firing_f1(codes, &run.data.held_out, held_out, &pairs)?;
        firing = each;
        let formula = "mean over true concepts of 2 TP / (2 TP + FP + FN): rows with a_j != 0 of its latent, against rows with \
                       its strength != 0";
        metrics.push(estimate("firing_f1".into(), interval, formula.into()));
    }
    let matches = pairs.iter().zip(firing).map(|(pair, firing_f1)| Match {
        latent: pair.map(|(latent, _)| latent),
        cosine: pair.map(|(_, cosine)| f64::from(cosine)),
        firing_f1,
    });
    Ok(Some(Recovery {
        matching: if matcher.is_optimal() {
            "optimal"
        } else {
            "greedy"
        }
        .into(),
        concepts: truth.count,
        alive_latents: alive,
        resamples: RESAMPLES,
        held_out: truth.codes.as_ref().map(|_| SampleOf {
            rows: held_out.kept().rows,
            bound: held_out.kept().bound,
        }),
        metrics,
        matches: matches.collect(),
    }))
}

/// Metrics of how close latents are to the true concepts.
fn directions(matcher: &Matcher, pairs: &Pairs, alive: usize) -> Vec<Estimate> {
    let concepts = pairs.len() as f64;
    let cosines = || pairs.iter().flatten().map(|(_, cosine)| *cosine);
    let recovered = cosines().filter(|cosine| *cosine > RECOVERED).count() as f64;
    let mean = |sum: f64| sum / concepts;
    vec![
        exact(
            "mmcs",
            mean(matcher.largest().map(f64::from).sum()),
            "mean over true concepts of the largest cosine with a latent of the decoder",
        ),
        exact(
            "mcc",
            mean(cosines().map(f64::from).sum()),
            "mean over true concepts of the cosine with the latent that each is given, one latent for one concept, so that \
             the sum is largest; 0 without one",
        ),
        exact(
            "recovered",
            mean(recovered),
            "R / G, R the true concepts whose cosine with their latent is above 0.9",
        ),
        exact(
            "recovery_f1",
            2.0 * recovered / (concepts + alive as f64),
            "2 R / (G + A), A the latents that are active on a held-out row: the harmonic mean of R / G and R / A",
        ),
    ]
}

/// A metric without an interval.
fn exact(name: &str, value: f64, formula: &str) -> Estimate {
    Estimate {
        name: name.into(),
        value: Some(value).filter(|value| value.is_finite()),
        low: None,
        high: None,
        formula: formula.into(),
    }
}

/// Collects the cosines of the decoder's rows, `W_dec W_V [M, d]`, with the true concepts.
fn matched(sae: &Sae, truth: &Truth, latents: usize) -> Matcher {
    let dictionary = sae.w_dec();
    let device = dictionary.device();
    let width = truth.concepts.len() / truth.count;
    let concepts = TensorData::new(truth.concepts.clone(), [truth.count, width]);
    let concepts = unit(Tensor::from_data(concepts, &device)).transpose(); // [d, G]
    let mut matcher = Matcher::new(truth.count, latents);
    let block = (AT_A_TIME / truth.count).clamp(1, latents);
    for start in (0..latents).step_by(block) {
        let rows = dictionary
            .clone()
            .slice([start..latents.min(start + block), 0..width]);
        let decoder = match sae.w_v() {
            Some(w_v) => rows.matmul(w_v),
            None => rows,
        };
        let cosines = unit(decoder).matmul(concepts.clone()); // [block, d] [d, G] -> [block, G]
        let cosines: Vec<f32> = cosines.into_data().iter().collect();
        matcher.add(&cosines);
    }
    matcher
}

/// F1 of each concept's latent as a detector of the concept, and the mean with its interval; `None` for a concept that
/// is in no row of the sample.
fn firing_f1(
    codes: &ActivationData,
    data: &ActivationData,
    held_out: &Sample,
    pairs: &Pairs,
) -> Result<(Interval, Vec<Option<f64>>)> {
    let present = present(codes, data, held_out)?;
    let mut concept_of = std::collections::HashMap::new();
    for (concept, pair) in pairs.iter().enumerate() {
        concept_of.extend(pair.map(|(latent, _)| (latent, concept)));
    }
    let mut said = vec![Vec::new(); pairs.len()];
    for (row, latent) in held_out.active() {
        if let Some(concept) = concept_of.get(&latent) {
            said[*concept].push(row);
        }
    }
    let draws = Draws::new(held_out.kept().rows);
    let (mut means, mut each) = (Means::new(), Vec::new());
    for (said, present) in said.into_iter().zip(present) {
        let (hits, false_alarms) = said
            .into_iter()
            .partition(|row| present.binary_search(row).is_ok());
        let answers = Answers { hits, false_alarms };
        let scores = Scores::of(&answers, &draws.count(present.iter().copied()), &draws);
        means.add(&scores.f1);
        each.push(Some(scores.f1[0]).filter(|f1| f1.is_finite()));
    }
    Ok((means.interval(), each))
}

/// For each true concept the sampled rows that contain it, ascending.
fn present(
    codes: &ActivationData,
    data: &ActivationData,
    held_out: &Sample,
) -> Result<Vec<Vec<u32>>> {
    let mut present = vec![Vec::new(); codes.width()];
    let mut start = 0;
    let source = data.rows_in_source(0..data.rows());
    let rows = held_out.rows().iter().map(|row| source[*row]);
    let mut sampled = (0u32..).zip(rows).peekable();
    for block in codes.blocks(ROWS) {
        let block = block.with_context(|| format!("{}", codes.path().display()))?;
        let end = start + block.len() / codes.width();
        while let Some((place, row)) = sampled.next_if(|(_, row)| *row < end) {
            let strengths = &block[(row - start) * codes.width()..][..codes.width()];
            for (concept, _) in strengths.iter().enumerate().filter(|(_, s)| **s != 0.0) {
                present[concept].push(place);
            }
        }
        start = end;
    }
    Ok(present)
}
