//! Section 2: how many concepts an input uses.

use maud::{Markup, html};

use super::axis::Axis;
use super::chart::{Chart, between, inline_bar};
use super::findings::Findings;
use super::gather::L0Sums;
use super::text::{grouped, number};
use crate::report::Report;

/// Dots of a chart at most.
const DOTS: usize = 1500;
/// Groups of rows behind the line of medians.
const GROUPS: usize = 12;
/// Classes in the table at most.
const CLASSES: usize = 200;
/// Positions drawn one by one; beyond, in groups that grow.
const POSITIONS: usize = 64;

pub(super) fn section(report: &Report, findings: &Findings) -> Markup {
    html! {
        section id="inputs" aria-labelledby="inputs-title" {
            h2.title id="inputs-title" { "How many concepts does an input use?" }
            p.lead { (lead(report)) }
            div.charts {
                (distribution(report))
                (against(findings, "Against the norm of the input", "‖x‖", |p| p.norm))
                (against(findings, "Against what is left over", "‖x − x̂‖² / ‖x‖²", |p| p.error))
                (by_position(&findings.by_position))
            }
            (by_class(findings))
        }
    }
}

fn lead(report: &Report) -> String {
    let of = |name: &str| {
        report
            .sparsity
            .iter()
            .find(|m| m.name == name)
            .and_then(|m| m.value)
    };
    match (of("l0_median"), of("l0_p5"), of("l0_p95")) {
        (Some(median), Some(low), Some(high)) if low == high => {
            format!(
                "Every input uses {} latents: the number does not depend on the input.",
                number(median)
            )
        }
        (Some(median), Some(low), Some(high)) => format!(
            "Half of the inputs use at most {} latents. The simplest twentieth uses {} or fewer, the richest {} or more: \
             the model decides for each input.",
            number(median),
            number(low),
            number(high)
        ),
        _ => "The number of active latents per row (L0).".into(),
    }
}

fn distribution(report: &Report) -> Markup {
    let histogram = &report.l0_histogram;
    let values: Vec<f64> = histogram.counts.iter().map(|n| *n as f64).collect();
    let (Some(first), Some(last)) = (
        values.iter().position(|n| *n > 0.0),
        values.iter().rposition(|n| *n > 0.0),
    ) else {
        return html! {};
    };
    if histogram.edges.len() <= last + 1 {
        return html! {};
    }
    let (edges, values) = (&histogram.edges[first..=last + 1], &values[first..=last]);
    let most = values.iter().copied().fold(0.0, f64::max);
    let chart = Chart::new(
        "Rows by their number of active latents",
        format!("From {} latents", between(edges[0], edges[edges.len() - 1])),
        Axis::linear("active latents (L0)", edges[0], edges[edges.len() - 1]),
        Axis::linear("rows", 0.0, most * 1.05),
    );
    let title = |i: usize| {
        format!(
            "{} latents: {} rows",
            between(edges[i], edges[i + 1]),
            grouped(values[i] as i64)
        )
    };
    chart.draw(chart.bars(edges, values, title), html! {})
}

