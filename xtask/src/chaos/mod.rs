//! `cargo xtask chaos`: does a run survive what happens to processes and disks?
//!
//! Real training processes on a small data set of their own are killed with SIGKILL while they start, step, write a
//! checkpoint, rename it or remove an old one, and are started again (`kill.rs`; `sweep.rs` for several runs in a process,
//! `ranks.rs` for one run in several);
//! run directories are damaged at random (`corrupt.rs`). A run must end with the bytes of the uninterrupted one, or say why it
//! does not. Everything is drawn from `--seed`, except the exact moments of the kills, which also depend on the machine.

mod corrupt;
mod kill;
mod ranks;
mod sweep;
mod variants;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use sae_run::RunDir;
use sae_run::sealed::SUMS_FILE;
use serde_json::Value;

use crate::files::At;
use crate::programs::{self, build_with};
use variants::Variant;

/// The options of `cargo xtask chaos`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of processes to kill.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Number of processes to kill that train several runs at a time.
    #[arg(long, default_value_t = 0)]
    sweeps: usize,
    /// Number of processes to kill of runs that several train, by mpirun.
    #[arg(long, default_value_t = 0)]
    ranks: usize,
    /// Number of damaged run directories to resume and to evaluate.
    #[arg(long, default_value_t = 0)]
    corruptions: usize,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device to train on: cpu, wgpu, cuda:0.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Working directory; removed at the end, unless something went wrong.
    #[arg(long, default_value = "target/chaos")]
    dir: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let bench = Bench::new(arguments)?;
    let mut wrong = Vec::new();
    if arguments.kills > 0 {
        let rng = fastrand::Rng::with_seed(arguments.seed);
        wrong.extend(kill::run(&bench, arguments.kills, rng)?);
    }
    if arguments.sweeps > 0 {
        let rng = fastrand::Rng::with_seed(arguments.seed);
        wrong.extend(sweep::run(&bench, arguments.sweeps, rng)?);
    }
    if arguments.ranks > 0 {
        let rng = fastrand::Rng::with_seed(arguments.seed);
        wrong.extend(ranks::run(&bench, arguments.ranks, rng)?);
    }
    if arguments.corruptions > 0 {
        let rng = fastrand::Rng::with_seed(arguments.seed);
        wrong.extend(corrupt::run(&bench, arguments.corruptions, rng)?);
    }
    for problem in &wrong {
        println!("WRONG: {problem}");
    }
    if wrong.is_empty() {
        fs::remove_dir_all(&bench.dir).at(&bench.dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("the remains are in {}", bench.dir.display());
    Ok(ExitCode::FAILURE)
}

/// Binaries, data, and a place for runs.
pub(crate) struct Bench {
    train: PathBuf,
    eval: PathBuf,
    dir: PathBuf,
}

impl Bench {
    fn new(arguments: &Arguments) -> Result<Self> {
        let dir = arguments.dir.clone();
        ensure!(
            !dir.exists(),
            "{} exists; remove it, or pass another --dir",
            dir.display()
        );
        let kind = arguments.device.split(':').next();
        let device = kind.filter(|kind| *kind != "cpu");
        let mpi = (arguments.ranks > 0).then_some("mpi");
        let features: Vec<&str> = device.into_iter().chain(mpi).collect();
        let (train, eval) = (
            build_with("sae-train", Some(&*features.join(",")))?,
            build_with("sae-eval", device)?,
        );
        fs::create_dir_all(&dir).at(&dir)?;
        let dir = dir.canonicalize()?;
        let data = dir.join("data.npy");
        variants::write_data(&data)?;
        fs::write(
            dir.join("config.toml"),
            variants::config(&data, &arguments.device),
        )?;
        Ok(Self { train, eval, dir })
    }

    /// The command that trains `variant` as run `run` in `runs`, continuing it if it is there.
    fn train(&self, (_, settings): &Variant, runs: &Path, run: &str) -> Command {
        let (config, settings) = (self.dir.join("config.toml"), settings.iter().copied());
        programs::training(&self.train, &config, settings, &runs.join(run))
    }

    /// Trains to the end.
    fn finish(&self, variant: &Variant, runs: &Path, run: &str) -> Result<PathBuf> {
        programs::finish(&mut self.train(variant, runs, run))?;
        Ok(runs.join(run))
    }

    /// The uninterrupted run of `variant`, made on first use.
    fn reference(&self, variant: &Variant) -> Result<PathBuf> {
        let run = self.dir.join("reference").join(variant.0);
        if run.exists() {
            return Ok(run);
        }
        self.finish(variant, &self.dir.join("reference"), variant.0)
    }
}

/// The first difference between two finished runs: in the model's bytes, or in the records of the metrics.
fn difference(reference: &Path, run: &Path, with_metrics: bool) -> Result<Option<String>> {
    for file in ["sae.safetensors", "cfg.json", SUMS_FILE] {
        let [ours, theirs] =
            [run, reference].map(|run| fs::read(RunDir::new(run).model().join(file)));
        if ours.at(run)? != theirs? {
            return Ok(Some(format!("{}: {file} has other bytes", run.display())));
        }
    }
    let same = !with_metrics || records(reference)? == records(run)?;
    Ok((!same).then(|| format!("{}: metrics.jsonl has other records", run.display())))
}

/// The records of `metrics.jsonl` without their times.
fn records(run: &Path) -> Result<Vec<Value>> {
    let mut records = programs::records(run)?;
    for record in records.iter_mut().filter_map(Value::as_object_mut) {
        record.remove("seconds");
    }
    Ok(records)
}
