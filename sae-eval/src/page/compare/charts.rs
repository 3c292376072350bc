//! Charts of recipes: reconstruction against sparsity, and what few latents say of classes.

use maud::{Markup, html};

use super::super::axis::Axis;
use super::super::chart::{Chart, at};
use super::super::text::{clean, name, number};
use super::tables::{Unit, of_set};
use super::{badge, class_of};
use crate::compare::data::{Comparison, Recipe, Spread};

/// Radius of the circle around a letter.
const RADIUS: f64 = 9.0;
/// How far a letter is from its place, in each direction.
const BESIDE: f64 = 13.0;

/// FVU of the recipes that were evaluated on the same rows: against L0, with the Pareto front, and against the time of training.
pub(super) fn trades(comparison: &Comparison, set: usize) -> Markup {
    html! {
        (against(comparison, set, "l0_mean", "Reconstruction against sparsity", "active latents per row (L0)"))
        (against(comparison, set, "training_seconds", "Reconstruction against time", "training, s"))
    }
}

/// FVU against another value, of runs and of recipes; down and to the left is better.
fn against(comparison: &Comparison, set: usize, key: &str, title: &str, label: &str) -> Markup {
    let recipes: Vec<(usize, &Recipe)> = of_set(comparison, set).collect();
    let run = |i: usize| {
        let values = &comparison.runs[i].values;
        Some((*values.get(key)?, *values.get("fvu")?))
    };
    let of = |recipe: &Recipe| Some((*recipe.spreads.get(key)?, *recipe.spreads.get("fvu")?));
    let reach = |(x, y): (Spread, Spread)| {
        let [dx, dy] = [x, y].map(|spread| spread.sd.unwrap_or(0.0));
        [(x.mean - dx, y.mean - dy), (x.mean + dx, y.mean + dy)]
    };
    let singles = recipes
        .iter()
        .flat_map(|(_, r)| r.runs.iter().filter_map(|i| run(*i)));
    let ends = recipes.iter().filter_map(|(_, r)| of(r)).flat_map(reach);
    let all: Vec<(f64, f64)> = singles.chain(ends).collect();
    if all.is_empty() {
        return html! {};
    }
    let chart = Chart::new(
        title,
        format!("{} recipes; down and to the left is better", recipes.len()),
        Axis::of(label, all.iter().map(|p| p.0)),
        Axis::of("variance unexplained (FVU)", all.iter().map(|p| p.1)),
    );
    let front = comparison.data_sets[set]
        .front
        .iter()
        .filter(|_| key == "l0_mean");
    let line: Vec<(f64, f64)> = front
        .filter_map(|i| of(&comparison.recipes[*i]))
        .map(|(x, y)| (x.mean, y.mean))
        .collect();
    let marks = html! {
        @if line.len() > 1 { (chart.line("front", &line)) }
        @for (i, recipe) in &recipes {
            @if let Some((x, y)) = of(recipe) { (cross(&chart, *i, x, y)) }
            (chart.dots(&class_of(*i), recipe.runs.iter().filter_map(|i| run(*i))))
        }
        @for (i, recipe) in &recipes {
            @if let Some((x, y)) = of(recipe) { (mark(*i, recipe, beside(&chart, x.mean, y.mean))) }
        }
    };
    let rows = &comparison.data_sets[set];
    let note = html! {
        "Dots are runs, crosses one standard deviation around the mean of a recipe"
        @if line.len() > 1 { "; the line is the Pareto front" }
        ". " (number(rows.rows as f64)) " rows of " (name(&rows.path)) "."
    };
    chart.draw(marks, note)
}

/// Where the letter of a place goes: beside it, inside the chart.
fn beside(chart: &Chart, x: f64, y: f64) -> (f64, f64) {
    let (x, y) = (chart.x(x), chart.y(y));
    let right = x < 0.8 * chart.width;
    let above = y > 0.2 * chart.height;
    (
        x + if right { BESIDE } else { -BESIDE },
        y + if above { -BESIDE } else { BESIDE },
    )
}

