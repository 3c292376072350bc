//! Tables of recipes, of runs, of what they cost, and of their configs.

use maud::{Markup, html};

use super::super::text::{clean, grouped, name, number};
use super::badge;
use crate::compare::data::{ComparedRun, Comparison, Recipe, Spread};

/// How a number is shown.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Number,
    Percent,
    Seconds,
    Count,
    Megabytes,
}

/// A value by name, its title, and how it is shown.
type Column = (&'static str, &'static str, Unit);

/// Characters of a config's value that are shown.
const VALUE: usize = 300;

/// The numbers that the first table has of each recipe.
const MAIN: [Column; 5] = [
    ("fvu", "FVU", Unit::Number),
    ("l0_mean", "L0", Unit::Number),
    ("dead_latents", "dead latents", Unit::Number),
    ("top_n_on_10", "top 10 on", Unit::Percent),
    ("probe_1_balanced_accuracy", "probe, k = 1", Unit::Percent),
];
const COSTS: [Column; 5] = [
    ("training_seconds", "training, s", Unit::Seconds),
    ("training_rows_per_second", "rows/s", Unit::Count),
    ("training_peak_memory_bytes", "memory, MB", Unit::Megabytes),
    ("evaluation_seconds", "evaluation, s", Unit::Seconds),
    (
        "evaluation_peak_memory_bytes",
        "its memory, MB",
        Unit::Megabytes,
    ),
];

impl Unit {
    /// What a number is multiplied by, and how many digits it has behind the point.
    fn scale(self, value: f64) -> (f64, usize) {
        match self {
            Self::Percent => (100.0, 1),
            Self::Seconds => (1.0, 1),
            Self::Count => (1.0, 0),
            Self::Megabytes => (1e-6, 0),
            Self::Number => match value.abs() {
                v if v < 1e-3 => (1.0, 6),
                v if v < 10.0 => (1.0, 4),
                v if v < 1000.0 => (1.0, 1),
                _ => (1.0, 0),
            },
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Percent => " %",
            _ => "",
        }
    }

    /// A single value.
    fn show(self, value: f64) -> String {
        let (scale, digits) = self.scale(value);
        digits_of(scale * value, digits) + self.suffix()
    }

    /// A mean with its standard deviation, which has as many digits.
    pub(super) fn show_spread(self, spread: Option<&Spread>) -> String {
        let Some(Spread { mean, sd, .. }) = spread else {
            return "–".into();
        };
        let Some(sd) = sd else {
            return self.show(*mean);
        };
        let (scale, digits) = self.scale(*mean);
        // Equal whole numbers need no digits.
        let digits = if mean.fract() == 0.0 && *sd == 0.0 {
            0
        } else {
            digits
        };
        let [mean, sd] = [mean, sd].map(|value| digits_of(scale * value, digits));
        format!("{mean} ± {sd}{}", self.suffix())
    }
}

/// A number with so many digits behind the point, and none if it is whole.
fn digits_of(value: f64, digits: usize) -> String {
    match value {
        v if !v.is_finite() => "–".into(),
        v if digits == 0 || v.fract() == 0.0 && v.abs() >= 1.0 => number(v.round()),
        0.0 => "0".into(),
        v => format!("{v:.digits$}"),
    }
}

/// The recipes that were evaluated on a set of rows, with their numbers.
pub(super) fn of_set(
    comparison: &Comparison,
    set: usize,
) -> impl Iterator<Item = (usize, &Recipe)> {
    let all = comparison.recipes.iter().enumerate();
    all.filter(move |(_, recipe)| recipe.data_set == set)
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
            td.architecture { (clean(&recipe.architecture, 120)) }
            td.n data-value=(latents) { (grouped(latents as i64)) }
            td.n data-value=(recipe.runs.len()) { (recipe.runs.len()) }
            @for (key, _, unit) in columns { (cell(recipe.spreads.get(*key), *unit)) }
            td { (if on_front { "yes" } else { "–" }) }
        }
    }
}

/// A cell that is sorted by the mean.
fn cell(spread: Option<&Spread>, unit: Unit) -> Markup {
    html! { td.n data-value=[spread.map(|spread| spread.mean)] { (unit.show_spread(spread)) } }
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
                            @for (key, _, unit) in &columns { (cell(recipe.spreads.get(*key), *unit)) }
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
            @for (key, _, unit) in columns {
                @let value = run.values.get(*key).copied();
                td.n data-value=[value] { (value.map_or("–".into(), |value| unit.show(value))) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_digits_of_its_mean() {
        let shown = |unit: Unit, mean: f64, sd: f64| {
            unit.show_spread(Some(&Spread {
                mean,
                sd: Some(sd),
                runs: 2,
            }))
        };
        assert_eq!(shown(Unit::Number, 0.23368, 0.000484), "0.2337 ± 0.0005");
        assert_eq!(shown(Unit::Number, 52.06, 0.2025), "52.1 ± 0.2");
        assert_eq!(shown(Unit::Number, 40.0, 0.0), "40 ± 0");
        assert_eq!(shown(Unit::Percent, 0.603, 0.017), "60.3 ± 1.7 %");
        assert_eq!(shown(Unit::Megabytes, 134.6e6, 2.2e6), "135 ± 2");
        assert_eq!(Unit::Count.show(19_580.4), "19,580");
        assert_eq!(Unit::Number.show(f64::NAN), "–");
        assert_eq!(Unit::Seconds.show_spread(None), "–");
    }
}
