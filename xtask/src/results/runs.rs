//! Training and evaluating the settings of a plan, each once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sae_run::RunDir;
use serde_json::Value;

use super::plan::Plan;
use crate::programs::{self, build};

/// Binaries, configs, and the directory of the runs.
pub(super) struct Runner {
    train: PathBuf,
    eval: PathBuf,
    /// BLAKE3 of both binaries.
    programs: String,
    dir: PathBuf,
    set: Vec<String>,
}

/// What one run gave.
pub(super) struct Outcome {
    /// `report.json`.
    pub(super) report: Value,
    /// Mean L0 of the last hundred training batches.
    pub(super) training_l0: Option<f64>,
}

impl Runner {
    /// Builds the binaries and writes a config for each data set of the plan; `set` overrides every run.
    pub(super) fn new(plan: &Plan, dir: &Path, set: &[String]) -> Result<Self> {
        let (train, eval) = (build("sae-train")?, build("sae-eval")?);
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        for (name, data) in &plan.data {
            let mut keys = toml::Table::from_iter(data.keys.clone());
            if let Some(train) = &data.train {
                keys.insert("train".into(), train.display().to_string().into());
            }
            let config = toml::Table::from_iter([("data".to_string(), keys.into())]);
            fs::write(dir.join(format!("{name}.toml")), toml::to_string(&config)?)?;
        }
        let mut programs = blake3::Hasher::new();
        for program in [&train, &eval] {
            let bytes = fs::read(program);
            programs.update(&bytes.with_context(|| format!("reading {}", program.display()))?);
        }
        Ok(Self {
            train,
            eval,
            programs: programs.finalize().to_hex().to_string(),
            dir: dir.into(),
            set: set.to_vec(),
        })
    }

    /// Trains `settings` on a data set with a seed and evaluates it, as far as these programs have not done it.
    pub(super) fn outcome(&self, data: &str, settings: &[&str], seed: u64) -> Result<Outcome> {
        let settings: Vec<&str> = settings
            .iter()
            .copied()
            .chain(self.set.iter().map(String::as_str))
            .collect();
        let name = name(data, &settings, seed);
        let run = self.dir.join(&name);
        self.forget_others(&name, &run)?;
        let dir = RunDir::new(&run);
        if !dir.report_json().exists() {
            println!("{name}");
            if !dir.model().exists() {
                let config = self.dir.join(format!("{data}.toml"));
                let seed = format!("seed={seed}");
                let settings = settings.into_iter().chain([seed.as_str()]);
                let mut training = programs::training(&self.train, &config, settings, &run);
                programs::finish(&mut training)?;
            }
            let mut evaluation = Command::new(&self.eval);
            programs::finish(evaluation.arg(&run).arg("--no-untrained"))?;
        }
        Ok(Outcome {
            report: programs::report(&run)?,
            training_l0: training_l0(&run),
        })
    }

    /// Removes a run that other programs began: a table must not mix what two recipes gave.
    fn forget_others(&self, name: &str, run: &Path) -> Result<()> {
        let made_by = self.dir.join(format!("{name}.made_by"));
        if fs::read_to_string(&made_by).is_ok_and(|programs| programs == self.programs) {
            return Ok(());
        }
        if run.exists() {
            fs::remove_dir_all(run).with_context(|| format!("removing {}", run.display()))?;
        }
        fs::write(&made_by, &self.programs).with_context(|| format!("{}", made_by.display()))
    }
}

/// A directory's name: the data set, the values of the settings, the seed.
fn name(data: &str, settings: &[&str], seed: u64) -> String {
    let mut name = data.to_string();
    for setting in settings {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let key = key.rsplit('.').next().unwrap_or(key);
        name += &format!("-{key}_{value}");
    }
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!("{name}-seed_{seed}").chars().map(plain).collect()
}

/// Mean L0 of the last hundred training batches in `metrics.jsonl`.
fn training_l0(run: &Path) -> Option<f64> {
    let records = programs::records(run).ok()?;
    let training = records.iter().filter(|record| record["split"] == "train");
    let l0: Vec<f64> = training
        .rev()
        .filter_map(|record| record["l0"].as_f64())
        .take(100)
        .collect();
    (!l0.is_empty()).then(|| l0.iter().sum::<f64>() / l0.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_other_programs_are_forgotten() {
        let dir = std::env::temp_dir().join(format!("results-{}", std::process::id()));
        let run = dir.join("a");
        let by = |programs: &str| {
            let runner = Runner {
                train: "train".into(),
                eval: "eval".into(),
                programs: programs.into(),
                dir: dir.clone(),
                set: Vec::new(),
            };
            fs::create_dir_all(&run).unwrap();
            runner.forget_others("a", &run).unwrap();
            run.exists()
        };
        assert_eq!(["1", "1", "2", "2"].map(by), [false, true, false, true]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn settings_make_distinct_names_of_one_directory() {
        let a = name("sample", &["model.k=40", "model.architecture=topk"], 1);
        assert_eq!(a, "sample-k_40-architecture_topk-seed_1");
        assert_ne!(a, name("sample", &["model.k=40"], 1));
        assert_eq!(name("x", &["run=\"../y\""], 0), "x-run__.._y_-seed_0");
    }
}
