//! The same reconstruction in the words of other toolkits.
//!
//! SAELens, dictionary_learning, sparsify, OpenAI's code and the code of arXiv 2604.14925 call different numbers
//! by one name and one number by different names. A value in a paper can be compared with ours only if it is
//! known which of these it is, so each is computed here as its owner does, from the rows that our own
//! metrics see. The formulas were read from the sources named beside them; `conformance.rs` holds the values that
//! the packages themselves return.
//!
//! The whole evaluation set is one batch here. What the owners average over batches is in docs/METRICS.md.

mod owners;

use serde::{Deserialize, Serialize};

use super::reconstruction::{Centred, wide};

/// A metric as another toolkit defines it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolkitMetric {
    /// The toolkit, with the version that was read.
    pub owner: String,
    /// The toolkit's own name for the metric.
    pub name: String,
    /// The number; absent where the toolkit's own function returns NaN or infinity.
    pub value: Option<f64>,
    /// The same in terms of our metrics, if it is.
    pub equals: Option<String>,
    /// The formula, in words and symbols.
    pub formula: String,
    /// Where: file and function.
    pub source: String,
}

/// Norms below this are taken as 1 (SAELens' `l2_ratio`).
const SAELENS_SMALL_NORM: f64 = 1e-4;
/// A latent fires above this (OpenAI's `FastAutoencoder`).
const OPENAI_FIRES: f32 = 1e-3;

/// The metrics of other toolkits, accumulated in f64 in one pass.
#[derive(Clone, Debug)]
pub struct ToolkitStats {
    width: usize,
    mean: Option<Vec<f64>>,
    rows: u64,
    sums: Sums,
    input: Centred,
    residual: Centred,
    latents: Vec<Latent>,
}

/// Sums over rows, with `e = x - x_hat`.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// `||e||^2`.
    error: f64,
    /// `||e||`.
    error_norm: f64,
    /// `||e||^2 / ||x||^2`.
    error_by_square: f64,
    /// `||e||^2 / ||x||`.
    error_by_norm: f64,
    /// `||e||^2 / ||x - mean(x)||^2`.
    error_by_distance: f64,
    /// `||x||^2`.
    square: f64,
    /// `||x_hat||^2`.
    square_hat: f64,
    /// `x . x_hat`.
    dot: f64,
    /// `x . x_hat / (||x|| ||x_hat||)`.
    cosine: f64,
    /// `||x_hat|| / ||x||`.
    ratio: f64,
    /// `||x_hat|| / ||x||`, small norms taken as 1.
    ratio_guarded: f64,
    /// `#{ j : a_j != 0 }`.
    active: u64,
    /// `#{ j : a_j > 0 }`.
    positive: u64,
    /// `sum_j |a_j|`.
    l1: f64,
    /// `sum_j |a_j| / ||x||`.
    l1_by_norm: f64,
}

/// Sums over the activations of a latent.
#[derive(Clone, Copy, Debug, Default)]
struct Latent {
    /// Sum of its activations.
    mass: f64,
    /// Rows on which it is not zero.
    fired: u64,
    /// Whether it was ever above [`OPENAI_FIRES`].
    strong: bool,
}

impl ToolkitStats {
    /// For activations of width `d` and a dictionary of `M` latents. `mean` is `mean(x) [d]` of the rows that will
    /// be added: SAELens' older explained variance divides by each row's distance to it, which no single pass knows.
    ///
    /// # Panics
    /// If the mean has another width.
    pub fn new(width: usize, n_latents: usize, mean: Option<Vec<f64>>) -> Self {
        if let Some(mean) = &mean {
            assert_eq!(mean.len(), width, "one mean per column");
        }
        Self {
            width,
            mean,
            rows: 0,
            sums: Sums::default(),
            input: Centred::default(),
            residual: Centred::default(),
            latents: vec![Latent::default(); n_latents],
        }
    }

    /// Adds a batch: `x` and `x_hat` `[B, d]` row-major, then its codes as in [`SparsityStats::add`].
    ///
    /// # Panics
    /// If these do not fit together.
    ///
    /// [`SparsityStats::add`]: super::SparsityStats::add
    pub fn add(
        &mut self,
        (x, x_hat): (&[f32], &[f32]),
        (latents, activations): (&[u32], &[f32]),
        lengths: impl Iterator<Item = usize>,
    ) {
        assert_eq!(x.len(), x_hat.len(), "as many reconstructions as inputs");
        assert_eq!(x.len() % self.width, 0, "whole rows");
        assert_eq!(latents.len(), activations.len(), "one activation per entry");
        let mut lengths = lengths;
        let mut start = 0;
        for (x, x_hat) in x
            .chunks_exact(self.width)
            .zip(x_hat.chunks_exact(self.width))
        {
            let length = lengths.next();
            let row = start..start + length.expect("one length per row");
            start = row.end;
            let norm = self.add_row(x, x_hat);
            self.add_codes(&latents[row.clone()], &activations[row], norm);
        }
        assert_eq!(start, latents.len(), "every entry belongs to a row");
        assert!(lengths.next().is_none(), "one row per length");
    }

    /// Returns `||x||`.
    fn add_row(&mut self, x: &[f32], x_hat: &[f32]) -> f64 {
        let residual = wide(x).zip(wide(x_hat)).map(|(x, y)| x - y);
        let error: f64 = residual.clone().map(|e| e * e).sum();
        let square: f64 = wide(x).map(|x| x * x).sum();
        let square_hat: f64 = wide(x_hat).map(|y| y * y).sum();
        let dot: f64 = wide(x).zip(wide(x_hat)).map(|(x, y)| x * y).sum();
        let (norm, norm_hat) = (square.sqrt(), square_hat.sqrt());
        let guarded = if norm < SAELENS_SMALL_NORM { 1.0 } else { norm };

        self.rows += 1;
        let sums = &mut self.sums;
        sums.error += error;
        sums.error_norm += error.sqrt();
        sums.error_by_square += error / square;
        sums.error_by_norm += error / norm;
        sums.square += square;
        sums.square_hat += square_hat;
        sums.dot += dot;
        sums.cosine += dot / (norm * norm_hat);
        sums.ratio += norm_hat / norm;
        sums.ratio_guarded += norm_hat / guarded;
        if let Some(mean) = &self.mean {
            let distance: f64 = wide(x).zip(mean).map(|(x, m)| (x - m) * (x - m)).sum();
            sums.error_by_distance += error / distance;
        }
        self.input.add(wide(x));
        self.residual.add(residual);
        norm
    }

    fn add_codes(&mut self, latents: &[u32], activations: &[f32], norm: f64) {
        let mut l1 = 0.0;
        for (j, a) in latents.iter().zip(activations) {
            let active = *a != 0.0;
            let latent = &mut self.latents[*j as usize];
            latent.mass += f64::from(*a);
            latent.fired += u64::from(active);
            latent.strong |= *a > OPENAI_FIRES;
            self.sums.active += u64::from(active);
            self.sums.positive += u64::from(*a > 0.0);
            l1 += f64::from(a.abs());
        }
        self.sums.l1 += l1;
        self.sums.l1_by_norm += l1 / norm;
    }
}
