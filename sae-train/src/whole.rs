//! One pass over all held-out rows when training ends; validations use a sample of them.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Tensor;
use sae_data::{ActivationBatch, ActivationLoader};
use sae_model::stats::ReconstructionStats;
use serde_json::{Map, Value, json};

use crate::learner::{Look, SaeLearner};

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
    /// As in a report.
    fvu: f64,
    /// As in a report.
    l0: f64,
    /// Latents that have not fired within the window of training.
    dead: usize,
}

impl WholeSet {
    /// The rows of this loader.
    pub(crate) fn new(held_out: ActivationLoader) -> Self {
        Self {
            loader: Arc::new(held_out),
        }
    }

    /// Makes one pass; returns `None` if `stop` says so. `look` is how `model` sees rows.
    pub(crate) fn judge(
        &self,
        model: &SaeLearner,
        look: impl Fn(Tensor<2>) -> Look,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Judged>, DatasetError> {
        let mut reconstruction = ReconstructionStats::new(model.sae.config().d_in);
        let (mut rows, mut loss, mut active, mut dead) = (0, 0.0, 0, 0);
        for batch in self.loader.iter() {
            let x = batch?.activations;
            let seen = look(x.clone());
            let [n, _] = x.dims();
            let (of_batch, _) = model.held_out_loss(x.clone(), seen.x_hat.clone());
            rows += n;
            loss += n as f64 * of_batch.into_scalar::<f64>();
            active += seen.active;
            dead = seen.dead; // of all training, whatever the rows
            reconstruction.add(&host(x), &host(seen.x_hat));
            if stop() {
                return Ok(None);
            }
        }
        Ok(Some(Judged {
            rows,
            reconstruction_loss: loss / rows as f64,
            fvu: reconstruction.fvu(),
            l0: active as f64 / rows as f64,
            dead,
        }))
    }
}

fn host(x: Tensor<2>) -> Vec<f32> {
    x.into_data().iter().collect()
}

impl Judged {
    /// A progress line.
    pub(crate) fn line(&self, step: usize) -> String {
        format!(
            "held out (all {} rows) at step {step}: reconstruction_loss {:.4}  FVU {:.4}  L0 {:.1}  dead {}",
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
