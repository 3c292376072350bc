//! Each toolkit's metrics from the sums: its names, its formulas and where they stand in its sources.

use super::{Latent, ToolkitMetric, ToolkitStats};

const SAELENS: &str = "SAELens 6.54.12";
const DICTIONARY_LEARNING: &str = "dictionary_learning 0.1.0";
const SPARSIFY: &str = "sparsify 1.3.3";
const OPENAI: &str = "openai/sparse_autoencoder 4965b94";
const SPARSEMAX_SAE: &str = "Sparsemax-SAE 2192e4c (the paper's code)";

const SAELENS_EVALS: &str = "sae_lens/evals.py: get_sparsity_and_variance_metrics";
const DICTIONARY_EVALUATE: &str = "dictionary_learning/evaluation.py: evaluate";
const OPENAI_LOSS: &str = "sparse_autoencoder/loss.py";
const SPARSEMAX_TRAINER: &str = "src/sae_training/sae_trainer.py: _calculate_metrics";

/// Total variance below this counts as none (SAELens' `ExplainedVarianceCalculator.compute`).
const SAELENS_NO_VARIANCE: f64 = 1e-10;
/// A latent is dead below this frequency (`dead_feature_threshold` in the paper's `train_sae_vit.py`).
const SPARSEMAX_DEAD_FREQUENCY: f64 = 1e-6;

impl ToolkitStats {
    /// The metrics of all rows added, by toolkit.
    pub fn metrics(&self) -> Vec<ToolkitMetric> {
        [
            self.saelens(),
            self.dictionary_learning(),
            self.sparsify(),
            self.openai(),
            self.sparsemax_sae(),
        ]
        .concat()
    }

    fn saelens(&self) -> Vec<ToolkitMetric> {
        let n = self.rows as f64;
        let metric = |name, value, equals, formula| {
            measured(SAELENS, SAELENS_EVALS, name, value, equals, formula)
        };
        let legacy = self
            .mean
            .as_ref()
            .map_or(f64::NAN, |_| 1.0 - self.sums.error_by_distance / n);
        vec![
            metric(
                "mse",
                self.sums.error / n,
                "d mse",
                "sum ||x - x_hat||^2 / N: mean over rows, not elements",
            ),
            metric(
                "explained_variance",
                self.saelens_explained_variance(),
                "explained_variance",
                "1 - mean ||x - x_hat||^2 / (mean ||x||^2 - ||mean(x)||^2) over all batches; for constant data 1 or 0",
            ),
            metric(
                "explained_variance_legacy",
                legacy,
                "",
                "mean over rows of 1 - ||x - x_hat||^2 / ||x - mean(x)||^2; they take the mean of each batch",
            ),
            metric("cossim", self.sums.cosine / n, "cosine", COSINE_RAW),
            metric(
                "l0",
                self.sums.active as f64 / n,
                "l0_mean",
                "mean over rows of #{ j : a_j != 0 }",
            ),
            metric("l1", self.sums.l1 / n, "", "mean over rows of sum_j |a_j|"),
            metric(
                "l2_ratio",
                self.sums.ratio_guarded / n,
                "",
                "mean over rows of ||x_hat|| / ||x||, with ||x|| below 1e-4 taken as 1",
            ),
            metric("relative_reconstruction_bias", self.bias(), "", BIAS),
        ]
    }

    /// Variances per row; constant data has a value here, 1 for the exact reconstruction.
    fn saelens_explained_variance(&self) -> f64 {
        let n = self.rows as f64;
        let (error, total) = (self.sums.error / n, self.input.total() / n);
        if total < SAELENS_NO_VARIANCE {
            return f64::from(u8::from(error < SAELENS_NO_VARIANCE));
        }
        1.0 - error / total
    }

    /// Equation 10 of arXiv 2404.16014.
    fn bias(&self) -> f64 {
        self.sums.square_hat / self.sums.dot
    }

    fn dictionary_learning(&self) -> Vec<ToolkitMetric> {
        let n = self.rows as f64;
        let metric = |name, value, equals, formula| {
            let owner = DICTIONARY_LEARNING;
            measured(owner, DICTIONARY_EVALUATE, name, value, equals, formula)
        };
        let variance = 1.0 - self.residual.total() / self.input.total();
        let alive = self.share(|latent| latent.mass != 0.0);
        vec![
            metric(
                "l2_loss",
                self.sums.error_norm / n,
                "",
                "mean over rows of ||x - x_hat||: not squared",
            ),
            metric(
                "frac_variance_explained",
                variance,
                "",
                "1 - sum ||e - mean(e)||^2 / sum ||x - mean(x)||^2 with e = x - x_hat: a constant error costs nothing",
            ),
            metric("cossim", self.sums.cosine / n, "cosine", COSINE_RAW),
            metric(
                "l0",
                self.sums.active as f64 / n,
                "l0_mean",
                "mean over rows of #{ j : a_j != 0 }",
            ),
            metric(
                "l1_loss",
                self.sums.l1 / n,
                "",
                "mean over rows of sum_j |a_j|",
            ),
            metric(
                "l2_ratio",
                self.sums.ratio / n,
                "",
                "mean over rows of ||x_hat|| / ||x||",
            ),
            metric("relative_reconstruction_bias", self.bias(), "", BIAS),
            metric(
                "frac_alive",
                alive,
                "1 - dead_fraction, where no activation is negative",
                "#{ j : sum of a_j over rows != 0 } / M",
            ),
        ]
    }

