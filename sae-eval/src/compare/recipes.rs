//! Which runs are of one recipe, what a recipe is called, and in what recipes differ.

use std::collections::{BTreeMap, BTreeSet};

use sae_data::Fingerprint;
use sae_run::{FREE_TO_CHANGE, Provenance};

use super::data::{Difference, Recipe, Spread};
use super::opened::Opened;

/// The definition, in words.
pub(super) const DEFINITION: &str = "Runs are of one recipe if their configs differ only in seed and in keys that change no number (names, \
                                     directories, how often is logged and saved), and they have the same data and the same start.";

/// Groups the runs; `data_sets` has the set of rows that each was evaluated on. Returns the runs of each recipe.
pub(super) fn group(runs: &[Opened], data_sets: &[usize]) -> Vec<Vec<usize>> {
    let mut recipes: Vec<Vec<usize>> = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let same = |other: &&mut Vec<usize>| {
            let first = other[0];
            data_sets[first] == data_sets[i] && is_same(&runs[first], run)
        };
        match recipes.iter_mut().find(same) {
            Some(recipe) => recipe.push(i),
            None => recipes.push(vec![i]),
        }
    }
    recipes
}

fn is_same(a: &Opened, b: &Opened) -> bool {
    let trained = match (&a.report.train, &b.report.train) {
        (Some(a), Some(b)) => a.same_data(b),
        (None, None) => a.config.get("data.train") == b.config.get("data.train"),
        _ => false,
    };
    let [of_a, of_b] = [a, b].map(|of| of.provenance.as_ref().map(history));
    let model = a.report.model == b.report.model;
    trained && model && own_keys(a).eq(own_keys(b)) && of_a == of_b
}

/// The saved model that a run started from, and where its number of steps was raised.
fn history(of: &Provenance<Fingerprint>) -> (Option<&str>, Vec<[usize; 3]>) {
    let from = of.from.as_ref().map(|from| from.blake3.as_str());
    let raised = of
        .raised
        .iter()
        .map(|raise| [raise.at, raise.from, raise.to]);
    (from, raised.collect())
}

/// The keys of a config that may change numbers, without the seed.
fn own_keys(run: &Opened) -> impl Iterator<Item = (&String, &String)> {
    let counts = |key: &str| key != "seed" && !FREE_TO_CHANGE.contains(&key);
    run.config.iter().filter(move |(key, _)| counts(key))
}

/// The recipes with their names and spreads.
pub(super) fn describe(
    groups: Vec<Vec<usize>>,
    runs: &[Opened],
    names: &[String],
    values: &[BTreeMap<String, f64>],
    data_sets: &[usize],
) -> Vec<Recipe> {
    let mut recipes: Vec<Recipe> = Vec::new();
    for group in groups {
        let first = &runs[group[0]].report;
        let own: Vec<&str> = group.iter().map(|i| names[*i].as_str()).collect();
        let mut name = common_name(&own);
        if recipes.iter().any(|recipe| recipe.name == name) {
            name = own[0].to_string();
        }
        let architecture = first.architecture.clone();
        recipes.push(Recipe {
            letter: letter(recipes.len()),
            name,
            architecture: architecture.unwrap_or_else(|| "unknown".into()),
            data_set: data_sets[group[0]],
            spreads: spreads(group.iter().map(|i| &values[*i])),
            runs: group,
        });
    }
    recipes
}

/// A, B, ..., Z, A2, B2, ...
fn letter(i: usize) -> String {
    let letter = char::from(b'A' + (i % 26) as u8);
    match i / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{}", round + 1),
    }
}

/// What the names of several runs begin with, without the number that tells them apart; the first name if that is next to
/// nothing.
fn common_name(names: &[&str]) -> String {
    let [first, rest @ ..] = names else {
        return String::new();
    };
    if rest.is_empty() {
        return (*first).into();
    }
    let shared = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let length = rest.iter().map(|name| shared(first, name)).min();
    let shared: String = first.chars().take(length.unwrap_or(0)).collect();
    let separator = |c: char| "-_. =".contains(c);
    // A part of a number tells runs apart, a whole one before a separator does not.
    let bare = shared.trim_end_matches(|c: char| c.is_ascii_digit());
    let bare = bare.trim_end_matches(separator);
    let bare = ["seed", "s"]
        .iter()
        .find_map(|word| {
            let before = bare.strip_suffix(word)?;
            before.ends_with(separator).then_some(before)
        })
        .unwrap_or(bare)
        .trim_end_matches(separator);
    match bare.chars().count() {
        0 | 1 => (*first).into(),
        _ => bare.into(),
    }
}

