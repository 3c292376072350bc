//! The plan of the science tables: `docs/science.toml`.
//!
//! A *cell* is one method on one data set at one length and width. Methods with a grid of learning rates are first trained
//! at one sparsity and one seed with each of them and judged on the validation split; only the chosen one
//! is trained with the seeds of the table and judged on the held-out split.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use toml::Value;

use super::columns::Column;

/// What is run, and what is shown of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// Changes whenever training changes its numbers: runs of another revision are run again.
    pub(super) revision: String,
    /// Documents that show the tables, between the comments of the table `science`.
    pub(super) files: Vec<PathBuf>,
    /// `key=value` settings of all runs.
    #[serde(default)]
    pub(super) set: Vec<String>,
    /// The seed with which learning rates are chosen.
    pub(super) choice_seed: u64,
    /// Numbers of the table of all runs.
    pub(super) columns: Vec<Column>,
    /// Numbers at equal L0.
    #[serde(default, rename = "compare")]
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

/// A table of one number at given L0.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Compare {
    /// The number.
    pub(super) column: Column,
    /// Where.
    pub(super) at_l0: Vec<f64>,
    /// Whether more is better. Then it is interpolated in itself over log L0, otherwise in log over log.
    #[serde(default)]
    pub(super) more: bool,
}

/// A data set: three splits.
#[derive(Debug, Deserialize)]
pub(super) struct Data {
    /// What the tables call it.
    pub(super) title: String,
    /// How to get it.
    #[serde(default)]
    pub(super) how: String,
    /// File or directory to train on; absent where the repository does not ship it.
    pub(super) train: Option<PathBuf>,
    /// `data.held_out` of the runs that choose learning rates.
    pub(super) validation: Option<Value>,
    /// `data.held_out` of all others.
    pub(super) heldout: Option<Value>,
    /// Other keys of the config's `[data]`.
    #[serde(flatten)]
    pub(super) keys: BTreeMap<String, Value>,
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
    pub(super) seeds: Vec<u64>,
    /// Only these data sets; default: all.
    pub(super) data: Option<Vec<String>>,
    /// Only these methods; default: all.
    pub(super) methods: Option<Vec<String>>,
}

/// One method at several sparsities.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Method {
    /// Its name in the runs.
    pub(super) name: String,
    /// Its name in the tables.
    pub(super) label: String,
    /// Its own part of the revision: a change of one method leaves the others' runs as they are.
    #[serde(default)]
    pub(super) revision: String,
    /// Settings of all its runs.
    #[serde(default)]
    pub(super) set: Vec<String>,
    /// Settings of each sparsity.
    pub(super) runs: Vec<Vec<String>>,
    /// Learning rates to choose from; none: the recipe's own.
    #[serde(default)]
    pub(super) lr: Vec<f64>,
    /// Which of `runs` the learning rate is chosen at.
    #[serde(default)]
    pub(super) choose_at: usize,
    /// Whether the same without a pre-bias is a method, too: `NAME-no-pre-bias`.
    #[serde(default)]
    pub(super) without_pre_bias: bool,
}

/// What a run is judged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Judged {
    Validation,
    Heldout,
}

/// One method on one data set at one length and width.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    pub(super) data: &'a str,
    /// Its place in the plan.
    pub(super) rank: usize,
    pub(super) grid: &'a Grid,
    pub(super) method: &'a Method,
}

/// One run, all but the data's fingerprint and the revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) judged: Judged,
    pub(super) data: String,
    pub(super) method: String,
    pub(super) steps: usize,
    pub(super) n_latents: usize,
    pub(super) seed: u64,
    /// All `--set`, in their order.
    pub(super) set: Vec<String>,
    /// The learning rate, where it is one of a grid; it is in `set`, too.
    pub(super) lr: Option<f64>,
}

impl Plan {
    /// Reads and checks a plan.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}", path.display()))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut plan: Self = toml::from_str(text)?;
        ensure!(!plan.methods.is_empty(), "a plan needs a [[method]]");
        for method in &plan.methods {
            let (name, n) = (&method.name, method.runs.len());
            let at = method.choose_at;
            ensure!(
                at < n,
                "method {name}: choose_at = {at}, but it has {n} runs, counted from 0"
            );
        }
        plan.methods = plan.methods.iter().flat_map(Method::variants).collect();
        let known = |name: &String| plan.methods.iter().any(|method| method.name == *name);
        for grid in &plan.grids {
            ensure!(!grid.seeds.is_empty(), "a [[grid]] needs seeds");
            let unknown = grid.methods.iter().flatten().find(|name| !known(name));
            ensure!(unknown.is_none(), "grid: no method {unknown:?} in the plan");
            let unknown = grid
                .data
                .iter()
                .flatten()
                .find(|name| !plan.data.contains_key(*name));
            ensure!(
                unknown.is_none(),
                "grid: no data set {unknown:?} in the plan"
            );
        }
        Ok(plan)
    }

    /// All cells of a data set, in the plan's order.
    pub(super) fn cells<'a>(&'a self, data: &'a str) -> Vec<Cell<'a>> {
        let wanted = |list: &Option<Vec<String>>, name: &str| match list {
            Some(list) => list.iter().any(|one| one == name),
            None => true,
        };
        let mut cells = Vec::new();
        for (rank, grid) in self.grids.iter().enumerate() {
            if wanted(&grid.data, data) {
                let methods = self
                    .methods
                    .iter()
                    .filter(|m| wanted(&grid.methods, &m.name));
                cells.extend(methods.map(|method| Cell {
                    data,
                    rank,
                    grid,
                    method,
                }));
            }
        }
        cells
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
    /// The method, and itself without a pre-bias where that was asked for.
    fn variants(&self) -> Vec<Self> {
        let mut variants = vec![self.clone()];
        if self.without_pre_bias {
            let mut without = self.clone();
            without.name += NO_PRE_BIAS;
            without.label += ", no pre-bias";
            without.set.push("model.pre_bias=false".into());
            variants.push(without);
        }
        variants
    }

    /// The name that it shares with its variants.
    pub(super) fn family(&self) -> &str {
        self.name.strip_suffix(NO_PRE_BIAS).unwrap_or(&self.name)
    }
}

