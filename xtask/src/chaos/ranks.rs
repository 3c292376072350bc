//! Kills processes of a run over several: whatever their numbers were, the run must end as in one process.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use sae_run::RunDir;

use super::kill::{MOMENTS, await_moment};
use super::variants::{VARIANTS, Variant};
use super::{Bench, difference};
use crate::programs;

/// Parts of a batch, and numbers of processes that share them.
const SHARDS: &str = "training.shards=4";
const RANKS: [usize; 3] = [1, 2, 4];

/// Number of kills before a run may finish.
const KILLS_PER_RUN: usize = 4;

/// Kills `kills` processes; returns what went wrong.
pub(super) fn run(bench: &Bench, kills: usize, mut rng: fastrand::Rng) -> Result<Vec<String>> {
    let (mut killed, mut missed, mut runs, mut identical) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    let started = Instant::now();
    let dir = bench.dir.join("ranks");
    while killed < kills {
        let variant = &VARIANTS[runs % VARIANTS.len()];
        let reference = reference(bench, variant)?;
        let name = format!("{}-{runs}", variant.0);
        let mut left = (kills - killed).min(KILLS_PER_RUN);
        while left > 0 {
            match kill_one(bench, variant, &dir.join(&name), &mut rng)? {
                true => killed += 1,
                false => missed += 1,
            }
            left -= 1;
        }
        let ranks = RANKS[rng.usize(..RANKS.len())];
        let finished = programs::finish(&mut mpirun(bench, variant, &dir.join(&name), ranks));
        runs += 1;
        let verdict = match finished {
            Ok(_) => difference(&reference, &dir.join(&name), true)?,
            Err(error) => Some(format!("{error:#}")),
        };
        match verdict {
            None => {
                identical += 1;
                fs::remove_dir_all(dir.join(&name))?;
            }
            Some(problem) => wrong.push(problem),
        }
    }
    println!(
        "killed {killed} of the processes of runs over 1, 2 and 4 in {:.0} s ({missed} came too late): {identical} of {runs} \
         runs ended with the bytes of one process",
        started.elapsed().as_secs_f64(),
    );
    Ok(wrong)
}

/// The uninterrupted run in one process.
fn reference(bench: &Bench, variant: &Variant) -> Result<std::path::PathBuf> {
    let run = bench.dir.join("reference-in-parts").join(variant.0);
    if !run.exists() {
        programs::finish(&mut alone(bench, variant, &run))?;
    }
    Ok(run)
}

/// The command that trains a variant as this run, in one process and without MPI.
fn alone(bench: &Bench, (_, settings): &Variant, run: &Path) -> Command {
    let settings = settings.iter().copied().chain([SHARDS]);
    programs::training(&bench.train, &bench.dir.join("config.toml"), settings, run)
}

/// The same in so many processes.
fn mpirun(bench: &Bench, variant: &Variant, run: &Path, ranks: usize) -> Command {
    let alone = alone(bench, variant, run);
    let mut command = Command::new("mpirun");
    command
        .args(["-n", &ranks.to_string(), "--oversubscribe"])
        .arg(alone.get_program())
        .args(alone.get_args())
        .arg("--distributed")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1") // in a container
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// Starts the run in some number of processes and kills one of them. Returns false if they had finished already.
fn kill_one(bench: &Bench, variant: &Variant, run: &Path, rng: &mut fastrand::Rng) -> Result<bool> {
    let mut command = mpirun(bench, variant, run, RANKS[rng.usize(..RANKS.len())]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut launcher = command
        .spawn()
        .context("starting mpirun, of Debian's openmpi-bin")?;
    let moment = MOMENTS[rng.usize(..MOMENTS.len())];
    await_moment(moment, &RunDir::new(run).checkpoints(), &mut launcher, rng)?;
    let children = children(launcher.id());
    if let Some(pid) = children.get(rng.usize(..children.len().max(1))) {
        let pid = pid.to_string();
        let mut kill = Command::new("kill");
        kill.args(["-KILL", &pid]).stderr(Stdio::null()); // it may have ended by itself
        let _ = kill.status().context("running kill")?;
    }
    Ok(!launcher.wait()?.success())
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let listed = fs::read_to_string(path).unwrap_or_default();
    listed
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
