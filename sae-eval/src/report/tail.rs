//! The section on the rest of the model: what goes on when reconstructions take the place of its activations.

use serde::{Deserialize, Serialize};

use super::TopNRow;
use super::criteria::{Estimate, estimates};
use super::escape::name;
use super::markdown::{line, number};

/// What was measured through the rest of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TailSection {
    /// Path of the tail.
    pub(crate) file: String,
    /// BLAKE3 of it.
    pub(crate) blake3: String,
    /// `decoder`, `classifier` or `encoder`.
    pub(crate) kind: String,
    /// The model that it is the rest of.
    pub(crate) model: String,
    /// The hidden state that it goes on from.
    pub(crate) layer: usize,
    /// The data set of the documents.
    pub(crate) data: String,
    pub(crate) documents: usize,
    /// Tokens of the documents.
    pub(crate) tokens: usize,
    /// Rows that were replaced.
    pub(crate) replaced: usize,
    /// Rows of a larger norm stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_norm: Option<f64>,
    /// Rows with a norm above `max_norm`.
    #[serde(default)]
    pub(crate) beyond_max_norm: usize,
    /// Of language models.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) metrics: Vec<Estimate>,
    /// The same by position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) by_position: Vec<ByPosition>,
    /// Of classifiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) classes: Option<TailClasses>,
}

/// The predictions at positions `from` to `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ByPosition {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) predictions: u64,
    pub(crate) ce_clean: f64,
    pub(crate) ce_sae: f64,
    pub(crate) kl_sae: f64,
    /// `None` if the ablation costs nothing here.
    pub(crate) loss_recovered: Option<f64>,
}

/// Top-n classification by the rest of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TailClasses {
    /// Accuracy with the activations as they are, mean over classes.
    pub(crate) clean: f64,
    /// The same over documents of classes with a ranking.
    pub(crate) clean_over_documents: f64,
    /// Mean over classes.
    pub(crate) top_n: Vec<TopNRow>,
    /// Classes without rows to rank latents on; they count in no mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unranked: Vec<String>,
    pub(crate) per_class: Vec<ClassRow>,
}

/// Accuracy within one class; `on` and `off` are in the order of `top_n`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassRow {
    pub(crate) class: String,
    pub(crate) documents: u64,
    pub(crate) clean: Option<f64>,
    pub(crate) on: Vec<Option<f64>>,
    pub(crate) off: Vec<Option<f64>>,
}

/// Renders the section.
pub(super) fn render(out: &mut String, section: Option<&TailSection>) {
    let Some(section) = section else {
        return;
    };
    line(out, "\n## Through the rest of the model\n");
    line(
        out,
        format!(
            "The {} {} goes on from layer {} of {}, with {} of {} tokens replaced by their reconstructions, in {} documents of \
             {}.{}",
            section.kind,
            name(&section.file),
            section.layer,
            name(&section.model),
            section.replaced,
            section.tokens,
            section.documents,
            name(&section.data),
            section.max_norm.map_or(String::new(), |norm| format!(
                " {} rows of a norm above {} stay as they are.",
                section.beyond_max_norm,
                number(norm)
            ))
        ),
    );
    if !section.metrics.is_empty() {
        line(out, "");
        estimates(out, &section.metrics);
        positions(out, &section.by_position);
    }
    if let Some(classes) = &section.classes {
        top_n(out, classes);
    }
}

fn positions(out: &mut String, rows: &[ByPosition]) {
    line(
        out,
        "\n| positions | predictions | CE clean | CE | KL | loss recovered |\n|---|---:|---:|---:|---:|---:|",
    );
    for row in rows {
        line(
            out,
            format!(
                "| {} to {} | {} | {} | {} | {} | {} |",
                row.from,
                row.to,
                row.predictions,
                number(row.ce_clean),
                number(row.ce_sae),
                number(row.kl_sae),
                row.loss_recovered.map_or("-".into(), number)
            ),
        );
    }
}

fn top_n(out: &mut String, classes: &TailClasses) {
    line(
        out,
        format!(
            "\nIn each document, the reconstruction keeps only the first n latents of the document's class (on), or loses only \
             these (off), at all tokens; the head of the model answers. Accuracy within each class, averaged over classes. With the \
             activations as they are: {:.2} % ({:.2} % of the documents of these classes).\n\n| n | on | off |\n|---:|---:|---:|",
            100.0 * classes.clean,
            100.0 * classes.clean_over_documents
        ),
    );
    for row in &classes.top_n {
        line(
            out,
            format!(
                "| {} | {:.2} % | {:.2} % |",
                row.n,
                100.0 * row.on,
                100.0 * row.off
            ),
        );
    }
    if !classes.unranked.is_empty() {
        let names: Vec<String> = classes.unranked.iter().map(|one| name(one)).collect();
        line(
            out,
            format!(
                "\nWithout rows to rank latents on, and in no mean: {}.",
                names.join(", ")
            ),
        );
    }
    per_class(out, classes);
}

fn per_class(out: &mut String, classes: &TailClasses) {
    let ns = classes
        .top_n
        .iter()
        .map(|row| format!("on {} | off {}", row.n, row.n));
    let ns: Vec<String> = ns.collect();
    line(
        out,
        format!(
            "\n| class | documents | as they are | {} |\n|---|---:|---:|{}",
            ns.join(" | "),
            "---:|---:|".repeat(ns.len())
        ),
    );
    let percent =
        |share: &Option<f64>| share.map_or("-".into(), |share| format!("{:.1}", 100.0 * share));
    for row in &classes.per_class {
        let each = row.on.iter().zip(&row.off);
        let each: Vec<String> = each
            .map(|(on, off)| format!("{} | {}", percent(on), percent(off)))
            .collect();
        line(
            out,
            format!(
                "| {} | {} | {} | {} |",
                name(&row.class),
                row.documents,
                percent(&row.clean),
                each.join(" | ")
            ),
        );
    }
}