const NO_PRE_BIAS: &str = "-no-pre-bias";

impl Cell<'_> {
    /// The runs among which the learning rate is chosen; none where there is no grid.
    pub(super) fn choice(&self, plan: &Plan) -> Vec<Run> {
        let at = self.method.choose_at;
        let run = |lr: &f64| self.run(plan, Judged::Validation, plan.choice_seed, at, Some(*lr));
        self.method.lr.iter().map(run).collect()
    }

    /// The run of the table at a sparsity, with the learning rate that was chosen.
    pub(super) fn run_at(&self, plan: &Plan, seed: u64, at: usize, lr: Option<f64>) -> Run {
        self.run(plan, Judged::Heldout, seed, at, lr)
    }

    /// All of them, seed by seed.
    pub(super) fn runs(&self, plan: &Plan, lr: Option<f64>) -> Vec<Run> {
        let at = 0..self.method.runs.len();
        let of_seed = |seed: &u64| {
            at.clone()
                .map(|at| self.run_at(plan, *seed, at, lr))
                .collect::<Vec<_>>()
        };
        self.grid.seeds.iter().flat_map(of_seed).collect()
    }

    fn run(&self, plan: &Plan, judged: Judged, seed: u64, at: usize, lr: Option<f64>) -> Run {
        let Grid {
            steps, n_latents, ..
        } = *self.grid;
        let mut set = plan.set.clone();
        set.push(format!("training.steps={steps}"));
        set.push(format!("model.n_latents={n_latents}"));
        set.extend(self.method.set.iter().cloned());
        set.extend(self.method.runs[at].iter().cloned());
        set.extend(lr.map(|lr| format!("training.lr={lr}")));
        let (data, method) = (self.data.into(), self.method.name.clone());
        Run {
            judged,
            data,
            method,
            steps,
            n_latents,
            seed,
            set,
            lr,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const PLAN: &str = r#"
        revision = "1"
        files = []
        set = ["training.batch_size=64"]
        choice_seed = 100
        columns = ["fvu", { at = "/labels/probing/k1", title = "probing", form = "percent" }]
        [data.small]
        title = "Small"
        [[grid]]
        steps = 20
        n_latents = 32
        seeds = [0, 1]
        [[compare]]
        column = "fvu"
        at_l0 = [16, 32]
        [[method]]
        name = "default"
        label = "default preset"
        runs = [["model.scale=1.5"], ["model.scale=1"]]
        [[method]]
        name = "topk"
        label = "TopK"
        set = ["model.architecture=topk"]
        runs = [["model.k=16"], ["model.k=32"]]
        lr = [1e-3, 2e-3, 4e-3]
        choose_at = 1
        without_pre_bias = true
    "#;

    #[test]
    fn cells_and_their_runs() {
        let plan = Plan::parse(PLAN).unwrap();
        let cells = plan.cells("small");
        let names: Vec<&str> = cells.iter().map(|cell| cell.method.name.as_str()).collect();
        assert_eq!(names, ["default", "topk", "topk-no-pre-bias"]);
        assert!(cells[0].choice(&plan).is_empty());
        let choice = cells[2].choice(&plan);
        assert_eq!(choice.len(), 3);
        assert_eq!(
            (choice[1].judged, choice[1].seed, choice[1].lr),
            (Judged::Validation, 100, Some(0.002))
        );
        assert_eq!(
            choice[1].set.join(" "),
            "training.batch_size=64 training.steps=20 model.n_latents=32 model.architecture=topk model.pre_bias=false \
             model.k=32 training.lr=0.002"
        );
        let runs = cells[2].runs(&plan, Some(0.004));
        assert_eq!(
            runs.iter().map(|run| run.seed).collect::<Vec<_>>(),
            [0, 0, 1, 1]
        );
        assert!(runs.iter().all(|run| run.judged == Judged::Heldout));
    }

    #[test]
    fn what_is_wrong_with_a_plan_is_said() {
        let message = |from: &str, to: &str| {
            Plan::parse(&PLAN.replace(from, to))
                .unwrap_err()
                .to_string()
        };
        assert!(message("choose_at = 1", "choose_at = 2").contains("method topk: choose_at = 2"));
        assert!(message("seeds = [0, 1]", "seeds = []").contains("needs seeds"));
        assert!(message("seeds = [0, 1]", "seeds = [0]\nmethods = [\"lasso\"]").contains("lasso"));
        assert!(message("form = \"percent\"", "from = 1").contains("from"));
    }
}
