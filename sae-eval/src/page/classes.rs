//! Section 6: how much of each class its first latents carry.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{at, key};
use super::findings::{Carried, Findings};
use super::latent_link;
use super::text::{clean, grouped, percent};
use crate::report::criteria::ClassCriteria;
use crate::report::{ClassAccuracy, Report, TopN, TopNRow};

/// Classes that are drawn; report.json has the accuracies of the others.
const DRAWN: usize = 200;
/// Latents listed for a class.
const LISTED: usize = 8;
/// Size of a class's curve.
const CURVE: [f64; 2] = [180.0, 84.0];

pub(super) fn section(report: &Report, findings: &Findings) -> Markup {
    html! {
        section id="classes" aria-labelledby="classes-title" {
            h2.title id="classes-title" { "Classes" }
            @match &report.top_n {
                Some(top_n) => { (measured(report, top_n, findings)) }
                None => {
                    p.lead { "There is no top-n classification: " (clean(report.top_n_missing.as_deref().unwrap_or("no reason given"), 500)) "." }
                }
            }
        }
    }
}

fn measured(report: &Report, top_n: &TopN, findings: &Findings) -> Markup {
    html! {
        p.lead {
            "A class is carried by few latents if keeping only its first n latents keeps its rows recognisable (on), and \
             dropping them does not (off)."
        }
        details { summary { "How it is measured" } p { (clean(&top_n.definition, 3000)) } }
        (means(top_n))
        (curves(report, findings))
    }
}

/// Means over classes, trained and before training.
fn means(top_n: &TopN) -> Markup {
    let before = |i: usize, of: fn(&TopNRow) -> f64| {
        let row = top_n.untrained.as_ref().and_then(|rows| rows.get(i));
        row.map_or("–".into(), |row| percent(of(row)))
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label="Mean accuracy by number of latents" {
            table {
                thead { tr {
                    th scope="col" { "latents per class" } th.n scope="col" { "on" } th.n scope="col" { "off" }
                    th.n scope="col" { "on, before training" } th.n scope="col" { "off, before training" }
                } }
                tbody {
                    @for (i, row) in top_n.trained.iter().enumerate() {
                        tr {
                            th scope="row" { (clean(&row.n, 20)) }
                            td.n { (percent(row.on)) } td.n { (percent(row.off)) }
                            td.n { (before(i, |row| row.on)) } td.n { (before(i, |row| row.off)) }
                        }
                    }
                }
            }
        }
        p.note { "Mean accuracy over classes; the activations themselves: " (percent(top_n.original_over_classes)) "." }
    }
}

/// The curves of each class.
fn curves(report: &Report, findings: &Findings) -> Markup {
    let Some(top_n) = report
        .top_n
        .as_ref()
        .filter(|_| !findings.carried.is_empty())
    else {
        return html! {};
    };
    let criteria: BTreeMap<usize, &ClassCriteria> = report
        .criteria
        .iter()
        .flat_map(|c| &c.per_class)
        .map(|class| (class.label, class))
        .collect();
    let mut classes: Vec<&Carried> = findings.carried.iter().collect();
    let first_on = |of: &Carried| of.curve.first().and_then(|point| point.0).unwrap_or(-1.0);
    classes.sort_by(|a, b| {
        first_on(b)
            .total_cmp(&first_on(a))
            .then(a.class.cmp(&b.class))
    });
    let all = classes.len();
    classes.truncate(DRAWN);
    html! {
        h3 { "Each class" }
        p.quiet { (key("c0", "only its first n latents on")) (key("c1", "only these off")) " n = " (ns(findings)) }
        div.curves {
            @for class in classes {
                (curve(findings, class, top_n.per_class.get(class.class), criteria.get(&class.class).copied()))
            }
        }
        @if all > DRAWN { p.note { "The first " (DRAWN) " of " (grouped(all as i64)) " classes; report.json has the accuracies of all of them, without the curves." } }
    }
}

fn ns(findings: &Findings) -> String {
    let words = |n: &Option<usize>| n.map_or("all".into(), |n| n.to_string());
    findings
        .ns
        .iter()
        .map(words)
        .collect::<Vec<String>>()
        .join(", ")
}

fn curve(
    findings: &Findings,
    of: &Carried,
    accuracy: Option<&ClassAccuracy>,
    criteria: Option<&ClassCriteria>,
) -> Markup {
    let class = findings.class(of.class);
    let single = criteria.and_then(|c| Some((c.single_latent?, c.single_f1?)));
    html! {
        article.class {
            h4 { (class) }
            (picture(findings, of, &class))
            @if let Some(accuracy) = accuracy {
                p.quiet { (grouped(accuracy.rows as i64)) " rows; activations " (accuracy.original.map_or("–".into(), percent)) }
            }
            p.links { @for latent in of.latents.iter().take(LISTED) { (latent_link(*latent)) " " } }
            @if let Some((latent, f1)) = single { p.quiet { "best alone: " (latent_link(latent)) ", F1 " (format!("{f1:.2}")) } }
        }
    }
}

/// Accuracy against n, on and off.
fn picture(findings: &Findings, of: &Carried, class: &str) -> Markup {
    let [width, height] = CURVE;
    let steps = of.curve.len().saturating_sub(1).max(1) as f64;
    let place = |i: usize, accuracy: f64| {
        let x = 6.0 + i as f64 / steps * (width - 12.0);
        (
            at(x),
            at(height - 6.0 - accuracy.clamp(0.0, 1.0) * (height - 12.0)),
        )
    };
    let points = |on: bool| {
        let side = move |point: &(Option<f64>, Option<f64>)| if on { point.0 } else { point.1 };
        of.curve
            .iter()
            .enumerate()
            .filter_map(move |(i, point)| Some((i, side(point)?)))
    };
    let path = |on: bool| {
        let parts = points(on).enumerate().map(|(k, (i, accuracy))| {
            let (x, y) = place(i, accuracy);
            format!("{}{x} {y}", if k == 0 { "M" } else { "L" })
        });
        parts.collect::<String>()
    };
    let words = |on: bool| {
        points(on)
            .map(|(_, a)| percent(a))
            .collect::<Vec<String>>()
            .join(", ")
    };
    let label = format!(
        "{class}, for n = {}: on {}; off {}",
        ns(findings),
        words(true),
        words(false)
    );
    html! {
        svg.curve viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) {
            title { (label) }
            rect.track x="0" y="0" width=(width) height=(height) rx="4" {}
            path.line.c1 d=(path(false)) {}
            path.line.c0 d=(path(true)) {}
            @for (i, accuracy) in points(true) { @let (x, y) = place(i, accuracy); circle.c0 cx=(x) cy=(y) r="2.5" {} }
        }
    }
}
