//! How many concepts an input uses, in all runs beside each other: a number that TopK fixes and others choose.

use maud::{Markup, html};

use super::super::axis::Axis;
use super::super::chart::at;
use super::super::text::{maybe, name, percent};
use super::{badge, class_of};
use crate::compare::data::{ComparedRun, Comparison};

/// Size of a run's histogram.
const STRIP: [f64; 2] = [600.0, 46.0];

pub(super) fn section(comparison: &Comparison) -> Markup {
    let ends = comparison.runs.iter().filter_map(reach);
    let (low, high) = ends.fold((f64::MAX, 0.0f64), |(l, h), (low, high)| {
        (l.min(low), h.max(high))
    });
    html! {
        section id="inputs" aria-labelledby="inputs-title" {
            h2.title id="inputs-title" { "How many concepts does an input use?" }
            p.lead {
                "The number of active latents per row (L0). A wide distribution means that the model decides for each input; TopK gives \
                 every input the same number."
            }
            @if low < high {
                @let axis = Axis::linear("active latents (L0)", low.min(high - 1.0), high);
                figure.chart.strips {
                    figcaption { "Rows by their number of active latents" }
                    ul { @for run in &comparison.runs { li { (row(comparison, run, &axis)) } } li aria-hidden="true" { span {} (ticks(&axis)) } }
                    p.note { "Each run has its own height: bars show shares of its rows. The line goes from the 5th to the 95th percentile." }
                }
            }
        }
    }
}

/// The smallest and the largest L0 of a run.
fn reach(run: &ComparedRun) -> Option<(f64, f64)> {
    let histogram = &run.l0_histogram;
    let first = histogram.counts.iter().position(|n| *n > 0)?;
    let last = histogram.counts.iter().rposition(|n| *n > 0)?;
    Some((
        *histogram.edges.get(first)?,
        *histogram.edges.get(last + 1)?,
    ))
}

fn row(comparison: &Comparison, run: &ComparedRun, axis: &Axis) -> Markup {
    let value = |key: &str| maybe(run.values.get(key).copied());
    let recipe = &comparison.recipes[run.recipe];
    html! {
        span.who { (badge(run.recipe, recipe)) " " (name(&run.name)) }
        (strip(run, axis))
        span.value { "median " (value("l0_median")) ", " (value("l0_p5")) " to " (value("l0_p95")) }
    }
}

/// The histogram of a run.
fn strip(run: &ComparedRun, axis: &Axis) -> Markup {
    let [width, height] = STRIP;
    let histogram = &run.l0_histogram;
    let rows: u64 = histogram.counts.iter().sum();
    let bins: Vec<(f64, f64, u64)> = histogram
        .edges
        .windows(2)
        .zip(&histogram.counts)
        .map(|(edges, n)| (edges[0], edges[1], *n))
        .filter(|bin| bin.2 > 0)
        .collect();
    let density = |(from, to, n): &(f64, f64, u64)| *n as f64 / (to - from).max(1e-9);
    let most = bins.iter().map(density).fold(0.0, f64::max).max(1e-300);
    let place = |value: f64| axis.part(value) * width;
    let span = ["l0_p5", "l0_p95"].map(|key| run.values.get(key).map(|v| at(place(*v + 0.5))));
    let label = format!(
        "{}: rows by their number of active latents",
        name(&run.name)
    );
    html! {
        svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) preserveAspectRatio="none" {
            @for bin in &bins {
                @let tall = density(bin) / most * (height - 8.0);
                rect class={ "own fill " (class_of(run.recipe)) } x=(at(place(bin.0))) y=(at(height - 6.0 - tall))
                    width=(at((place(bin.1) - place(bin.0) - 0.5).max(1.0))) height=(at(tall.max(0.5))) {
                    title { (bin.0) " to " (bin.1 - 1.0) ": " (percent(bin.2 as f64 / rows as f64)) " of the rows" }
                }
            }
            @if let [Some(from), Some(to)] = span { path.span d={ "M" (from) " " (at(height - 2.0)) "H" (to) } {} }
        }
    }
}

fn ticks(axis: &Axis) -> Markup {
    let [width, _] = STRIP;
    html! {
        svg.scale viewBox={ "0 0 " (width) " 30" } {
            @for tick in axis.ticks(6) {
                @let place = axis.part(tick) * width;
                text.middle x=(at(place.clamp(16.0, width - 16.0))) y="22" { (axis.text(tick)) }
            }
        }
    }
}
