//! Section 1: the verdict in a sentence, the numbers with their formulas, where they come from, and training.

use maud::{Markup, html};
use sae_model::Architecture;
use sae_model::stats::Metric;
use sae_run::on_card;

use super::axis::Axis;
use super::chart::{Chart, key};
use super::findings::Findings;
use super::text::{clean, counted, lines, maybe, name, number, percent};
use super::training::Record;
use crate::report::Report;
use crate::report::criteria::Estimate;

/// Lines of the config that are shown.
const CONFIG_LINES: usize = 400;
/// Characters of a formula or a definition that are shown.
const PROSE: usize = 2000;

pub(super) fn section(report: &Report, findings: &Findings) -> Markup {
    html! {
        section id="verdict" aria-labelledby="verdict-title" {
            p.eyebrow { "Sparse autoencoder · " (architecture(report)) }
            h1 id="verdict-title" { (name(&report.run)) }
            p.verdict { (sentence(report)) }
            @if !report.notes.is_empty() {
                div.notes role="note" {
                    h2 { "Before you read on" }
                    ul { @for note in &report.notes { li { (clean(note, PROSE)) } } }
                }
            }
            (tiles(report))
            (curves(findings))
            (numbers(report))
            (origin(report, findings))
        }
    }
}

fn architecture(report: &Report) -> String {
    let name = report.model.architecture.name();
    report
        .architecture
        .as_deref()
        .map_or(name.to_string(), |words| clean(words, 200))
}

fn value(report: &Report, name: &str) -> Option<f64> {
    let mut all = report.reconstruction.iter().chain(&report.sparsity);
    all.find(|metric| metric.name == name)
        .and_then(|metric| metric.value)
}

/// The whole report in a sentence or two.
fn sentence(report: &Report) -> String {
    let latents = report.model.n_latents;
    let rows = match report.other_data {
        true => counted(
            report.held_out.rows,
            "row of other data",
            "rows of other data",
        ),
        false => counted(report.held_out.rows, "held-out row", "held-out rows"),
    };
    let kept = value(report, "explained_variance").map_or(
        format!(
            "{} were evaluated on {rows}",
            counted(latents, "latent", "latents")
        ),
        |share| {
            let latents = counted(latents, "latent rebuilds", "latents rebuild");
            format!("{latents} {} of the variance of {rows}", percent(share))
        },
    );
    let l0 = value(report, "l0_mean").map_or(String::new(), |l0| {
        format!(", {} active on a typical row", number(l0))
    });
    let dead = match value(report, "dead_latents") {
        Some(0.0) => "; every latent fires".to_string(),
        Some(dead) => format!(
            "; {} never fire ({})",
            number(dead),
            percent(dead / latents.max(1) as f64)
        ),
        None => String::new(),
    };
    let classes = report.top_n.as_ref().and_then(|top_n| {
        let ten = top_n.trained.iter().find(|row| row.n == "10").or(top_n.trained.first())?;
        Some(format!(
            " From only the first {} of their class, {} of the rows are given their class; from the activations themselves, {}.",
            match ten.n.as_str() {
                "1" => "latent".into(),
                n => format!("{} latents", clean(n, 20)),
            },
            percent(ten.on),
            percent(top_n.original_over_classes),
        ))
    });
    format!("{kept}{l0}{dead}.{}", classes.unwrap_or_default())
}

fn tiles(report: &Report) -> Markup {
    let share = |name: &str| value(report, name).map_or("–".into(), percent);
    let count = |name: &str| maybe(value(report, name));
    let tiles = [
        (
            "Variance explained",
            share("explained_variance"),
            "1 − FVU".to_string(),
        ),
        (
            "Active per row",
            count("l0_mean"),
            format!("5–95 %: {} to {}", count("l0_p5"), count("l0_p95")),
        ),
        (
            "Cosine with the row",
            count("cosine"),
            "mean over rows".into(),
        ),
        (
            "Dead latents",
            count("dead_latents"),
            format!("of {}", number(report.model.n_latents as f64)),
        ),
    ];
    html! {
        dl.tiles {
            @for (label, value, below) in tiles {
                div { dt { (label) } dd { strong { (value) } span { (below) } } }
            }
        }
    }
}

/// Curves of training.
fn curves(findings: &Findings) -> Markup {
    let train = &findings.training.train.records;
    if train.len() < 2 {
        return html! { p.quiet { "There are no records of training (metrics.jsonl), so there are no curves." } };
    }
    type Curve = (&'static str, &'static str, fn(&Record) -> Option<f64>);
    let charts: [Curve; 4] = [
        ("Variance unexplained", "FVU", |r| r.fvu),
        ("Active latents per row", "L0", |r| r.l0),
        ("Loss", "loss", |r| r.loss),
        ("Latents not fired lately", "latents", |r| r.dead),
    ];
    html! {
        h2 { "Training" }
        p.quiet { (key("c0", "training batches")) (key("c1", "held-out rows")) }
        div.charts.four { @for (title, unit, of) in charts { (curve(findings, title, unit, of)) } }
    }
}

