//! Metrics of all held-out rows, including those that `data.max_norm` leaves out. They show how well a model
//! reconstructs rows it was not trained on, and how much of the variance lies in the largest rows.

use anyhow::Result;
use sae_data::ActivationData;
use sae_model::stats::{FVU_ALL_ROWS, LargestRows, ReconstructionStats};

use crate::evaluate::Passes;
use crate::model::{Model, values};
use crate::report::AllRowsSection;

/// Collects what the section needs while the rows within the limit pass.
pub(crate) struct AllRows {
    pub(crate) largest: LargestRows,
    left_out: ActivationData,
}

impl AllRows {
    /// `left_out` are the held-out rows beyond the limit; `within` is the mean of the others.
    pub(crate) fn new(passes: &Passes, within: &[f64], left_out: ActivationData) -> Result<Self> {
        let (n, m) = (passes.run.data.held_out.rows(), left_out.rows());
        let beyond = passes.mean(&left_out)?;
        let parts = within.iter().zip(&beyond);
        let mean = parts.map(|(a, b)| (a * n as f64 + b * m as f64) / (n + m) as f64);
        Ok(Self {
            largest: LargestRows::new(n + m, mean.collect()),
            left_out,
        })
    }

    /// The section of the report. `reconstruction` covers the rows within the limit.
    pub(crate) fn section(
        mut self,
        passes: &Passes,
        model: &Model,
        mut reconstruction: ReconstructionStats,
    ) -> Result<AllRowsSection> {
        let left_out = self.left_out;
        passes.walk(&left_out, |_, rows| {
            let x = passes.tensor(rows, rows.len() / left_out.width());
            let (_, x_hat) = model.reconstruct(x);
            reconstruction.add(rows, &values(x_hat));
            self.largest.add(rows);
            Ok(())
        })?;
        Ok(AllRowsSection {
            max_norm: passes.run.data.max_norm.unwrap_or(f64::MAX),
            left_out: left_out.rows(),
            metrics: vec![
                FVU_ALL_ROWS.measured(reconstruction.fvu()),
                self.largest.metric(),
            ],
        })
    }
}
