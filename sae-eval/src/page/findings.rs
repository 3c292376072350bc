//! What the page shows, as data: made from what was gathered once all rows have passed.

use std::collections::BTreeMap;

use anyhow::Result;
use burn::tensor::{Tensor, TensorData};

use super::cofiring::together;
use super::decoder::{self, Decoder, Near};
use super::gather::{ClassSums, Gather, L0Sums, Point};
use super::rows::{Numbered, Showing, Shown, Thumbnail};
use super::shades::shade;
use super::strongest::TOP;
use super::tally::{Example, Tally};
use super::training::Training;
use crate::classes::Judged;
use crate::criteria::sample::Sample;
use crate::evaluate::Passes;
use crate::model::{Model, values};
use crate::run::Run;

/// Up to this many latents, cards have 10 strongest rows and 10 tenths; beyond, 5 of each.
const MANY_LATENTS: usize = 8192;
/// Characters of all texts of rows together.
const TEXTS: usize = 24 << 20;
/// A latent that is active on fewer rows has no entropy, as in the report's criteria.
pub(super) const MIN_ENTROPY_ROWS: u64 = 10;
/// Rows whose reconstruction is taken apart.
const TAKEN_APART: usize = 12;
/// Latents shown for each of them.
const PARTS: usize = 12;
/// Classes that a card lists.
const CARD_CLASSES: usize = 8;
/// A latent serves a class if it is among this many first latents of it.
pub(super) const SERVES: usize = 10;

/// Everything that the page shows beside the report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Names of the classes, by label; empty if there are no labels.
    pub(super) classes: Vec<String>,
    /// Number of held-out rows.
    pub(super) rows: u64,
    pub(super) latents: Vec<Latent>,
    pub(super) decoder: Decoder,
    pub(super) points: Vec<Point>,
    pub(super) by_class: BTreeMap<usize, L0Sums>,
    pub(super) by_position: Vec<L0Sums>,
    /// Rows that cards and examples show, ascending.
    pub(super) shown: Vec<(u64, Shown)>,
    pub(super) thumbnails: Vec<Thumbnail>,
    pub(super) apart: Vec<Apart>,
    pub(super) carried: Vec<Carried>,
    /// Numbers of latents of the curves in `carried`; `None` for all latents.
    pub(super) ns: Vec<Option<usize>>,
    pub(super) training: Training,
    /// `config.toml` and `provenance.json`, if they can be read.
    pub(super) config: Option<String>,
    pub(super) provenance: Option<serde_json::Value>,
}

/// One latent.
#[derive(Clone, Debug, Default)]
pub(super) struct Latent {
    pub(super) fired: u64,
    /// Mean of `|a_j|` over the rows on which it is active.
    pub(super) mean: f64,
    pub(super) max: f32,
    /// The half octave of the histogram's first bin, and its counts.
    pub(super) histogram: (i32, Vec<u32>),
    /// Class entropy as a part of the largest possible.
    pub(super) entropy: Option<f64>,
    /// The class of the largest F1, and this F1.
    pub(super) best: Option<(usize, f64)>,
    /// Classes and their parts of `sum |a_j|`, falling.
    pub(super) classes: Vec<(usize, f64)>,
    pub(super) strongest: Vec<Example>,
    pub(super) tenths: Vec<Example>,
    /// Activations on the tokens around each of these rows, as digits from 0 to 9; empty if rows are no tokens.
    pub(super) shades: Vec<String>,
    pub(super) together: Vec<Near>,
    /// Classes for which it is among the first latents, and its rank there, from 0.
    pub(super) serves: Vec<(usize, u32)>,
}

/// A row taken apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Apart {
    pub(super) row: u64,
    pub(super) l0: usize,
    /// `||x - x_hat||^2 / ||x - b_dec||^2`.
    pub(super) left: f64,
    /// Latents of the largest parts.
    pub(super) parts: Vec<Part>,
    /// Sum of the other latents' parts.
    pub(super) rest: f64,
}

/// What a latent adds to a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Part {
    pub(super) latent: u32,
    pub(super) value: f32,
    /// `(n a_j W_dec_j W_V) . (x - b_dec) / ||x - b_dec||^2`.
    pub(super) share: f64,
}

/// How much of a class its first latents carry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carried {
    pub(crate) class: usize,
    /// Its latents, best first.
    pub(crate) latents: Vec<u32>,
    /// Accuracy with the first n latents on, and with them off; absent without held-out rows.
    pub(crate) curve: Vec<(Option<f64>, Option<f64>)>,
}

