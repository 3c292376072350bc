//! What the page collects in the pass over the held-out rows. Memory does not grow with the number of rows: about 1.5 kB
//! per latent, 8 bytes per latent and class if there are at most [`MAX_CLASS_SUMS`] of these, and samples of rows.

use std::collections::BTreeMap;

use anyhow::Result;
use sae_data::ActivationData;
use sae_model::SparseCodes;

use super::findings::examples_per_latent;
use super::strongest::Tallies;
use super::tally::hash;
use crate::criteria::sample::Sample;
use crate::run::Run;

/// Most sums of latents and classes: 256 MB.
const MAX_CLASS_SUMS: usize = 32_000_000;
/// Most rows that are kept as points of the charts.
const MAX_POINTS: usize = 4096;
/// Rows whose codes are kept to find latents that fire together, about this many at most.
const CODE_ROWS: usize = 1 << 15;
/// Entries of their codes: 16 MB.
const CODE_ENTRIES: usize = 1 << 21;
/// Positions in a document that are told apart; the last one stands for all behind it.
const MAX_POSITIONS: usize = 2048;
/// Most classes for which rows are counted.
const MAX_CLASSES: usize = 1 << 16;
/// Labels read at a time.
const LABELS: usize = 1 << 16;

/// A row as a point of the charts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) row: u64,
    /// `||x||`.
    pub(super) norm: f32,
    /// Active latents.
    pub(super) l0: u32,
    /// `||x - x_hat||^2 / ||x||^2`.
    pub(super) error: f32,
}

/// Sums of L0 over a group of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct L0Sums {
    pub(super) rows: u64,
    pub(super) sum: u64,
    pub(super) squares: u64,
}

impl L0Sums {
    fn add(&mut self, l0: u64) {
        self.rows += 1;
        self.sum += l0;
        self.squares += l0 * l0;
    }

    /// Mean L0.
    pub(super) fn mean(&self) -> f64 {
        self.sum as f64 / self.rows as f64
    }

    /// Standard deviation of L0.
    pub(super) fn deviation(&self) -> f64 {
        let mean = self.mean();
        (self.squares as f64 / self.rows as f64 - mean * mean)
            .max(0.0)
            .sqrt()
    }
}

/// Activation mass and firing of each latent on each class, `[M, classes]`.
#[derive(Clone, Debug)]
pub(super) struct ClassSums {
    pub(super) classes: usize,
    /// Sum of `|a_j|` over the rows of the class.
    pub(super) mass: Vec<f32>,
    /// Rows of the class on which the latent fires.
    pub(super) fired: Vec<u32>,
}

/// Everything that the pass collects.
pub(crate) struct Gather {
    pub(super) rows: u64,
    pub(super) tallies: Tallies,
    pub(super) points: Vec<Point>,
    /// Points are rows with a hash below this.
    bound: u64,
    pub(super) by_class: BTreeMap<usize, L0Sums>,
    /// By position in the document, if rows have positions.
    pub(super) by_position: Vec<L0Sums>,
    pub(super) class_sums: Option<ClassSums>,
    pub(super) codes: Sample,
    data: ActivationData,
}

impl Gather {
    /// For the held-out rows of a run.
    pub(crate) fn new(run: &Run) -> Result<Self> {
        let (data, latents) = (run.data.held_out.clone(), run.config.model.n_latents);
        let classes = match &run.data.head {
            Ok(head) => head.classes(),
            Err(_) => classes(&data)?,
        };
        let sums = classes.saturating_mul(latents);
        let class_sums = (1..=MAX_CLASS_SUMS).contains(&sums).then(|| ClassSums {
            classes,
            mass: vec![0.0; sums],
            fired: vec![0; sums],
        });
        Ok(Self {
            rows: 0,
            tallies: Tallies::new(&data, latents, examples_per_latent(latents))?,
            points: Vec::new(),
            bound: 1 << 32,
            by_class: BTreeMap::new(),
            by_position: Vec::new(),
            class_sums,
            codes: Sample::within(data.rows(), CODE_ROWS, CODE_ENTRIES),
            data,
        })
    }

