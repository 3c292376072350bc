//! The pass over labelled rows that ranks the latents of each class.

use anyhow::{Context, Result, ensure};
use sae_data::ActivationData;

use crate::evaluate::{ObserveTrain, Passes};
use crate::model::Model;
use crate::ranking::{Counters, Ranking, Rule, classes_at_once};

/// Labels read at a time.
const LABELS: usize = 1 << 16;

/// The rows on which latents are ranked, and how.
pub(crate) struct RankedOn<'a> {
    data: &'a ActivationData,
    /// Rows of each class.
    pub(crate) rows: Vec<u64>,
    pub(crate) rule: Rule,
    /// Number of latents that are ranked for each class.
    first: usize,
}

impl<'a> RankedOn<'a> {
    /// Reads all labels, of `classes` classes.
    pub(crate) fn new(
        data: &'a ActivationData,
        classes: usize,
        rule: Rule,
        first: usize,
    ) -> Result<Self> {
        let mut rows = vec![0; classes];
        for start in (0..data.rows()).step_by(LABELS) {
            for label in labels(data, start, LABELS.min(data.rows() - start))? {
                ensure!(
                    label < classes,
                    "{}: a row has label {label}, and there are {classes} classes",
                    data.path().display()
                );
                rows[label] += 1;
            }
        }
        Ok(Self {
            data,
            rows,
            rule,
            first,
        })
    }

    /// Ranks the latents of each class. The data is read once per group of classes; each of its rows is encoded once and
    /// passed to `observe`.
    pub(crate) fn rank(
        &self,
        passes: &Passes,
        model: &Model,
        observe: &mut ObserveTrain,
    ) -> Result<Ranking> {
        let (classes, data) = (self.rows.len(), self.data);
        let latents = passes.run.config.model.n_latents;
        let present: Vec<usize> = (0..classes).filter(|class| self.rows[*class] > 0).collect();
        let at_once = classes_at_once(latents).min(present.len().max(1));
        let mut counters = Counters::new(at_once, latents, self.rule);
        let mut ranking = Ranking::new(classes);
        for group in present.chunks(at_once) {
            counters.clear();
            let mut places = vec![None; classes];
            for (place, class) in group.iter().enumerate() {
                places[*class] = Some(place);
            }
            let mut batch = Batch::new(passes, model, &mut counters, observe);
            passes.walk(data, |start, rows| {
                let labels = labels(data, start, rows.len() / data.width())?;
                let rows = (start..).zip(rows.chunks_exact(data.width()));
                for ((index, row), label) in rows.zip(labels) {
                    if let Some(place) = places[label] {
                        batch.push(index, row, place);
                    }
                }
                Ok(())
            })?;
            batch.count();
            for (place, class) in group.iter().enumerate() {
                ranking.set(*class, &counters.top(place, self.first));
            }
        }
        Ok(ranking)
    }
}

/// The labels of rows `start..start + count`.
pub(crate) fn labels(data: &ActivationData, start: usize, count: usize) -> Result<Vec<usize>> {
    let labels = data.labels(start..start + count)?;
    labels.with_context(|| format!("{} has no labels", data.path().display()))
}

/// Collects rows across blocks and encodes them together.
struct Batch<'a> {
    passes: &'a Passes<'a>,
    model: &'a Model,
    counters: &'a mut Counters,
    observe: &'a mut ObserveTrain<'a>,
    indices: Vec<usize>,
    rows: Vec<f32>,
    places: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(
        passes: &'a Passes,
        model: &'a Model,
        counters: &'a mut Counters,
        observe: &'a mut ObserveTrain<'a>,
    ) -> Self {
        Self {
            passes,
            model,
            counters,
            observe,
            indices: Vec::new(),
            rows: Vec::new(),
            places: Vec::new(),
        }
    }

    fn push(&mut self, index: usize, row: &[f32], place: usize) {
        self.indices.push(index);
        self.rows.extend_from_slice(row);
        self.places.push(place);
        if self.places.len() == self.passes.batch {
            self.count();
        }
    }

    /// Encodes and counts the collected rows.
    fn count(&mut self) {
        if self.places.is_empty() {
            return;
        }
        let x = self.passes.tensor(&self.rows, self.places.len());
        let codes = self.model.encode(x).codes;
        self.counters.add(&codes, &self.places);
        (self.observe)(&self.indices, &self.rows, &codes);
        self.indices.clear();
        self.rows.clear();
        self.places.clear();
    }
}