    fn sparsify(&self) -> Vec<ToolkitMetric> {
        let source = "sparsify/sparse_coder.py: SparseCoder.forward";
        let fvu = self.sums.error / self.input.total();
        vec![measured(SPARSIFY, source, "fvu", fvu, "fvu", FVU_ONE_BATCH)]
    }

    fn openai(&self) -> Vec<ToolkitMetric> {
        let n = self.rows as f64;
        let metric = |source: &str, name, value, equals, formula| {
            measured(OPENAI, source, name, value, equals, formula)
        };
        vec![
            metric(
                OPENAI_LOSS,
                "normalized_mean_squared_error",
                self.sums.error_by_square / n,
                "nmse_rowwise",
                "mean over rows of ||x - x_hat||^2 / ||x||^2",
            ),
            metric(
                "sparse_autoencoder/kernels.py",
                "normalized_mse",
                self.sums.error / self.input.total(),
                "fvu",
                FVU_ONE_BATCH,
            ),
            metric(
                OPENAI_LOSS,
                "normalized_L1_loss",
                self.sums.l1_by_norm / n,
                "",
                "mean over rows of sum_j |a_j| / ||x||",
            ),
            metric(
                "sparse_autoencoder/train.py: FastAutoencoder.forward",
                "dead (stats_last_nonzero)",
                self.share(|latent| !latent.strong),
                "",
                "#{ j : a_j > 1e-3 on no row } / M; they look back over 10 million rows of training",
            ),
        ]
    }

    fn sparsemax_sae(&self) -> Vec<ToolkitMetric> {
        let n = self.rows as f64;
        let metric = |source: &str, name, value, equals, formula| {
            measured(SPARSEMAX_SAE, source, name, value, equals, formula)
        };
        let rare = self.share(|latent| (latent.fired as f64 / n) < SPARSEMAX_DEAD_FREQUENCY);
        vec![
            metric(
                SPARSEMAX_TRAINER,
                "metrics/explained_variance",
                1.0 - self.sums.error / self.sums.square,
                "1 - nmse_uncentred",
                "1 - mean ||x - x_hat||^2 / mean ||x||^2: not a variance",
            ),
            metric(
                "src/sae_training/sparse_autoencoder.py: forward_standard",
                "losses/mse_loss",
                10.0 * self.sums.error_by_norm / (n * self.width as f64),
                "",
                "10 times the mean over elements of (x - x_hat)^2 / ||x||: its unit is that of x",
            ),
            metric(
                SPARSEMAX_TRAINER,
                "metrics/l0",
                self.sums.positive as f64 / n,
                "l0_positive_mean",
                "mean over rows of #{ j : a_j > 0 }",
            ),
            metric(
                "src/sae_training/sae_trainer.py: _calculate_sparsity_metrics",
                "sparsity/dead_features",
                rare,
                "dead_fraction, up to a million rows",
                "#{ j : a_j != 0 on less than 1e-6 of the rows } / M; they take the rows of a window of training",
            ),
        ]
    }

    /// Part of the latents of which `is` holds.
    fn share(&self, is: impl Fn(&Latent) -> bool) -> f64 {
        let count = self.latents.iter().filter(|latent| is(latent)).count();
        count as f64 / self.latents.len() as f64
    }
}

const COSINE_RAW: &str =
    "mean over rows of x . x_hat / (||x|| ||x_hat||); NaN if any row of x or x_hat is zero";
const BIAS: &str =
    "mean ||x_hat||^2 / mean x . x_hat (arXiv 2404.16014, eq. 10); they average it over batches";
const FVU_ONE_BATCH: &str =
    "sum ||x - x_hat||^2 / sum ||x - mean(x)||^2; they take the mean and both sums of each batch";

fn measured(
    owner: &str,
    source: &str,
    name: &str,
    value: f64,
    equals: &str,
    formula: &str,
) -> ToolkitMetric {
    ToolkitMetric {
        owner: owner.into(),
        name: name.into(),
        value: value.is_finite().then_some(value),
        equals: (!equals.is_empty()).then(|| equals.into()),
        formula: formula.into(),
        source: source.into(),
    }
}
