//! Tables of recipes, of runs, of what they cost, and of their configs.

use maud::{Markup, html};

use super::super::text::{clean, grouped, name, number, percent};
use super::badge;
use crate::compare::data::{ComparedRun, Comparison, Recipe, Spread};

/// How a number is shown.
type Shown = fn(f64) -> String;
/// A value by name, its title, and how it is shown.
type Column = (&'static str, &'static str, Shown);

/// Characters of a config's value that are shown.
const VALUE: usize = 300;

/// The numbers that the first table has of each recipe.
const MAIN: [Column; 6] = [
    ("fvu", "FVU", number),
    ("l0_mean", "L0", number),
    ("dead_latents", "dead latents", number),
    ("top_n_on_10", "top 10 on", percent),
    ("probe_1_balanced_accuracy", "probe, k = 1", percent),
    ("cosine", "cosine", number),
];
const COSTS: [Column; 5] = [
    ("training_seconds", "training, s", seconds),
    ("training_rows_per_second", "rows/s", rounded),
    ("training_peak_memory_bytes", "memory, MB", megabytes),
    ("evaluation_seconds", "evaluation, s", seconds),
    ("evaluation_peak_memory_bytes", "its memory, MB", megabytes),
];

fn seconds(value: f64) -> String {
    format!("{value:.1}")
}

fn rounded(value: f64) -> String {
    grouped(value.round() as i64)
}

fn megabytes(bytes: f64) -> String {
    grouped((bytes / 1e6).round() as i64)
}

/// The recipes that were evaluated on a set of rows, with their numbers.
pub(super) fn of_set(
    comparison: &Comparison,
    set: usize,
) -> impl Iterator<Item = (usize, &Recipe)> {
    let all = comparison.recipes.iter().enumerate();
    all.filter(move |(_, recipe)| recipe.data_set == set)
}

/// A mean with its standard deviation.
pub(super) fn mean_and_spread(spread: Option<&Spread>, shown: Shown) -> String {
    match spread {
        None => "–".into(),
        Some(Spread { mean, sd: None, .. }) => shown(*mean),
        Some(Spread {
            mean, sd: Some(sd), ..
        }) => format!("{} ± {}", shown(*mean), shown(*sd)),
    }
}

/// The columns of which some recipe has a value.
fn known<'a>(comparison: &'a Comparison, columns: &'a [Column]) -> Vec<&'a Column> {
    let has = |(key, ..): &&Column| {
        comparison
            .recipes
            .iter()
            .any(|recipe| recipe.spreads.contains_key(*key))
    };
    columns.iter().filter(has).collect()
}

pub(super) fn recipes(comparison: &Comparison) -> Markup {
    let columns = known(comparison, &MAIN);
    html! {
        div.scroll tabindex="0" role="region" aria-label="Table of recipes" {
            table.sortable id="recipes" {
                thead { tr {
                    th scope="col" { "recipe" } th scope="col" { "architecture" } th.n scope="col" { "latents" } th.n scope="col" { "runs" }
                    @for (_, title, _) in &columns { th.n scope="col" { (title) } }
                    th scope="col" { "on the front" }
                } }
                tbody { @for (i, recipe) in comparison.recipes.iter().enumerate() { (recipe_row(comparison, i, recipe, &columns)) } }
            }
        }
    }
}

fn recipe_row(comparison: &Comparison, i: usize, recipe: &Recipe, columns: &[&Column]) -> Markup {
    let latents = comparison.runs[recipe.runs[0]].n_latents;
    let on_front = comparison.data_sets[recipe.data_set].front.contains(&i);
    html! {
        tr {
            th scope="row" data-value=(name(&recipe.name)) { (badge(i, recipe)) " " (name(&recipe.name)) }
            td { (clean(&recipe.architecture, 120)) }
            td.n data-value=(latents) { (grouped(latents as i64)) }
            td.n data-value=(recipe.runs.len()) { (recipe.runs.len()) }
            @for (key, _, shown) in columns { (cell(recipe.spreads.get(*key), *shown)) }
            td { (if on_front { "yes" } else { "–" }) }
        }
    }
}

