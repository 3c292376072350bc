//! A report as Markdown: tables with formulas, histograms as bars.

use std::fmt::Write;

use sae_model::stats::{Histogram, Metric};

use super::{Report, TopN};

/// Longest bar of a histogram, in characters.
const BAR: f64 = 40.0;

/// Renders the whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    header(&mut out, report);
    metrics(&mut out, "Reconstruction", &report.reconstruction);
    metrics(&mut out, "Sparsity", &report.sparsity);
    histogram(
        &mut out,
        "Active latents a row (L0)",
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
    match (&report.top_n, &report.top_n_missing) {
        (Some(top_n), _) => classification(&mut out, top_n),
        (None, reason) => line(
            &mut out,
            format!(
                "\n## Top-n classification\n\nNot measured: {}.",
                escape(reason.as_deref().unwrap_or("no reason given"))
            ),
        ),
    }
    out
}

fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref());
    out.push('\n');
}

fn header(out: &mut String, report: &Report) {
    let m = &report.model;
    let data = &report.held_out;
    line(out, format!("# {}\n", escape(&report.run)));
    line(
        out,
        format!(
            "{} latents over width {}, value {:?}, scale {:.4}; {} held-out rows of {}; device {}, {:.1} s, sae-eval {}.",
            m.n_latents,
            m.d_in,
            m.value,
            m.scale,
            data.rows,
            escape(&data.path.display().to_string()),
            report.device,
            report.seconds,
            report.version,
        ),
    );
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
                metric.name,
                escape(&metric.formula)
            ),
        );
    }
}

/// Whole numbers as they are, others with about four digits, or scientific where that would hide them.
fn number(value: f64) -> String {
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
    for (i, count) in histogram
        .counts
        .iter()
        .enumerate()
        .take(last + 1)
        .skip(first)
    {
        let bar = "#".repeat((*count as f64 / most * BAR).ceil() as usize);
        let range = format!(
            "[{}, {})",
            edge(histogram.edges[i]),
            edge(histogram.edges[i + 1])
        );
        line(out, format!("{range:>20} {count:>8} {of} {bar}").trim_end());
    }
    line(out, "```");
}

fn classification(out: &mut String, top_n: &TopN) {
    line(
        out,
        format!("\n## Top-n classification\n\n{}\n", top_n.definition),
    );
    line(
        out,
        format!(
            "fire_threshold = {}. The activations themselves: {} mean over classes, {} over rows.\n",
            top_n.fire_threshold,
            percent(Some(top_n.original_over_classes)),
            percent(Some(top_n.original_over_rows)),
        ),
    );
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
                row.n,
                percent(Some(row.on)),
                percent(Some(row.off)),
                percent(before.map(|row| row.on)),
                percent(before.map(|row| row.off)),
            ),
        );
    }
    line(
        out,
        "\n| class | held-out rows | activations | reconstructions |\n|---|---:|---:|---:|",
    );
    for class in &top_n.per_class {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            escape(&class.class),
            class.rows,
            percent(class.original),
            percent(class.reconstructed),
        );
    }
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{:.1} %", 100.0 * value))
}

/// Text from files, so that it cannot break out of its cell or become markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '|' | '<' | '>' | '`' | '*' | '[' | ']' | '\\' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_renders_as_it_did() {
        let report: Report = serde_json::from_str(include_str!("golden/report.json"))
            .expect("a report of schema version 3 stays readable");
        let rendered = render(&report);
        let golden = include_str!("golden/report.md");
        assert_eq!(
            rendered, golden,
            "if this is meant, replace golden/report.md by:\n{rendered}"
        );
    }
}
