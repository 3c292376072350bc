//! A report as Markdown: tables with formulas, histograms as bars.

use std::fmt::Write;

use sae_model::stats::{Histogram, Metric, ToolkitMetric};

use super::escape::{name, prose};
use super::{AllRowsSection, Report, TopN, criteria, recovery, tail};
use sae_model::Architecture;

/// Longest bar of a histogram, in characters.
const BAR: f64 = 40.0;

/// Renders the whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    header(&mut out, report);
    metrics(&mut out, "Reconstruction", &report.reconstruction);
    if let Some(section) = &report.all_rows {
        all_rows(&mut out, section);
    }
    metrics(&mut out, "Sparsity", &report.sparsity);
    histogram(
        &mut out,
        "Active latents per row (L0)",
        "rows",
        &report.l0_histogram,
        |edge| format!("{edge:.0}"),
    );
    histogram(
        &mut out,
        "Firing frequency",
        "latents",
        &report.firing_frequency_histogram,
        |edge| format!("{edge:.1e}"),
    );
    toolkits(&mut out, &report.toolkits);
    match (&report.top_n, &report.top_n_missing) {
        (Some(top_n), _) => classification(&mut out, top_n),
        (None, reason) => line(
            &mut out,
            format!(
                "\n## Top-n classification\n\nNot measured: {}.",
                prose(reason.as_deref().unwrap_or("no reason given"))
            ),
        ),
    }
    let missing = report.criteria_missing.as_deref();
    criteria::render(&mut out, report.criteria.as_ref(), missing);
    recovery::render(&mut out, report.recovery.as_ref());
    tail::render(&mut out, report.tail.as_ref());
    out
}

pub(super) fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref());
    out.push('\n');
}

fn header(out: &mut String, report: &Report) {
    let m = &report.model;
    let data = &report.held_out;
    let own = m.architecture.switches();
    let switches: Vec<String> = own
        .iter()
        .map(|(key, value)| match value.as_str() {
            Some(words) => format!("{key} {words}"),
            None => format!("{key} {value}"),
        })
        .chain([format!("scale {:.4}", m.scale)])
        .collect();
    line(out, format!("# {}\n", name(&report.run)));
    line(
        out,
        format!(
            "{}, {} latents over width {} ({}); {} {} of {}; device {}, {:.1} s, sae-eval {}.",
            m.architecture.name(),
            m.n_latents,
            m.d_in,
            switches.join(", "),
            data.rows,
            if report.other_data {
                "rows"
            } else {
                "held-out rows"
            },
            name(&data.path.display().to_string()),
            name(&sae_run::on_card(&report.device, report.card.as_deref())),
            report.seconds,
            name(&report.version),
        ),
    );
    if !report.notes.is_empty() {
        line(out, "\n## Before you read on\n");
    }
    for note in &report.notes {
        line(out, format!("- {}", prose(note)));
    }
}

fn metrics(out: &mut String, title: &str, metrics: &[Metric]) {
    line(
        out,
        format!("\n## {title}\n\n| metric | value | formula |\n|---|---:|---|"),
    );
    for metric in metrics {
        let value = metric.value.map_or("undefined".into(), number);
        line(
            out,
            format!(
                "| {} | {value} | {} |",
                name(&metric.name),
                prose(&metric.formula)
            ),
        );
    }
}

/// The section on all rows, including those left out everywhere else.
fn all_rows(out: &mut String, section: &AllRowsSection) {
    metrics(out, "With the rows beyond data.max_norm", &section.metrics);
    line(
        out,
        format!(
            "\n{} held-out rows have a norm above {} and are in no other number of this report.",
            section.left_out,
            number(section.max_norm)
        ),
    );
}

