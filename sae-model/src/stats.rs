//! Every metric, defined once: the formula in words and symbols, accumulated in f64 over a whole data set.
//!
//! Toolkits disagree on names (FVU, NMSE and "explained variance" each mean several things), so each metric
//! carries its formula into the report, and [`ToolkitStats`] computes what other toolkits mean by their names
//! from the same rows (docs/METRICS.md compares them). `x` is an activation row, `x_hat` its reconstruction, `d`
//! the width, `N` the number of rows, `M` the number of latents, `a_j` the activation of latent `j`; sums without
//! index run over rows, and `mean(x)` is the mean of all evaluated rows.

mod outliers;
mod reconstruction;
mod sparsity;
mod toolkits;

#[cfg(test)]
mod conformance;

use serde::{Deserialize, Serialize};

pub use outliers::LargestRows;
pub use reconstruction::{MomentStats, ReconstructionStats};
pub use sparsity::{Histogram, SparsityStats};
pub use toolkits::{ToolkitMetric, ToolkitStats};

/// A metric's name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The field's term.
    pub name: &'static str,
    /// The formula, in words and symbols.
    pub formula: &'static str,
}

/// A measured metric, as it stands in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// [`Definition::name`].
    pub name: String,
    /// The number; absent where it is not defined (FVU of constant data, say).
    pub value: Option<f64>,
    /// [`Definition::formula`].
    pub formula: String,
}

impl Definition {
    /// This metric with its value; a value that is not finite becomes an absent one.
    pub fn measured(self, value: f64) -> Metric {
        Metric {
            name: self.name.into(),
            value: value.is_finite().then_some(value),
            formula: self.formula.into(),
        }
    }
}

/// FVU of reconstructions, given `sum ||x - x_hat||^2` of them and of the mean in their place.
pub fn fvu(squared_error: f64, of_mean: f64) -> f64 {
    squared_error / of_mean
}

macro_rules! definitions {
    ($($(#[$doc:meta])* $id:ident = $name:literal : $formula:literal;)*) => {
        $($(#[$doc])* pub const $id: Definition = Definition { name: $name, formula: $formula };)*
        #[cfg(test)]
        const ALL: &[Definition] = &[$($id),*];
    };
}

definitions! {
    /// Mean squared error per element.
    MSE = "mse": "sum ||x - x_hat||^2 / (N d): mean over elements, not rows";
    /// Fraction of variance unexplained.
    FVU = "fvu": "sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, mean over the evaluated rows";
    /// The usual complement of FVU.
    EXPLAINED_VARIANCE = "explained_variance": "1 - fvu";
    /// Normalised error without centring.
    NMSE_UNCENTRED = "nmse_uncentred": "sum ||x - x_hat||^2 / sum ||x||^2 (patchsae and the paper's code: 1 - EV)";
    /// OpenAI's normalised error.
    NMSE_ROWWISE = "nmse_rowwise": "mean over rows with ||x|| > 0 of ||x - x_hat||^2 / ||x||^2 (openai/sparse_autoencoder)";
    /// Mean cosine similarity.
    COSINE = "cosine": "mean over rows of x . x_hat / (||x|| ||x_hat||); 0 where x or x_hat is a row of zeros";
    /// Rows that a mean of ratios to `||x||` cannot include.
    ZERO_ROWS = "zero_rows": "number of rows with ||x|| = 0; nmse_rowwise leaves them out";
    /// How far a few rows rule the variance, and with it FVU.
    VARIANCE_SHARE = "variance_share_top_0.1_percent": "sum over the ceil(N / 1000) rows of largest ||x|| of ||x - mean(x)||^2 / the same sum over all rows";
    /// FVU with the rows that training left out.
    FVU_ALL_ROWS = "fvu_all_rows": "fvu of all held-out rows, those with ||x|| > data.max_norm among them";
    /// Active latents per row.
    L0_MEAN = "l0_mean": "mean over rows of #{ j : a_j != 0 } (SAELens)";
    /// Median of active latents.
    L0_MEDIAN = "l0_median": "median over rows of #{ j : a_j != 0 }";
    /// Low end of active latents.
    L0_P5 = "l0_p5": "5th percentile over rows of #{ j : a_j != 0 }, linear interpolation";
    /// High end of active latents.
    L0_P95 = "l0_p95": "95th percentile over rows of #{ j : a_j != 0 }, linear interpolation";
    /// Active latents, positive ones only.
    L0_POSITIVE_MEAN = "l0_positive_mean": "mean over rows of #{ j : a_j > 0 } (the paper's code; a gated score can be negative)";
    /// Latents that never fire.
    DEAD_FRACTION = "dead_fraction": "#{ j : a_j = 0 on every evaluated row } / M";
    /// Latents that never fire, as a number.
    DEAD_LATENTS = "dead_latents": "#{ j : a_j = 0 on every evaluated row }";
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn value(metrics: &[Metric], of: Definition) -> f64 {
        let metric = metrics.iter().find(|m| m.name == of.name);
        metric.and_then(|m| m.value).unwrap_or(f64::NAN)
    }

    /// The list "Add a metric" of CONTRIBUTING.md.
    #[test]
    fn every_metric_is_described_and_computed_again_in_python() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file");
        let (described, computed) = (read("docs/METRICS.md"), read("tools/sae_report/metrics.py"));
        // fvu_all_rows is fvu, of more rows
        let metrics = ALL.iter().filter(|metric| **metric != FVU_ALL_ROWS);
        for Definition { name, .. } in metrics {
            assert!(
                described.contains(&format!("`{name}`")),
                "docs/METRICS.md: {name}"
            );
            assert!(
                computed.contains(&format!("\"{name}\"")),
                "metrics.py: {name}"
            );
        }
    }

    pub(super) fn assert_close(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() < 1e-12,
            "{actual} is not {expected}"
        );
    }
}