/// Mean and spread of every value that some run has.
fn spreads<'a>(runs: impl Iterator<Item = &'a BTreeMap<String, f64>>) -> BTreeMap<String, Spread> {
    let mut all: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (name, value) in runs.flatten() {
        all.entry(name).or_default().push(*value);
    }
    let spread = |(name, values): (&String, Vec<f64>)| Some((name.clone(), Spread::of(&values)?));
    all.into_iter().filter_map(spread).collect()
}

/// The keys in which the recipes differ, and the data and start where they are not the same.
pub(super) fn differences(recipes: &[Recipe], runs: &[Opened]) -> Vec<Difference> {
    let firsts: Vec<&Opened> = recipes.iter().map(|recipe| &runs[recipe.runs[0]]).collect();
    let keys: BTreeSet<&String> = firsts
        .iter()
        .flat_map(|run| own_keys(run).map(|(key, _)| key))
        .collect();
    let of_config = keys.into_iter().map(|key| Difference {
        key: key.clone(),
        values: firsts
            .iter()
            .map(|run| run.config.get(key).cloned())
            .collect(),
    });
    let of_history = [
        Difference {
            key: "training rows".into(),
            values: rows_of(&firsts, |run| run.report.train.as_ref()),
        },
        Difference {
            key: "held-out rows".into(),
            values: rows_of(&firsts, |run| Some(&run.report.held_out)),
        },
        Difference {
            key: "started from".into(),
            values: firsts.iter().map(|run| started_from(run)).collect(),
        },
        Difference {
            key: "steps raised".into(),
            values: firsts.iter().map(|run| raised(run)).collect(),
        },
    ];
    let differs = |difference: &Difference| {
        difference
            .values
            .iter()
            .any(|value| *value != difference.values[0])
    };
    of_config.chain(of_history).filter(differs).collect()
}

/// The rows of each run in words; those of one data set have the same words, wherever it lies.
fn rows_of(
    runs: &[&Opened],
    of: impl for<'a> Fn(&'a &Opened) -> Option<&'a Fingerprint>,
) -> Vec<Option<String>> {
    let known = || runs.iter().filter_map(&of);
    let first = |own: &Fingerprint| known().find(|other| other.same_data(own)).map(rows);
    runs.iter().map(|run| of(run).and_then(first)).collect()
}

/// Rows in words: number, path, and the beginning of the checksum that tells apart what has one path.
fn rows(of: &Fingerprint) -> String {
    let sum: String = of.sample_blake3.chars().take(8).collect();
    let split = of.rows_blake3.as_deref().unwrap_or("");
    let split: String = split.chars().take(8).collect();
    format!("{} of {} ({sum} {split})", of.rows, of.path.display())
}

fn started_from(run: &Opened) -> Option<String> {
    let from = run.provenance.as_ref()?.from.as_ref()?;
    let sum: String = from.blake3.chars().take(8).collect();
    Some(format!("{} ({sum})", from.path.display()))
}

fn raised(run: &Opened) -> Option<String> {
    let raised = &run.provenance.as_ref()?.raised;
    let words = raised
        .iter()
        .map(|raise| format!("{} to {} after {}", raise.from, raise.to, raise.at));
    (!raised.is_empty()).then(|| words.collect::<Vec<String>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_named_by_what_their_runs_share() {
        assert_eq!(common_name(&["topk-40-seed0", "topk-40-seed1"]), "topk-40");
        assert_eq!(
            common_name(&["quickstart-s0", "quickstart-s1", "quickstart-s2"]),
            "quickstart"
        );
        assert_eq!(common_name(&["press1", "press2"]), "press");
        assert_eq!(common_name(&["m6144-0", "m6144-1"]), "m6144");
        assert_eq!(common_name(&["a", "b"]), "a");
        assert_eq!(common_name(&["run-10", "run-11"]), "run");
        assert_eq!(common_name(&["one-7"]), "one-7");
        assert_eq!(common_name(&["é1", "é2"]), "é1");
        assert_eq!([0, 25, 26, 53].map(letter), ["A", "Z", "A2", "B3"]);
    }

    #[test]
    fn a_value_that_some_runs_lack_is_averaged_over_the_others() {
        let runs: [BTreeMap<String, f64>; 2] = [
            [("fvu".to_string(), 0.2)].into(),
            [("fvu".to_string(), 0.4), ("l0_mean".to_string(), 7.0)].into(),
        ];
        let spreads = spreads(runs.iter());
        assert!((spreads["fvu"].mean - 0.3).abs() < 1e-12 && spreads["fvu"].runs == 2);
        assert_eq!(
            (spreads["l0_mean"].mean, spreads["l0_mean"].sd),
            (7.0, None)
        );
    }
}
