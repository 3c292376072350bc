//! The plans: `docs/science.toml` is one, every table of `docs/results.toml` is one.
//!
//! A *cell* is one method on one data set at one length and width. Methods with a grid of learning rates are first trained
//! at one sparsity and one seed with each of them and judged on the validation split; only the chosen one
//! is trained with the seeds of the table and judged on the held-out split.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::columns::{Column, Compare};
use super::data::Data;
use crate::files::At;

/// The runs, and the tables that show them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    /// The name of its table in the documents; that of `docs/science.toml` is `science`.
    pub(super) name: String,
    /// Changes whenever training changes its numbers: runs of another revision are run again.
    pub(crate) revision: String,
    /// Documents that show the table.
    pub(super) files: Vec<PathBuf>,
    /// `key=value` settings of all runs.
    pub(super) set: Vec<String>,
    /// Settings of all runs that override every other.
    #[serde(skip)]
    pub(super) overrides: Vec<String>,
    /// The seed with which learning rates are chosen.
    pub(super) choice_seed: u64,
    /// Numbers of the table of all runs.
    pub(super) columns: Vec<Column>,
    /// Numbers at equal L0.
    #[serde(rename = "compare")]
    pub(super) compares: Vec<Compare>,
    /// Data sets by name.
    pub(super) data: BTreeMap<String, Data>,
    /// Lengths and widths, those that count most first.
    #[serde(rename = "grid")]
    pub(super) grids: Vec<Grid>,
    /// The methods; the first is compared with the others.
    #[serde(rename = "method")]
    pub(super) methods: Vec<Method>,
}

/// Several plans with the same data sets and seeds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    seeds: Vec<u64>,
    data: BTreeMap<String, Data>,
    #[serde(rename = "table")]
    tables: Vec<Plan>,
}

/// A length and a width, with the seeds that it is run with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grid {
    /// Optimizer steps.
    pub(super) steps: usize,
    /// M.
    pub(super) n_latents: usize,
    /// Seeds of the table.
    #[serde(default)]
    pub(super) seeds: Vec<u64>,
    /// Only these data sets; default: all.
    pub(super) data: Option<Vec<String>>,
    /// Only these methods; default: all.
    pub(super) methods: Option<Vec<String>>,
}

/// One method at several sparsities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Method {
    /// Its name in the runs. Default: its label.
    pub(super) name: String,
    /// The name that it shares with its variants.
    #[serde(skip)]
    pub(super) family: String,
    /// Its name in the tables.
    pub(super) label: String,
    /// Its own part of the revision: a change of one method leaves the others' runs as they are.
    pub(super) revision: String,
    /// Settings of all its runs.
    pub(super) set: Vec<String>,
    /// Settings of each sparsity. Default: one, without settings.
    pub(super) runs: Vec<Vec<String>>,
    /// Learning rates to choose from; none: the recipe's own.
    pub(super) lr: Vec<f64>,
    /// Which of `runs` the learning rate is chosen at.
    pub(super) choose_at: usize,
    /// Whether the same without a pre-bias is a method, too: `NAME-no-pre-bias`.
    pub(super) without_pre_bias: bool,
}

/// The split that a run is judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Judged {
    Validation,
    Heldout,
}

impl Judged {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Heldout => "heldout",
        }
    }
}

/// One method on one data set at one length and width.
#[derive(Debug)]
pub(crate) struct Cell<'a> {
    pub(super) plan: &'a Plan,
    pub(super) data: &'a str,
    /// Place of the grid in the plan.
    pub(super) rank: usize,
    pub(super) grid: &'a Grid,
    pub(super) method: &'a Method,
}

/// One run, all but the data's fingerprint and the revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(super) judged: Judged,
    pub(super) data: String,
    pub(super) method: String,
    pub(super) steps: usize,
    pub(super) n_latents: usize,
    pub(crate) seed: u64,
    /// All `--set`, in their order.
    pub(crate) set: Vec<String>,
    /// The learning rate, where it is one of a grid; it is in `set`, too.
    pub(super) lr: Option<f64>,
}

