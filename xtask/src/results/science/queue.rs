//! Which run comes next, and how long all of them will take.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::columns::{FVU, L0};
use super::execute::Task;
use super::plan::{Cell, Judged, Plan, Run};
use super::select::Selection;
use super::store::{self, Machine, Record, Store};
use crate::results::numbers::SLOPE;

/// The plan beside what is known of its runs.
pub(super) struct Results<'a> {
    pub(super) plan: &'a Plan,
    pub(super) store: Store,
    /// Of each data set that is at hand or has runs.
    pub(super) fingerprints: BTreeMap<String, String>,
}

/// Runs that are missing.
pub(super) struct Missing<'a> {
    /// Those that can start, the next one first.
    pub(super) ready: Vec<Task<'a>>,
    /// Those that wait for a learning rate, as they will be but for that.
    pub(super) waiting: Vec<Run>,
}

impl<'a> Results<'a> {
    /// The key of a run; none where nothing is known of its data set.
    pub(super) fn key(&self, run: &Run) -> Option<String> {
        let fingerprint = self.fingerprints.get(&run.data)?;
        Some(store::key(
            run,
            fingerprint,
            &self.plan.revision_of(&run.method),
        ))
    }

    /// What a run gave, if it was run.
    pub(super) fn get(&self, run: &Run) -> Option<&Record> {
        self.store.get(&self.key(run)?)
    }

    /// The learning rate of a cell: `Some(None)` where the recipe has its own, `None` where it has not been chosen yet. It is the one with
    /// the least `FVU L0^0.38` on the validation split: FVU moved to one L0, for some methods' L0 depends on the learning rate.
    pub(super) fn chosen(&self, cell: &Cell) -> Option<Option<f64>> {
        let choice = cell.choice(self.plan);
        let judged = choice
            .iter()
            .map(|run| self.get(run).map(|record| (moved(record), run.lr)));
        let judged: Vec<(f64, Option<f64>)> = judged.collect::<Option<_>>()?;
        let best = judged.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        Some(best.and_then(|(_, lr)| lr))
    }

    /// The runs of the plan that are selected and not there.
    pub(super) fn missing(&self, selection: &Selection) -> Missing<'a> {
        let (mut ready, mut waiting) = (Vec::new(), Vec::new());
        for (name, data) in &self.plan.data {
            if !data.is_placed() {
                continue;
            }
            for cell in self.plan.cells(name) {
                let chosen = self.chosen(&cell);
                let table = cell.runs(self.plan, chosen.flatten());
                let mut wanted = cell.choice(self.plan);
                match chosen {
                    Some(_) => wanted.extend(table),
                    None => waiting.extend(table.into_iter().filter(|run| selection.takes(run))),
                }
                for run in wanted.into_iter().filter(|run| selection.takes(run)) {
                    let seed = cell.grid.seeds.iter().position(|seed| *seed == run.seed);
                    let seed = if run.judged == Judged::Validation {
                        0
                    } else {
                        seed.unwrap_or(0)
                    };
                    if let Some(task) = self.task(run) {
                        ready.push(((seed, cell.rank, task.run.judged), task));
                    }
                }
            }
        }
        // the first seed of everything, the plan's order of lengths, learning rates before tables, the longest first
        ready.sort_by_cached_key(|(place, task)| {
            (*place, Reverse((self.seconds(&task.run) * 1e3) as u64))
        });
        Missing {
            ready: ready.into_iter().map(|(_, task)| task).collect(),
            waiting,
        }
    }

    /// A run to do, unless it is done.
    fn task(&self, run: Run) -> Option<Task<'a>> {
        let key = self.key(&run)?;
        let afresh = self.store.is_forgotten(&key);
        self.store.get(&key).is_none().then(|| Task {
            revision: self.plan.revision_of(&run.method),
            fingerprint: self.fingerprints[&run.data].clone(),
            data: &self.plan.data[&run.data],
            run,
            key,
            afresh,
        })
    }

    /// Seconds that a run will take, by those that the most alike took on this machine: of the same method, data and width if
    /// there are such, otherwise of any, in proportion to steps and M. A guess where nothing was run yet.
    pub(super) fn seconds(&self, run: &Run) -> f64 {
        let here = Machine::this();
        let runs = self
            .store
            .records()
            .iter()
            .filter(|record| record.machine == here && record.failed.is_none());
        let mut best = (0, 0.0, 0.0);
        for record in runs {
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
        match best.2 > 0.0 {
            true => best.1 / best.2 * work(run),
            false => GUESS * work(run),
        }
    }
}

/// Seconds per step and latent where nothing was measured yet: one thread, width 576, batch 1024, M = 6,144, on an AMD EPYC.
const GUESS: f64 = 5e-5;

fn work(run: &Run) -> f64 {
    run.steps as f64 * run.n_latents as f64
}

fn moved(record: &Record) -> f64 {
    let number = |at: &str| record.metrics.get(at).copied().unwrap_or(f64::INFINITY);
    number(FVU) * number(L0).powf(SLOPE)
}

/// "1 h 05 min" for a number of seconds.
pub(super) fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).ceil() as u64;
    match minutes / 60 {
        0 => format!("{minutes} min"),
        hours => format!("{hours} h {:02} min", minutes % 60),
    }
}
