//! A report is data; the renderers beside this file turn it into text.

pub(crate) mod criteria;
pub(crate) mod escape;
pub(crate) mod markdown;
pub(crate) mod recovery;
pub(crate) mod tail;

use sae_data::Fingerprint;
use sae_model::stats::{
    DEAD_LATENTS, FVU, Histogram, L0_MEAN, Metric, SparsityStats, ToolkitMetric,
};
use sae_model::verdict::RunFacts;
use sae_model::{Architecture, SaeConfig};
use serde::{Deserialize, Serialize};

use crate::packed::{Column, PackedColumns};
use crate::ranking::Rule;
use crate::run::Run;
use criteria::Criteria;
use recovery::Recovery;
use tail::TailSection;

/// Value of `schema` in `report.json`.
pub(crate) const SCHEMA: &str = "sae-eval-report";
/// Value of `schema_version`; grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 7;

/// Everything measured about a run: the content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) schema_version: u32,
    pub(crate) version: String,
    pub(crate) run: String,
    pub(crate) device: String,
    /// The card behind the device, and its driver; none for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) card: Option<String>,
    pub(crate) seconds: f64,
    /// The largest amount of memory that the process had in RAM, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_memory_bytes: Option<u64>,
    /// The architecture in words, with its preset or k; since schema version 5.
    #[serde(default)]
    pub(crate) architecture: Option<String>,
    /// Warnings about what the numbers mean; since schema version 5.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
    pub(crate) model: SaeConfig,
    /// Absent if the training data of a run without provenance is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) train: Option<Fingerprint>,
    /// The step of the checkpoint that was evaluated, if it was not the trained model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint_step: Option<usize>,
    /// The rows that were evaluated.
    pub(crate) held_out: Fingerprint,
    /// True if these are not the run's own held-out rows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) other_data: bool,
    /// On the held-out split.
    pub(crate) reconstruction: Vec<Metric>,
    /// On the held-out split including the rows that `data.max_norm` leaves out, if there are any; since schema version
    /// 6.
    #[serde(default)]
    pub(crate) all_rows: Option<AllRowsSection>,
    /// On the held-out split.
    pub(crate) sparsity: Vec<Metric>,
    /// On the held-out split, by other toolkits' definitions; since schema version 4.
    #[serde(default)]
    pub(crate) toolkits: Vec<ToolkitMetric>,
    /// Rows by their number of active latents.
    pub(crate) l0_histogram: Histogram,
    /// Latents by the share of rows on which they fire.
    pub(crate) firing_frequency_histogram: Histogram,
    /// Rows on which each latent fires. The comparison of runs needs it to leave out dead latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fired: Option<PackedColumns>,
    pub(crate) top_n: Option<TopN>,
    /// Why there is no `top_n`.
    pub(crate) top_n_missing: Option<String>,
    /// How well latents tell classes; since schema version 6.
    #[serde(default)]
    pub(crate) criteria: Option<Criteria>,
    /// Why there are no `criteria`.
    #[serde(default)]
    pub(crate) criteria_missing: Option<String>,
    /// Recovery of the concepts that the data was made of, if they are known.
    #[serde(default)]
    pub(crate) recovery: Option<Recovery>,
    /// What goes on in the rest of the model, if it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tail: Option<TailSection>,
}

/// The held-out rows together with those beyond `data.max_norm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AllRowsSection {
    /// Rows with `||x||` above this are left out everywhere else.
    pub(crate) max_norm: f64,
    /// Number of held-out rows beyond it.
    pub(crate) left_out: usize,
    /// Of all held-out rows.
    pub(crate) metrics: Vec<Metric>,
}

/// Top-n classification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopN {
    pub(crate) definition: String,
    /// `firing` or `threshold`; since schema version 5. Older reports all used `threshold`.
    #[serde(default)]
    pub(crate) rank_by: Option<String>,
    /// The threshold, if latents are ranked by it.
    pub(crate) fire_threshold: Option<f32>,
    /// Classes without training rows, which have no ranking; since schema version 5.
    #[serde(default)]
    pub(crate) unranked: Vec<String>,
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
    /// Training rows of the class, on which its latents are ranked; since schema version 5.
    #[serde(default)]
    pub(crate) train_rows: Option<u64>,
    /// Of the activations themselves.
    pub(crate) original: Option<f64>,
    /// Of their full reconstructions.
    pub(crate) reconstructed: Option<f64>,
}

impl TopN {
    /// The definition of top-n classification, in words.
    pub(crate) fn definition(rule: Rule) -> String {
        let rank = match rule {
            Rule::Firing => {
                "a_j != 0 (ties: by the sum over these rows of |a_j| / ||a||, then by index; so the unit of the \
                 activations does not matter)"
            }
            Rule::Threshold(_) => {
                "a_j > fire_threshold (ties: by the sum of |a_j| over all of its rows, then by index; so the unit of the \
                 activations matters, and models of different units do not compare)"
            }
        };
        format!(
            "On the training split, latents are ranked for each class by the number of its rows on which {rank}. A held-out \
             row of class c keeps only the first n latents of c (on), or loses only these (off), is reconstructed, and \
             is given the class whose embedding has the largest cosine. Accuracy is taken within each class, then \
             averaged over the classes that have held-out rows. Rows of classes without training rows, which cannot be \
             ranked, count in no mean. \"all\": every latent on, or none. Before training: the \
             model as it was initialised (BatchTopK: the k largest of each row, its threshold was not measured yet). \
             (The row's own class chooses the latents, as in patchsae and arXiv 2604.14925: this measures what the \
             latents of a class carry, it is not a classifier.)"
        )
    }
}

