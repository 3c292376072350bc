//! Synthetic data with known concepts: the ground truth for a trained dictionary.

use rand::seq::index;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Rows that are sparse sums of known unit concepts, plus noise.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Width d.
    pub width: usize,
    /// Number of true concepts.
    pub concepts: usize,
    /// Number of concepts per row, with strengths uniform in `[0.5, 1.5)`.
    pub active: usize,
    /// Standard deviation of the noise on each element.
    pub noise: f32,
    /// Seed of all random numbers.
    pub seed: u64,
}

impl Synthetic {
    /// The true concepts `[concepts, width]`: rows of length one.
    pub fn dictionary(&self) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut values = Vec::with_capacity(self.concepts * self.width);
        for _ in 0..self.concepts {
            let row: Vec<f32> = (0..self.width)
                .map(|_| StandardNormal.sample(&mut rng))
                .collect();
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            values.extend(row.iter().map(|v| v / norm));
        }
        values
    }

    /// `rows` samples `[rows, width]`.
    ///
    /// # Panics
    /// If `active` exceeds `concepts`.
    pub fn rows(&self, rows: usize) -> Vec<f32> {
        let dictionary = self.dictionary();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(1);
        let mut values = vec![0.0f32; rows * self.width];
        for row in values.chunks_exact_mut(self.width) {
            for concept in index::sample(&mut rng, self.concepts, self.active) {
                let strength: f32 = rng.random_range(0.5..1.5);
                let direction = &dictionary[concept * self.width..][..self.width];
                row.iter_mut()
                    .zip(direction)
                    .for_each(|(x, c)| *x += strength * c);
            }
            for x in row {
                let noise: f32 = StandardNormal.sample(&mut rng);
                *x += self.noise * noise;
            }
        }
        values
    }
}
