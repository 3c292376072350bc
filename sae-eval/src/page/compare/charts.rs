//! Charts of recipes: reconstruction against sparsity, and what few latents say of classes.

use maud::{Markup, html};

use super::super::axis::Axis;
use super::super::chart::{Chart, at};
use super::super::text::{clean, name, number, percent};
use super::tables::{mean_and_spread, of_set};
use super::{badge, class_of};
use crate::compare::data::{Comparison, Recipe, Spread};

/// Radius of the circle around a letter.
const RADIUS: f64 = 9.0;

/// FVU against L0 of the recipes that were evaluated on the same rows, with the Pareto front.
pub(super) fn front(comparison: &Comparison, set: usize) -> Markup {
    let rows = &comparison.data_sets[set];
    let recipes: Vec<(usize, &Recipe)> = of_set(comparison, set).collect();
    let run = |i: usize| {
        let values = &comparison.runs[i].values;
        Some((*values.get("l0_mean")?, *values.get("fvu")?))
    };
    let singles: Vec<(f64, f64)> = recipes
        .iter()
        .flat_map(|(_, r)| r.runs.iter().filter_map(|i| run(*i)))
        .collect();
    if singles.is_empty() {
        return html! {};
    }
    let of = |recipe: &Recipe| Some((*recipe.spreads.get("l0_mean")?, *recipe.spreads.get("fvu")?));
    let reach = |(x, y): (Spread, Spread)| {
        let [dx, dy] = [x, y].map(|spread| spread.sd.unwrap_or(0.0));
        [(x.mean - dx, y.mean - dy), (x.mean + dx, y.mean + dy)]
    };
    let ends = recipes.iter().filter_map(|(_, r)| of(r)).flat_map(reach);
    let all: Vec<(f64, f64)> = singles.iter().copied().chain(ends).collect();
    let chart = Chart::new(
        "Reconstruction against sparsity",
        format!("{} runs; down and to the left is better", singles.len()),
        Axis::of("active latents per row (L0)", all.iter().map(|p| p.0)),
        Axis::of("variance unexplained (FVU)", all.iter().map(|p| p.1)),
    );
    let line: Vec<(f64, f64)> = rows
        .front
        .iter()
        .filter_map(|i| of(&comparison.recipes[*i]))
        .map(|(x, y)| (x.mean, y.mean))
        .collect();
    let marks = html! {
        @if line.len() > 1 { (chart.line("front", &line)) }
        @for (i, recipe) in &recipes {
            @let points = recipe.runs.iter().filter_map(|i| run(*i));
            @if let Some((x, y)) = of(recipe) {
                (cross(&chart, *i, x, y))
                (mark(&chart, *i, recipe, (x.mean, y.mean)))
            }
            (chart.dots(&class_of(*i), points))
        }
    };
    let note = html! {
        "Letters are means over seeds with their standard deviation, dots are runs"
        @if line.len() > 1 { ", the line is the Pareto front" }
        ". " (number(rows.rows as f64)) " rows of " (name(&rows.path)) "."
    };
    html! { (chart.draw(marks, note)) }
}

/// The letter of a recipe at a place of a chart.
fn mark(chart: &Chart, number: usize, recipe: &Recipe, (x, y): (f64, f64)) -> Markup {
    let (x, y) = (chart.x(x), chart.y(y));
    html! {
        g class={ "mark " (class_of(number)) } {
            title { (name(&recipe.name)) }
            circle cx=(at(x)) cy=(at(y)) r=(RADIUS) {}
            text.middle x=(at(x)) y=(at(y + 4.0)) { (recipe.letter) }
        }
    }
}

/// One standard deviation to each side, in both directions.
fn cross(chart: &Chart, number: usize, x: Spread, y: Spread) -> Markup {
    let horizontal =
        x.sd.map(|sd| [(x.mean - sd, y.mean), (x.mean + sd, y.mean)]);
    let vertical =
        y.sd.map(|sd| [(x.mean, y.mean - sd), (x.mean, y.mean + sd)]);
    html! {
        @for ends in [horizontal, vertical].into_iter().flatten() { (chart.line(&class_of(number), &ends)) }
    }
}

/// A curve of a recipe: the names of its places, and its mean and spread at each.
struct Curve<'a> {
    number: usize,
    recipe: &'a Recipe,
    points: Vec<(usize, Spread)>,
}

pub(super) fn classes(comparison: &Comparison) -> Markup {
    let sets = 0..comparison.data_sets.len();
    let drawn: Vec<Markup> = sets
        .map(|set| of_rows(comparison, set))
        .filter(|drawn| !drawn.0.is_empty())
        .collect();
    html! {
        section id="classes" aria-labelledby="classes-title" {
            h2.title id="classes-title" { "What few latents say of classes" }
            @if drawn.is_empty() {
                p.lead { "No report has a section about classes: the data has no labels, or no class embeddings." }
            } @else {
                p.lead {
                    "Top-n: a row keeps only the first n latents of its class (on), or loses only these (off), and is given the class \
                     of the closest embedding. Probes: a logistic regression on k latents, for each class against the rest."
                }
                @for drawn in drawn { (drawn) }
            }
        }
    }
}