/// Metrics as other toolkits name and define them; reports before schema version 4 have none.
fn toolkits(out: &mut String, metrics: &[ToolkitMetric]) {
    if metrics.is_empty() {
        return;
    }
    line(
        out,
        "\n## As other toolkits define it\n\n\
         The same rows, all as one batch, by each toolkit's own formula; \"in our terms\" is the metric above that is the \
         same number. Undefined: the toolkit's own function gives NaN or infinity. docs/METRICS.md has the sources.\n\n\
         | toolkit | its name | value | in our terms | formula |\n|---|---|---:|---|---|",
    );
    for metric in metrics {
        let value = metric.value.map_or("undefined".into(), number);
        let equals = metric
            .equals
            .as_deref()
            .map(|ours| format!("= {}", name(ours)));
        line(
            out,
            format!(
                "| {} | {} | {value} | {} | {} |",
                name(&metric.owner),
                name(&metric.name),
                equals.unwrap_or_default(),
                prose(&metric.formula),
            ),
        );
    }
}

/// Whole numbers below a million as they are, others with about four digits, very small and very large ones in
/// scientific notation.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v.fract() == 0.0 && v < 1e6 => format!("{value:.0}"),
        v if v < 1e-3 => format!("{value:.3e}"),
        v if v < 10.0 => format!("{value:.4}"),
        v if v < 1e5 => format!("{value:.1}"),
        _ => format!("{value:.3e}"),
    }
}

fn histogram(
    out: &mut String,
    title: &str,
    of: &str,
    histogram: &Histogram,
    edge: impl Fn(f64) -> String,
) {
    line(out, format!("\n### {title}\n\n```text"));
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let filled = |count: &u64| *count > 0;
    let first = histogram.counts.iter().position(filled).unwrap_or(0);
    let last = histogram.counts.iter().rposition(filled).unwrap_or(0);
    let bins = histogram.edges.windows(2).zip(&histogram.counts);
    for (edges, count) in bins.take(last + 1).skip(first) {
        let bar = "#".repeat((*count as f64 / most * BAR).ceil() as usize);
        let range = format!("[{}, {})", edge(edges[0]), edge(edges[1]));
        line(out, format!("{range:>20} {count:>8} {of} {bar}").trim_end());
    }
    line(out, "```");
}

fn classification(out: &mut String, top_n: &TopN) {
    line(
        out,
        format!(
            "\n## Top-n classification\n\n{}\n",
            prose(&top_n.definition)
        ),
    );
    let threshold = top_n.fire_threshold;
    let threshold = threshold.map(|number| format!("fire_threshold = {number}. "));
    let rank_by = top_n.rank_by.as_deref();
    let rank_by = rank_by.map(|rule| format!("Ranked by {}. ", name(rule)));
    line(
        out,
        format!(
            "{}{}The activations themselves: {} mean over classes, {} over rows.\n",
            rank_by.unwrap_or_default(),
            threshold.unwrap_or_default(),
            percent(Some(top_n.original_over_classes)),
            percent(Some(top_n.original_over_rows)),
        ),
    );
    if !top_n.unranked.is_empty() {
        let names: Vec<String> = top_n.unranked.iter().map(|class| name(class)).collect();
        line(
            out,
            format!(
                "Without training rows, so not ranked and in no mean: {}.\n",
                names.join(", ")
            ),
        );
    }
    by_n(out, top_n);
    by_class(out, top_n);
}

fn by_n(out: &mut String, top_n: &TopN) {
    line(
        out,
        "| n | on | off | on, before training | off, before training |\n|---|---:|---:|---:|---:|",
    );
    for (i, row) in top_n.trained.iter().enumerate() {
        let before = top_n.untrained.as_ref().and_then(|rows| rows.get(i));
        line(
            out,
            format!(
                "| {} | {} | {} | {} | {} |",
                name(&row.n),
                percent(Some(row.on)),
                percent(Some(row.off)),
                percent(before.map(|row| row.on)),
                percent(before.map(|row| row.off)),
            ),
        );
    }
}

fn by_class(out: &mut String, top_n: &TopN) {
    line(
        out,
        "\n| class | held-out rows | activations | reconstructions |\n|---|---:|---:|---:|",
    );
    for class in &top_n.per_class {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            name(&class.class),
            class.rows,
            percent(class.original),
            percent(class.reconstructed),
        );
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{:.1} %", 100.0 * value))
}

#[cfg(test)]
mod tests {
    use super::super::escape::tests::hostile;
    use super::*;
    use proptest::prelude::*;