/// L0 of sampled rows against something else, with a line of medians.
fn against(
    findings: &Findings,
    title: &str,
    label: &str,
    of: fn(&super::gather::Point) -> f32,
) -> Markup {
    let mut points: Vec<(f64, f64)> = findings
        .points
        .iter()
        .map(|p| (f64::from(of(p)), f64::from(p.l0)))
        .filter(|(x, _)| x.is_finite())
        .collect();
    if points.len() < 2 {
        return html! {};
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let spread = points[points.len() - 1].0 - points[0].0;
    if spread <= 1e-3 * points[0].0.abs() {
        let x = number(points[0].0);
        return html! { figure.chart.empty { figcaption { (title) } p.note { "It is " (x) " for all rows, up to a thousandth, so there is nothing to compare." } } };
    }
    let medians: Vec<(f64, f64)> = groups(&points).collect();
    let chart = Chart::new(
        title,
        format!(
            "Median L0 goes from {} to {}",
            number(medians[0].1),
            number(medians[medians.len() - 1].1)
        ),
        Axis::of(label, points.iter().map(|p| p.0)),
        Axis::of("active latents (L0)", points.iter().map(|p| p.1)),
    );
    let every = points.len().div_ceil(DOTS);
    let marks = html! {
        (chart.dots("faint", points.iter().copied().step_by(every)))
        (chart.line("c1", &medians))
    };
    chart.draw(marks, html! { "One dot per row, " (grouped(points.len().div_ceil(every) as i64)) " of them; the line joins medians of L0." })
}

/// Mean x and median L0 of groups of equal size; the points ascend.
fn groups(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    let size = points.len().div_ceil(GROUPS).max(1);
    points.chunks(size).map(|group| {
        let mut l0: Vec<f64> = group.iter().map(|p| p.1).collect();
        l0.sort_by(f64::total_cmp);
        let x = group.iter().map(|p| p.0).sum::<f64>() / group.len() as f64;
        (x, l0[l0.len() / 2])
    })
}

/// Mean L0 by position in the document.
fn by_position(sums: &[L0Sums]) -> Markup {
    let mut points = Vec::new();
    let mut start = 0;
    while start < sums.len() {
        let step = if start < POSITIONS {
            1
        } else {
            start / POSITIONS * 2
        };
        let end = (start + step.max(1)).min(sums.len());
        let rows: u64 = sums[start..end].iter().map(|s| s.rows).sum();
        if rows > 0 {
            let sum: u64 = sums[start..end].iter().map(|s| s.sum).sum();
            points.push(((start + end - 1) as f64 / 2.0, sum as f64 / rows as f64));
        }
        start = end;
    }
    if points.len() < 2 {
        return html! {};
    }
    let chart = Chart::new(
        "By position in the document",
        format!(
            "Mean L0 is {} at the first position and {} at the last",
            number(points[0].1),
            number(points[points.len() - 1].1)
        ),
        Axis::linear("position", 0.0, points[points.len() - 1].0),
        Axis::of("mean L0", points.iter().map(|p| p.1)),
    );
    let marks = html! { (chart.line("c0", &points)) (chart.dots("c0", points.iter().copied())) };
    chart.draw(marks, html! {})
}

fn by_class(findings: &Findings) -> Markup {
    if findings.by_class.len() < 2 {
        return html! {};
    }
    let mut classes: Vec<(usize, L0Sums)> = findings
        .by_class
        .iter()
        .map(|(c, sums)| (*c, *sums))
        .collect();
    classes.sort_by(|a, b| b.1.mean().total_cmp(&a.1.mean()).then(a.0.cmp(&b.0)));
    let most = classes
        .iter()
        .map(|(_, sums)| sums.mean())
        .fold(1e-9, f64::max);
    let shown = classes.len().min(CLASSES);
    html! {
        details open[classes.len() <= 30] {
            summary { "By class" }
            div.scroll tabindex="0" role="region" aria-label="L0 by class" {
                table.classes {
                    thead { tr {
                        th scope="col" { "class" } th.n scope="col" { "held-out rows" } th.n scope="col" { "mean L0" }
                        th.wide scope="col" { span.hidden { "mean L0 as a bar" } } th.n scope="col" { "standard deviation" }
                    } }
                    tbody {
                        @for (class, sums) in &classes[..shown] {
                            tr {
                                th scope="row" { (findings.class(*class)) }
                                td.n { (grouped(sums.rows as i64)) }
                                td.n { (format!("{:.1}", sums.mean())) }
                                td.wide { (inline_bar(sums.mean() / most, &format!("{:.1}", sums.mean()))) }
                                td.n { (format!("{:.1}", sums.deviation())) }
                            }
                        }
                    }
                }
            }
            @if shown < classes.len() { p.note { "The " (shown) " classes of largest mean, of " (classes.len()) "." } }
        }
    }
}
