//! The report's section "How well latents tell classes", as data and as Markdown.

use serde::{Deserialize, Serialize};

use super::escape::{name, prose};
use super::markdown::{line, number};

/// How well latents tell the classes of labelled data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Criteria {
    pub(crate) definition: String,
    /// Number of draws of held-out rows behind each interval.
    pub(crate) resamples: usize,
    /// Classes with fewer sampled training rows are left out.
    pub(crate) min_class_rows: usize,
    /// Latents that are active on fewer sampled held-out rows have no entropy.
    pub(crate) min_entropy_rows: usize,
    /// Number of latents that have an entropy.
    pub(crate) entropy_latents: usize,
    pub(crate) train: SampleOf,
    pub(crate) held_out: SampleOf,
    /// The same for the probes of the activations themselves.
    pub(crate) train_activations: SampleOf,
    pub(crate) held_out_activations: SampleOf,
    pub(crate) metrics: Vec<Estimate>,
    pub(crate) per_class: Vec<ClassCriteria>,
}

/// The sampled rows of one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SampleOf {
    pub(crate) rows: usize,
    /// Row i is in the sample if the upper 32 bits of splitmix64's output number `i + 1` are below this.
    pub(crate) bound: u64,
}

/// A metric with its 95 % interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) name: String,
    pub(crate) value: Option<f64>,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) formula: String,
}

/// The metrics of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassCriteria {
    pub(crate) class: String,
    /// The class's number in the labels.
    pub(crate) label: usize,
    /// Sampled training rows.
    pub(crate) train_rows: usize,
    /// Sampled held-out rows.
    pub(crate) rows: usize,
    /// Latents of the probes, best first: a probe uses the first k.
    pub(crate) latents: Vec<u32>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) single_latent: Option<u32>,
    pub(crate) single_threshold: Option<f64>,
    pub(crate) single_f1: Option<f64>,
}

/// A probe of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) k: usize,
    pub(crate) balanced_accuracy: Option<f64>,
    pub(crate) f1: Option<f64>,
}

impl Criteria {
    /// The definitions of the metrics, in words.
    pub(crate) fn definition() -> String {
        "Each class against the rest, then the mean over classes. Probes (arXiv 2305.01610): the k latents with the largest \
         |mean activation on the class - mean on the rest| and a logistic regression on them (activations divided by their \
         standard deviation, class and rest of equal weight, penalty ||beta||^2 / 2) come from the training split, the scores \
         from the held-out split. The same of single elements of the activations is what the dictionary has to beat. Single \
         latent: latent and threshold with the largest F1 on the training split, judged on the held-out split. Class \
         entropy: of each latent's activation over the classes of the held-out rows, as a part of the largest possible; \
         classes of unequal size are not made equal, so a latent that says nothing is below 1. Intervals: 2.5 % and 97.5 % \
         points of the same numbers on held-out rows drawn with replacement, moved so that the draws' mean is the number \
         (entropies of fewer different rows are lower); what was learned on the training split stays as it is."
            .into()
    }
}

/// Renders the section, or why it is missing; nothing for a report older than the section.
pub(super) fn render(out: &mut String, criteria: Option<&Criteria>, missing: Option<&str>) {
    const TITLE: &str = "\n## How well latents tell classes\n\n";
    let criteria = match (criteria, missing) {
        (Some(criteria), _) => criteria,
        (None, Some(reason)) => {
            return line(out, format!("{TITLE}Not measured: {}.", prose(reason)));
        }
        (None, None) => return,
    };
    line(out, format!("{TITLE}{}\n", prose(&criteria.definition)));
    line(
        out,
        format!(
            "{} classes with at least {} training rows, of {} sampled training and {} held-out rows; {} draws; {} latents have an \
             entropy.\n",
            criteria.per_class.len(),
            criteria.min_class_rows,
            criteria.train.rows,
            criteria.held_out.rows,
            criteria.resamples,
            criteria.entropy_latents,
        ),
    );
    estimates(out, &criteria.metrics);
    per_class(out, &criteria.per_class);
}

/// A table of metrics with their intervals.
pub(super) fn estimates(out: &mut String, metrics: &[Estimate]) {
    line(
        out,
        "| metric | value | 95 % interval | formula |\n|---|---:|---:|---|",
    );
    for metric in metrics {
        let value = metric.value.map_or("undefined".into(), number);
        let interval = match (metric.low, metric.high) {
            (Some(low), Some(high)) => format!("{} to {}", number(low), number(high)),
            _ => "-".into(),
        };
        line(
            out,
            format!(
                "| {} | {value} | {interval} | {} |",
                name(&metric.name),
                prose(&metric.formula)
            ),
        );
    }
}

/// Balanced accuracy of every probe of each class, and its best latent.
fn per_class(out: &mut String, classes: &[ClassCriteria]) {
    let Some(first) = classes.first() else {
        return;
    };
    let ks: Vec<String> = first
        .probes
        .iter()
        .map(|probe| format!(" k = {} |", probe.k))
        .collect();
    line(
        out,
        format!(
            "\nBalanced accuracy of each class's probes, and its best latent:\n\n\
             | class | training rows | held-out rows |{} latent | its F1 |\n|---|---:|---:|{}---:|---:|",
            ks.concat(),
            "---:|".repeat(ks.len()),
        ),
    );
    let shown = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    for class in classes {
        let probes = class
            .probes
            .iter()
            .map(|probe| format!(" {} |", shown(probe.balanced_accuracy)));
        line(
            out,
            format!(
                "| {} | {} | {} |{} {} | {} |",
                name(&class.class),
                class.train_rows,
                class.rows,
                probes.collect::<String>(),
                class
                    .single_latent
                    .map_or("-".into(), |latent| latent.to_string()),
                shown(class.single_f1),
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::escape::tests::hostile;
    use super::*;
    use proptest::prelude::*;

    fn criteria() -> Criteria {
        let json = include_str!("golden/criteria.json");
        serde_json::from_str(json).expect("a section of this schema version stays readable")
    }

    fn rendered(criteria: &Criteria) -> String {
        let mut out = String::new();
        render(&mut out, Some(criteria), None);
        out
    }

    #[test]
    fn it_renders_as_it_did() {
        assert_eq!(rendered(&criteria()), include_str!("golden/criteria.md"));
    }

    #[test]
    fn a_missing_section_says_why_and_an_old_report_nothing() {
        let mut out = String::new();
        render(&mut out, None, None);
        assert_eq!(out, "");
        render(&mut out, None, Some("no <b>"));
        assert_eq!(
            out,
            "\n## How well latents tell classes\n\nNot measured: no &lt;b>.\n"
        );
    }

    fn filled_with(text: &str) -> String {
        let mut criteria = criteria();
        criteria.definition = text.into();
        for metric in &mut criteria.metrics {
            (metric.name, metric.formula) = (text.into(), text.into());
        }
        for class in &mut criteria.per_class {
            class.class = text.into();
        }
        rendered(&criteria)
    }

    proptest! {
        #[test]
        fn no_text_changes_its_shape(text in hostile()) {
            let shape = |markdown: &str| -> Vec<(Option<char>, usize)> {
                let bars = |line: &str| line.replace("\\|", "").matches('|').count();
                let cells = |line: &str| if line.starts_with('|') { bars(line) } else { 0 };
                markdown.lines().map(|line| (line.chars().next().filter(|c| "#|`-= ".contains(*c)), cells(line))).collect()
            };
            let markdown = filled_with(&text);
            prop_assert!(!markdown.contains('<'));
            prop_assert_eq!(shape(&markdown.replace("\\\\", "")), shape(&filled_with("x")));
        }
    }
}