impl Gather {
    /// Finishes what was gathered.
    pub(crate) fn finish(
        self,
        passes: &Passes,
        model: &Model,
        judged: Option<&Judged>,
    ) -> Result<Findings> {
        let run = passes.run;
        let tallies = self.tallies;
        let fired: Vec<u64> = tallies.each.iter().map(|tally| tally.fired).collect();
        let carried = judged.map_or(Vec::new(), Judged::carried);
        let present = self.by_class.len();
        let rows_of = class_rows(&self.by_class, self.class_sums.as_ref());
        let sums = self.class_sums.as_ref();
        let examples = examples_per_latent(fired.len());
        let mut latents: Vec<Latent> = (0..fired.len())
            .map(|j| Latent {
                strongest: tallies.strongest(j as u32, examples),
                ..Latent::of(&tallies.each[j], examples, sums, j, &rows_of, present)
            })
            .collect();
        let described = tallies.described;
        drop((tallies.each, self.class_sums));
        // One is products of matrices, the other looks things up: together they keep more than one core busy.
        let (decoder, shaded) = rayon::join(
            || decoder::measure(&run.sae, &fired),
            || -> Result<()> {
                if let Some(described) = &described {
                    shade(&mut latents, described, &self.codes, passes, model)?;
                }
                set_together(&mut latents, self.codes);
                Ok(())
            },
        );
        shaded?;
        for of in &carried {
            for (rank, latent) in (0u32..).zip(of.latents.iter().take(SERVES)) {
                latents[*latent as usize].serves.push((of.class, rank));
            }
        }
        let mut findings = Findings {
            classes: class_names(run, &self.by_class),
            rows: self.rows,
            decoder,
            latents,
            by_class: self.by_class,
            by_position: self.by_position,
            ns: judged.map_or(Vec::new(), Judged::ns),
            carried,
            points: self.points,
            ..Findings::default()
        };
        findings.apart = taken_apart(passes, model, &findings.points)?;
        match &described {
            Some(described) => findings.show(described)?,
            None => findings.show(&Numbered(&run.data.held_out))?,
        }
        findings.read_run(run);
        Ok(findings)
    }
}

/// Sets which latents fire on the same rows as each, by a sample of codes.
fn set_together(latents: &mut [Latent], codes: Sample) {
    let all = together(codes, latents.len());
    for (latent, near) in latents.iter_mut().zip(all) {
        latent.together = near;
    }
}

/// Strongest rows, and rows of parts of the activations, that each card shows.
pub(super) fn examples_per_latent(latents: usize) -> usize {
    if latents > MANY_LATENTS { TOP / 2 } else { TOP }
}

/// Names of the classes by label; numbers where they have none.
fn class_names(run: &Run, by_class: &BTreeMap<usize, L0Sums>) -> Vec<String> {
    match (&run.data.head, by_class.keys().next_back()) {
        (Ok(head), _) => head.names.clone(),
        (Err(_), Some(last)) if *last < 1 << 16 => {
            (0..=*last).map(|c| format!("class {c}")).collect()
        }
        (Err(_), _) => Vec::new(),
    }
}

/// Held-out rows of each class of the sums.
fn class_rows(by_class: &BTreeMap<usize, L0Sums>, sums: Option<&ClassSums>) -> Vec<u64> {
    let rows = |class| by_class.get(&class).map_or(0, |sums| sums.rows);
    (0..sums.map_or(0, |sums| sums.classes)).map(rows).collect()
}

impl Latent {
    /// All but its strongest rows, and what other latents tell of it.
    fn of(
        tally: &Tally,
        examples: usize,
        sums: Option<&ClassSums>,
        j: usize,
        rows_of: &[u64],
        present: usize,
    ) -> Self {
        if tally.fired == 0 {
            return Self::default();
        }
        let (first, counts) = tally.histogram();
        let mut latent = Self {
            fired: tally.fired,
            mean: tally.mean(),
            max: tally.max,
            histogram: (first, counts.to_vec()),
            tenths: tally.tenths(),
            ..Self::default()
        };
        if examples < latent.tenths.len() {
            latent.tenths = latent.tenths.into_iter().skip(1).step_by(2).collect();
        }
        if let Some(sums) = sums {
            let of = j * sums.classes..(j + 1) * sums.classes;
            latent.judge(&sums.mass[of.clone()], &sums.fired[of], rows_of, present);
        }
        latent
    }

    /// Sets what the classes say of it: its mass and the rows on which it fires, by class.
    fn judge(&mut self, mass: &[f32], fired: &[u32], rows_of: &[u64], present: usize) {
        let total: f64 = mass.iter().map(|m| f64::from(*m)).sum();
        let parts = mass.iter().map(|m| f64::from(*m) / total).enumerate();
        let mut parts: Vec<(usize, f64)> = parts.filter(|(_, part)| *part > 0.0).collect();
        if self.fired >= MIN_ENTROPY_ROWS && present > 1 {
            let entropy: f64 = parts.iter().map(|(_, p)| -p * p.ln()).sum();
            self.entropy = Some(entropy / (present as f64).ln());
        }
        parts.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        parts.truncate(CARD_CLASSES);
        self.classes = parts;
        let f1 =
            |class: usize| 2.0 * f64::from(fired[class]) / (self.fired + rows_of[class]) as f64;
        let best = (0..fired.len()).filter(|class| fired[*class] > 0);
        self.best = best
            .map(|class| (class, f1(class)))
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
    }
}

