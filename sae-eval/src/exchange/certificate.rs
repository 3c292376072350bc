//! What an export changes, measured: the model and what was written, on the same held-out rows.
//!
//! With x_hat and a of the model, y_hat and b of what was written, of N rows:
//!
//! ```text
//! difference   max over rows of ||x_hat - y_hat||, and this over the root mean square of ||x||
//! agreement    mean over rows of |S_a and S_b| / |S_a or S_b|  (1 where both are empty), S the latents that are not 0;
//!              and the share of rows with S_a = S_b
//! frequencies  max and mean over latents of | part of the rows on which a_j is not 0 - the same of b |
//! ```
//!
//! FVU, L0 and dead latents are those of [`sae_model::stats`].

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use sae_data::ActivationData;
use sae_model::stats::{DEAD_LATENTS, ReconstructionStats, SparsityStats};
use sae_model::{Mode, Sae, SparseCodes};
use serde::Serialize;

use crate::model::values;

/// Name of the file.
pub(super) const FILE: &str = "certificate.json";
/// Value of `format`.
const FORMAT: &str = "dynamic-sae.certificate";
/// Rows per batch.
const ROWS: usize = 1024;

/// The content of `certificate.json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Certificate {
    format: &'static str,
    version: u32,
    /// What was written, in words.
    what: String,
    /// The data set that the rows are from.
    data: std::path::PathBuf,
    /// Number of held-out rows.
    rows: usize,
    x_hat: Difference,
    support: Agreement,
    fvu: Both<f64>,
    l0: Both<f64>,
    firing_frequency: Frequencies,
    dead_latents: Both<f64>,
}

