//! Finds NaN and infinity before they reach the parameters, and names the rows that they came from.

use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Tensor};
use sae_data::Parts;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::numbers::StepOutput;

/// Number of rows that a message lists; the log lists all.
const LISTED: usize = 8;
/// If this many consecutive steps are not finite, the data is not the cause.
const MAX_IN_A_ROW: usize = 10;

/// How to treat a step whose loss or gradients are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnNonFinite {
    /// End the run.
    #[default]
    Stop,
    /// Leave parameters and counters as they are, and go on with the next batch.
    Skip,
}

/// Describes such steps by their rows, and applies the policy.
#[derive(Debug)]
pub(crate) struct NonFinite {
    pub(crate) policy: OnNonFinite,
    /// Whole batches.
    pub(crate) batches: Parts,
    /// Whether this process has only some of the rows of a batch, the first.
    pub(crate) has_some: bool,
}

impl NonFinite {
    /// Describes what is not finite in a step for which this process saw `x [B, d]`; `reconstruct` makes x_hat of rows, `step` is the
    /// number of steps before it.
    pub(crate) fn found(
        &self,
        step: usize,
        reconstruct: impl FnOnce(Tensor<2>) -> Tensor<2>,
        x: Tensor<2>,
        output: &StepOutput,
        last_saved: usize,
    ) -> String {
        let rows = self.batches.rows_of_batch(step);
        let x = match self.has_some {
            true => self.whole(step, &x.device()).unwrap_or(x),
            false => x,
        };
        let what = output.what_is_not_finite();
        let (bad, how) = match broken_rows(&x) {
            bad if !bad.is_empty() => (bad, "hold NaN or infinity"),
            _ => match broken_rows(&reconstruct(x.inner())) {
                bad if !bad.is_empty() => (bad, "are reconstructed as NaN or infinity"),
                _ => (Vec::new(), ""),
            },
        };
        let path = self.batches.data().path().display();
        let named = |places: &[usize]| -> Vec<usize> { places.iter().map(|i| rows[*i]).collect() };
        let told = if bad.is_empty() {
            tracing::info!(step = step + 1, rows = ?rows, "all rows of the batch");
            format!(
                "its batch has rows {} of {path}, none of them wrong by itself",
                list(&rows)
            )
        } else {
            tracing::info!(step = step + 1, rows = ?named(&bad), "rows that {how}");
            format!("rows {} of {path} {how}", list(&named(&bad)))
        };
        let last = last_good(last_saved);
        format!("step {}: {what}; {told}; {last}", step + 1)
    }

    /// The whole batch of a step, read again; nothing if that fails.
    fn whole(&self, step: usize, device: &Device) -> Option<Tensor<2>> {
        let loader = self.batches.training(step..step + 1, 1, device);
        let batch = loader.iter().next()?.ok()?;
        Some(batch.activations)
    }

    /// Skips the step, or fails, as the policy says.
    pub(crate) fn pass_over(&self, found: String, in_a_row: usize) -> Result<(), Failure> {
        let remedy = match self.policy {
            OnNonFinite::Skip if in_a_row < MAX_IN_A_ROW => {
                tracing::warn!("{found}; passed over");
                return Ok(());
            }
            OnNonFinite::Skip => {
                format!("{MAX_IN_A_ROW} steps in a row: it is not the data, lower training.lr")
            }
            OnNonFinite::Stop => {
                "remove such rows, lower training.lr, or pass over such steps: --resume --set \
                                  training.on_nonfinite=skip"
                    .into()
            }
        };
        Err(Failure::NonFinite(format!("{found}; {remedy}")))
    }
}

/// For a message: which checkpoint can be trusted. `saved` is the step of the last one, 0 for none.
pub(crate) fn last_good(saved: usize) -> String {
    match saved {
        0 => "there is no checkpoint yet".into(),
        saved => format!("the checkpoint of step {saved} is the last good one"),
    }
}

/// Rows of `[B, d]` with a value that is not finite.
fn broken_rows(rows: &Tensor<2>) -> Vec<usize> {
    let [_, width] = rows.dims();
    let values: Vec<f32> = rows.clone().into_data().iter().collect();
    let broken = |row: &[f32]| !row.iter().all(|v| v.is_finite());
    let rows = values.chunks_exact(width).enumerate();
    rows.filter_map(|(i, row)| broken(row).then_some(i))
        .collect()
}

/// `3, 7, 9 and 4 more`
fn list(rows: &[usize]) -> String {
    let shown: Vec<String> = rows.iter().take(LISTED).map(usize::to_string).collect();
    match rows.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!(
            "{} and {more} more (train.log lists them)",
            shown.join(", ")
        ),
    }
}