    /// Adds the next rows `x [B, d]`, their codes and their reconstructions.
    pub(crate) fn add(&mut self, x: &[f32], codes: &SparseCodes, x_hat: &[f32]) -> Result<()> {
        let start = self.rows as usize;
        let rows = start..start + codes.pattern.rows();
        let labels = match self.data.has_labels() {
            true => self.data.labels(rows.clone())?,
            false => None,
        };
        let places = self.tallies.places.in_documents(&self.data, rows.clone());
        let (values, latents) = (codes.host_values(), codes.pattern.indices());
        let width = self.data.width();
        for (i, row) in rows.enumerate() {
            let entries = codes.pattern.row(i);
            let entries = (&latents[entries.clone()], &values[entries]);
            let label = labels.as_ref().map(|labels| labels[i]);
            let place = places.as_ref().map(|places| places[i]);
            let into = self.tallies.place_in_piece(row as u64, place);
            let l0 = self.add_row((row as u64, into), entries, label);
            if let Some((_, place)) = place {
                self.add_position(self.tallies.places.position(place), l0);
            }
            self.codes.push(row, entries.0, entries.1);
            let at = i * width..(i + 1) * width;
            self.add_point(row as u64, l0, &x[at.clone()], &x_hat[at]);
        }
        self.rows += codes.pattern.rows() as u64;
        Ok(())
    }

    /// Adds the codes of a row, at a place of its piece; returns its L0.
    fn add_row(
        &mut self,
        row: (u64, u8),
        (latents, values): (&[u32], &[f32]),
        label: Option<usize>,
    ) -> u64 {
        let mut l0 = 0;
        for (j, a) in latents.iter().zip(values) {
            if *a == 0.0 {
                continue; // an entry need not be active
            }
            l0 += 1;
            self.tallies.add(*j, row, *a);
            if let (Some(sums), Some(label)) = (&mut self.class_sums, label)
                && label < sums.classes
            {
                let at = *j as usize * sums.classes + label;
                sums.mass[at] += a.abs();
                sums.fired[at] += 1;
            }
        }
        if let Some(label) = label
            && (self.by_class.len() < MAX_CLASSES || self.by_class.contains_key(&label))
        {
            self.by_class.entry(label).or_default().add(l0);
        }
        l0
    }

    fn add_position(&mut self, position: usize, l0: u64) {
        let place = position.min(MAX_POSITIONS - 1);
        if self.by_position.len() <= place {
            self.by_position.resize(place + 1, L0Sums::default());
        }
        self.by_position[place].add(l0);
    }

    fn add_point(&mut self, row: u64, l0: u64, x: &[f32], x_hat: &[f32]) {
        if u64::from(hash(u32::MAX, row)) >= self.bound {
            return;
        }
        let squares = |v: f32| f64::from(v) * f64::from(v);
        let norm: f64 = x.iter().map(|v| squares(*v)).sum();
        let error: f64 = x.iter().zip(x_hat).map(|(x, y)| squares(x - y)).sum();
        self.points.push(Point {
            row,
            norm: norm.sqrt() as f32,
            l0: l0.min(u64::from(u32::MAX)) as u32,
            error: (error / norm) as f32,
        });
        while self.points.len() > MAX_POINTS {
            self.bound /= 2;
            let bound = self.bound;
            self.points
                .retain(|point| u64::from(hash(u32::MAX, point.row)) < bound);
        }
    }
}

/// Number of classes by the labels of the data; 0 without labels.
fn classes(data: &ActivationData) -> Result<usize> {
    let mut classes = 0;
    if data.has_labels() {
        for start in (0..data.rows()).step_by(LABELS) {
            let labels = data.labels(start..data.rows().min(start + LABELS))?;
            let most = labels.iter().flatten().max();
            classes = classes.max(most.map_or(0, |label| label.saturating_add(1)));
        }
    }
    Ok(classes)
}