/// The letter of a recipe at a place of the picture.
fn mark(number: usize, recipe: &Recipe, (x, y): (f64, f64)) -> Markup {
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
    let (ns, ks) = (numbers_of_latents(comparison, set), probes(comparison, set));
    let top_n = |title: &'static str, side: &str| Drawn {
        title,
        unit: "accuracy",
        x: "n",
        names: ns.iter().map(|n| clean(n, 12)).collect(),
        keys: ns.iter().map(|n| format!("top_n_{side}_{n}")).collect(),
        line: "top_n_activations",
    };
    let probes = Drawn {
        title: "Probes of k latents",
        unit: "balanced accuracy",
        x: "k",
        names: ks.iter().map(u64::to_string).collect(),
        keys: ks
            .iter()
            .map(|k| format!("probe_{k}_balanced_accuracy"))
            .collect(),
        line: "",
    };
    let drawn = [
        top_n("Only the first n latents of the class on", "on"),
        top_n("Only these off", "off"),
        probes,
    ];
    let drawn = drawn.map(|drawn| curves(comparison, set, drawn));
    if drawn.iter().all(|drawn| drawn.0.is_empty()) {
        return html! {};
    }
    html! {
        @if comparison.data_sets.len() > 1 { h3 { (name(&comparison.data_sets[set].path)) } }
        div.charts { @for drawn in drawn { (drawn) } }
    }
}

/// The numbers of latents of top-n classification: by their size, "all" last.
fn numbers_of_latents(comparison: &Comparison, set: usize) -> Vec<&str> {
    let runs = of_set(comparison, set).flat_map(|(_, recipe)| &recipe.runs);
    let mut ns: Vec<&str> = Vec::new();
    for n in runs.flat_map(|run| &comparison.runs[*run].top_n) {
        if !ns.contains(&n.as_str()) {
            ns.push(n);
        }
    }
    ns.sort_by_key(|n| n.parse::<u64>().unwrap_or(u64::MAX));
    ns
}

/// The numbers of latents of the probes.
fn probes(comparison: &Comparison, set: usize) -> Vec<u64> {
    let keys = of_set(comparison, set).flat_map(|(_, recipe)| recipe.spreads.keys());
    let k = |key: &String| {
        let k = key
            .strip_prefix("probe_")?
            .strip_suffix("_balanced_accuracy")?;
        k.parse().ok()
    };
    let mut ks: Vec<u64> = keys.filter_map(k).collect();
    ks.sort_unstable();
    ks.dedup();
    ks
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
        @for curve in &curves { (letter(&chart, curve)) }
    };
    let note = html! {
        @if baseline.is_some() { "Dashed: the activations themselves. " }
        details { summary { "Numbers" } (numbers(&curves, &drawn)) }
    };
    chart.draw(marks, note)
}

fn one_curve(chart: &Chart, curve: &Curve) -> Markup {
    let class = class_of(curve.number);
    html! {
        (chart.line(&class, &curve.means()))
        @for (i, spread) in &curve.points {
            @if let Some(sd) = spread.sd {
                (chart.line(&class, &[(*i as f64, spread.mean - sd), (*i as f64, spread.mean + sd)]))
            }
        }
        (chart.dots(&class, curve.means().into_iter()))
    }
}

/// The letter of a curve, at another place than those of the curves beside it.
fn letter(chart: &Chart, curve: &Curve) -> Markup {
    let means = curve.means();
    let (x, y) = means[curve.number % means.len()];
    mark(curve.number, curve.recipe, (chart.x(x), chart.y(y)))
}

impl Curve<'_> {
    fn means(&self) -> Vec<(f64, f64)> {
        let mean = |(i, spread): &(usize, Spread)| (*i as f64, spread.mean);
        self.points.iter().map(mean).collect()
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
                        td.n { (Unit::Percent.show_spread(spread)) }
                    }
                } } }
            }
        }
    }
}
