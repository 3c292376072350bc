//! One pass over all held-out rows when training ends; validations use a sample of them.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use burn::train::InferenceStep;
use sae_data::{ActivationBatch, ActivationData, ActivationLoader};
use sae_model::stats::MomentStats;
use serde_json::{Map, Value, json};

use crate::learner::{SaeLearner, StepOutput};

/// All held-out rows.
pub(crate) struct WholeSet {
    loader: Arc<dyn DataLoader<ActivationBatch>>,
}

/// The numbers of the model on all held-out rows.
#[derive(Debug)]
pub(crate) struct Judged {
    rows: usize,
    /// Mean reconstruction loss.
    reconstruction_loss: f64,
    /// `sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`.
    fvu: f64,
    /// Mean number of active latents.
    l0: f64,
    /// Latents that have not fired within the window.
    dead: f64,
}

impl WholeSet {
    /// In batches of `batch` rows.
    pub(crate) fn new(held_out: &ActivationData, batch: usize, device: &Device) -> Self {
        let loader = ActivationLoader::evaluation(held_out, batch, device);
        Self {
            loader: Arc::new(loader),
        }
    }

    /// Makes one pass; returns `None` if `stop` says so.
    pub(crate) fn judge(
        &self,
        model: &SaeLearner,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Judged>, DatasetError> {
        let mut moments = MomentStats::default();
        let (mut rows, mut loss, mut error, mut l0, mut dead) = (0, 0.0, 0.0, 0.0, 0.0);
        for batch in self.loader.iter() {
            let batch = batch?;
            let [n, width] = batch.activations.dims();
            let x: Vec<f32> = batch.activations.clone().into_data().iter().collect();
            moments.add(&x, width);
            let output: StepOutput = InferenceStep::step(model, batch);
            let weight = n as f64;
            rows += n;
            loss += weight * output.reconstruction_loss.into_scalar::<f64>();
            error += weight * output.fvu.into_scalar::<f64>();
            l0 += weight * output.l0.into_scalar::<f64>();
            dead = output.dead.into_scalar::<f64>();
            if stop() {
                return Ok(None);
            }
        }
        let n = rows as f64;
        Ok(Some(Judged {
            rows,
            reconstruction_loss: loss / n,
            // a batch's FVU is relative to the variance of the rows that validations use
            fvu: error / n * model.held_out_variance() / moments.variance(),
            l0: l0 / n,
            dead,
        }))
    }
}

impl Judged {
    /// A progress line.
    pub(crate) fn line(&self, step: usize) -> String {
        format!(
            "held out (all {} rows) at step {step}: reconstruction_loss {:.4}  FVU {:.4}  L0 {:.1}  dead {:.0}",
            self.rows, self.reconstruction_loss, self.fvu, self.l0, self.dead
        )
    }

    /// The fields of its record in `metrics.jsonl`.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        let fields = [
            ("rows", json!(self.rows)),
            ("reconstruction_loss", json!(self.reconstruction_loss)),
            ("fvu", json!(self.fvu)),
            ("l0", json!(self.l0)),
            ("dead", json!(self.dead)),
        ];
        fields
            .map(|(key, value)| (key.to_string(), value))
            .into_iter()
            .collect()
    }
}