/// A number of the model, and of what was written.
#[derive(Clone, Copy, Debug, Serialize)]
struct Both<T> {
    model: T,
    written: T,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Difference {
    /// Largest `||x_hat - y_hat||`.
    largest: f64,
    /// The same over the root mean square of `||x||`.
    relative: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Agreement {
    mean_jaccard: f64,
    equal_rows: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Frequencies {
    largest_change: f64,
    mean_change: f64,
}

/// A certificate, and how often the latents of what was written fire.
pub(super) struct Measured {
    pub(super) certificate: Certificate,
    pub(super) frequencies: Vec<f64>,
}

impl Certificate {
    /// In three lines.
    pub(super) fn lines(&self) -> [String; 3] {
        let Self {
            x_hat,
            support,
            fvu,
            l0,
            firing_frequency,
            dead_latents: dead,
            ..
        } = self;
        [
            format!(
                "on {} held-out rows x_hat differs by at most {:.2e} of the rows' length; FVU {:.4} -> {:.4}",
                self.rows, x_hat.relative, fvu.model, fvu.written
            ),
            format!(
                "{:.2} % of the rows use the same latents, mean overlap (Jaccard) {:.4}; L0 {:.2} -> {:.2}",
                100.0 * support.equal_rows,
                support.mean_jaccard,
                l0.model,
                l0.written
            ),
            format!(
                "firing frequencies change by at most {:.4}, {:.1e} on average; dead latents {} -> {}",
                firing_frequency.largest_change,
                firing_frequency.mean_change,
                dead.model,
                dead.written
            ),
        ]
    }
}

/// Compares `model` and `written` on all of `rows`; `what` says what was written.
pub(super) fn measure(
    model: &Sae,
    written: &Sae,
    rows: &ActivationData,
    what: String,
) -> Result<Measured> {
    let mut sides = [Side::new(model), Side::new(written)];
    let mut between = Between::default();
    for x in rows.blocks(ROWS) {
        let x = x?;
        let [of_model, of_written] = sides.each_mut().map(|side| side.add(&x));
        between.add(&x, &of_model, &of_written, rows.width());
    }
    let [model, written] = sides;
    let frequencies: Vec<f64> = written.sparsity.frequencies().collect();
    let changes = model.sparsity.frequencies().zip(&frequencies);
    let changes: Vec<f64> = changes.map(|(a, b)| (a - b).abs()).collect();
    let count = rows.rows() as f64;
    let largest = between.largest.sqrt();
    let both = |number: fn(&Side) -> f64| Both {
        model: number(&model),
        written: number(&written),
    };
    let certificate = Certificate {
        format: FORMAT,
        version: 1,
        what,
        data: rows.path().into(),
        rows: rows.rows(),
        x_hat: Difference {
            largest,
            relative: largest / (between.squares / count).sqrt(),
        },
        support: Agreement {
            mean_jaccard: between.jaccard / count,
            equal_rows: between.equal as f64 / count,
        },
        fvu: both(|side| side.reconstruction.fvu()),
        l0: both(|side| side.sparsity.l0_mean()),
        firing_frequency: Frequencies {
            largest_change: changes.iter().copied().fold(0.0, f64::max),
            mean_change: changes.iter().sum::<f64>() / changes.len() as f64,
        },
        dead_latents: both(|side| side.dead()),
    };
    Ok(Measured {
        certificate,
        frequencies,
    })
}

/// One of the two models, with the metrics of what has been added.
struct Side<'a> {
    sae: &'a Sae,
    reconstruction: ReconstructionStats,
    sparsity: SparsityStats,
}

impl<'a> Side<'a> {
    fn new(sae: &'a Sae) -> Self {
        Self {
            sae,
            reconstruction: ReconstructionStats::new(sae.config().d_in),
            sparsity: SparsityStats::new(sae.config().n_latents),
        }
    }

    /// Adds rows; returns their reconstructions and the latents of each that are not 0.
    fn add(&mut self, x: &[f32]) -> (Vec<f32>, Vec<Vec<u32>>) {
        let (x_hat, codes) = forward(self.sae, x);
        self.reconstruction.add(x, &x_hat);
        self.sparsity.add_codes(&codes);
        (x_hat, supports(&codes))
    }

    fn dead(&self) -> f64 {
        let metrics = self.sparsity.metrics();
        let dead = metrics.iter().find(|m| m.name == DEAD_LATENTS.name);
        dead.and_then(|m| m.value).unwrap_or(f64::NAN)
    }
}

/// Sums of what is between the two.
#[derive(Default)]
struct Between {
    /// Largest `||x_hat - y_hat||^2`.
    largest: f64,
    /// `sum ||x||^2`
    squares: f64,
    jaccard: f64,
    equal: u64,
}

impl Between {
    fn add(
        &mut self,
        x: &[f32],
        (x_hat, of_model): &(Vec<f32>, Vec<Vec<u32>>),
        (y_hat, of_written): &(Vec<f32>, Vec<Vec<u32>>),
        width: usize,
    ) {
        let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
        self.squares += x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        for (a, b) in x_hat.chunks_exact(width).zip(y_hat.chunks_exact(width)) {
            let distance = a.iter().zip(b).map(|(a, b)| square(*a, *b)).sum();
            // a reconstruction that is not a number is seen
            self.largest = if self.largest >= distance {
                self.largest
            } else {
                distance
            };
        }
        for (a, b) in of_model.iter().zip(of_written) {
            let shared = shared(a, b);
            let either = a.len() + b.len() - shared;
            self.jaccard += if either == 0 {
                1.0
            } else {
                shared as f64 / either as f64
            };
            self.equal += u64::from(shared == either);
        }
    }
}

/// `x_hat [B, d]` and the codes of rows `x [B, d]`.
pub(super) fn forward(sae: &Sae, x: &[f32]) -> (Vec<f32>, SparseCodes) {
    let d = sae.config().d_in;
    let x = TensorData::new(x.to_vec(), [x.len() / d, d]);
    let forward = sae.forward(Tensor::from_data(x, &Device::flex()), &Mode::Inference);
    (values(forward.x_hat), forward.encoded.latents.on_host())
}

/// The latents of each row that are not 0, in ascending order.
pub(super) fn supports(codes: &SparseCodes) -> Vec<Vec<u32>> {
    let values = codes.host_values();
    let latents = codes.pattern.indices();
    let row = |row| {
        let active = codes.pattern.row(row).filter(|at| values[*at] != 0.0);
        active.map(|at| latents[at]).collect()
    };
    (0..codes.pattern.rows()).map(row).collect()
}

/// How many numbers two ascending lists share.
fn shared(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        shared += usize::from(a[i] == b[j]);
        let (left, right) = (a[i], b[j]);
        i += usize::from(left <= right);
        j += usize::from(right <= left);
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_numbers_are_counted_once() {
        assert_eq!(shared(&[1, 3, 5, 9], &[0, 3, 4, 5]), 2);
        assert_eq!(shared(&[], &[1]), 0);
        assert_eq!(shared(&[7], &[7]), 1);
    }
}
