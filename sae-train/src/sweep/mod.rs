//! Several runs from one config, side by side in one process: each is the run that it would be alone, to the byte.
//!
//! A run keeps all that is its own: config, directory, lock, log, records, checkpoints, model, Burn's trainer, and a thread. What the
//! runs have in common is measured once (the data) and read once (the batches): runs that train on the same rows in the same order
//! form a *pass*, in which they take turns ([`sae_data::Share`]). So a step computes exactly what it does alone. Runs on a processor
//! divide its threads among them (`lanes.rs`). Where there are several devices, run i is on device i modulo their number. Passes follow
//! each other.

mod lanes;
mod train;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sae_data::DataConfig;
use sae_run::RunDir;

use crate::config::{Config, Sweep, Variant};
use crate::memory;
use crate::prepare::{self, Asked, Measured, Prepared};
use lanes::Lanes;

/// The device whose threads runs divide among them.
const PROCESSOR: &str = "cpu";

/// A sweep whose every run can start.
pub(crate) struct PreparedSweep {
    name: String,
    dir: PathBuf,
    passes: Vec<Vec<Prepared>>,
    /// True if runs are apart only because each seed has an order of its own.
    seeds_apart: bool,
}

/// Checks all runs of a sweep. Each pass has `at_once` runs at most.
pub(crate) fn prepare(
    sweep: &Sweep,
    from: Option<&Path>,
    resume: bool,
    at_once: Option<NonZeroUsize>,
) -> Result<PreparedSweep> {
    let dir = sweep.dir.clone();
    if RunDir::new(&dir).has_begun() {
        bail!(
            "{} is a run; the runs of a sweep lie in a directory of their own, name it with --set run=NAME",
            dir.display()
        );
    }
    let ask = |run: &Variant| {
        let asked = prepare::ask(&run.config, from, resume);
        let mut asked = asked.with_context(|| format!("run {} of the sweep", run.name))?;
        asked.lane = run.lane;
        asked.config.check_alone()?;
        if asked.config.training.shards > 1 {
            bail!(
                "run {} of the sweep: training.shards: the runs of a sweep share their batches, which have no parts",
                run.name
            );
        }
        Ok(asked)
    };
    let asked: Vec<Asked> = sweep.runs.iter().map(ask).collect::<Result<_>>()?;
    let orders = |of: fn(&Config) -> Order| distinct(asked.iter().map(|run| of(&run.config)));
    let seeds_apart = orders(Order::of) > orders(Order::but_for_seed);
    let passes = passes(asked, at_once);
    Ok(PreparedSweep {
        name: sweep.name.clone(),
        dir,
        passes: with_data(passes)?,
        seeds_apart,
    })
}

/// Everything that the order of the batches depends on, and the validations.
#[derive(Clone, PartialEq)]
struct Order {
    data: DataConfig,
    seed: u64,
    batch_size: usize,
    validate_rows: usize,
}

impl Order {
    fn of(config: &Config) -> Self {
        let t = &config.training;
        Self {
            data: config.data.clone(),
            seed: config.data.streaming(config.seed).seed,
            batch_size: t.batch_size,
            validate_rows: t.validate_rows,
        }
    }

    fn but_for_seed(config: &Config) -> Self {
        Self {
            seed: 0,
            ..Self::of(config)
        }
    }
}

/// The number of different orders.
fn distinct(orders: impl Iterator<Item = Order>) -> usize {
    let mut seen = Vec::new();
    for order in orders {
        if !seen.contains(&order) {
            seen.push(order);
        }
    }
    seen.len()
}

/// The runs by passes, in the order of their first runs.
fn passes(runs: Vec<Asked>, at_once: Option<NonZeroUsize>) -> Vec<Vec<Asked>> {
    let mut passes: Vec<(Order, Vec<Asked>)> = Vec::new();
    for run in runs {
        let order = Order::of(&run.config);
        match passes.iter_mut().find(|(of, _)| *of == order) {
            Some((_, pass)) => pass.push(run),
            None => passes.push((order, vec![run])),
        }
    }
    let most = at_once.map_or(usize::MAX, NonZeroUsize::get);
    let mut parts = Vec::new();
    for (_, pass) in passes {
        let mut rest: VecDeque<Asked> = pass.into();
        while !rest.is_empty() {
            parts.push(rest.drain(..most.min(rest.len())).collect());
        }
    }
    parts
}

/// The runs with their data, which is opened and measured once for all that have the same.
fn with_data(passes: Vec<Vec<Asked>>) -> Result<Vec<Vec<Prepared>>> {
    let mut measured: Vec<Option<Measured>> = Vec::new();
    for (at, pass) in passes.iter().enumerate() {
        let of = &pass[0];
        let before = passes[..at].iter().position(|pass| same_data(&pass[0], of));
        let data = match before.and_then(|at| measured[at].clone()) {
            Some(data) => data,
            None => {
                let with_same = passes.iter().filter(|pass| same_data(&pass[0], of));
                prepare::measure(of, |train| {
                    with_same.into_iter().try_for_each(|pass| fits(pass, train))
                })?
            }
        };
        measured.push(Some(data));
    }
    let with = |(mut pass, data): (Vec<Asked>, Option<Measured>)| {
        let data = data.expect("every pass has been measured");
        divide_threads(&mut pass, &data.train);
        let run = |run: Asked| {
            let name = run.config.run_name().to_string();
            let run = run.with(data.clone());
            run.with_context(|| format!("run {name} of the sweep"))
        };
        pass.into_iter().map(run).collect()
    };
    passes.into_iter().zip(measured).map(with).collect()
}

fn same_data(a: &Asked, b: &Asked) -> bool {
    let of = |run: &Asked| (run.config.data.clone(), run.config.training.validate_rows);
    of(a) == of(b)
}

/// Gives the runs of a pass on one processor their lanes.
fn divide_threads(pass: &mut [Asked], train: &sae_data::ActivationData) {
    let on_processor = |run: &Asked| run.lane == 0 && run.config.device == PROCESSOR;
    if !pass.iter().all(on_processor) {
        return;
    }
    let fits = |lanes: usize| {
        let runs = pass.iter().enumerate();
        let runs: Vec<_> = runs.map(|(i, run)| (&run.config, i % lanes)).collect();
        memory::check_together(&runs, train).is_ok()
    };
    let lanes = Lanes::of(pass.len(), rayon::current_num_threads(), fits);
    if lanes.count == 1 {
        return; // it has the program's threads
    }
    for (i, run) in pass.iter_mut().enumerate() {
        run.lane = i % lanes.count;
        run.threads = Some(lanes.threads);
    }
}

/// Fails if the runs of a pass cannot train on these rows, one of them or all together.
fn fits(pass: &[Asked], train: &sae_data::ActivationData) -> Result<()> {
    for run in pass {
        let alone = run
            .check_width(train)
            .and_then(|()| run.check_batch(train))
            .and_then(|()| memory::check(&run.config, train));
        alone.with_context(|| format!("run {} of the sweep", run.config.run_name()))?;
    }
    let runs: Vec<_> = pass.iter().map(|run| (&run.config, run.lane)).collect();
    Ok(memory::check_together(&runs, train)?)
}
