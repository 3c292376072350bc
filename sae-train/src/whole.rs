//! One pass over all held-out rows when training ends; validations use a sample of them.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Tensor;
use sae_data::{ActivationBatch, ActivationLoader};
use sae_model::stats::{ReconstructionStats, SparsityStats};
use sae_model::{Mode, SaeConfig};
use serde_json::{Map, Value, json};

use crate::learner::SaeLearner;

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

    /// Makes one pass; returns `None` if `stop` says so.
    pub(crate) fn judge(
        &self,
        model: &SaeLearner,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Judged>, DatasetError> {
        let SaeConfig {
            d_in, n_latents, ..
        } = *model.sae.config();
        let mut reconstruction = ReconstructionStats::new(d_in);
        let mut sparsity = SparsityStats::new(n_latents);
        let (mut rows, mut loss) = (0, 0.0);
        for batch in self.loader.iter() {
            let x = batch?.activations;
            let forward = model.sae.forward(x.clone(), &Mode::Inference);
            let [n, _] = x.dims();
            let (of_batch, _) = model.held_out_loss(x.clone(), forward.x_hat.clone());
            rows += n;
            loss += n as f64 * of_batch.into_scalar::<f64>();
            reconstruction.add(&host(x), &host(forward.x_hat));
            sparsity.add_codes(&forward.encoded.latents.on_host());
            if stop() {
                return Ok(None);
            }
        }
        Ok(Some(Judged {
            rows,
            reconstruction_loss: loss / rows as f64,
            fvu: reconstruction.fvu(),
            l0: sparsity.l0_mean(),
            dead: model.dead().len(),
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
