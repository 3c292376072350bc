//! How well latents tell the classes of labelled data: probes of a few latents, the best single latent, class entropy.
//!
//! None of these needs class embeddings. They are computed from the codes of a sample of each side (`sample.rs`). The
//! training side chooses the latents, and every number has an interval over held-out rows (`bootstrap.rs`).

pub(crate) mod bootstrap;
mod entropy;
mod logistic;
mod probing;
pub(crate) mod sample;
pub(crate) mod scores;
mod single;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use sae_data::ActivationData;
use sae_model::SparseCodes;

use crate::evaluate::Passes;
use crate::model::Model;
use crate::report::criteria::{ClassCriteria, Criteria, Estimate, Probe, SampleOf};
use crate::run::Run;
pub(crate) use bootstrap::RESAMPLES;
use bootstrap::{Draws, Interval, Means};
use probing::{Probed, probe};
use sample::{Columns, Labels, Sample};
use scores::Scores;
use single::Single;

/// Sampled training rows: about this many at most.
const TRAIN_ROWS: usize = 1 << 17;
/// Sampled held-out rows: about this many at most.
const HELD_OUT_ROWS: usize = 1 << 15;
/// A class with fewer sampled training rows is left out.
pub(crate) const MIN_CLASS_ROWS: usize = 100;
/// Numbers of latents per probe.
const KS: [usize; 4] = [1, 2, 5, 20];
/// Numbers of elements per probe of the activations themselves.
const ACTIVATION_KS: [usize; 2] = [1, 5];
/// Labels read at a time.
const LABELS: usize = 1 << 16;

/// Samples of one side: its codes, and the activations themselves.
pub(crate) struct Side {
    pub(crate) codes: Sample,
    activations: Sample,
    /// Rows seen so far.
    seen: usize,
}

impl Side {
    /// Samples about `most` rows at most; none if they are not `wanted`.
    fn new(rows: usize, wanted: bool, most: usize) -> Self {
        let most = if wanted { most } else { 0 };
        Self {
            codes: Sample::new(rows, most),
            activations: Sample::new(rows, most),
            seen: 0,
        }
    }

    /// Samples of the training rows; empty without them or their labels.
    pub(crate) fn train(data: Option<&ActivationData>) -> Self {
        match data {
            Some(data) => Self::new(data.rows(), data.has_labels(), TRAIN_ROWS),
            None => Self::new(0, false, TRAIN_ROWS),
        }
    }

    /// Samples of the held-out rows. Recovery of concepts reads their codes, too.
    pub(crate) fn held_out(run: &Run) -> Self {
        let rows = &run.data.held_out;
        let wanted = rows.has_labels() || run.data.truth.is_some();
        Self::new(rows.rows(), wanted, HELD_OUT_ROWS)
    }

    /// Adds the next rows `x [B, d]` of the data set with their codes.
    pub(crate) fn add_next(&mut self, x: &[f32], codes: &SparseCodes) {
        let rows: Vec<usize> = (self.seen..self.seen + codes.pattern.rows()).collect();
        self.add(&rows, x, codes);
    }

    /// Adds the rows `x [B, d]` with these indices, and their codes.
    pub(crate) fn add(&mut self, rows: &[usize], x: &[f32], codes: &SparseCodes) {
        self.seen += rows.len();
        let (values, latents) = (codes.host_values(), codes.pattern.indices());
        let width = x.len() / rows.len().max(1);
        let elements: Vec<u32> = (0..width as u32).collect();
        for (i, row) in rows.iter().enumerate() {
            let entries = codes.pattern.row(i);
            self.codes
                .push(*row, &latents[entries.clone()], &values[entries]);
            self.activations
                .push(*row, &elements, &x[i * width..][..width]);
        }
    }

    /// Both samples by column.
    fn columns(
        self,
        data: &ActivationData,
        latents: usize,
        classes: &[usize],
    ) -> Result<[Columns; 2]> {
        let place = |label: usize| {
            classes
                .binary_search(&label)
                .map_or(0, |place| place as u32)
        };
        let side = [(self.codes, latents), (self.activations, data.width())];
        let mut both = Vec::new();
        for (sample, columns) in side {
            let of = labels(data, sample.rows())?
                .into_iter()
                .map(place)
                .collect();
            both.push(sample.into_columns(columns, Labels::new(of, classes.len())));
        }
        both.try_into().ok().context("two samples")
    }
}

/// The labels of `rows`, which ascend.
fn labels(data: &ActivationData, rows: &[usize]) -> Result<Vec<usize>> {
    let mut found = Vec::with_capacity(rows.len());
    for chunk in rows.chunk_by(|a, b| a / LABELS == b / LABELS) {
        let start = chunk[0] / LABELS * LABELS;
        let labels = data.labels(start..data.rows().min(start + LABELS))?;
        let labels = labels.with_context(|| format!("{} has no labels", data.path().display()))?;
        found.extend(chunk.iter().map(|row| labels[row - start]));
    }
    Ok(found)
}