impl Plan {
    /// Reads and checks a plan.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path).at(path)?).at(path)
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut plan: Self = toml::from_str(text)?;
        plan.name = "science".into();
        plan.checked()
    }

    /// A plan of one data set, one length and one width.
    pub(crate) fn of_one(
        (name, data): (&str, Data),
        [steps, n_latents]: [usize; 2],
        seeds: &[u64],
        methods: Vec<Method>,
    ) -> Result<Self> {
        let plan = Self {
            name: name.into(),
            data: [(name.to_string(), data)].into(),
            grids: vec![Grid {
                steps,
                n_latents,
                seeds: seeds.into(),
                data: None,
                methods: None,
            }],
            methods,
            ..Self::default()
        };
        plan.checked()
    }

    /// Reads and checks a file of tables, each of which is a plan; `seeds` are used instead of the file's, if there are any.
    pub(super) fn read_tables(path: &Path, seeds: &[u64]) -> Result<Vec<Self>> {
        let tables: Tables = toml::from_str(&fs::read_to_string(path).at(path)?).at(path)?;
        let seeds = if seeds.is_empty() {
            &tables.seeds
        } else {
            seeds
        };
        let plan = |mut plan: Self| {
            plan.data.clone_from(&tables.data);
            for grid in &mut plan.grids {
                grid.seeds = seeds.into();
            }
            plan.checked().at(path)
        };
        tables.tables.into_iter().map(plan).collect()
    }

    /// Runs every run with these settings; progress and tables name the steps that it really takes.
    pub(super) fn override_with(&mut self, settings: &[String]) {
        self.overrides = settings.into();
        let steps = |setting: &String| setting.strip_prefix("training.steps=")?.parse().ok();
        if let Some(steps) = settings.iter().rev().find_map(steps) {
            for grid in &mut self.grids {
                grid.steps = steps;
            }
        }
    }

    /// The plan with the names and variants of its methods, if nothing is wrong with it.
    fn checked(mut self) -> Result<Self> {
        ensure!(!self.grids.is_empty(), "a plan needs a [[grid]]");
        ensure!(!self.methods.is_empty(), "a plan needs a [[method]]");
        let methods = self.methods.into_iter();
        self.methods = methods.flat_map(Method::variants).collect();
        for method in &self.methods {
            let (name, at, n) = (&method.name, method.choose_at, method.runs.len());
            ensure!(
                at < n,
                "method {name}: choose_at = {at}, but it has {n} runs, counted from 0"
            );
        }
        let known = |name: &String| self.methods.iter().any(|method| method.name == *name);
        for grid in &self.grids {
            ensure!(!grid.seeds.is_empty(), "a [[grid]] needs seeds");
            let unknown = grid.methods.iter().flatten().find(|name| !known(name));
            ensure!(unknown.is_none(), "grid: no method {unknown:?} in the plan");
            let mut data = grid.data.iter().flatten();
            let unknown = data.find(|name| !self.data.contains_key(*name));
            ensure!(
                unknown.is_none(),
                "grid: no data set {unknown:?} in the plan"
            );
        }
        Ok(self)
    }

    /// All cells, one data set after the other.
    pub(crate) fn all_cells(&self) -> impl Iterator<Item = Cell<'_>> {
        self.data.keys().flat_map(|name| self.cells(name))
    }

    /// All cells of a data set, in the plan's order.
    pub(super) fn cells<'a>(&'a self, data: &'a str) -> Vec<Cell<'a>> {
        let wanted = |list: &Option<Vec<String>>, name: &str| {
            let mut listed = list.iter().flatten();
            list.is_none() || listed.any(|one| one == name)
        };
        let mut cells = Vec::new();
        for (rank, grid) in self.grids.iter().enumerate() {
            for method in &self.methods {
                if wanted(&grid.data, data) && wanted(&grid.methods, &method.name) {
                    let plan = self;
                    cells.push(Cell {
                        plan,
                        data,
                        rank,
                        grid,
                        method,
                    });
                }
            }
        }
        cells
    }

    /// Data sets that the plan uses and that are not at hand.
    pub(super) fn unplaced(&self) -> impl Iterator<Item = (&String, &Data)> {
        let unplaced = self.data.iter().filter(|(_, data)| data.train.is_none());
        unplaced.filter(|(name, _)| !self.cells(name).is_empty())
    }

    /// Whether the rest of a model judges some of its runs.
    pub(super) fn goes_through_a_tail(&self) -> bool {
        let mut data = self.data.iter();
        data.any(|(name, data)| data.tail.is_some() && !self.cells(name).is_empty())
    }

    /// The revision of a method.
    pub(super) fn revision_of(&self, method: &str) -> String {
        let own = self.methods.iter().find(|known| known.name == method);
        match own.map(|method| method.revision.as_str()) {
            None | Some("") => self.revision.clone(),
            Some(own) => format!("{}/{own}", self.revision),
        }
    }
}

