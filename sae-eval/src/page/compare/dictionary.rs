//! Stability: how much of a dictionary comes back with another seed, and which latents recur.

use data_encoding::BASE64;
use maud::{Markup, html};
use serde_json::json;

use super::super::axis::Axis;
use super::super::chart::{Chart, key};
use super::super::pack::{element, packed};
use super::super::text::{clean, grouped, name, percent};
use super::{PROSE, badge, title};
use crate::compare::data::{Comparison, Matched, Stability};
use crate::compare::stability::{RECURS, SAME};

pub(super) fn section(comparison: &Comparison) -> Markup {
    let definition = comparison
        .definitions
        .iter()
        .find(|definition| definition.name == "stability");
    html! {
        section id="stability" aria-labelledby="stability-title" {
            h2.title id="stability-title" { "Stability: what comes back with another seed" }
            p.lead {
                "A latent that is a property of the data should appear whichever seed the training starts from. The latents of each \
                 two runs of a recipe are matched one to one by the cosines of their decoder directions."
            }
            @if let Some(definition) = definition { details { summary { "How it is measured" } p { (clean(&definition.text, PROSE)) } } }
            @if comparison.stability.is_empty() {
                p { "No recipe has two runs. Train the same config with another seed (sae-train CONFIG --set seed=1 --set run=NAME)." }
            } @else { (overview(comparison)) }
            @for (i, of) in comparison.stability.iter().enumerate() { (recipe(comparison, i, of)) }
        }
    }
}

/// One row for each pair of runs, and one for random directions.
fn overview(comparison: &Comparison) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Table of matched runs" {
            table.sortable id="pairs" {
                thead { tr {
                    th scope="col" { "recipe" } th scope="col" { "runs" } th.n scope="col" { "pairs" } th.n scope="col" { "mean cosine" }
                    th.n scope="col" { "recur (≥ " (RECURS) ")" } th.n scope="col" { "same (≥ " (SAME) ")" } th scope="col" { "matching" }
                } }
                tbody { @for of in &comparison.stability {
                    @for pair in &of.pairs {
                        @let [a, b] = pair.runs.map(|run| name(&comparison.runs[run].name));
                        (matched(comparison, of, &format!("{a}, {b}"), &pair.matched))
                    }
                    (matched(comparison, of, "random directions", &of.random))
                } }
            }
        }
    }
}

fn matched(comparison: &Comparison, of: &Stability, runs: &str, matched: &Matched) -> Markup {
    let recipe = &comparison.recipes[of.recipe];
    html! {
        tr {
            th scope="row" data-value=(recipe.letter) { (badge(of.recipe, recipe)) " " (name(&recipe.name)) }
            td { (runs) }
            td.n data-value=(matched.pairs) { (grouped(matched.pairs as i64)) }
            td.n data-value=(matched.mean_cosine) { (format!("{:.3}", matched.mean_cosine)) }
            td.n data-value=(matched.recur) { (percent(matched.recur)) }
            td.n data-value=(matched.same) { (percent(matched.same)) }
            td { (clean(&matched.matching, 40)) }
        }
    }
}

fn recipe(comparison: &Comparison, i: usize, of: &Stability) -> Markup {
    html! {
        h3 { (title(&comparison.recipes[of.recipe])) }
        div.charts { (curves(of)) (by_frequency(of)) }
        (recurring(comparison, i, of))
    }
}

/// The cosines of the pairs from the largest to the smallest.
fn curves(of: &Stability) -> Markup {
    let points = |matched: &Matched| -> Vec<(f64, f64)> {
        matched
            .curve
            .iter()
            .enumerate()
            .map(|(percent, cosine)| (percent as f64, *cosine))
            .collect()
    };
    let all = of
        .pairs
        .iter()
        .map(|pair| &pair.matched)
        .chain([&of.random]);
    let low = all
        .flat_map(|matched| &matched.curve)
        .copied()
        .fold(0.0, f64::min);
    let recur = of
        .pairs
        .first()
        .map_or("–".into(), |pair| percent(pair.matched.recur));
    let chart = Chart::new(
        "Matched cosines, from the largest to the smallest",
        format!("{recur} of the first two runs' pairs are at {RECURS} or above"),
        Axis::linear("pairs, %", 0.0, 100.0),
        Axis::linear("cosine", low, 1.0),
    );
    let bound = f64::from(RECURS);
    let marks = html! {
        (chart.line("baseline", &[(0.0, bound), (100.0, bound)]))
        (chart.line("c1", &points(&of.random)))
        @for pair in &of.pairs { (chart.line("c0", &points(&pair.matched))) }
    };
    chart.draw(
        marks,
        html! { (key("c0", "each two runs")) (key("c1", "random directions")) "Dashed: " (RECURS) },
    )
}

/// Numbers of a latent of the first run that the page draws.
struct Drawn {
    latent: u32,
    fired: i32,
    recurs: i32,
    mean: f32,
    others: Vec<(f32, i32)>,
}

/// The latents of the first run; none if the numbers are not as they should be.
fn latents(of: &Stability) -> Vec<Drawn> {
    let others = of.runs.len() - 1;
    let Some(columns) = of.latents.raw() else {
        return Vec::new();
    };
    if columns.len() != 4 + 2 * others {
        return Vec::new();
    }
    let drawn = |j: usize| {
        let bits = |column: usize| columns[column][j];
        let int = |column: usize| i32::from_le_bytes(bits(column));
        let float = |column: usize| f32::from_le_bytes(bits(column));
        Drawn {
            latent: u32::from_le_bytes(bits(0)),
            fired: int(1),
            recurs: int(2),
            mean: float(3),
            others: (0..others)
                .map(|k| (float(4 + 2 * k), int(5 + 2 * k)))
                .collect(),
        }
    };
    (0..of.latents.rows).map(drawn).collect()
}

