//! The part of the variance that a few rows of large norm carry: where it is large, FVU is about these rows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::reconstruction::{Centred, wide};
use super::{Metric, VARIANCE_SHARE};

/// One in so many rows is among those of largest norm.
const ONE_IN: usize = 1000;

/// `||x||^2`, how many rows came behind it (of equal rows the first counts as the largest), `||x - mean||^2`.
type Entry = (u64, usize, u64);

/// The variance of the rows of largest norm, accumulated in f64; remembers as many numbers as there are such rows.
#[derive(Clone, Debug)]
pub struct LargestRows {
    /// How many rows count: a thousandth of all, rounded up.
    count: usize,
    left: usize,
    mean: Vec<f64>,
    /// Bits of numbers that are not negative, which are ordered as the numbers are.
    largest: BinaryHeap<Reverse<Entry>>,
    centre: Centred,
}

impl LargestRows {
    /// For `rows` rows whose mean is `mean`.
    pub fn new(rows: usize, mean: Vec<f64>) -> Self {
        Self {
            count: rows.div_ceil(ONE_IN),
            left: rows,
            mean,
            largest: BinaryHeap::new(),
            centre: Centred::default(),
        }
    }

    /// Adds rows `[B, d]`, row-major.
    pub fn add(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.mean.len()) {
            self.left = self.left.saturating_sub(1);
            self.centre.add(wide(row));
            let square: f64 = wide(row).map(|x| x * x).sum();
            let smallest = self.largest.peek().map(|Reverse(entry)| entry.0);
            if self.largest.len() == self.count
                && smallest.is_none_or(|smallest| square.to_bits() <= smallest)
            {
                continue;
            }
            let distance: f64 = wide(row)
                .zip(&self.mean)
                .map(|(x, m)| (x - m).powi(2))
                .sum();
            let entry = (square.to_bits(), self.left, distance.to_bits());
            self.largest.push(Reverse(entry));
            if self.largest.len() > self.count {
                self.largest.pop();
            }
        }
    }

    /// The part of the variance.
    pub fn metric(&self) -> Metric {
        let distances = self.largest.iter();
        let sum: f64 = distances
            .map(|Reverse(entry)| f64::from_bits(entry.2))
            .sum();
        VARIANCE_SHARE.measured(sum / self.centre.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_in_a_thousand_and_one_more_for_what_is_left() {
        // 1,001 rows of 0 and 1, and among them two of -9 and 10: mean 501/1003 with 500 ones
        let mut rows = vec![0.0f32; 501];
        rows.extend(vec![1.0; 500]);
        (rows[7], rows[900]) = (-9.0, 10.0);
        let mean = rows.iter().map(|x| f64::from(*x)).sum::<f64>() / 1001.0;
        let squares = |of: &[f32]| {
            of.iter()
                .map(|x| (f64::from(*x) - mean).powi(2))
                .sum::<f64>()
        };
        let mut largest = LargestRows::new(1001, vec![mean]);
        rows.chunks(100).for_each(|rows| largest.add(rows));
        let share = squares(&[-9.0, 10.0]) / squares(&rows);
        assert!((largest.metric().value.unwrap() - share).abs() < 1e-12);
        let mut one = LargestRows::new(1000, vec![mean]);
        one.add(&rows);
        let share = squares(&[10.0]) / squares(&rows);
        assert!((one.metric().value.unwrap() - share).abs() < 1e-12);
    }
}
