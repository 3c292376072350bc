//! Kills a run with SIGKILL at chosen moments, several times, before it may finish.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sae_run::RunDir;
use sae_run::sealed::{STAGING_SUFFIX, SUMS_FILE};

use super::variants::{VARIANTS, Variant};
use super::{Bench, difference};

/// Number of kills before a run may finish.
const KILLS_PER_RUN: usize = 6;

/// When to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// At any time.
    Anytime,
    /// While the process starts, and the run directory is made or read.
    Starting,
    /// While a checkpoint is written.
    Writing,
    /// When the checksums of a checkpoint are written, around the rename.
    Renaming,
    /// While an old checkpoint is removed.
    Removing,
}

pub(super) const MOMENTS: [Moment; 5] = [
    Moment::Anytime,
    Moment::Starting,
    Moment::Writing,
    Moment::Renaming,
    Moment::Removing,
];

/// The effects of the kills, as far as the run directories show them.
#[derive(Default)]
struct Tally {
    kills: [usize; MOMENTS.len()],
    /// Processes that finished before they could be killed.
    missed: usize,
    /// Kills that left a half-written checkpoint, one with checksums but not renamed yet, or a half-removed one.
    half_written: usize,
    unnamed: usize,
    half_removed: usize,
    /// Kills before there was a config, and before there was a checkpoint.
    not_begun: usize,
    no_checkpoint: usize,
    runs: usize,
    identical: usize,
}

/// Kills `kills` processes; returns what went wrong.
pub(super) fn run(bench: &Bench, kills: usize, mut rng: fastrand::Rng) -> Result<Vec<String>> {
    let mut tally = Tally::default();
    let mut wrong = Vec::new();
    let started = Instant::now();
    while tally.kills.iter().sum::<usize>() < kills {
        let variant = &VARIANTS[tally.runs % VARIANTS.len()];
        let reference = bench.reference(variant)?;
        let name = format!("{}-{}", variant.0, tally.runs);
        let runs = bench.dir.join("killed");
        let left = kills - tally.kills.iter().sum::<usize>();
        for _ in 0..left.min(KILLS_PER_RUN) {
            kill_once(bench, variant, &runs, &name, &mut rng, &mut tally)?;
        }
        let run = bench.finish(variant, &runs, &name);
        tally.runs += 1;
        let verdict = match run {
            Ok(run) => difference(&reference, &run, true)?,
            Err(error) => Some(format!("{error:#}")),
        };
        match verdict {
            None => {
                tally.identical += 1;
                fs::remove_dir_all(runs.join(&name))?;
            }
            Some(problem) => wrong.push(problem),
        }
    }
    tally.print(started.elapsed());
    Ok(wrong)
}

fn kill_once(
    bench: &Bench,
    variant: &Variant,
    runs: &Path,
    name: &str,
    rng: &mut fastrand::Rng,
    tally: &mut Tally,
) -> Result<()> {
    let which = rng.usize(..MOMENTS.len());
    let mut command = bench.train(variant, runs, name);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting sae-train")?;
    let run = RunDir::new(runs.join(name));
    await_moment(MOMENTS[which], &run.checkpoints(), &mut child, rng)?;
    child.kill().context("killing sae-train")?;
    let status = child.wait()?;
    if status.code().is_some() {
        tally.missed += 1; // it had finished already
        return Ok(());
    }
    tally.kills[which] += 1;
    tally.look(&run);
    Ok(())
}

/// Returns when it is time to kill, or when the process has finished.
pub(super) fn await_moment(
    moment: Moment,
    checkpoints: &Path,
    child: &mut Child,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    let micros = |rng: &mut fastrand::Rng, most: u64| Duration::from_micros(rng.u64(..most));
    match moment {
        Moment::Anytime => sleep(micros(rng, 1_500_000)),
        Moment::Starting => sleep(micros(rng, 120_000)),
        _ => {
            // skip some, so that kills hit different checkpoints
            let passed_over = rng.usize(1..12);
            for round in 0..=passed_over {
                while !is_there(moment, checkpoints) && child.try_wait()?.is_none() {
                    std::hint::spin_loop();
                }
                if round < passed_over {
                    sleep(micros(rng, 20_000));
                }
            }
            let most = if moment == Moment::Writing { 3000 } else { 400 };
            let until = Instant::now() + micros(rng, most);
            while Instant::now() < until {
                std::hint::spin_loop(); // sleeping takes longer than this
            }
        }
    }
    Ok(())
}

/// Returns true if the directory of checkpoints shows that the moment has come.
fn is_there(moment: Moment, checkpoints: &Path) -> bool {
    states(checkpoints).any(|state| match moment {
        Moment::Writing => matches!(state, Some(Moment::Writing | Moment::Renaming)),
        moment => state == Some(moment),
    })
}

/// The moment that each checkpoint shows, or `None` if it is whole.
fn states(checkpoints: &Path) -> impl Iterator<Item = Option<Moment>> {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    entries.map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_suffix(STAGING_SUFFIX)? {
            name if name.ends_with(".removed") => Some(Moment::Removing),
            _ if entry.path().join(SUMS_FILE).exists() => Some(Moment::Renaming),
            _ => Some(Moment::Writing),
        }
    })
}

impl Tally {
    /// Notes what the kill left.
    fn look(&mut self, run: &RunDir) {
        self.not_begun += usize::from(!run.has_begun());
        let mut whole = 0;
        for state in states(&run.checkpoints()) {
            *match state {
                None => &mut whole,
                Some(Moment::Removing) => &mut self.half_removed,
                Some(Moment::Renaming) => &mut self.unnamed,
                Some(_) => &mut self.half_written,
            } += 1;
        }
        self.no_checkpoint += usize::from(whole == 0);
    }

    fn print(&self, elapsed: Duration) {
        println!(
            "killed {} processes in {:.0} s:",
            self.kills.iter().sum::<usize>(),
            elapsed.as_secs_f64()
        );
        for (moment, kills) in MOMENTS.iter().zip(self.kills) {
            println!("  {kills:>4} {}", format!("{moment:?}").to_lowercase());
        }
        println!(
            "left behind: {} half-written checkpoints, {} written and not renamed, {} half-removed; {} kills came \
             before the run had begun, {} before its first checkpoint; {} came too late and are not counted",
            self.half_written,
            self.unnamed,
            self.half_removed,
            self.not_begun,
            self.no_checkpoint,
            self.missed
        );
        println!(
            "{} of {} runs ended with identical bytes",
            self.identical, self.runs
        );
    }
}
