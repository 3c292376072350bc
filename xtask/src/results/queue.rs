//! Which run comes next, and how long all of them will take.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::columns::{FVU_AT_32, Metrics};
use super::data::Data;
use super::plan::{Cell, Judged, Plan, Run};
use super::select::Selection;
use super::store::{self, Machine, Record, Store};

/// A value of each seed that has one.
pub(crate) type BySeed = BTreeMap<u64, f64>;

/// The plan beside what is known of its runs.
pub(crate) struct Results<'a> {
    pub(crate) plan: &'a Plan,
    pub(super) store: Store,
    /// One per data set that is at hand or has runs.
    pub(super) fingerprints: BTreeMap<String, String>,
    pub(super) machine: Machine,
}

/// A run that can start.
pub(super) struct Task<'a> {
    /// Its line, still without numbers.
    pub(super) record: Record,
    pub(super) data: &'a Data,
}

/// Runs that are missing.
pub(super) struct Missing<'a> {
    /// Runs that can start, the next one first.
    pub(super) ready: Vec<Task<'a>>,
    /// Runs that wait for a learning rate, still without it.
    pub(super) waiting: Vec<Run>,
}

impl<'a> Results<'a> {
    /// The plan beside the runs of a file. A data set that is not at hand is taken for that of its newest run.
    pub(super) fn open(plan: &'a Plan, runs: &Path) -> Result<Self> {
        let store = Store::open(runs)?;
        let mut fingerprints = BTreeMap::new();
        for record in store.records() {
            let name = &record.run.data;
            let print = record.fingerprint.clone();
            let known = plan
                .data
                .get(name)
                .map_or(print.clone(), |data| data.known_as(print));
            fingerprints.insert(name.clone(), known);
        }
        for (name, data) in plan.data.iter().filter(|(_, data)| data.train.is_some()) {
            let print = data.fingerprint();
            let print = print.with_context(|| format!("data set {name}"))?;
            fingerprints.insert(name.clone(), data.known_as(print));
        }
        let machine = Machine::this();
        Ok(Self {
            plan,
            store,
            fingerprints,
            machine,
        })
    }

    /// The line of a run, without numbers; none if nothing is known of its data set.
    fn record(&self, run: Run) -> Option<Record> {
        let fingerprint = self.fingerprints.get(&run.data)?.clone();
        let revision = self.plan.revision_of(&run.method);
        Some(Record {
            key: store::key(&run, &fingerprint, &revision),
            run,
            fingerprint,
            revision,
            metrics: Metrics::new(),
            failed: None,
            notes: Vec::new(),
            wall_seconds: 0.0,
            version: String::new(),
            machine: self.machine.clone(),
        })
    }

    /// The line of a run that is done.
    pub(super) fn get(&self, run: &Run) -> Option<&Record> {
        self.store.get(&self.record(run.clone())?.key)
    }

    /// The lines of a cell's table at one sparsity, for the seeds that are done.
    pub(crate) fn records(&self, cell: &Cell, at: usize) -> Vec<&Record> {
        let runs = self.chosen(cell).map(|lr| cell.runs_at(at, lr));
        let runs = runs.into_iter().flatten();
        runs.filter_map(|run| self.get(&run)).collect()
    }

    /// A number of these lines.
    pub(super) fn by_seed(&self, cell: &Cell, at: usize, number: &str) -> BySeed {
        let of = |record: &Record| Some((record.run.seed, record.number(number)?));
        self.records(cell, at).into_iter().filter_map(of).collect()
    }

    /// The learning rate of a cell: `Some(None)` where the recipe has its own, `None` where it has not been chosen yet. It is
    /// the one with the least `FVU L0^0.38` on the validation split: FVU moved to one L0, for some methods' L0 depends on the
    /// learning rate.
    pub(super) fn chosen(&self, cell: &Cell) -> Option<Option<f64>> {
        let moved = |record: &Record| record.number(FVU_AT_32).unwrap_or(f64::INFINITY);
        let choice = cell.choice().into_iter();
        let judged = choice.map(|run| self.get(&run).map(|record| (moved(record), run.lr)));
        let judged: Vec<_> = judged.collect::<Option<_>>()?;
        let best = judged.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        Some(best.and_then(|(_, lr)| lr))
    }

