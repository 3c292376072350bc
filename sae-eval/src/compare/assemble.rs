//! Puts the parts of a comparison together: which runs were evaluated on the same rows, what is averaged over seeds, and what has
//! to be known before the numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use sae_model::stats::{FVU, L0_MEAN};

use super::data::{self, ComparedRun, Comparison, DataSet, Definition, Recipe};
use super::front::{self, Place};
use super::measures::{same_measures, values, versions};
use super::opened::Opened;
use super::{recipes, stability};

/// The comparison of opened runs, to be written to `dir`.
pub(super) fn of_runs(runs: &[Opened], dir: &Path) -> Comparison {
    let (data_sets, set_of) = data_sets(runs);
    let mut notes = Vec::new();
    if data_sets.len() > 1 {
        notes.push(format!(
            "the runs were evaluated on {} different sets of rows: numbers of different rows do not compare, so each set has \
             charts and a Pareto front of its own",
            data_sets.len()
        ));
    }
    let names = names(runs);
    let mut values: Vec<BTreeMap<String, f64>> = runs.iter().map(values).collect();
    same_measures(runs, &set_of, &names, &mut values, &mut notes);
    versions(runs, &mut notes);
    let groups = recipes::group(runs, &set_of);
    let recipes = recipes::describe(groups, runs, &names, &values, &set_of);
    let mut stability = Vec::new();
    for (number, recipe) in recipes.iter().enumerate().filter(|(_, r)| r.runs.len() > 1) {
        match stability::measure(number, recipe, runs) {
            Ok(Some(found)) => stability.push(found),
            Ok(None) => notes.push(format!(
                "{}: a run without a latent that fires has no stability",
                recipe.name
            )),
            // What the reports say of the runs is worth showing even if a model is damaged.
            Err(error) => notes.push(format!("{}: no stability: {error}", recipe.name)),
        }
    }
    Comparison {
        schema: data::SCHEMA.into(),
        schema_version: data::SCHEMA_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        seconds: 0.0,
        definitions: definitions(),
        notes,
        left_out: Vec::new(),
        data_sets: with_fronts(data_sets, &recipes),
        differences: recipes::differences(&recipes, runs),
        runs: compared(runs, names, values, &recipes, dir),
        recipes,
        stability,
    }
}

fn definitions() -> Vec<Definition> {
    let all = [
        ("recipe", recipes::DEFINITION.to_string()),
        ("mean ± spread", "Mean over the runs of a recipe, and their standard deviation (n − 1).".into()),
        ("Pareto front", front::DEFINITION.into()),
        ("stability", stability::definition()),
        (
            "rows per second",
            "Steps times rows per step, by the seconds of training; validation and checkpoints are in the seconds.".into(),
        ),
        (
            "memory",
            "The largest amount of memory that the process had in RAM (VmHWM of Linux), with the pages of files that it has \
             read; of training, the process that finished the run. Memory of a GPU is not in it."
                .into(),
        ),
    ];
    let definition = |(name, text): (&str, String)| Definition {
        name: name.into(),
        text,
    };
    all.into_iter().map(definition).collect()
}

/// The sets of rows that the runs were evaluated on, and which of them each run has.
fn data_sets(runs: &[Opened]) -> (Vec<DataSet>, Vec<usize>) {
    let mut firsts: Vec<&Opened> = Vec::new();
    let mut set_of = Vec::new();
    for run in runs {
        let same = |first: &&Opened| first.report.held_out.same_data(&run.report.held_out);
        let set = firsts.iter().position(same).unwrap_or(firsts.len());
        if set == firsts.len() {
            firsts.push(run);
        }
        set_of.push(set);
    }
    let sets = firsts.into_iter().map(|run| DataSet {
        path: run.report.held_out.path.display().to_string(),
        rows: run.report.held_out.rows,
        width: run.report.held_out.width,
        front: Vec::new(),
    });
    (sets.collect(), set_of)
}

fn with_fronts(mut sets: Vec<DataSet>, recipes: &[Recipe]) -> Vec<DataSet> {
    for (number, set) in sets.iter_mut().enumerate() {
        let place = |(recipe, of): (usize, &Recipe)| {
            let mean = |name: &str| of.spreads.get(name).map(|spread| spread.mean);
            (of.data_set == number).then_some(Place {
                recipe,
                fvu: mean(FVU.name)?,
                l0: mean(L0_MEAN.name)?,
            })
        };
        let places: Vec<Place> = recipes.iter().enumerate().filter_map(place).collect();
        set.front = front::front(&places);
    }
    sets
}

/// Names that tell the runs apart: the last part of the path, or all of it where two runs share that.
fn names(runs: &[Opened]) -> Vec<String> {
    let short: Vec<String> = runs.iter().map(Opened::name).collect();
    let unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    let name = |(name, run): (&String, &Opened)| match unique(name) {
        true => name.clone(),
        false => run.dir.path().display().to_string(),
    };
    short.iter().zip(runs).map(name).collect()
}

fn compared(
    runs: &[Opened],
    names: Vec<String>,
    values: Vec<BTreeMap<String, f64>>,
    recipes: &[Recipe],
    dir: &Path,
) -> Vec<ComparedRun> {
    let each = runs.iter().zip(names).zip(values).enumerate();
    let each = each.map(|(i, ((run, name), values))| ComparedRun {
        name,
        path: run.dir.path().display().to_string(),
        page: address(run, dir),
        recipe: recipes
            .iter()
            .position(|recipe| recipe.runs.contains(&i))
            .unwrap_or(0),
        seed: run.seed(),
        n_latents: run.report.model.n_latents,
        top_n: run
            .report
            .top_n
            .iter()
            .flat_map(|top_n| &top_n.trained)
            .map(|row| row.n.clone())
            .collect(),
        l0_histogram: run.report.l0_histogram.clone(),
        notes: run.notes.clone(),
        values,
    });
    each.collect()
}

/// The address of a run's report.html from `dir`, if it lies below it.
fn address(run: &Opened, dir: &Path) -> Option<String> {
    let page = run.dir.reports().join("report.html").canonicalize().ok()?;
    // The directory may not be there yet; then no run lies in it.
    let below = page.strip_prefix(dir.canonicalize().ok()?).ok()?;
    let parts = below
        .components()
        .map(|part| percent_encoded(&part.as_os_str().to_string_lossy()));
    Some(parts.collect::<Vec<String>>().join("/"))
}

/// A part of a path as a part of an address: everything but letters, digits, `-`, `.`, `_` and `~` is encoded, so that it has
/// no scheme and ends nothing.
fn percent_encoded(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_no_scheme_and_end_nothing() {
        assert_eq!(
            percent_encoded("javascript:a/b\"<é"),
            "javascript%3Aa%2Fb%22%3C%C3%A9"
        );
        assert_eq!(percent_encoded("run-1_a.b~"), "run-1_a.b~");
    }
}