    fn report(json: &str) -> Report {
        serde_json::from_str(json).expect("a report of this schema version stays readable")
    }

    #[test]
    fn reports_render_as_they_did() {
        let rendered = render(&report(include_str!("golden/report_7.json")));
        assert_eq!(
            rendered,
            include_str!("golden/report_7.md"),
            "if this is meant, replace golden/report_7.md by:\n{rendered}"
        );
    }

    #[test]
    fn what_an_older_report_lacks_is_left_out() {
        let json = include_str!("golden/report_7.json");
        let mut older: serde_json::Value = serde_json::from_str(json).expect("JSON");
        for field in ["notes", "all_rows", "toolkits", "criteria", "recovery"] {
            older.as_object_mut().expect("an object").remove(field);
        }
        let rendered = render(&report(&older.to_string()));
        assert!(!rendered.contains("## Before you read on"), "{rendered}");
        assert!(!rendered.contains("toolkit"), "{rendered}");
    }

    /// Every string of a report set to `text`.
    fn filled_with(text: &str) -> Report {
        let mut report = report(include_str!("golden/report_7.json"));
        for field in [&mut report.run, &mut report.device, &mut report.version] {
            *field = text.into();
        }
        report.card = Some(text.into());
        report.held_out.path = text.into();
        report.architecture = Some(text.into());
        report.notes = vec![text.into()];
        let all_rows = report.all_rows.as_mut().expect("there is one");
        let metrics = report.reconstruction.iter_mut().chain(&mut report.sparsity);
        for metric in metrics.chain(&mut all_rows.metrics) {
            (metric.name, metric.formula) = (text.into(), text.into());
        }
        for metric in &mut report.toolkits {
            for field in [&mut metric.owner, &mut metric.name, &mut metric.formula] {
                *field = text.into();
            }
            metric.equals = Some(text.into());
        }
        let top_n = report.top_n.as_mut().expect("there is one");
        top_n.definition = text.into();
        top_n.rank_by = Some(text.into());
        top_n.unranked = vec![text.into()];
        top_n.trained.iter_mut().for_each(|row| row.n = text.into());
        for class in &mut top_n.per_class {
            class.class = text.into();
        }
        report
    }

    /// Number of cells in each line of a table; like a viewer, it splits at bars without a backslash.
    fn cells(markdown: &str) -> Vec<usize> {
        let bars = |line: &str| {
            let mut escaped = false;
            let bar = |c: char| {
                let is_bar = c == '|' && !escaped;
                escaped = c == '\\' && !escaped;
                is_bar
            };
            line.chars().map(bar).filter(|is_bar| *is_bar).count()
        };
        let rows = markdown.lines().filter(|line| line.starts_with('|'));
        rows.map(|row| bars(row) - 1).collect()
    }

    proptest! {
        #[test]
        fn no_text_changes_the_shape_of_a_report(text in hostile()) {
            let plain = render(&filled_with("x"));
            let rendered = render(&filled_with(&text));
            prop_assert_eq!(cells(&rendered), cells(&plain));
            prop_assert!(!rendered.contains('<'));
            prop_assert_eq!(rendered.lines().count(), plain.lines().count());
            let starts = |markdown: &str| -> Vec<bool> {
                markdown.lines().map(|line| line.starts_with(['#', '|', '`', '-', '=', ' '])).collect()
            };
            prop_assert_eq!(starts(&rendered), starts(&plain));
        }

        #[test]
        fn no_report_is_too_odd_to_render(
            edges in prop::collection::vec(any::<f64>(), 0..5),
            counts in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let mut report = report(include_str!("golden/report_7.json"));
            report.l0_histogram = Histogram { edges, counts };
            report.firing_frequency_histogram = report.l0_histogram.clone();
            render(&report);
        }
    }

    #[test]
    fn a_missing_section_says_why_in_text() {
        let mut report = report(include_str!("golden/report_7.json"));
        (report.top_n, report.top_n_missing) = (None, Some("<b>\n# no".into()));
        assert!(render(&report).contains("Not measured: &lt;b> \\# no."));
    }
}