impl Method {
    /// A method of one sparsity with the learning rate of its recipe.
    pub(crate) fn fixed(name: String, label: String, set: Vec<String>) -> Self {
        Self {
            name,
            label,
            set,
            ..Self::default()
        }
    }

    /// The method, and itself without a pre-bias where that was asked for.
    fn variants(mut self) -> Vec<Self> {
        if self.name.is_empty() {
            self.name.clone_from(&self.label);
        }
        if self.runs.is_empty() {
            self.runs.push(Vec::new());
        }
        self.family.clone_from(&self.name);
        let mut variants = vec![self];
        if variants[0].without_pre_bias {
            let mut without = variants[0].clone();
            without.name += "-no-pre-bias";
            without.label += ", no pre-bias";
            without.set.push("model.pre_bias=false".into());
            variants.push(without);
        }
        variants
    }

    pub(super) fn is_variant(&self) -> bool {
        self.family != self.name
    }
}

impl Cell<'_> {
    /// The runs among which the learning rate is chosen; none where there is no grid.
    pub(super) fn choice(&self) -> Vec<Run> {
        let (seed, at) = (self.plan.choice_seed, self.method.choose_at);
        let run = |lr: &f64| self.run(Judged::Validation, seed, at, Some(*lr));
        self.method.lr.iter().map(run).collect()
    }

    /// The runs of the table, seed by seed, with the learning rate that was chosen.
    pub(crate) fn runs(&self, lr: Option<f64>) -> Vec<Run> {
        let sparsities = 0..self.method.runs.len();
        let run = |seed: &u64, at| self.run(Judged::Heldout, *seed, at, lr);
        let of_seed = |seed| sparsities.clone().map(move |at| run(seed, at));
        self.grid.seeds.iter().flat_map(of_seed).collect()
    }

    /// The runs of the table at one sparsity, one per seed.
    pub(super) fn runs_at(&self, at: usize, lr: Option<f64>) -> impl Iterator<Item = Run> {
        let seeds = self.grid.seeds.iter();
        seeds.map(move |seed| self.run(Judged::Heldout, *seed, at, lr))
    }

    fn run(&self, judged: Judged, seed: u64, at: usize, lr: Option<f64>) -> Run {
        let Grid {
            steps, n_latents, ..
        } = *self.grid;
        let shape = [
            format!("training.steps={steps}"),
            format!("model.n_latents={n_latents}"),
        ];
        let rate = lr.map(|lr| format!("training.lr={lr}"));
        let method = self.method;
        let own = method.set.iter().chain(&method.runs[at]).chain(&rate);
        let all = self.plan.set.iter().chain(&shape).chain(own);
        Run {
            judged,
            data: self.data.into(),
            method: method.name.clone(),
            steps,
            n_latents,
            seed,
            set: all.chain(&self.plan.overrides).cloned().collect(),
            lr,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
