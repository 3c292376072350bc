//! How many latents are active, and which never are.

use serde::{Deserialize, Serialize};

use crate::SparseCodes;

use super::{
    DEAD_FRACTION, DEAD_LATENTS, L0_MEAN, L0_MEDIAN, L0_P5, L0_P95, L0_POSITIVE_MEAN, Metric,
};

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

    /// Adds a batch of codes.
    pub fn add_codes(&mut self, codes: &SparseCodes) {
        let pattern = &codes.pattern;
        self.add(
            pattern.indices(),
            &codes.host_values(),
            pattern.row_lengths(),
        );
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
        assert_eq!(latents.len(), activations.len(), "one activation per entry");
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

    /// Rows on which each latent fired.
    pub fn fired(&self) -> &[u64] {
        &self.fired
    }

    /// Mean over rows of the number of active latents.
    pub fn l0_mean(&self) -> f64 {
        let by_l0 = self.by_l0.iter().enumerate();
        let active: f64 = by_l0.map(|(k, n)| k as f64 * *n as f64).sum();
        active / self.rows as f64
    }

    /// The metrics of all rows added.
    pub fn metrics(&self) -> Vec<Metric> {
        let dead = self.fired.iter().filter(|n| **n == 0).count() as f64;
        let n = self.rows as f64;
        vec![
            L0_MEAN.measured(self.l0_mean()),
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
    /// fired, then four bins per decade from 1e-6 to 1.
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
    use crate::stats::tests::{assert_close, value};

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
}
