//! `compare.html`: several runs beside each other, with the parts and the safety of `report.html`. Recipes have letters, by
//! which every chart and table names them, because colours alone are not seen by all.

mod charts;
mod dictionary;
mod sparsity;
mod tables;

#[cfg(test)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::text::{clean, counted, name, number, percent};
use crate::compare::data::{Comparison, Recipe};

const STYLE: &str = concat!(include_str!("../page.css"), include_str!("compare.css"));
const SCRIPT: &str = concat!(include_str!("../theme.js"), include_str!("compare.js"));

/// Characters of a sentence that are shown.
const PROSE: usize = 2000;
/// Kinds of lines in the style sheet.
const KINDS: usize = 6;

/// The sections: their ids and titles.
const SECTIONS: [(&str, &str); 7] = [
    ("overview", "Overview"),
    ("inputs", "Inputs"),
    ("classes", "Classes"),
    ("stability", "Stability"),
    ("costs", "Costs"),
    ("configs", "Configs"),
    ("runs", "Runs"),
];

/// The whole page.
pub(crate) fn render(comparison: &Comparison) -> String {
    let title = format!(
        "{} compared · sparse autoencoders",
        counted(comparison.runs.len(), "run", "runs")
    );
    let page = html! {
        (DOCTYPE)
        html.comparison lang="en" {
            (super::head(&title, STYLE, SCRIPT))
            body {
                a.skip href="#main" { "Skip to the comparison" }
                (super::navigation(&SECTIONS))
                main id="main" {
                    (overview(comparison))
                    (sparsity::section(comparison))
                    (charts::classes(comparison))
                    (dictionary::section(comparison))
                    (tables::costs(comparison))
                    (tables::configs(comparison))
                    (tables::runs(comparison))
                }
                footer { p { "Made by sae-eval " (name(&comparison.version)) " in " (number(comparison.seconds)) " s. This file needs no network." } }
                (dictionary::data(comparison))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn overview(comparison: &Comparison) -> Markup {
    html! {
        section id="overview" aria-labelledby="overview-title" {
            p.eyebrow { "Sparse autoencoders, compared" }
            h1 id="overview-title" {
                (counted(comparison.runs.len(), "run", "runs")) " of " (counted(comparison.recipes.len(), "recipe", "recipes"))
            }
            p.verdict { (sentence(comparison)) }
            (notes(comparison))
            (tables::recipes(comparison))
            div.charts { @for set in 0..comparison.data_sets.len() { (charts::trades(comparison, set)) } }
            details { summary { "What the words mean" }
                dl.facts { @for definition in &comparison.definitions {
                    div { dt { (name(&definition.name)) } dd { (clean(&definition.text, PROSE)) } }
                } }
            }
        }
    }
}

/// The comparison in a sentence or two.
fn sentence(comparison: &Comparison) -> String {
    let mut words = Vec::new();
    for set in &comparison.data_sets {
        let on = match comparison.data_sets.len() {
            1 => String::new(),
            _ => format!("On {}: ", name(&set.path)),
        };
        let front: Vec<&Recipe> = set.front.iter().map(|i| &comparison.recipes[*i]).collect();
        let best = front
            .last()
            .and_then(|best| Some((best, best.spreads.get("fvu")?, best.spreads.get("l0_mean")?)));
        if let Some((best, fvu, l0)) = best {
            words.push(format!(
                "{on}{} leaves the least variance unexplained, {}, with {} active latents per row.",
                title(best),
                percent(fvu.mean),
                number(l0.mean)
            ));
        }
        match &front[..] {
            [_] | [] => {}
            several => {
                let letters: Vec<&str> = several
                    .iter()
                    .map(|recipe| recipe.letter.as_str())
                    .collect();
                words.push(format!(
                    "On the Pareto front of FVU against L0: {}.",
                    letters.join(", ")
                ));
            }
        }
    }
    for stable in &comparison.stability {
        let pairs = stable.pairs.len().max(1) as f64;
        let recur = stable
            .pairs
            .iter()
            .map(|pair| pair.matched.recur)
            .sum::<f64>()
            / pairs;
        words.push(format!(
            "With another seed, {} of the latents of {} come back (random directions: {}).",
            percent(recur),
            title(&comparison.recipes[stable.recipe]),
            percent(stable.random.recur)
        ));
    }
    words.join(" ")
}

/// A recipe by letter and name.
fn title(recipe: &Recipe) -> String {
    format!("{} ({})", recipe.letter, name(&recipe.name))
}

fn notes(comparison: &Comparison) -> Markup {
    let of_runs: Vec<(&str, &String)> = comparison
        .runs
        .iter()
        .flat_map(|run| run.notes.iter().map(|note| (run.name.as_str(), note)))
        .collect();
    if comparison.notes.is_empty() && of_runs.is_empty() && comparison.left_out.is_empty() {
        return html! {};
    }
    html! {
        div.notes role="note" {
            h2 { "Before you read on" }
            ul {
                @for note in &comparison.notes { li { (clean(note, PROSE)) } }
                @for out in &comparison.left_out { li { (name(&out.run)) " is left out: " (clean(&out.reason, PROSE)) } }
                @for (run, note) in of_runs { li { (name(run)) ": " (clean(note, PROSE)) } }
            }
        }
    }
}

/// The classes of a recipe's lines and dots.
fn class_of(recipe: usize) -> String {
    format!("own r{}", recipe % KINDS)
}

/// The letter of a recipe, as the charts show it.
fn badge(number: usize, recipe: &Recipe) -> Markup {
    html! { span class={ "badge " (class_of(number)) } { (recipe.letter) } }
}