/// The charts of the recipes that were evaluated on the same rows.
fn of_rows(comparison: &Comparison, set: usize) -> Markup {
    let mut ns: Vec<&str> = Vec::new();
    let of_recipes = || of_set(comparison, set).flat_map(|(_, recipe)| &recipe.runs);
    for n in of_recipes().flat_map(|run| &comparison.runs[*run].top_n) {
        if !ns.contains(&n.as_str()) {
            ns.push(n);
        }
    }
    // "all" last, numbers by their size
    ns.sort_by_key(|n| n.parse::<u64>().unwrap_or(u64::MAX));
    let mut ks: Vec<u64> = of_set(comparison, set)
        .flat_map(|(_, recipe)| recipe.spreads.keys())
        .filter_map(|key| {
            key.strip_prefix("probe_")?
                .strip_suffix("_balanced_accuracy")?
                .parse()
                .ok()
        })
        .collect();
    ks.sort_unstable();
    ks.dedup();
    let ks: Vec<String> = ks.iter().map(u64::to_string).collect();
    let draw =
        |title: &str, unit: &str, x: &str, names: Vec<String>, keys: Vec<String>, line: &str| {
            curves(
                comparison,
                set,
                Drawn {
                    title,
                    unit,
                    x,
                    names,
                    keys,
                    line,
                },
            )
        };
    let keys = |start: &str| {
        ns.iter()
            .map(|n| format!("{start}{n}"))
            .collect::<Vec<String>>()
    };
    let named = || ns.iter().map(|n| clean(n, 12)).collect::<Vec<String>>();
    let probes = ks
        .iter()
        .map(|k| format!("probe_{k}_balanced_accuracy"))
        .collect();
    let drawn = [
        draw(
            "Only the first n latents of the class on",
            "accuracy",
            "n",
            named(),
            keys("top_n_on_"),
            "top_n_activations",
        ),
        draw(
            "Only these off",
            "accuracy",
            "n",
            named(),
            keys("top_n_off_"),
            "top_n_activations",
        ),
        draw(
            "Probes of k latents",
            "balanced accuracy",
            "k",
            ks,
            probes,
            "",
        ),
    ];
    if drawn.iter().all(|drawn| drawn.0.is_empty()) {
        return html! {};
    }
    html! {
        @if comparison.data_sets.len() > 1 { h3 { (name(&comparison.data_sets[set].path)) } }
        div.charts { @for drawn in drawn { (drawn) } }
    }
}

/// What is drawn: its titles, the names of the places, and the value at each.
struct Drawn<'a> {
    title: &'a str,
    unit: &'a str,
    x: &'a str,
    names: Vec<String>,
    keys: Vec<String>,
    /// The value that a horizontal line shows; empty for none.
    line: &'a str,
}

/// A chart of one line for each recipe, and the table of its numbers.
fn curves(comparison: &Comparison, set: usize, drawn: Drawn) -> Markup {
    let curve = |(number, recipe): (usize, &'_ Recipe)| -> (usize, Vec<(usize, Spread)>) {
        let point = |(i, key): (usize, &String)| Some((i, *recipe.spreads.get(key)?));
        (
            number,
            drawn.keys.iter().enumerate().filter_map(point).collect(),
        )
    };
    let curves: Vec<Curve> = of_set(comparison, set)
        .map(|(number, recipe)| (recipe, curve((number, recipe))))
        .map(|(recipe, (number, points))| Curve {
            number,
            recipe,
            points,
        })
        .filter(|curve| !curve.points.is_empty())
        .collect();
    if curves.is_empty() {
        return html! {};
    }
    let baseline = curves
        .iter()
        .find_map(|curve| curve.recipe.spreads.get(drawn.line))
        .map(|spread| spread.mean);
    let spread = |s: &Spread| [s.mean - s.sd.unwrap_or(0.0), s.mean + s.sd.unwrap_or(0.0)];
    let all = curves
        .iter()
        .flat_map(|curve| curve.points.iter().flat_map(|(_, s)| spread(s)));
    let last = (drawn.names.len() - 1) as f64;
    let chart = Chart::new(
        drawn.title,
        format!("{} recipes; the table below has the numbers", curves.len()),
        Axis::named(drawn.x, drawn.names.clone()),
        Axis::of(drawn.unit, all.chain(baseline)),
    );
    let marks = html! {
        @if let Some(y) = baseline { (chart.line("baseline", &[(-0.3, y), (last + 0.3, y)])) }
        @for curve in &curves { (one_curve(&chart, curve)) }
    };
    let note = html! {
        @if baseline.is_some() { "Dashed: the activations themselves. " }
        details { summary { "Numbers" } (numbers(&curves, &drawn)) }
    };
    chart.draw(marks, note)
}

fn one_curve(chart: &Chart, curve: &Curve) -> Markup {
    let class = class_of(curve.number);
    let means: Vec<(f64, f64)> = curve
        .points
        .iter()
        .map(|(i, s)| (*i as f64, s.mean))
        .collect();
    let place = means.get(curve.number % means.len().max(1));
    html! {
        (chart.line(&class, &means))
        @for (i, spread) in &curve.points {
            @if let Some(sd) = spread.sd {
                (chart.line(&class, &[(*i as f64, spread.mean - sd), (*i as f64, spread.mean + sd)]))
            }
        }
        (chart.dots(&class, means.iter().copied()))
        @if let Some(place) = place { (mark(chart, curve.number, curve.recipe, *place)) }
    }
}

fn numbers(curves: &[Curve], drawn: &Drawn) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(drawn.title) {
            table {
                thead { tr { th scope="col" { "recipe" } @for n in &drawn.names { th.n scope="col" { (drawn.x) " = " (n) } } } }
                tbody { @for curve in curves { tr {
                    th scope="row" { (badge(curve.number, curve.recipe)) " " (name(&curve.recipe.name)) }
                    @for i in 0..drawn.names.len() {
                        @let spread = curve.points.iter().find(|(at, _)| *at == i).map(|(_, s)| s);
                        td.n { (mean_and_spread(spread, percent)) }
                    }
                } } }
            }
        }
    }
}
