//! What was measured: the runs of one candidate, one per seed, and the numbers that candidates are compared by.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::results::columns::{Column, DEAD_SHARE, FINAL_L0, FVU, HALFWAY_L0, L0};
use crate::results::numbers::Mean;
use crate::results::queue::{BySeed, Results};
use crate::results::tables::over_seeds;

pub(super) const MEDIAN: &str = "/sparsity/l0_median";
pub(super) const P5: &str = "/sparsity/l0_p5";
pub(super) const P95: &str = "/sparsity/l0_p95";
const LOSS_RECOVERED: &str = "/tail/metrics/loss_recovered";

/// The columns of the table. Those with `+` (more is better) or `-` in front are criteria: a further one is an entry here. A
/// column that no run has a number of is left out.
const COLUMNS: &str = r#"
columns = [
    "l0", "l0_p5", "l0_p95", "dead_share",
    "-fvu",
    { at = "+/tail/metrics/loss_recovered", title = "loss recovered", form = { decimals = 3 } },
    "+probe:1", "+probe:5", "+on:5",
    { at = "+/tail/classes/top_n/5/on", title = "top-5 through the model", form = "percent" },
    { at = "+/recovery/metrics/mcc", title = "MCC of known concepts", form = { decimals = 3 } },
]
"#;
/// Criteria that measure reconstruction: these get better with k, whatever the data. Their error is FVU itself, and what is
/// missing to 1 where more is better.
const RECONSTRUCTION: [&str; 2] = [FVU, LOSS_RECOVERED];
/// Numbers that are kept beside those of the columns.
const MORE: [&str; 5] = [MEDIAN, DEAD_SHARE, HALFWAY_L0, FINAL_L0, L0];

#[derive(Deserialize)]
struct Columns {
    columns: Vec<Column>,
}

/// The columns of the table.
pub(super) fn columns() -> Result<Vec<Column>> {
    Ok(toml::from_str::<Columns>(COLUMNS)?.columns)
}

/// What the reconstruction leaves out, if a column measures that.
pub(super) fn error(column: &Column) -> Option<fn(f64) -> f64> {
    let error: fn(f64) -> f64 = match column.best < 0.0 {
        true => |value| value,
        false => |value| 1.0 - value,
    };
    RECONSTRUCTION.contains(&&*column.at).then_some(error)
}

/// An architecture, and its k if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Candidate {
    pub(super) architecture: &'static str,
    pub(super) k: Option<usize>,
}

impl Candidate {
    pub(super) fn attention() -> Self {
        Self {
            architecture: "attention",
            k: None,
        }
    }

    pub(super) fn of(architecture: &'static str, k: usize) -> Self {
        Self {
            architecture,
            k: Some(k),
        }
    }

    pub(super) fn label(&self) -> String {
        let name = name(self.architecture);
        self.k.map_or(name.into(), |k| format!("{name}, k = {k}"))
    }
}

/// An architecture's name to people.
pub(super) fn name(architecture: &str) -> &str {
    match architecture {
        "attention" => "sparse attention",
        "topk" => "TopK",
        "batch_topk" => "BatchTopK",
        other => other,
    }
}

/// The runs of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Group {
    #[serde(flatten)]
    pub(super) candidate: Candidate,
    /// By pointer into `report.json`, a number for each seed.
    pub(super) numbers: BTreeMap<String, BySeed>,
    /// What the reports and the guide's runs warn of, with the run.
    pub(super) notes: Vec<String>,
    /// Runs that have gone wrong, each with its exit code.
    pub(super) failed: Vec<String>,
}

impl Group {
    /// The groups of these candidates, which are the methods of the plan in the same order.
    pub(super) fn all(
        results: &Results,
        candidates: &[Candidate],
        columns: &[Column],
    ) -> Vec<Self> {
        let cells = results.plan.all_cells().zip(candidates);
        let wanted = columns.iter().map(|column| column.at.as_str()).chain(MORE);
        let wanted: Vec<&str> = wanted.collect();
        let group = |(cell, candidate): (_, &Candidate)| {
            let mut group = Self {
                candidate: *candidate,
                numbers: BTreeMap::new(),
                notes: Vec::new(),
                failed: Vec::new(),
            };
            for record in results.records(&cell, 0) {
                let seed = record.run.seed;
                let run = format!("{}, seed {seed}", candidate.label());
                let notes = record.notes.iter().map(|note| format!("{run}: {note}"));
                group.notes.extend(notes);
                let failed = record.failed.iter().map(|why| format!("{run}: {why}"));
                group.failed.extend(failed);
                for at in &wanted {
                    if let Some(number) = record.number(at) {
                        let of = group.numbers.entry(at.to_string()).or_default();
                        of.insert(seed, number);
                    }
                }
            }
            group
        };
        cells.map(group).collect()
    }

    /// Mean and deviation over the seeds.
    pub(super) fn number(&self, at: &str) -> Option<Mean> {
        over_seeds(self.numbers.get(at)?)
    }

    pub(super) fn mean(&self, at: &str) -> Option<f64> {
        self.number(at).map(|(mean, _)| mean)
    }
}