    /// The runs of a cell: those of which all is known, and those that wait for a learning rate.
    pub(super) fn runs(&self, cell: &Cell) -> [Vec<Run>; 2] {
        let mut known = cell.choice();
        let chosen = self.chosen(cell);
        let mut table = cell.runs(chosen.flatten());
        if chosen.is_some() {
            known.append(&mut table);
        }
        [known, table]
    }

    /// The runs of the plan that are selected and not there.
    pub(super) fn missing(&self, selection: &Selection) -> Missing<'a> {
        let (mut ready, mut waiting) = (Vec::new(), Vec::new());
        for cell in self.plan.all_cells() {
            let data = &self.plan.data[cell.data];
            if data.train.is_none() {
                continue;
            }
            let [known, later] = self.runs(&cell);
            waiting.extend(later.into_iter().filter(|run| selection.takes(run)));
            for run in known.into_iter().filter(|run| selection.takes(run)) {
                let seed = cell.grid.seeds.iter().position(|seed| *seed == run.seed);
                let seed = seed.filter(|_| run.judged == Judged::Heldout).unwrap_or(0);
                let place = (seed, cell.rank, run.judged);
                let record = self.record(run);
                let missing = record.filter(|record| self.store.get(&record.key).is_none());
                ready.extend(missing.map(|record| (place, Task { record, data })));
            }
        }
        // the first seed of everything, the plan's order of lengths, learning rates before tables, the longest first
        ready.sort_by_cached_key(|(place, task)| {
            let milliseconds = self.seconds(&task.record.run) * 1e3;
            (*place, Reverse(milliseconds as u64))
        });
        let ready = ready.into_iter().map(|(_, task)| task).collect();
        Missing { ready, waiting }
    }

    /// Seconds that a run will take, by those that the most alike took on this machine: of the same method, data and width if
    /// there are such, otherwise of any, in proportion to steps and M. A guess where nothing was run yet.
    fn seconds(&self, run: &Run) -> f64 {
        let records = self.store.records().iter();
        let here = records.filter(|one| one.machine == self.machine && one.failed.is_none());
        let mut best = (0, 0.0, 0.0);
        for record in here {
            let of = &record.run;
            let alike = 1
                + u32::from(of.data == run.data)
                + 2 * u32::from(of.n_latents == run.n_latents)
                + 4 * u32::from(of.method == run.method);
            if alike > best.0 {
                best = (alike, 0.0, 0.0);
            }
            if alike == best.0 {
                best.1 += record.wall_seconds;
                best.2 += work(of);
            }
        }
        let (_, seconds, done) = best;
        work(run) * if done > 0.0 { seconds / done } else { GUESS }
    }

    /// The count of the selected runs that are missing, and the time that they take with `jobs` at a time: "1 h 05 min".
    pub(super) fn left(&self, selection: &Selection, jobs: usize) -> (usize, String) {
        let Missing { ready, waiting } = self.missing(selection);
        let runs = ready.iter().map(|task| &task.record.run).chain(&waiting);
        let seconds: f64 = runs.map(|run| self.seconds(run)).sum();
        let minutes = (seconds / jobs as f64 / 60.0).ceil() as u64;
        let duration = match minutes / 60 {
            0 => format!("{minutes} min"),
            hours => format!("{hours} h {:02} min", minutes % 60),
        };
        (ready.len() + waiting.len(), duration)
    }
}

/// Seconds per step and latent where nothing was measured yet: one thread, width 576, batch 1024, M = 6,144, on an AMD EPYC.
const GUESS: f64 = 5e-5;

fn work(run: &Run) -> f64 {
    run.steps as f64 * run.n_latents as f64
}
