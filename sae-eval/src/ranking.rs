//! Which latents speak for which class: the class-wise ranking of top-n classification.

use std::cmp::Reverse;

use sae_model::SparseCodes;

/// Counts, on the training split, how often each latent fires on each class.
pub(crate) struct Ranking {
    n_latents: usize,
    threshold: f32,
    /// Rows of the class on which `a_j > threshold`, `[classes, M]`.
    fired: Vec<u64>,
    /// Sum of `|a_j|` over the rows of the class, `[classes, M]`: settles ties.
    mass: Vec<f64>,
}

impl Ranking {
    pub(crate) fn new(classes: usize, n_latents: usize, threshold: f32) -> Self {
        Self {
            n_latents,
            threshold,
            fired: vec![0; classes * n_latents],
            mass: vec![0.0; classes * n_latents],
        }
    }

    /// Adds a batch: its codes and a label a row.
    pub(crate) fn add(&mut self, codes: &SparseCodes, labels: &[usize]) {
        let values = codes.host_values();
        for (row, label) in labels.iter().enumerate() {
            for entry in codes.pattern.row(row) {
                let counter = label * self.n_latents + codes.pattern.indices()[entry] as usize;
                self.fired[counter] += u64::from(values[entry] > self.threshold);
                self.mass[counter] += f64::from(values[entry].abs());
            }
        }
    }

    /// The `n` first latents of a class: by rows fired on, then by total activation, then by index.
    pub(crate) fn top(&self, class: usize, n: usize) -> Vec<usize> {
        let start = class * self.n_latents;
        let mut order: Vec<usize> = (0..self.n_latents).collect();
        let by_mass = |a: &usize, b: &usize| self.mass[start + b].total_cmp(&self.mass[start + a]);
        order.sort_by(|a, b| {
            let fired = |j: &usize| Reverse(self.fired[start + j]);
            fired(a)
                .cmp(&fired(b))
                .then_with(|| by_mass(a, b))
                .then(a.cmp(b))
        });
        order.truncate(n);
        order
    }

    /// Whether each latent is among the `n` first of its class, `[classes, M]`.
    pub(crate) fn masks(&self, n: usize) -> Vec<bool> {
        let mut masks = vec![false; self.fired.len()];
        for class in 0..self.fired.len() / self.n_latents {
            for latent in self.top(class, n) {
                masks[class * self.n_latents + latent] = true;
            }
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn frequency_first_then_mass_then_index() {
        let mut ranking = Ranking::new(2, 4, 0.2);
        // class 1: latent 2 fires twice, latent 0 once (strongly), 1 and 3 never, 3 with more mass
        let dense = [0.9, 0.1, 0.3, 0.0, 0.0, 0.0, 0.3, 0.2];
        ranking.add(
            &SparseCodes::from_dense(&dense, 4, &Device::flex()),
            &[1, 1],
        );
        assert_eq!(ranking.top(1, 4), [2, 0, 3, 1]);
        assert_eq!(
            ranking.top(0, 2),
            [0, 1],
            "a class without rows falls back to the index"
        );
        assert_eq!(
            ranking.masks(1),
            [true, false, false, false, false, false, true, false]
        );
    }
}