/// Mean cosine against firing frequency.
fn by_frequency(of: &Stability) -> Markup {
    let points: Vec<(f64, f64)> = latents(of)
        .iter()
        .filter(|latent| latent.fired > 0 && latent.mean.is_finite())
        .map(|latent| {
            (
                f64::from(latent.fired) / of.rows.max(1) as f64,
                f64::from(latent.mean),
            )
        })
        .collect();
    if points.len() < 2 {
        return html! {};
    }
    let chart = Chart::new(
        "Which latents recur",
        "Latents of the first run: mean cosine with their partners against firing frequency",
        Axis::log_of("fires on this part of the rows", points.iter().map(|p| p.0)),
        Axis::of("mean cosine with its partners", points.iter().map(|p| p.1)),
    );
    chart.draw(
        chart.dots("faint", points.iter().copied()),
        html! { "Latents of the first run." },
    )
}

/// Latents in the table before the script adds the others.
const STATIC: usize = 20;

/// The latents of the first run, those that recur most first.
fn recurring(comparison: &Comparison, i: usize, of: &Stability) -> Markup {
    let mut all = latents(of);
    all.sort_by(|a, b| {
        let known = a.mean.is_nan().cmp(&b.mean.is_nan());
        let order = b
            .recurs
            .cmp(&a.recurs)
            .then(known)
            .then(b.mean.total_cmp(&a.mean));
        order.then(a.latent.cmp(&b.latent))
    });
    let count = all.len();
    let first = &comparison.runs[of.runs[0]];
    let label = format!("Latents of {} that recur", name(&first.name));
    html! {
        h4 { (label) }
        p.quiet { (counts(&all, of.runs.len() - 1)) }
        div.tools.script {
            label.hidden for={ "search-" (i) } { "Search latents of " (name(&first.name)) }
            input type="search" id={ "search-" (i) } placeholder="number of a latent" autocomplete="off" inputmode="numeric";
            p id={ "latents-found-" (i) } role="status" {}
        }
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table.recurring id={ "recurring-" (i) } data-of=(i) {
                thead { tr {
                    th.n scope="col" data-key="latent" aria-sort="none" { "latent" } th.n scope="col" data-key="fired" aria-sort="none" { "fires on" }
                    th.n scope="col" data-key="recurs" aria-sort="descending" { "recurs in" } th.n scope="col" data-key="mean" aria-sort="none" { "mean cosine" }
                    @for (k, run) in of.runs[1..].iter().enumerate() {
                        th.n scope="col" data-key={ "cosine" (k) } aria-sort="none" { "in " (name(&comparison.runs[*run].name)) }
                    }
                } }
                tbody { @for latent in all.iter().take(STATIC) { (latent_row(comparison, of, latent)) } }
            }
        }
        div.pages { button type="button" id={ "previous-" (i) } { "Previous" } span id={ "page-" (i) } {} button type="button" id={ "next-" (i) } { "Next" } }
        p.quiet { "Each cosine is followed by the number of the partner. " (grouped(count as i64)) " latents in all; a dead one fires on no held-out row and has no partner." }
    }
}

/// How many latents recur, in words.
fn counts(all: &[Drawn], others: usize) -> String {
    let in_at_least = |n: usize| {
        let recurs = |latent: &&Drawn| usize::try_from(latent.recurs).is_ok_and(|k| k >= n);
        grouped(all.iter().filter(recurs).count() as i64)
    };
    let of = grouped(all.len() as i64);
    match others {
        1 => format!("{} of {of} latents recur in the other run.", in_at_least(1)),
        _ => format!(
            "{} of {of} latents recur in at least one other run, {} in all {others}.",
            in_at_least(1),
            in_at_least(others)
        ),
    }
}

fn latent_row(comparison: &Comparison, of: &Stability, latent: &Drawn) -> Markup {
    let two = |cosine: f32| {
        if cosine.is_finite() {
            format!("{cosine:.2}")
        } else {
            "–".into()
        }
    };
    let fires = match latent.fired {
        -1 => "–".into(),
        0 => "dead".into(),
        fired => percent(f64::from(fired) / of.rows.max(1) as f64),
    };
    html! {
        tr {
            th.n scope="row" { (link(comparison, of.runs[0], latent.latent)) }
            td.n { (fires) }
            td.n { @if latent.recurs < 0 { "–" } @else { (latent.recurs) " of " (of.runs.len() - 1) } }
            td.n { (two(latent.mean)) }
            @for (run, (cosine, partner)) in of.runs[1..].iter().zip(&latent.others) {
                td.n { (two(*cosine)) @if let Ok(partner) = u32::try_from(*partner) { " · " (link(comparison, *run, partner)) } }
            }
        }
    }
}

/// A latent, with the address of its card if the run's report is near.
fn link(comparison: &Comparison, run: usize, latent: u32) -> Markup {
    match &comparison.runs[run].page {
        Some(page) => html! { a.latent href={ (page) "#latent-" (latent) } { (latent) } },
        None => html! { (latent) },
    }
}

/// All data that the script unpacks.
pub(super) fn data(comparison: &Comparison) -> Markup {
    html! {
        @for (i, of) in comparison.stability.iter().enumerate() {
            @let pages: Vec<Option<&str>> = of.runs.iter().map(|run| comparison.runs[*run].page.as_deref()).collect();
            @let meta = json!({ "latents": of.latents.rows, "rows": of.rows, "pages": pages });
            (element(&format!("meta-{i}"), &packed(meta.to_string().as_bytes())))
            (element(&format!("columns-{i}"), &BASE64.encode(&BASE64.decode(of.latents.data.as_bytes()).unwrap_or_default())))
        }
    }
}