/// Fills the training side if no other pass has. Encodes only the sampled rows of `data`.
fn fill(side: &mut Side, data: &ActivationData, passes: &Passes, model: &Model) -> Result<()> {
    let width = data.width();
    let (mut rows, mut x) = (Vec::new(), Vec::new());
    let encode = |side: &mut Side, rows: &mut Vec<usize>, x: &mut Vec<f32>| {
        if !rows.is_empty() {
            let codes = model.encode(passes.tensor(x, rows.len())).codes;
            side.add(rows, x, &codes);
        }
        rows.clear();
        x.clear();
    };
    passes.walk(data, |start, block| {
        for (row, values) in (start..).zip(block.chunks_exact(width)) {
            if side.codes.keeps(row) {
                rows.push(row);
                x.extend_from_slice(values);
            }
            if rows.len() == passes.batch {
                encode(side, &mut rows, &mut x);
            }
        }
        Ok(())
    })?;
    encode(side, &mut rows, &mut x);
    Ok(())
}

/// Measures everything, or says why there is nothing to measure.
pub(crate) fn measure(
    passes: &Passes,
    model: &Model,
    mut train: Side,
    held_out: Side,
) -> Result<Result<Criteria, String>> {
    let run = passes.run;
    let (training_rows, rows) = match labelled(run) {
        Ok(sides) => sides,
        Err(reason) => return Ok(Err(reason)),
    };
    if train.seen == 0 {
        fill(&mut train, training_rows, passes, model)?;
    }
    let classes = classes([(training_rows, &train), (rows, &held_out)])?;
    let latents = run.config.model.n_latents;
    let [train, train_x] = train.columns(training_rows, latents, &classes)?;
    let [held_out, held_out_x] = held_out.columns(rows, latents, &classes)?;
    let judged = judged(&train, &held_out);
    if judged.is_empty() {
        return Ok(Err(format!(
            "no class has {MIN_CLASS_ROWS} sampled training rows and a held-out row, beside rows of other classes"
        )));
    }
    let draws = Draws::new(held_out.rows());
    let probed = probe(&train, &held_out, &draws, &judged, &KS);
    let singles = singles(&train, &held_out, &draws, &judged);
    let entropies = entropy::entropies(&held_out, &draws);
    let mut metrics = probes("probe", &probed, &KS);
    metrics.extend(activations(&train_x, &held_out_x));
    metrics.push(single_f1(&singles));
    metrics.extend(entropy_metrics(&entropies));
    let per_class = judged.iter().zip(&probed).zip(&singles);
    let per_class = per_class.map(|((class, probed), single)| {
        let rows = [&train, &held_out].map(|side| side.labels.rows[*class]);
        let label = classes[*class];
        let name = match &run.data.head {
            Ok(head) => head.names[label].clone(),
            Err(_) => label.to_string(),
        };
        of_class((label, name), rows, probed, single)
    });
    Ok(Ok(Criteria {
        definition: Criteria::definition(),
        resamples: RESAMPLES,
        min_class_rows: MIN_CLASS_ROWS,
        min_entropy_rows: entropy::MIN_ROWS,
        entropy_latents: entropies.latents,
        train: sample_of(&train),
        held_out: sample_of(&held_out),
        train_activations: sample_of(&train_x),
        held_out_activations: sample_of(&held_out_x),
        metrics,
        per_class: per_class.collect(),
    }))
}

/// The training rows and those that are evaluated, if both have labels.
fn labelled(run: &Run) -> Result<(&ActivationData, &ActivationData), String> {
    let (train, rows) = (run.data.train.as_ref()?, &run.data.held_out);
    let without = [train, rows].into_iter().find(|side| !side.has_labels());
    match without {
        None => Ok((train, rows)),
        Some(_) if run.data.others.is_empty() => Err("the data has no labels".into()),
        Some(side) => Err(format!("{} has no labels", side.path().display())),
    }
}

/// The distinct labels of all sampled rows, ascending.
fn classes(sides: [(&ActivationData, &Side); 2]) -> Result<Vec<usize>> {
    let mut classes = BTreeSet::new();
    for (data, side) in sides {
        for sample in [&side.codes, &side.activations] {
            classes.extend(labels(data, sample.rows())?);
        }
    }
    Ok(classes.into_iter().collect())
}

fn sample_of(columns: &Columns) -> SampleOf {
    SampleOf {
        rows: columns.kept.rows,
        bound: columns.kept.bound,
    }
}

