//! Damages run directories: one random file of each, in a random way.
//!
//! Training must refuse a damaged run directory with a message, or continue it to the same bytes. Evaluation must
//! refuse it, or give the same numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sae_run::RunDir;

use super::variants::VARIANTS;
use super::{Bench, difference};
use crate::files::entries;
use crate::programs::{self, last_words};

/// A way to damage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    FlipBit,
    Truncate,
    Zero,
    Append,
    Delete,
    Swap,
}

const DAMAGE: [Damage; 6] = [
    Damage::FlipBit,
    Damage::Truncate,
    Damage::Zero,
    Damage::Append,
    Damage::Delete,
    Damage::Swap,
];

/// How a damaged run fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Refused with a message.
    Refused,
    /// Training warned, and went on from what was good.
    Repaired,
    /// The damage hit nothing that matters.
    Harmless,
    Wrong,
}

/// Damages `count` copies of a run; returns what went wrong.
pub(super) fn run(bench: &Bench, count: usize, mut rng: fastrand::Rng) -> Result<Vec<String>> {
    let variant = &VARIANTS[0];
    let reference = bench.reference(variant)?;
    let report = evaluate(bench, &reference)?;
    let report = numbers(&reference, &report).context("the reference cannot be evaluated")?;
    let unfinished = interrupted(bench)?;
    for of in [&unfinished, &reference] {
        // undamaged copies must pass, or the rest would prove nothing
        let run = bench.dir.join("undamaged/run");
        copy(of, &run)?;
        let mut command = bench.train(variant, &bench.dir.join("undamaged"), "run");
        let output = programs::run(&mut command)?;
        let fate = fate_of_run(&reference, &run, &output)?;
        ensure!(
            fate == Fate::Harmless,
            "an undamaged copy: {fate:?}: {}",
            last_words(&output)
        );
        fs::remove_dir_all(&run)?;
    }
    let started = Instant::now();
    let mut fates: BTreeMap<(Damage, Fate), usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for i in 0..count {
        // half of the copies are of an interrupted run, half of a finished one
        let of = if i % 2 == 0 { &unfinished } else { &reference };
        let runs = bench.dir.join("damaged");
        let run = runs.join(format!("run-{i}"));
        copy(of, &run)?;
        let (damage, what) = damage(&run, &mut rng)?;
        let mut fate = Fate::Harmless;
        if i % 2 == 1 {
            fate = fate_of_report(&run, &evaluate(bench, &run)?, &report);
        }
        let output = programs::run(&mut bench.train(variant, &runs, &format!("run-{i}")))?;
        fate = match (fate, fate_of_run(&reference, &run, &output)?) {
            (Fate::Wrong, _) | (_, Fate::Wrong) => Fate::Wrong,
            (a, b) => a.min(b),
        };
        *fates.entry((damage, fate)).or_default() += 1;
        if fate == Fate::Wrong {
            wrong.push(format!(
                "{}: {what}: {}: {}",
                run.display(),
                output.status,
                last_words(&output)
            ));
        } else {
            fs::remove_dir_all(&run)?;
        }
    }
    print(&fates, count, started.elapsed());
    Ok(wrong)
}

fn print(fates: &BTreeMap<(Damage, Fate), usize>, count: usize, elapsed: Duration) {
    println!(
        "damaged {count} run directories in {:.0} s:",
        elapsed.as_secs_f64()
    );
    println!(
        "  {:<10} {:>8} {:>9} {:>9} {:>6}",
        "", "refused", "repaired", "harmless", "wrong"
    );
    for damage in DAMAGE {
        let of = |fate| fates.get(&(damage, fate)).copied().unwrap_or(0);
        let [refused, repaired, harmless, wrong] =
            [Fate::Refused, Fate::Repaired, Fate::Harmless, Fate::Wrong].map(of);
        let name = format!("{damage:?}").to_lowercase();
        println!("  {name:<10} {refused:>8} {repaired:>9} {harmless:>9} {wrong:>6}");
    }
}