fn curve(findings: &Findings, title: &str, unit: &str, of: fn(&Record) -> Option<f64>) -> Markup {
    let points = |records: &[Record]| -> Vec<(f64, f64)> {
        records
            .iter()
            .filter_map(|r| Some((r.step as f64, of(r)?)))
            .collect()
    };
    let train = points(&findings.training.train.records);
    let held_out = points(&findings.training.held_out.records);
    let (Some(first), Some(last)) = (train.first(), train.last()) else {
        return html! {};
    };
    let all = || train.iter().chain(&held_out);
    let wide = all()
        .map(|p| p.1)
        .filter(|y| *y > 0.0)
        .fold((f64::MAX, 0.0f64), |(l, h), y| (l.min(y), h.max(y)));
    let y = match wide.0 > 0.0 && wide.1 / wide.0 > 30.0 && all().all(|p| p.1 > 0.0) {
        true => Axis::log_of(unit, all().map(|p| p.1)),
        false => Axis::of(unit, all().map(|p| p.1)),
    };
    let described = format!(
        "From {} at step {} to {} at step {}",
        number(first.1),
        first.0,
        number(last.1),
        last.0
    );
    let x = Axis::linear("step", 0.0, all().map(|p| p.0).fold(1.0, f64::max));
    let mut chart = Chart::new(title, described, x, y);
    (chart.width, chart.height) = (310.0, 210.0);
    let marks = html! {
        (chart.line("c0", &train))
        @if held_out.len() > 1 { (chart.line("c1", &held_out)) }
        (chart.dots("c1", held_out.iter().copied()))
    };
    chart.draw(marks, html! {})
}

/// All metrics, each with its formula on demand.
fn numbers(report: &Report) -> Markup {
    html! {
        h2 { "All numbers" }
        p.quiet { "Open a number to see its formula." }
        div.numbers {
            (metrics("Reconstruction", &report.reconstruction))
            (metrics("Sparsity", &report.sparsity))
            @if let Some(all) = &report.all_rows {
                (metrics("With the rows beyond data.max_norm", &all.metrics))
            }
            @if let Some(criteria) = &report.criteria { (estimates("How well latents tell classes", &criteria.metrics)) }
            @if let Some(recovery) = &report.recovery { (estimates("Recovery of known concepts", &recovery.metrics)) }
        }
        @if !report.toolkits.is_empty() { (toolkits(report)) }
    }
}

fn metrics(title: &str, metrics: &[Metric]) -> Markup {
    html! {
        div.group {
            h3 { (title) }
            @for metric in metrics { (entry(&metric.name, maybe(metric.value), None, &metric.formula)) }
        }
    }
}

fn estimates(title: &str, metrics: &[Estimate]) -> Markup {
    let interval = |m: &Estimate| match (m.low, m.high) {
        (Some(low), Some(high)) => Some(format!("95 %: {} to {}", number(low), number(high))),
        _ => None,
    };
    html! {
        div.group {
            h3 { (title) }
            @for m in metrics { (entry(&m.name, maybe(m.value), interval(m), &m.formula)) }
        }
    }
}

fn entry(metric: &str, value: String, interval: Option<String>, formula: &str) -> Markup {
    html! {
        details.number {
            summary { span { (name(metric)) } strong { (value) } }
            p { (clean(formula, PROSE)) @if let Some(interval) = interval { br; (interval) } }
        }
    }
}

fn toolkits(report: &Report) -> Markup {
    html! {
        details {
            summary { "As other toolkits define it" }
            div.scroll tabindex="0" role="region" aria-label="Metrics of other toolkits" {
                table {
                    thead { tr { th scope="col" { "toolkit" } th scope="col" { "its name" } th.n scope="col" { "value" } th scope="col" { "formula" } } }
                    tbody {
                        @for metric in &report.toolkits {
                            tr {
                                td { (name(&metric.owner)) }
                                td { (name(&metric.name)) }
                                td.n { (maybe(metric.value)) }
                                td { (clean(&metric.formula, PROSE)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A side of the data in words.
fn data(side: &sae_data::Fingerprint) -> String {
    format!(
        "{}: {} of width {}, {} {}",
        name(&side.path.display().to_string()),
        counted(side.rows, "row", "rows"),
        side.width,
        name(&side.format),
        name(&side.dtype),
    )
}

/// The data, the versions and the config.
fn origin(report: &Report, findings: &Findings) -> Markup {
    let of = |key: &str| match findings.provenance.as_ref().and_then(|p| p.get(key)) {
        Some(serde_json::Value::String(text)) => name(text),
        Some(serde_json::Value::Number(number)) => number.to_string(),
        _ => "unknown".into(),
    };
    let card = findings.provenance.as_ref().and_then(|p| p.get("card"));
    let trained_on = match card.and_then(|card| card.as_str()) {
        Some(card) => on_card(&of("device"), Some(&name(card))),
        None => of("device"),
    };
    let facts = [
        (
            "Training data",
            report.train.as_ref().map_or("unknown".into(), data),
        ),
        (
            if report.other_data {
                "Other data"
            } else {
                "Held-out data"
            },
            data(&report.held_out),
        ),
        (
            "Trained with",
            format!(
                "sae-train {}, Burn {}, revision {}",
                of("version"),
                of("burn"),
                of("git_revision")
            ),
        ),
        (
            "Trained on",
            format!(
                "{}, {} threads, seed {}",
                trained_on,
                of("threads"),
                of("seed")
            ),
        ),
        (
            "Evaluated on",
            format!(
                "{} in {:.1} s, sae-eval {}",
                name(&on_card(&report.device, report.card.as_deref())),
                report.seconds,
                name(&report.version)
            ),
        ),
    ];
    html! {
        h2 { "Where it comes from" }
        dl.facts { @for (key, value) in facts { div { dt { (key) } dd { (value) } } } }
        @if let Some(config) = &findings.config {
            details {
                summary { "config.toml" }
                pre tabindex="0" { code { (lines(config, CONFIG_LINES)) } }
            }
        }
    }
}
