//! Several runs beside each other, as data: the content of `compare.json`.

use std::collections::BTreeMap;

use sae_model::stats::Histogram;
use serde::{Deserialize, Serialize};

use crate::packed::PackedColumns;

/// Value of `schema` in `compare.json`.
pub(crate) const SCHEMA: &str = "sae-eval-comparison";
/// Value of `schema_version`; grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Everything that is said of several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) schema: String,
    pub(crate) schema_version: u32,
    pub(crate) version: String,
    /// Seconds that the comparison took.
    pub(crate) seconds: f64,
    pub(crate) definitions: Vec<Definition>,
    /// What to know before the numbers.
    pub(crate) notes: Vec<String>,
    /// Runs that cannot be compared.
    pub(crate) left_out: Vec<LeftOut>,
    /// The sets of rows that runs were evaluated on.
    pub(crate) data_sets: Vec<DataSet>,
    /// Runs that differ in their seed alone are of one recipe.
    pub(crate) recipes: Vec<Recipe>,
    pub(crate) runs: Vec<ComparedRun>,
    /// Keys of the configs that are not the same in all recipes.
    pub(crate) differences: Vec<Difference>,
    /// For each recipe of several runs, how much of the dictionary comes back with another seed.
    pub(crate) stability: Vec<Stability>,
}

/// The meaning of a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A run that is not compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub(crate) run: String,
    pub(crate) reason: String,
}

/// Rows that runs were evaluated on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataSet {
    pub(crate) path: String,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// The recipes on the Pareto front, by their L0.
    pub(crate) front: Vec<usize>,
}

/// Runs that differ in their seed alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    /// A letter, by which charts and tables name it.
    pub(crate) letter: String,
    pub(crate) name: String,
    pub(crate) architecture: String,
    pub(crate) data_set: usize,
    /// Its runs, in the order in which they were given.
    pub(crate) runs: Vec<usize>,
    /// Mean and spread of the values of its runs.
    pub(crate) spreads: BTreeMap<String, Spread>,
}

/// Mean and spread of a value over the runs that have it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    /// Standard deviation with n - 1; absent for one run.
    pub(crate) sd: Option<f64>,
    pub(crate) runs: usize,
}

impl Spread {
    /// Of some values; `None` without any.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        (!values.is_empty()).then(|| Self {
            mean,
            sd: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
            runs: values.len(),
        })
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ComparedRun {
    pub(crate) name: String,
    pub(crate) path: String,
    /// The address of its report.html relative to the comparison, if it lies below it.
    pub(crate) page: Option<String>,
    pub(crate) recipe: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) n_latents: usize,
    /// Metrics of the report under their names, top-n classification as `top_n_on_10`, and what training and evaluation cost.
    pub(crate) values: BTreeMap<String, f64>,
    /// The numbers of latents of top-n classification.
    pub(crate) top_n: Vec<String>,
    pub(crate) l0_histogram: Histogram,
    pub(crate) notes: Vec<String>,
}

/// A key of the configs, and its value in each recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) key: String,
    pub(crate) values: Vec<Option<String>>,
}

/// How much of the dictionary of a recipe comes back with another seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stability {
    pub(crate) recipe: usize,
    /// The runs that are compared, the first first.
    pub(crate) runs: Vec<usize>,
    /// Latents of each of them that take part: those that fire on a held-out row, or all where that is not recorded.
    pub(crate) alive: Vec<usize>,
    pub(crate) pairs: Vec<Pair>,
    /// The same of random directions.
    pub(crate) random: Matched,
    /// For every latent of the first run: `latent`, `fired`, `recurs`, `mean`, then for each other run `cosine` and
    /// `partner`. A latent without a partner has NaN and -1, a dead one has no `recurs` (-1).
    pub(crate) latents: PackedColumns,
    /// Held-out rows, of which `fired` counts those on which a latent fires.
    pub(crate) rows: usize,
}

/// The matching of two runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) runs: [usize; 2],
    #[serde(flatten)]
    pub(crate) matched: Matched,
}

/// The matching of two sets of directions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Matched {
    /// `optimal`, or `greedy`.
    pub(crate) matching: String,
    /// Number of pairs: the size of the smaller set.
    pub(crate) pairs: usize,
    pub(crate) mean_cosine: f64,
    /// Part of the pairs with a cosine of at least 0.7.
    pub(crate) recur: f64,
    /// Part of the pairs with a cosine of at least 0.9.
    pub(crate) same: f64,
    /// The cosine at 0 %, 1 %, ..., 100 % of the pairs, from the largest to the smallest.
    pub(crate) curve: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_by_hand() {
        let spread = Spread::of(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!((spread.mean, spread.runs), (3.0, 3));
        assert!((spread.sd.unwrap() - 7f64.sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(&[4.0]).unwrap().sd, None);
        assert_eq!(Spread::of(&[]), None);
    }
}
