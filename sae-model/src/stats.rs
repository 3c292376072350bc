//! Every metric, defined once: the formula in words and symbols, accumulated in f64 over a whole data set.
//!
//! Toolkits disagree on names (FVU, NMSE and "explained variance" each mean several things), so each metric
//! carries its formula into the report. `x` is an activation row, `x_hat` its reconstruction, `d` the width,
//! `N` the number of rows, `a_j` the activation of latent `j`; sums without index run over rows.

use serde::{Deserialize, Serialize};

/// A metric's name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The field's term.
    pub name: &'static str,
    /// What is computed.
    pub formula: &'static str,
}

/// A measured metric, as it stands in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// [`Definition::name`].
    pub name: String,
    /// The number; absent where it is not defined (FVU of constant data, say).
    pub value: Option<f64>,
    /// [`Definition::formula`].
    pub formula: String,
}

impl Definition {
    /// This metric with its value; a value that is not finite becomes an absent one.
    pub fn measured(self, value: f64) -> Metric {
        Metric {
            name: self.name.into(),
            value: value.is_finite().then_some(value),
            formula: self.formula.into(),
        }
    }
}

macro_rules! definitions {
    ($($(#[$doc:meta])* $id:ident = $name:literal : $formula:literal;)*) => {
        $($(#[$doc])* pub const $id: Definition = Definition { name: $name, formula: $formula };)*
    };
}

definitions! {
    /// Mean squared error per element.
    MSE = "mse": "sum ||x - x_hat||^2 / (N d): mean over elements, not rows";
    /// Fraction of variance unexplained.
    FVU = "fvu": "sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, mean over the evaluated rows";
    /// The usual complement of FVU.
    EXPLAINED_VARIANCE = "explained_variance": "1 - fvu";
    /// Normalised error without centring.
    NMSE_UNCENTRED = "nmse_uncentred": "sum ||x - x_hat||^2 / sum ||x||^2 (patchsae and the paper's code: 1 - EV)";
    /// OpenAI's normalised error.
    NMSE_ROWWISE = "nmse_rowwise": "mean of ||x - x_hat||^2 / ||x||^2 per row (openai/sparse_autoencoder)";
    /// Mean cosine similarity.
    COSINE = "cosine": "mean of x . x_hat / (||x|| ||x_hat||) per row; 0 for a row of zeros";
    /// Active latents a row.
    L0_MEAN = "l0_mean": "mean over rows of #{ j : a_j != 0 } (SAELens)";
    /// Median of active latents.
    L0_MEDIAN = "l0_median": "median over rows of #{ j : a_j != 0 }";
    /// Low end of active latents.
    L0_P5 = "l0_p5": "5th percentile over rows of #{ j : a_j != 0 }, linear interpolation";
    /// High end of active latents.
    L0_P95 = "l0_p95": "95th percentile over rows of #{ j : a_j != 0 }, linear interpolation";
    /// Active latents, positive ones only.
    L0_POSITIVE_MEAN = "l0_positive_mean": "mean over rows of #{ j : a_j > 0 } (the paper's code; a gated score can be negative)";
    /// Latents that never fire.
    DEAD_FRACTION = "dead_fraction": "#{ j : a_j = 0 on every evaluated row } / M";
    /// Latents that never fire, as a number.
    DEAD_LATENTS = "dead_latents": "#{ j : a_j = 0 on every evaluated row }";
}

/// Reconstruction error of a data set, accumulated in f64.
#[derive(Clone, Debug)]
pub struct ReconstructionStats {
    width: usize,
    rows: u64,
    squared_error: f64,
    squared_norm: f64,
    rowwise: f64,
    cosine: f64,
    centre: Centred,
}

/// Sum of squared distances to the mean, in one pass. Sums are of differences to the first row, so that
/// data far from the origin loses no digits.
#[derive(Clone, Debug, Default)]
struct Centred {
    reference: Vec<f32>,
    sum: Vec<f64>,
    squares: f64,
    rows: u64,
}

impl Centred {
    fn add(&mut self, row: &[f32]) {
        if self.rows == 0 {
            self.reference = row.to_vec();
            self.sum = vec![0.0; row.len()];
        }
        self.rows += 1;
        for ((x, r), sum) in row.iter().zip(&self.reference).zip(&mut self.sum) {
            let delta = f64::from(*x) - f64::from(*r);
            *sum += delta;
            self.squares += delta * delta;
        }
    }

    /// `sum ||x - mean(x)||^2`.
    fn total(&self) -> f64 {
        let of_mean: f64 = self.sum.iter().map(|s| s * s).sum();
        (self.squares - of_mean / self.rows as f64).max(0.0)
    }

    fn mean(&self) -> Vec<f64> {
        let n = self.rows as f64;
        let shifted = self.sum.iter().zip(&self.reference);
        shifted.map(|(sum, r)| sum / n + f64::from(*r)).collect()
    }
}

impl ReconstructionStats {
    /// For activations of width `d`.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            rows: 0,
            squared_error: 0.0,
            squared_norm: 0.0,
            rowwise: 0.0,
            cosine: 0.0,
            centre: Centred::default(),
        }
    }

    /// Adds a batch, `x` and `x_hat` `[B, d]` row-major.
    ///
    /// # Panics
    /// If the slices differ in length or hold no whole number of rows.
    pub fn add(&mut self, x: &[f32], x_hat: &[f32]) {
        assert_eq!(x.len(), x_hat.len(), "as many reconstructions as inputs");
        assert_eq!(x.len() % self.width, 0, "whole rows");
        for (x, x_hat) in x
            .chunks_exact(self.width)
            .zip(x_hat.chunks_exact(self.width))
        {
            self.add_row(x, x_hat);
        }
    }

    fn add_row(&mut self, x: &[f32], x_hat: &[f32]) {
        let (mut error, mut norm, mut norm_hat, mut dot) = (0.0, 0.0, 0.0, 0.0);
        for (x, y) in x.iter().zip(x_hat) {
            let (x, y) = (f64::from(*x), f64::from(*y));
            error += (x - y) * (x - y);
            norm += x * x;
            norm_hat += y * y;
            dot += x * y;
        }
        self.rows += 1;
        self.squared_error += error;
        self.squared_norm += norm;
        self.rowwise += error / norm;
        let norms = (norm * norm_hat).sqrt();
        self.cosine += if norms > 0.0 { dot / norms } else { 0.0 };
        self.centre.add(x);
    }

    /// The metrics of all rows added.
    pub fn metrics(&self) -> Vec<Metric> {
        let n = self.rows as f64;
        let fvu = self.squared_error / self.centre.total();
        vec![
            MSE.measured(self.squared_error / (n * self.width as f64)),
            FVU.measured(fvu),
            EXPLAINED_VARIANCE.measured(1.0 - fvu),
            NMSE_UNCENTRED.measured(self.squared_error / self.squared_norm),
            NMSE_ROWWISE.measured(self.rowwise / n),
            COSINE.measured(self.cosine / n),
        ]
    }
}

/// Mean and variance of a data set, accumulated in f64.
#[derive(Clone, Debug, Default)]
pub struct MomentStats(Centred);

impl MomentStats {
    /// Adds rows of width `d`, `[B, d]` row-major.
    pub fn add(&mut self, rows: &[f32], width: usize) {
        rows.chunks_exact(width).for_each(|row| self.0.add(row));
    }

    /// `mean(x) [d]`; empty if no rows were added.
    pub fn mean(&self) -> Vec<f64> {
        self.0.mean()
    }

    /// `sigma^2 = mean ||x - mean(x)||^2`, summed over the columns.
    pub fn variance(&self) -> f64 {
        self.0.total() / self.0.rows as f64
    }
}

/// A histogram: `counts[i]` values lie in `[edges[i], edges[i + 1])`, the last bin includes its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Bin edges, one more than counts.
    pub edges: Vec<f64>,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

/// How many latents are active, and how often each fires.
#[derive(Clone, Debug)]
pub struct SparsityStats {
    rows: u64,
    positive: u64,
    /// `by_l0[k]`: rows with k active latents.
    by_l0: Vec<u64>,
    /// Rows on which each latent fired.
    fired: Vec<u64>,
}

impl SparsityStats {
    /// For a dictionary of `M` latents.
    pub fn new(n_latents: usize) -> Self {
        Self {
            rows: 0,
            positive: 0,
            by_l0: Vec::new(),
            fired: vec![0; n_latents],
        }
    }

    /// Adds a batch of codes: latent and activation of each entry, and the number of entries of each row.
    /// Entries whose activation is zero do not count as active.
    ///
    /// # Panics
    /// If the three do not fit together.
    pub fn add(
        &mut self,
        latents: &[u32],
        activations: &[f32],
        lengths: impl Iterator<Item = usize>,
    ) {
        assert_eq!(latents.len(), activations.len(), "an activation an entry");
        let mut start = 0;
        for length in lengths {
            let row = start..start + length;
            start = row.end;
            let mut l0 = 0;
            for (j, a) in latents[row.clone()].iter().zip(&activations[row]) {
                let active = *a != 0.0;
                l0 += usize::from(active);
                self.fired[*j as usize] += u64::from(active);
                self.positive += u64::from(*a > 0.0);
            }
            if self.by_l0.len() <= l0 {
                self.by_l0.resize(l0 + 1, 0);
            }
            self.by_l0[l0] += 1;
            self.rows += 1;
        }
        assert_eq!(start, latents.len(), "every entry belongs to a row");
    }

    /// The metrics of all rows added.
    pub fn metrics(&self) -> Vec<Metric> {
        let active: f64 = self
            .by_l0
            .iter()
            .enumerate()
            .map(|(k, n)| k as f64 * *n as f64)
            .sum();
        let dead = self.fired.iter().filter(|n| **n == 0).count() as f64;
        let n = self.rows as f64;
        vec![
            L0_MEAN.measured(active / n),
            L0_MEDIAN.measured(self.l0_percentile(0.5)),
            L0_P5.measured(self.l0_percentile(0.05)),
            L0_P95.measured(self.l0_percentile(0.95)),
            L0_POSITIVE_MEAN.measured(self.positive as f64 / n),
            DEAD_FRACTION.measured(dead / self.fired.len() as f64),
            DEAD_LATENTS.measured(dead),
        ]
    }

    /// Percentile of L0 over rows, by linear interpolation between order statistics (numpy's default).
    fn l0_percentile(&self, fraction: f64) -> f64 {
        if self.rows == 0 {
            return f64::NAN;
        }
        let position = fraction * (self.rows - 1) as f64;
        let (low, high) = (
            self.l0_ranked(position.floor() as u64),
            self.l0_ranked(position.ceil() as u64),
        );
        low + (high - low) * position.fract()
    }

    /// The `rank`-th smallest L0, from 0.
    fn l0_ranked(&self, rank: u64) -> f64 {
        let mut below = 0;
        let found = self.by_l0.iter().position(|n| {
            below += n;
            below > rank
        });
        found.unwrap_or(0) as f64
    }

    /// Histogram of L0 over rows, at most 40 bins of equal width.
    pub fn l0_histogram(&self) -> Histogram {
        let step = self.by_l0.len().div_ceil(40).max(1);
        let counts: Vec<u64> = self.by_l0.chunks(step).map(|c| c.iter().sum()).collect();
        let edges = (0..=counts.len()).map(|i| (i * step) as f64).collect();
        Histogram { edges, counts }
    }

    /// Histogram of firing frequencies over latents (`fired rows / N`): one bin for latents that never
    /// fired, then four bins a decade from 1e-6 to 1.
    pub fn frequency_histogram(&self) -> Histogram {
        const BINS_PER_DECADE: i32 = 4;
        const DECADES: i32 = 6;
        let log_edges = (0..=BINS_PER_DECADE * DECADES)
            .map(|i| f64::from(i) / f64::from(BINS_PER_DECADE) - f64::from(DECADES));
        let edges: Vec<f64> = std::iter::once(0.0)
            .chain(log_edges.map(|e| 10f64.powf(e)))
            .collect();
        let mut counts = vec![0; edges.len() - 1];
        for frequency in self.frequencies() {
            let bin = edges
                .partition_point(|edge| *edge <= frequency)
                .saturating_sub(1);
            counts[bin.min(edges.len() - 2)] += 1;
        }
        Histogram { edges, counts }
    }

    /// Firing frequency of every latent: rows on which it fired, over all rows.
    pub fn frequencies(&self) -> impl Iterator<Item = f64> + '_ {
        let n = self.rows as f64;
        self.fired.iter().map(move |fired| *fired as f64 / n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &[Metric], of: Definition) -> f64 {
        let metric = metrics.iter().find(|m| m.name == of.name);
        metric.and_then(|m| m.value).unwrap_or(f64::NAN)
    }

    fn assert_close(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() < 1e-12,
            "{actual} is not {expected}"
        );
    }

    #[test]
    fn reconstruction_by_hand() {
        // rows (3,4) (0,1): mean (1.5, 2.5), centred squares 4.5 + 4.5 = 9; squared errors 1 and 4
        let mut stats = ReconstructionStats::new(2);
        stats.add(&[3.0, 4.0], &[3.0, 3.0]);
        stats.add(&[0.0, 1.0], &[2.0, 1.0]);
        let m = stats.metrics();
        assert_close(value(&m, MSE), 5.0 / 4.0);
        assert_close(value(&m, FVU), 5.0 / 9.0);
        assert_close(value(&m, EXPLAINED_VARIANCE), 4.0 / 9.0);
        assert_close(value(&m, NMSE_UNCENTRED), 5.0 / 26.0);
        assert_close(value(&m, NMSE_ROWWISE), (1.0 / 25.0 + 4.0) / 2.0);
        let cosine = (21.0 / (5.0 * 18f64.sqrt()) + 1.0 / 5f64.sqrt()) / 2.0;
        assert_close(value(&m, COSINE), cosine);
    }

    #[test]
    fn fvu_survives_data_far_from_the_origin() {
        let mut stats = ReconstructionStats::new(1);
        stats.add(&[16_777_216.0, 16_777_218.0], &[16_777_216.0, 16_777_216.0]);
        assert_close(value(&stats.metrics(), FVU), 4.0 / 2.0);
    }

    #[test]
    fn fvu_of_constant_data_is_absent() {
        let mut stats = ReconstructionStats::new(1);
        stats.add(&[2.0, 2.0], &[2.0, 2.0]);
        let metrics = stats.metrics();
        assert!(metrics.iter().any(|m| m.name == "fvu" && m.value.is_none()));
    }

    #[test]
    fn sparsity_by_hand() {
        let mut stats = SparsityStats::new(4);
        stats.add(&[0, 1, 2, 1], &[1.0, -0.5, 0.0, 2.0], [3, 1].into_iter()); // L0 2 and 1
        stats.add(&[0, 1, 3], &[1.0, 1.0, 1.0], [3].into_iter()); // L0 3
        let m = stats.metrics();
        assert_close(value(&m, L0_MEAN), 2.0);
        assert_close(value(&m, L0_MEDIAN), 2.0);
        assert_close(value(&m, L0_P5), 1.1);
        assert_close(value(&m, L0_P95), 2.9);
        assert_close(value(&m, L0_POSITIVE_MEAN), 5.0 / 3.0);
        assert_close(value(&m, DEAD_LATENTS), 1.0);
        assert_close(value(&m, DEAD_FRACTION), 0.25);
        assert_eq!(stats.l0_histogram().counts, [0, 1, 1, 1]);
        let frequency = stats.frequency_histogram();
        assert_eq!(frequency.counts.iter().sum::<u64>(), 4);
        assert_eq!(frequency.counts[0], 1, "the dead latent");
        assert_eq!(
            *frequency.counts.last().unwrap(),
            2,
            "2/3 and 1 lie in the last quarter decade"
        );
    }

    #[test]
    fn moments_by_hand() {
        let mut moments = MomentStats::default();
        moments.add(&[3.0, 4.0, 0.0, 1.0], 2);
        assert_eq!(moments.mean(), [1.5, 2.5]);
        assert_close(moments.variance(), 4.5);
    }
}