/// All results of an evaluation.
pub(crate) struct Measured<'a> {
    pub(crate) reconstruction: Vec<Metric>,
    pub(crate) all_rows: Option<AllRowsSection>,
    pub(crate) sparsity: &'a SparsityStats,
    pub(crate) toolkits: Vec<ToolkitMetric>,
    /// `Err` says why there is none.
    pub(crate) top_n: Result<TopN, String>,
    /// `Err` says why there are none.
    pub(crate) criteria: Result<Criteria, String>,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) tail: Option<TailSection>,
}

impl Report {
    pub(crate) fn new(
        run: &Run,
        (device, card): (&str, Option<String>),
        measured: Measured,
        seconds: f64,
    ) -> Self {
        let (top_n, top_n_missing) = match measured.top_n {
            Ok(top_n) => (Some(top_n), None),
            Err(reason) => (None, Some(reason)),
        };
        let (criteria, criteria_missing) = match measured.criteria {
            Ok(criteria) => (Some(criteria), None),
            Err(reason) => (None, Some(reason)),
        };
        let sparsity = measured.sparsity;
        let model = &run.config.model;
        Self {
            schema: SCHEMA.into(),
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            run: run.dir.display().to_string(),
            device: device.into(),
            card,
            seconds,
            peak_memory_bytes: sae_run::peak_memory(),
            architecture: Some(model.architecture.describe()),
            notes: notes(run, &measured.reconstruction, &sparsity.metrics()),
            model: model.clone(),
            train: run.data.train_fingerprint.clone(),
            held_out: run.data.held_out_fingerprint.clone(),
            checkpoint_step: run.step,
            other_data: !run.data.others.is_empty(),
            reconstruction: measured.reconstruction,
            all_rows: measured.all_rows,
            sparsity: sparsity.metrics(),
            toolkits: measured.toolkits,
            l0_histogram: sparsity.l0_histogram(),
            firing_frequency_histogram: sparsity.frequency_histogram(),
            fired: Some(packed(sparsity.fired())),
            top_n,
            top_n_missing,
            criteria,
            criteria_missing,
            recovery: measured.recovery,
            tail: measured.tail,
        }
    }
}

/// A number of rows for each latent; more than a `u32` holds count as that many.
fn packed(fired: &[u64]) -> PackedColumns {
    let counts = fired
        .iter()
        .map(|n| u32::try_from(*n).unwrap_or(u32::MAX))
        .collect();
    PackedColumns::new(vec![("rows".into(), Column::U32(counts))])
}

/// What to know before the numbers: what was evaluated if it is not the trained model on the held-out rows, and why the
/// numbers may mean less than they seem to.
fn notes(run: &Run, reconstruction: &[Metric], sparsity: &[Metric]) -> Vec<String> {
    let of_checkpoint = run.step.map(|step| {
        let of = run.recipe.map(|recipe| format!(" of {}", recipe.steps));
        let of = of.unwrap_or_default();
        format!("this is not the trained model, but that of the checkpoint after step {step}{of}")
    });
    let started = run.start.as_ref().map(|_| {
        "the run started from a saved model (start/ in its directory), and \"before training\" is that model".into()
    });
    let mut notes: Vec<String> = of_checkpoint.into_iter().chain(started).collect();
    match run.data.others.is_empty() {
        true => notes.extend(warnings(run, reconstruction, sparsity)),
        // How training went does not show on other rows.
        false => notes.extend(run.data.others.iter().cloned()),
    }
    notes
}

/// Why the numbers may mean less than they seem to; empty if it is not known how the run was trained.
fn warnings(run: &Run, reconstruction: &[Metric], sparsity: &[Metric]) -> Vec<String> {
    let value = |name: &str| {
        let metric = reconstruction
            .iter()
            .chain(sparsity)
            .find(|metric| metric.name == name);
        metric.and_then(|metric| metric.value)
    };
    let (Some(recipe), Some(l0_mean), Some(dead)) =
        (run.recipe, value(L0_MEAN.name), value(DEAD_LATENTS.name))
    else {
        return Vec::new();
    };
    let facts = RunFacts {
        model: &run.config.model,
        steps: run.step.unwrap_or(recipe.steps),
        warmup_steps: recipe.warmup_steps.unwrap_or(0),
        l0_mean,
        fvu: value(FVU.name),
        dead: dead as u64,
        dead_rows: run.data.held_out.rows(),
    };
    facts.notes()
}