/// A run that was killed after its middle.
fn interrupted(bench: &Bench) -> Result<PathBuf> {
    let runs = bench.dir.join("interrupted");
    let run = runs.join("run");
    let mut command = bench.train(&VARIANTS[0], &runs, "run");
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let checkpoint = RunDir::new(&run).checkpoints().join("step-00000120");
    while !checkpoint.exists() {
        ensure!(
            child.try_wait()?.is_none(),
            "the run to be interrupted ended by itself"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    Ok(run)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for path in files(from)? {
        let target = to.join(path.strip_prefix(from)?);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(&path, &target)?;
    }
    Ok(())
}

/// All files below a directory, in their order.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(dir)? {
        match path.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push(path),
        }
    }
    Ok(found)
}

/// Damages one file of `run`; returns what was done, in words.
fn damage(run: &Path, rng: &mut fastrand::Rng) -> Result<(Damage, String)> {
    let all = files(run)?;
    let path = all[rng.usize(..all.len())].clone();
    let damage = DAMAGE[rng.usize(..DAMAGE.len())];
    let mut bytes = fs::read(&path)?;
    let at = rng.usize(..bytes.len().max(1));
    let mut what = format!("{damage:?} {} at {at} of {}", path.display(), bytes.len());
    match damage {
        Damage::FlipBit if !bytes.is_empty() => bytes[at] ^= 1 << rng.u8(..8),
        Damage::Truncate => bytes.truncate(at),
        Damage::Zero => {
            let end = (at + rng.usize(1..5000)).min(bytes.len());
            bytes[at.min(end)..end].fill(0);
        }
        Damage::Append => bytes.extend((0..rng.usize(1..2000)).map(|_| rng.u8(..))),
        Damage::Delete => {
            fs::remove_file(&path)?;
            return Ok((damage, what));
        }
        Damage::Swap => {
            let other = &all[rng.usize(..all.len())];
            what += &format!(", with {}", other.display());
            let theirs = fs::read(other)?;
            fs::write(other, &bytes)?;
            bytes = theirs;
        }
        Damage::FlipBit => {}
    }
    fs::write(&path, bytes)?;
    Ok((damage, what))
}

/// Returns true if a process ended as it should: with success, or with a message and an exit code, and without a panic.
fn has_its_wits(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    let told = output.status.success() || text.lines().any(|line| line.starts_with("error: "));
    told && !text.contains("panicked") && output.status.code().is_some_and(|code| code != 101)
}

fn fate_of_run(reference: &Path, run: &Path, output: &Output) -> Result<Fate> {
    Ok(match has_its_wits(output) {
        false => Fate::Wrong,
        true if !output.status.success() => Fate::Refused,
        true if difference(reference, run, false)?.is_some() => Fate::Wrong,
        true if String::from_utf8_lossy(&output.stderr).contains("WARN") => Fate::Repaired,
        true => Fate::Harmless,
    })
}

fn evaluate(bench: &Bench, run: &Path) -> Result<Output> {
    programs::run(Command::new(&bench.eval).arg(run))
}

/// The numbers of a report that was just written; `None` if evaluation failed.
fn numbers(run: &Path, output: &Output) -> Option<[serde_json::Value; 2]> {
    if !output.status.success() {
        return None;
    }
    let report = programs::report(run).ok()?;
    Some(["reconstruction", "sparsity"].map(|part| report[part].clone()))
}

fn fate_of_report(run: &Path, output: &Output, expected: &[serde_json::Value; 2]) -> Fate {
    match (has_its_wits(output), output.status.success()) {
        (false, _) => Fate::Wrong,
        (true, false) => Fate::Refused,
        (true, true) if numbers(run, output).as_ref() == Some(expected) => Fate::Harmless,
        (true, true) => Fate::Wrong,
    }
}