/// A cell that is sorted by the mean.
fn cell(spread: Option<&Spread>, shown: Shown) -> Markup {
    html! { td.n data-value=[spread.map(|spread| spread.mean)] { (mean_and_spread(spread, shown)) } }
}

pub(super) fn costs(comparison: &Comparison) -> Markup {
    let columns = known(comparison, &COSTS);
    html! {
        section id="costs" aria-labelledby="costs-title" {
            h2.title id="costs-title" { "Time and memory" }
            p.lead { "On the machines that the runs were made on; compare only what was made on the same one, with nothing beside it." }
            div.scroll tabindex="0" role="region" aria-label="Table of time and memory" {
                table.sortable {
                    thead { tr { th scope="col" { "recipe" } @for (_, title, _) in &columns { th.n scope="col" { (title) } } } }
                    tbody { @for (i, recipe) in comparison.recipes.iter().enumerate() {
                        tr {
                            th scope="row" data-value=(name(&recipe.name)) { (badge(i, recipe)) " " (name(&recipe.name)) }
                            @for (key, _, shown) in &columns { (cell(recipe.spreads.get(*key), *shown)) }
                        }
                    } }
                }
            }
            p.note { "–: not recorded. Memory is the largest amount that the process had in RAM, without that of a GPU." }
        }
    }
}

pub(super) fn configs(comparison: &Comparison) -> Markup {
    html! {
        section id="configs" aria-labelledby="configs-title" {
            h2.title id="configs-title" { "Differences of the configs" }
            @if comparison.differences.is_empty() {
                p.lead { "The configs differ in seeds alone." }
            } @else {
                p.lead { "The keys of config.toml that are not the same in all recipes. –: the recipe does not have the key." }
                div.scroll tabindex="0" role="region" aria-label="Table of configs" {
                    table.configs {
                        thead { tr { th scope="col" { "key" } @for (i, recipe) in comparison.recipes.iter().enumerate() {
                            th scope="col" { (badge(i, recipe)) " " (name(&recipe.name)) }
                        } } }
                        tbody { @for difference in &comparison.differences { tr {
                            th scope="row" { code { (name(&difference.key)) } }
                            @for value in &difference.values { td { (value.as_deref().map_or("–".into(), |value| clean(value, VALUE))) } }
                        } } }
                    }
                }
            }
        }
    }
}

pub(super) fn runs(comparison: &Comparison) -> Markup {
    let columns: Vec<&Column> = known(comparison, &MAIN)
        .into_iter()
        .chain(known(comparison, &COSTS))
        .collect();
    html! {
        section id="runs" aria-labelledby="runs-title" {
            h2.title id="runs-title" { "All runs" }
            div.tools.script {
                label.hidden for="search" { "Search runs" }
                input type="search" id="search" placeholder="name, recipe or seed" autocomplete="off" spellcheck="false";
                p id="found" role="status" {}
            }
            div.scroll tabindex="0" role="region" aria-label="Table of runs" {
                table.sortable id="table" {
                    thead { tr {
                        th scope="col" { "run" } th scope="col" { "recipe" } th.n scope="col" { "seed" }
                        @for (_, title, _) in &columns { th.n scope="col" { (title) } }
                    } }
                    tbody { @for run in &comparison.runs { (run_row(comparison, run, &columns)) } }
                }
            }
        }
    }
}

fn run_row(comparison: &Comparison, run: &ComparedRun, columns: &[&Column]) -> Markup {
    let recipe = &comparison.recipes[run.recipe];
    let seed = run.seed.map_or("–".into(), |seed| seed.to_string());
    html! {
        tr {
            th scope="row" data-value=(name(&run.name)) {
                @match &run.page { Some(page) => { a href=(page) { (name(&run.name)) } } None => { (name(&run.name)) } }
            }
            td data-value=(recipe.letter) { (badge(run.recipe, recipe)) " " (name(&recipe.name)) }
            td.n data-value=[run.seed] { (seed) }
            @for (key, _, shown) in columns {
                @let value = run.values.get(*key).copied();
                td.n data-value=[value] { (value.map_or("–".into(), shown)) }
            }
        }
    }
}
