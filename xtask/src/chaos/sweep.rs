//! Kills sweeps: several runs in one process, of which each must end as the run alone.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use sae_run::RunDir;

use super::kill::{MOMENTS, await_moment};
use super::variants::{VARIANTS, Variant};
use super::{Bench, difference};
use crate::files::At;
use crate::programs;

/// Number of kills before a sweep may finish.
const KILLS_PER_SWEEP: usize = 10;

/// Kills `kills` processes; returns what went wrong.
pub(super) fn run(bench: &Bench, kills: usize, mut rng: fastrand::Rng) -> Result<Vec<String>> {
    let (mut killed, mut sweeps, mut identical) = (0, 0, 0);
    let mut wrong = Vec::new();
    let started = Instant::now();
    let config = bench.dir.join("sweep.toml");
    let text = fs::read_to_string(bench.dir.join("config.toml")).at(&config)?;
    fs::write(&config, text + &tables()).at(&config)?;
    let dir = bench.dir.join("sweeps");
    while killed < kills {
        let name = format!("sweep-{sweeps}");
        let sweep = || programs::training(&bench.train, &config, [], &dir.join(&name));
        let left = kills - killed;
        for _ in 0..left.min(KILLS_PER_SWEEP) {
            let run = &VARIANTS[rng.usize(..VARIANTS.len())];
            let run = RunDir::new(dir.join(&name).join(run_name(run)));
            let moment = MOMENTS[rng.usize(..MOMENTS.len())];
            let mut command = sweep();
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().context("starting sae-train")?;
            await_moment(moment, &run.checkpoints(), &mut child, &mut rng)?;
            child.kill().context("killing sae-train")?;
            killed += usize::from(child.wait()?.code().is_none()); // or it had finished already
        }
        sweeps += 1;
        let finished = programs::finish(&mut sweep());
        for variant in &VARIANTS {
            let run = dir.join(&name).join(run_name(variant));
            let verdict = match &finished {
                Ok(_) => difference(&bench.reference(variant)?, &run, true)?,
                Err(error) => Some(format!("{error:#}")),
            };
            identical += usize::from(verdict.is_none());
            wrong.extend(verdict);
        }
        if wrong.is_empty() {
            fs::remove_dir_all(dir.join(&name)).at(&dir)?;
        }
    }
    println!(
        "killed {killed} sweeps of {} runs in {:.0} s: {identical} of {} runs ended with the bytes of the run alone",
        VARIANTS.len(),
        started.elapsed().as_secs_f64(),
        sweeps * VARIANTS.len(),
    );
    Ok(wrong)
}

/// The settings of a variant: keys and values as TOML.
fn settings((_, settings): &Variant) -> Vec<(&'static str, String)> {
    let all = settings
        .iter()
        .filter_map(|setting| setting.split_once('='));
    let quoted = |value: &str| match value.parse::<f64>() {
        Ok(_) => value.to_string(),
        Err(_) => format!("{value:?}"),
    };
    let mut all: Vec<_> = all.map(|(key, value)| (key, quoted(value))).collect();
    all.sort();
    all
}

/// A table `[[sweep]]` for each variant.
fn tables() -> String {
    let table = |variant| {
        let lines = settings(variant).into_iter();
        let lines = lines.map(|(key, value)| format!("{key} = {value}\n"));
        format!("[[sweep]]\n{}", lines.collect::<String>())
    };
    VARIANTS.iter().map(table).collect()
}

/// The name that the run of a variant has in a sweep.
fn run_name(variant: &Variant) -> String {
    let part = |(key, value): (&str, String)| {
        let value = value.trim_matches('"').to_string();
        match key.rsplit_once('.') {
            Some((_, "architecture")) => value,
            Some((_, last)) => format!("{last}={value}"),
            None => format!("{key}={value}"),
        }
    };
    let parts: Vec<String> = settings(variant).into_iter().map(part).collect();
    parts.join(",")
}
