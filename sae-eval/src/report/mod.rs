//! A report is data; the renderers beside this file turn it into text.

mod escape;
pub(crate) mod markdown;

use sae_data::Fingerprint;
use sae_model::SaeConfig;
use sae_model::stats::{Histogram, Metric, SparsityStats, ToolkitMetric};
use serde::{Deserialize, Serialize};

use crate::run::Run;

/// Value of `schema` in `report.json`.
pub(crate) const SCHEMA: &str = "sae-eval-report";
/// Value of `schema_version`; grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 4;

/// Everything measured about a run: the content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) schema_version: u32,
    pub(crate) version: String,
    pub(crate) run: String,
    pub(crate) device: String,
    pub(crate) seconds: f64,
    pub(crate) model: SaeConfig,
    pub(crate) train: Fingerprint,
    pub(crate) held_out: Fingerprint,
    /// On the held-out split.
    pub(crate) reconstruction: Vec<Metric>,
    /// On the held-out split.
    pub(crate) sparsity: Vec<Metric>,
    /// On the held-out split, as other toolkits define it; since schema version 4.
    #[serde(default)]
    pub(crate) toolkits: Vec<ToolkitMetric>,
    /// Rows by their number of active latents.
    pub(crate) l0_histogram: Histogram,
    /// Latents by the part of rows they fire on.
    pub(crate) firing_frequency_histogram: Histogram,
    pub(crate) top_n: Option<TopN>,
    /// Why there is no `top_n`.
    pub(crate) top_n_missing: Option<String>,
}

/// Top-n classification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopN {
    pub(crate) definition: String,
    pub(crate) fire_threshold: f32,
    /// Accuracy of the activations themselves, mean over classes.
    pub(crate) original_over_classes: f64,
    /// The same over all rows.
    pub(crate) original_over_rows: f64,
    pub(crate) trained: Vec<TopNRow>,
    /// The same model before training.
    pub(crate) untrained: Option<Vec<TopNRow>>,
    pub(crate) per_class: Vec<ClassAccuracy>,
}

/// Accuracy, mean over classes, with the first `n` latents of each class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopNRow {
    /// A number, or "all".
    pub(crate) n: String,
    /// Only these latents kept.
    pub(crate) on: f64,
    /// Only these latents dropped.
    pub(crate) off: f64,
}

/// Accuracy within one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassAccuracy {
    pub(crate) class: String,
    /// Held-out rows of the class.
    pub(crate) rows: u64,
    /// Of the activations themselves.
    pub(crate) original: Option<f64>,
    /// Of their full reconstructions.
    pub(crate) reconstructed: Option<f64>,
}

impl TopN {
    /// What is measured, in words.
    pub(crate) const DEFINITION: &str = "On the training split, latents are ranked for each class by the \
        number of its rows on which a_j > fire_threshold (ties: by sum |a_j|, then by index). A held-out row \
        of class c keeps only the first n latents of c (on), or loses only these (off), is reconstructed, and \
        is given the class whose embedding has the largest cosine. Accuracy is taken within each class, then \
        averaged over the classes that have held-out rows. \"all\": every latent on, or none. (The row's own \
        class chooses the latents, as in patchsae and arXiv 2604.14925: this measures what the latents of a \
        class carry, it is not a classifier.)";
}

impl Report {
    pub(crate) fn new(
        run: &Run,
        device: &str,
        reconstruction: Vec<Metric>,
        sparsity: &SparsityStats,
        toolkits: Vec<ToolkitMetric>,
        top_n: Result<TopN, String>,
        seconds: f64,
    ) -> Self {
        let (top_n, top_n_missing) = match top_n {
            Ok(top_n) => (Some(top_n), None),
            Err(reason) => (None, Some(reason)),
        };
        Self {
            schema: SCHEMA.into(),
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            run: run.dir.display().to_string(),
            device: device.into(),
            seconds,
            model: run.config.model.clone(),
            train: run.fingerprints[0].clone(),
            held_out: run.fingerprints[1].clone(),
            reconstruction,
            sparsity: sparsity.metrics(),
            toolkits,
            l0_histogram: sparsity.l0_histogram(),
            firing_frequency_histogram: sparsity.frequency_histogram(),
            top_n,
            top_n_missing,
        }
    }
}
