//! `cargo xtask guide`: a k for TopK-like SAEs, from the L0 that sparse attention finds by itself.
//!
//! Sparsemax decides per row how many concepts fire, so sparse attention has an L0 that nobody chose; arXiv 2604.14925 says
//! that it is a good k for others. The guide trains sparse attention briefly and makes a k of its L0 (`recommend.rs`), and
//! with `--verify` trains TopK and BatchTopK at half of it, at it and at its double, to say from the numbers whether that is so
//! (`verdict.rs`). Runs are started, kept and found again as those of `cargo xtask results` are: `config.rs` makes a plan of the
//! config, `measured.rs` reads the lines of its runs. `document.rs` is `guide.md`.

mod config;
mod document;
mod measured;
mod recommend;
mod verdict;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use sae_run::atomic_file;
use serde::Serialize;

use crate::files::At;
use crate::results;
use crate::results::columns::Column;
use crate::results::execute::Executor;
use config::Config;
use measured::{Candidate, Group};
use recommend::Recommendation;
use verdict::Verdict;

/// What the recommendation is for, and tried with.
const TRIED: [&str; 2] = ["topk", "batch_topk"];

/// The options of `cargo xtask guide`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The config, for example configs/quickstart.toml. Of one that is of another architecture than sparse attention, the data,
    /// n_latents, batch size and seed are taken.
    config: PathBuf,
    /// Steps of every run. Default: 600, or the config's own if they are fewer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Override a key of the config, for example --set model.n_latents=4096; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also train TopK and BatchTopK at k/2, k and 2k, and say where k stands.
    #[arg(long)]
    verify: bool,
    /// Seeds of every run. Default: the config's.
    #[arg(long, value_delimiter = ',', value_name = "SEED,...")]
    seeds: Vec<u64>,
    /// Runs at a time. Default: one for each processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Threads of each run. Default: the processors, divided among the runs.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Directory of the runs, guide.md and guide.json; a second start goes on with the runs in it. Default:
    /// runs/guide/RUN, by the config's runs_dir and run.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What the command found out.
#[derive(Debug, Serialize)]
struct Guide {
    name: String,
    /// Of the sources that the runs were made with.
    revision: String,
    steps: usize,
    n_latents: usize,
    seeds: Vec<u64>,
    rule: &'static str,
    /// None where no run of sparse attention has come to its end.
    recommendation: Option<Recommendation>,
    warnings: Vec<String>,
    /// Runs that have gone wrong, with their exit codes.
    failed: Vec<String>,
    /// What the reports of the runs of `verdicts` warn of.
    notes: Vec<String>,
    /// With --verify: one per architecture.
    verdicts: Vec<Verdict>,
    /// All numbers: sparse attention first.
    groups: Vec<Group>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = Config::read(&arguments.config, &arguments.set)?;
    if let Some(note) = &config.note {
        println!("{note}");
    }
    let dir = arguments.dir.clone();
    let dir = dir.unwrap_or_else(|| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let name = config.name.replace(|c| !is_plain(c), "_");
        config.runs_dir.join("guide").join(name)
    });
    let columns = measured::columns()?;
    let runs = Runs::new(arguments, &config, dir)?;
    let (attention, revision) = runs.measured(&[Candidate::attention()], &columns)?;
    let seeds = runs.seeds.clone();
    let mut guide = Guide::new(&config, runs.steps, seeds, attention, revision);
    if let Some(found) = guide.recommendation.as_ref().filter(|_| arguments.verify) {
        let ks = found.ks(config.n_latents);
        let tried = TRIED.iter().flat_map(|architecture| {
            let of = |k: &usize| Candidate::of(architecture, *k);
            ks.iter().map(of).collect::<Vec<_>>()
        });
        let all: Vec<Candidate> = [Candidate::attention()].into_iter().chain(tried).collect();
        guide.verify(runs.measured(&all, &columns)?.0, &columns);
    }
    let text = guide.markdown(&columns);
    let json = serde_json::to_string_pretty(&guide)? + "\n";
    for (name, text) in [("guide.md", &text), ("guide.json", &json)] {
        let path = runs.dir.join(name);
        atomic_file::write(&path, text.as_bytes()).at(&path)?;
    }
    println!("\n{text}");
    for failed in &guide.failed {
        eprintln!("error: {failed}");
    }
    Ok(match guide.failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// How the runs of a guide are made.
struct Runs<'a> {
    config: &'a Config,
    dir: PathBuf,
    steps: usize,
    seeds: Vec<u64>,
    arguments: &'a Arguments,
}

impl<'a> Runs<'a> {
    fn new(arguments: &'a Arguments, config: &'a Config, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).at(&dir)?;
        let mut seeds = arguments.seeds.clone();
        if seeds.is_empty() {
            seeds.push(config.seed);
        }
        seeds.sort_unstable();
        seeds.dedup();
        Ok(Self {
            config,
            dir,
            steps: config.steps(arguments.steps.map(|steps| steps as usize)),
            seeds,
            arguments,
        })
    }

    /// Makes the runs of these candidates that are not there; their numbers, and the revision of the sources.
    fn measured(
        &self,
        candidates: &[Candidate],
        columns: &[Column],
    ) -> Result<(Vec<Group>, String)> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = self.arguments.jobs.map_or(cores, |jobs| jobs as usize);
        let together = jobs.min(candidates.len() * self.seeds.len());
        let threads = self.arguments.threads.map(|threads| threads as usize);
        let threads = threads.unwrap_or(cores / together);
        let executor = Executor::new(&self.dir, threads.max(1), self.config.has_tail())?;
        let mut plan = self.config.plan(candidates, self.steps, &self.seeds)?;
        plan.revision = executor.programs()?;
        let results = results::all_of(&plan, &executor, jobs, &self.dir)?;
        let records = plan.all_cells();
        let mut records = records.flat_map(|cell| results.records(&cell, 0));
        let revision = records.next().map(|record| record.version.clone());
        let groups = Group::all(&results, candidates, columns);
        Ok((groups, revision.unwrap_or_else(|| "unknown".into())))
    }
}

impl Guide {
    /// The guide of these runs of sparse attention.
    fn new(
        config: &Config,
        steps: usize,
        seeds: Vec<u64>,
        groups: Vec<Group>,
        revision: String,
    ) -> Self {
        let attention = &groups[0];
        let recommendation = recommend::recommend(attention, config.n_latents);
        let mut warnings: Vec<String> = config.note.iter().cloned().collect();
        warnings.extend(attention.notes.iter().cloned());
        warnings.extend(recommendation.iter().flat_map(Recommendation::warnings));
        Self {
            name: config.name.clone(),
            revision,
            steps,
            n_latents: config.n_latents,
            seeds,
            rule: recommend::RULE,
            recommendation,
            warnings,
            failed: attention.failed.clone(),
            notes: Vec::new(),
            verdicts: Vec::new(),
            groups,
        }
    }

    /// Judges the recommendation by all candidates.
    fn verify(&mut self, groups: Vec<Group>, columns: &[Column]) {
        let Some(k) = self.recommendation.as_ref().map(|found| found.k) else {
            return;
        };
        let of = |architecture| verdict::verdict(architecture, k, &groups, columns);
        self.verdicts = TRIED.map(of).into();
        let others = || groups.iter().filter(|group| group.candidate.k.is_some());
        self.notes = others().flat_map(|group| group.notes.clone()).collect();
        self.failed = groups
            .iter()
            .flat_map(|group| group.failed.clone())
            .collect();
        self.groups = groups;
    }
}

#[cfg(test)]
mod tests;
