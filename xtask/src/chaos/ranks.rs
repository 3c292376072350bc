//! Kills processes of a run over several. If they share the rows of a batch, the run must end as in one process, whatever their
//! numbers were; if they share the latents, as the run of as many processes that was not killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sae_run::RunDir;

use super::kill::{MOMENTS, await_moment};
use super::variants::{VARIANTS, Variant};
use super::{Bench, difference};
use crate::programs;

/// Parts of a batch, and numbers of processes that share them.
const SHARDS: &str = "training.shards=4";
const ROUNDED: &str = "training.part_gradients=bf16";
const RANKS: [usize; 3] = [1, 2, 4];
/// Processes that share the latents.
const OF_LATENTS: usize = 2;

/// What processes share.
#[derive(Clone, Copy, PartialEq)]
enum Shared {
    Rows,
    /// Rows, whose gradients are rounded.
    Rounded,
    Latents,
}

impl Shared {
    /// In turn.
    fn of(run: usize) -> Self {
        [Self::Rows, Self::Latents, Self::Rounded][run % 3]
    }

    /// The settings that it needs.
    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Rows => &[SHARDS],
            Self::Rounded => &[SHARDS, ROUNDED],
            Self::Latents => &[],
        }
    }

    /// A number of processes.
    fn ranks(self, rng: &mut fastrand::Rng) -> usize {
        match self {
            Self::Rows | Self::Rounded => RANKS[rng.usize(..RANKS.len())],
            Self::Latents => OF_LATENTS,
        }
    }
}

/// How long a launcher may take to end behind its processes; a run that nobody kills is done sooner.
const PATIENCE: Duration = Duration::from_secs(120);
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
        let shared = Shared::of(runs);
        let reference = reference(bench, variant, shared)?;
        let name = format!("{}-{runs}", variant.0);
        let mut left = (kills - killed).min(KILLS_PER_RUN);
        while left > 0 {
            match kill_one(bench, variant, shared, &dir.join(&name), &mut rng)? {
                true => killed += 1,
                false => missed += 1,
            }
            left -= 1;
        }
        let ranks = shared.ranks(&mut rng);
        let mut command = mpirun(bench, variant, shared, &dir.join(&name), ranks);
        let finished = programs::finish(&mut command);
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
         runs ended with the bytes of one process, or, where processes share the latents, of as many that nobody killed",
        started.elapsed().as_secs_f64(),
    );
    Ok(wrong)
}

/// The uninterrupted run: in one process, where processes share rows.
fn reference(bench: &Bench, variant: &Variant, shared: Shared) -> Result<std::path::PathBuf> {
    let name = match shared {
        Shared::Rows => "reference-in-parts",
        Shared::Rounded => "reference-rounded",
        Shared::Latents => "reference-spread",
    };
    let run = bench.dir.join(name).join(variant.0);
    if !run.exists() {
        let mut command = match shared {
            Shared::Rows | Shared::Rounded => training(bench, variant, shared, &run),
            Shared::Latents => mpirun(bench, variant, shared, &run, OF_LATENTS),
        };
        programs::finish(&mut command)?;
    }
    Ok(run)
}

/// The command that trains a variant as this run.
fn training(bench: &Bench, (_, settings): &Variant, shared: Shared, run: &Path) -> Command {
    let settings = settings.iter().chain(shared.settings()).copied();
    programs::training(&bench.train, &bench.dir.join("config.toml"), settings, run)
}

/// The same in so many processes.
fn mpirun(bench: &Bench, variant: &Variant, shared: Shared, run: &Path, ranks: usize) -> Command {
    let alone = training(bench, variant, shared, run);
    let mut command = Command::new("mpirun");
    command
        .args(["-n", &ranks.to_string(), "--oversubscribe"])
        .arg(alone.get_program())
        .args(alone.get_args())
        .arg("--distributed")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1") // in a container
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    if shared == Shared::Latents {
        command.args(["--shard", "latents"]);
    }
    command
}

/// Starts the run in some number of processes and kills one of them. Returns false if they had finished already.
fn kill_one(
    bench: &Bench,
    variant: &Variant,
    shared: Shared,
    run: &Path,
    rng: &mut fastrand::Rng,
) -> Result<bool> {
    let mut command = mpirun(bench, variant, shared, run, shared.ranks(rng));
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
    Ok(!ended(launcher)?.success())
}

/// How the launcher ends. Open MPI's misses the death of a process now and then, if it comes while others are started: then it is killed.
fn ended(mut launcher: Child) -> Result<ExitStatus> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if let Some(status) = launcher.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!("mpirun has not noticed that one of its processes has died; it is killed");
    for pid in children(launcher.id()) {
        let mut kill = Command::new("kill");
        kill.args(["-KILL", &pid.to_string()]).stderr(Stdio::null());
        let _ = kill.status().context("running kill")?;
    }
    launcher.kill()?;
    Ok(launcher.wait()?)
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