/// The report's entry for a class, with its numbers of training and held-out rows.
fn of_class(
    (label, class): (usize, String),
    [train_rows, rows]: [usize; 2],
    probed: &Probed,
    (single, scores): &(Option<Single>, Option<Scores>),
) -> ClassCriteria {
    let probes = KS.iter().zip(&probed.scores).map(|(k, scores)| Probe {
        k: *k,
        balanced_accuracy: finite(scores.balanced[0]),
        f1: finite(scores.f1[0]),
    });
    ClassCriteria {
        class,
        label,
        train_rows,
        rows,
        latents: probed.latents.clone(),
        probes: probes.collect(),
        single_latent: single.map(|single| single.latent),
        single_threshold: single.map(|single| single.threshold),
        single_f1: scores.as_ref().and_then(|scores| finite(scores.f1[0])),
    }
}

fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

/// The classes that have enough rows on both sides, and rows of other classes beside them.
fn judged(train: &Columns, held_out: &Columns) -> Vec<usize> {
    let judged = |class: &usize| {
        let [rows, tested] = [train, held_out].map(|side| side.labels.rows[*class]);
        (MIN_CLASS_ROWS..train.rows()).contains(&rows) && (1..held_out.rows()).contains(&tested)
    };
    (0..train.labels.rows.len()).filter(judged).collect()
}

/// Means of the probes' scores over classes.
fn probes(prefix: &str, probed: &[Probed], ks: &[usize]) -> Vec<Estimate> {
    let mut metrics = Vec::new();
    for (i, k) in ks.iter().enumerate() {
        let (mut balanced, mut f1) = (Means::new(), Means::new());
        for class in probed {
            balanced.add(&class.scores[i].balanced);
            f1.add(&class.scores[i].f1);
        }
        let of = match prefix {
            "probe" => "the k latents that differ most",
            _ => "k elements of the activations themselves",
        };
        for (name, means, score) in [
            ("balanced_accuracy", balanced, "(TPR + TNR) / 2"),
            ("f1", f1, "2 TP / (2 TP + FP + FN)"),
        ] {
            let formula =
                format!("mean over classes of {score} of a logistic regression on {of}, k = {k}");
            metrics.push(estimate(
                format!("{prefix}_{k}_{name}"),
                means.interval(),
                formula,
            ));
        }
    }
    metrics
}

/// Metrics of the probes of the activations themselves.
fn activations(train: &Columns, held_out: &Columns) -> Vec<Estimate> {
    let classes = judged(train, held_out);
    let draws = Draws::new(held_out.rows());
    let probed = probe(train, held_out, &draws, &classes, &ACTIVATION_KS);
    probes("activations_probe", &probed, &ACTIVATION_KS)
}

/// The best latent of each class, and its scores on the held-out rows.
fn singles(
    train: &Columns,
    held_out: &Columns,
    draws: &Draws,
    classes: &[usize],
) -> Vec<(Option<Single>, Option<Scores>)> {
    let best = single::best(train);
    let each = classes.iter().map(|class| {
        let rows = (0u32..).zip(&held_out.labels.of);
        let of_class = rows.filter(|(_, label)| **label as usize == *class);
        let of_class = draws.count(of_class.map(|(row, _)| row));
        let scores =
            best[*class].map(|best| Scores::of(&best.answers(held_out, *class), &of_class, draws));
        (best[*class], scores)
    });
    each.collect()
}

fn single_f1(singles: &[(Option<Single>, Option<Scores>)]) -> Estimate {
    let mut means = Means::new();
    for (_, scores) in singles {
        match scores {
            Some(scores) => means.add(&scores.f1),
            None => means.add(&[0.0; bootstrap::COLUMNS]), // no latent is above zero on this class
        }
    }
    let formula = "mean over classes of 2 TP / (2 TP + FP + FN) of a_j > T, with j and T of the largest F1 on the training rows";
    estimate("single_latent_f1".into(), means.interval(), formula.into())
}

fn entropy_metrics(found: &entropy::Entropies) -> [Estimate; 3] {
    let formula =
        "H_j = -sum_c p_c ln p_c / ln C, p_c the part of sum |a_j| that is on rows of class c";
    let over = format!(
        "over latents with a_j != 0 on at least {} held-out rows",
        entropy::MIN_ROWS
    );
    [
        (
            "class_entropy_mean",
            found.mean,
            format!("mean of H_j {over}; {formula}"),
        ),
        (
            "class_entropy_median",
            found.median,
            format!("median of H_j {over}"),
        ),
        (
            "class_entropy_specific",
            found.specific,
            format!("part of latents with H_j < {}, {over}", entropy::SPECIFIC),
        ),
    ]
    .map(|(name, interval, formula)| estimate(name.into(), interval, formula))
}

pub(crate) fn estimate(name: String, interval: Interval, formula: String) -> Estimate {
    Estimate {
        name,
        value: interval.value,
        low: interval.low,
        high: interval.high,
        formula,
    }
}
