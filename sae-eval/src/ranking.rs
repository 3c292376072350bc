//! Which latents speak for which class: the class-wise ranking of top-n classification.

use std::cmp::Reverse;

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

    /// Adds a batch: `activations [B, M]` row-major and a label a row.
    pub(crate) fn add(&mut self, activations: &[f32], labels: &[usize]) {
        for (row, label) in activations.chunks_exact(self.n_latents).zip(labels) {
            let class = label * self.n_latents..(label + 1) * self.n_latents;
            let counters = self.fired[class.clone()]
                .iter_mut()
                .zip(&mut self.mass[class]);
            for (a, (fired, mass)) in row.iter().zip(counters) {
                *fired += u64::from(*a > self.threshold);
                *mass += f64::from(a.abs());
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

    /// 1 for the `n` first latents of each class and 0 elsewhere, `[classes, M]`.
    pub(crate) fn masks(&self, n: usize) -> Vec<f32> {
        let mut masks = vec![0.0; self.fired.len()];
        for class in 0..self.fired.len() / self.n_latents {
            for latent in self.top(class, n) {
                masks[class * self.n_latents + latent] = 1.0;
            }
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_first_then_mass_then_index() {
        let mut ranking = Ranking::new(2, 4, 0.2);
        // class 1: latent 2 fires twice, latent 0 once (strongly), 1 and 3 never, 3 with more mass
        ranking.add(&[0.9, 0.1, 0.3, 0.0, 0.0, 0.0, 0.3, 0.2], &[1, 1]);
        assert_eq!(ranking.top(1, 4), [2, 0, 3, 1]);
        assert_eq!(
            ranking.top(0, 2),
            [0, 1],
            "a class without rows falls back to the index"
        );
        assert_eq!(ranking.masks(1), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }
}
