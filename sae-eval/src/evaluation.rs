//! Evaluation from Rust: a model on rows of any source, without a run directory.

use burn::tensor::{Device, Tensor, TensorData};
use sae_data::{ActivationData, DataError};
use sae_model::stats::{Metric, ReconstructionStats, SparsityStats};
use sae_model::{Mode, Sae};

/// Rows per batch.
const ROWS: usize = 1024;

/// Reconstruction and sparsity metrics of a model on some rows. They need no labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// How well rows are reconstructed.
    pub reconstruction: Vec<Metric>,
    /// How many latents rows use, and how often latents fire.
    pub sparsity: Vec<Metric>,
}

impl Evaluation {
    /// Evaluates `sae` on all rows of `data`, on the CPU.
    ///
    /// # Errors
    /// [`DataError`] if rows cannot be read.
    ///
    /// # Panics
    /// If the rows do not have the width of the model.
    pub fn of(sae: &Sae, data: &ActivationData) -> Result<Self, DataError> {
        let (width, device) = (data.width(), Device::flex());
        let mut reconstruction = ReconstructionStats::new(width);
        let mut sparsity = SparsityStats::new(sae.config().n_latents);
        for rows in data.blocks(ROWS) {
            let rows = rows?;
            let x = TensorData::new(rows.clone(), [rows.len() / width, width]);
            let forward = sae.forward(Tensor::from_data(x, &device), &Mode::Inference);
            let x_hat: Vec<f32> = forward.x_hat.into_data().iter().collect();
            reconstruction.add(&rows, &x_hat);
            sparsity.add_codes(&forward.encoded.latents.on_host());
        }
        Ok(Self {
            reconstruction: reconstruction.metrics(),
            sparsity: sparsity.metrics(),
        })
    }

    /// The value of the metric with this name (docs/METRICS.md); `None` if there is no such metric or it is undefined.
    pub fn get(&self, name: &str) -> Option<f64> {
        let all = self.reconstruction.iter().chain(&self.sparsity);
        all.filter(|metric| metric.name == name)
            .find_map(|metric| metric.value)
    }
}