impl Findings {
    /// Asks for all rows that are shown.
    fn show(&mut self, showing: &dyn Showing) -> Result<()> {
        let examples = self
            .latents
            .iter()
            .flat_map(|latent| latent.strongest.iter().chain(&latent.tenths));
        let mut rows: Vec<u64> = examples
            .map(|e| e.row)
            .chain(self.apart.iter().map(|a| a.row))
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let longest = (TEXTS / rows.len().max(1)).clamp(60, 400);
        let shown = showing.show(&rows, longest, &mut self.thumbnails)?;
        self.shown = rows.into_iter().zip(shown).collect();
        Ok(())
    }

    /// Reads what the run directory says of training.
    fn read_run(&mut self, run: &Run) {
        let dir = sae_run::RunDir::new(&run.dir);
        self.training = Training::read(&dir.metrics());
        self.config = dir.read_config().ok();
        self.provenance = dir.read_provenance().ok();
    }

    /// Place of a row in `shown`.
    pub(super) fn place(&self, row: u64) -> usize {
        self.shown.partition_point(|(other, _)| *other < row)
    }

    /// A class by its label.
    pub(super) fn class(&self, label: usize) -> String {
        match self.classes.get(label) {
            Some(name) => super::text::name(name),
            None => format!("class {label}"),
        }
    }
}

/// Takes some rows apart, spread from a small error to a large one.
fn taken_apart(passes: &Passes, model: &Model, points: &[Point]) -> Result<Vec<Apart>> {
    let mut usable: Vec<&Point> = points
        .iter()
        .filter(|point| point.error.is_finite())
        .collect();
    usable.sort_by(|a, b| a.error.total_cmp(&b.error).then(a.row.cmp(&b.row)));
    let n = usable.len();
    let picked = n.min(TAKEN_APART);
    let rows = (0..picked).map(|i| usable[(2 * i + 1) * n / (2 * picked)].row);
    apart(passes, model, &rows.collect::<Vec<u64>>())
}

/// Takes rows apart, all in one batch: for a single row, the model would read its parameters as often.
fn apart(passes: &Passes, model: &Model, rows: &[u64]) -> Result<Vec<Apart>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let (data, sae) = (&passes.run.data.held_out, &passes.run.sae);
    let mut x = Vec::with_capacity(rows.len() * data.width());
    for row in rows {
        x.extend(data.read(*row as usize..*row as usize + 1)?);
    }
    let x = passes.tensor(&x, rows.len()); // [n, d]
    let (encoded, x_hat) = model.reconstruct(x.clone());
    let centred = match sae.b_dec() {
        Some(b_dec) => x.clone() - b_dec.unsqueeze(),
        None => x.clone(),
    };
    let squares = |t: Tensor<2>| values(t.square().sum_dim(1));
    let (totals, left) = (squares(centred.clone()), squares(x - x_hat));
    let along = match sae.w_v() {
        Some(w_v) => centred.matmul(w_v.transpose()),
        None => centred,
    }; // [n, d]: w W_V . x0 = w . x0 W_V^T
    let (codes, norms) = (&encoded.codes, values(encoded.input.norms));
    let (all, latents) = (codes.host_values(), codes.pattern.indices());
    let each = rows.iter().enumerate().map(|(i, row)| {
        let entries = codes.pattern.row(i);
        let entries = all[entries.clone()].iter().zip(&latents[entries]);
        let active = entries.filter(|(a, _)| **a != 0.0);
        let active: Vec<(f32, u32)> = active.map(|(a, latent)| (*a, *latent)).collect();
        let total = f64::from(totals[i]).max(1e-30);
        let factor = norms.get(i).map_or(1.0, |n| f64::from(*n)) / total;
        let products = products(sae, &active, along.clone().narrow(0, i, 1));
        let mut parts = parts(&active, &products, factor);
        let rest = parts.iter().skip(PARTS).map(|part| part.share).sum();
        let l0 = parts.len();
        parts.truncate(PARTS);
        Apart {
            row: *row,
            l0,
            left: f64::from(left[i]) / total,
            parts,
            rest,
        }
    });
    Ok(each.collect())
}

/// What latents add to a row, from the largest part on; `factor` is `n / ||x - b_dec||^2`.
fn parts(active: &[(f32, u32)], products: &[f32], factor: f64) -> Vec<Part> {
    let part = |((value, latent), product): (&(f32, u32), &f32)| Part {
        latent: *latent,
        value: *value,
        share: f64::from(*value) * f64::from(*product) * factor,
    };
    let mut parts: Vec<Part> = active.iter().zip(products).map(part).collect();
    parts.sort_by(|a, b| {
        let largest = b.share.abs().total_cmp(&a.share.abs());
        largest.then(a.latent.cmp(&b.latent))
    });
    parts
}

/// Products of the rows of W_dec of some latents with `along [1, d]`.
fn products(sae: &sae_model::Sae, active: &[(f32, u32)], along: Tensor<2>) -> Vec<f32> {
    if active.is_empty() {
        return Vec::new();
    }
    let latents: Vec<i32> = active.iter().map(|(_, latent)| *latent as i32).collect();
    let count = latents.len();
    let places = Tensor::<1, burn::tensor::Int>::from_data(
        TensorData::new(latents, [count]),
        &along.device(),
    );
    values(sae.w_dec().select(0, places).matmul(along.transpose()))
}
