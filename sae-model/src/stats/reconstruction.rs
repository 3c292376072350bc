//! Reconstruction error and moments, in one pass and in f64.

use super::{
    COSINE, EXPLAINED_VARIANCE, FVU, MSE, Metric, NMSE_ROWWISE, NMSE_UNCENTRED, ZERO_ROWS, fvu,
};

/// Reconstruction error of a data set, accumulated in f64.
#[derive(Clone, Debug)]
pub struct ReconstructionStats {
    width: usize,
    rows: u64,
    squared_error: f64,
    squared_norm: f64,
    rowwise: f64,
    zero_rows: u64,
    cosine: f64,
    centre: Centred,
}

/// Sum of squared distances to the mean, in one pass. Sums are of differences to the first row, so that
/// data far from the origin loses no digits.
#[derive(Clone, Debug, Default)]
pub(super) struct Centred {
    reference: Vec<f64>,
    sum: Vec<f64>,
    squares: f64,
    rows: u64,
}

impl Centred {
    pub(super) fn add(&mut self, row: impl ExactSizeIterator<Item = f64> + Clone) {
        if self.rows == 0 {
            self.reference = row.clone().collect();
            self.sum = vec![0.0; row.len()];
        }
        self.rows += 1;
        for ((x, r), sum) in row.zip(&self.reference).zip(&mut self.sum) {
            let delta = x - r;
            *sum += delta;
            self.squares += delta * delta;
        }
    }

    /// `sum ||x - mean(x)||^2`.
    pub(super) fn total(&self) -> f64 {
        let of_mean: f64 = self.sum.iter().map(|s| s * s).sum();
        let total = self.squares - of_mean / self.rows as f64;
        if total < 0.0 { 0.0 } else { total } // a NaN stays
    }

    fn mean(&self) -> Vec<f64> {
        let n = self.rows as f64;
        let shifted = self.sum.iter().zip(&self.reference);
        shifted.map(|(sum, r)| sum / n + r).collect()
    }
}

/// A row's values in f64.
pub(super) fn wide(row: &[f32]) -> impl ExactSizeIterator<Item = f64> + Clone + '_ {
    row.iter().map(|x| f64::from(*x))
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
            zero_rows: 0,
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
        if norm == 0.0 {
            self.zero_rows += 1;
        } else {
            self.rowwise += error / norm;
        }
        let norms = (norm * norm_hat).sqrt();
        self.cosine += if norms == 0.0 { 0.0 } else { dot / norms };
        self.centre.add(wide(x));
    }

    /// FVU of all rows added.
    pub fn fvu(&self) -> f64 {
        fvu(self.squared_error, self.centre.total())
    }

    /// The metrics of all rows added.
    pub fn metrics(&self) -> Vec<Metric> {
        let n = self.rows as f64;
        let fvu = self.fvu();
        vec![
            MSE.measured(self.squared_error / (n * self.width as f64)),
            FVU.measured(fvu),
            EXPLAINED_VARIANCE.measured(1.0 - fvu),
            NMSE_UNCENTRED.measured(self.squared_error / self.squared_norm),
            NMSE_ROWWISE.measured(self.rowwise / (self.rows - self.zero_rows) as f64),
            COSINE.measured(self.cosine / n),
            ZERO_ROWS.measured(self.zero_rows as f64),
        ]
    }
}

/// Mean and variance of a data set, accumulated in f64.
#[derive(Clone, Debug, Default)]
pub struct MomentStats(Centred);

impl MomentStats {
    /// Adds rows of width `d`, `[B, d]` row-major.
    pub fn add(&mut self, rows: &[f32], width: usize) {
        rows.chunks_exact(width)
            .for_each(|row| self.0.add(wide(row)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tests::{assert_close, value};

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
    fn a_row_of_zeros_is_left_out_and_counted() {
        let mut stats = ReconstructionStats::new(2);
        stats.add(&[3.0, 4.0, 0.0, 0.0], &[3.0, 3.0, 1.0, 0.0]);
        let m = stats.metrics();
        assert_close(value(&m, NMSE_ROWWISE), 1.0 / 25.0);
        assert_close(value(&m, ZERO_ROWS), 1.0);
        assert_close(value(&m, NMSE_UNCENTRED), 2.0 / 25.0);
        assert_close(value(&m, COSINE), 21.0 / (5.0 * 18f64.sqrt()) / 2.0);
        let mut stats = ReconstructionStats::new(1);
        stats.add(&[0.0], &[1.0]);
        assert!(value(&stats.metrics(), NMSE_ROWWISE).is_nan(), "absent");
    }

    #[test]
    fn a_reconstruction_that_is_not_a_number_is_seen_in_every_metric() {
        let mut stats = ReconstructionStats::new(1);
        stats.add(&[1.0, 2.0], &[1.0, f32::NAN]);
        let present: Vec<Metric> = stats.metrics();
        let present = present.iter().filter(|m| m.value.is_some());
        let names: Vec<&str> = present.map(|m| m.name.as_str()).collect();
        assert_eq!(names, [ZERO_ROWS.name]);
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
    fn moments_by_hand() {
        let mut moments = MomentStats::default();
        moments.add(&[3.0, 4.0, 0.0, 1.0], 2);
        assert_eq!(moments.mean(), [1.5, 2.5]);
        assert_close(moments.variance(), 4.5);
    }
}
