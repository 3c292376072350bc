//! What the runs take of a config: sparse attention all of it, the others what is no architecture's own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sae_run::FREE_TO_CHANGE;
use toml::{Table, Value};

use super::measured::Candidate;
use crate::files::At;
use crate::results::data::Data;
use crate::results::plan::{Method, Plan};
use crate::results::store::CHANGE_NOTHING;

/// Steps of a run, unless the config has fewer.
pub(super) const STEPS: usize = 600;
/// The architecture whose L0 is looked at.
const ATTENTION: &str = "attention";
/// Keys that are no settings of a run: the guide decides them.
const OWN: [&str; 5] = [
    "run",
    "runs_dir",
    "seed",
    "model.n_latents",
    "training.steps",
];
/// Keys that mean the same for every architecture, beside those that change no number.
const SHARED: [&str; 2] = ["device", "training.batch_size"];

/// A config, as far as the guide needs it.
pub(super) struct Config {
    /// The name of its run.
    pub(super) name: String,
    pub(super) runs_dir: PathBuf,
    pub(super) seed: u64,
    pub(super) n_latents: usize,
    /// Its own number of steps.
    steps: Option<usize>,
    data: Table,
    /// `key=value` settings of sparse attention.
    attention: Vec<String>,
    /// Those of every other architecture.
    shared: Vec<String>,
    /// What is to be said of a config of another architecture.
    pub(super) note: Option<String>,
}

impl Config {
    /// Reads a config with the settings that override it.
    pub(super) fn read(path: &Path, settings: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&text, &stem, settings).at(path)
    }

    /// Whether the reports are to say what the rest of the model makes of reconstructions.
    pub(super) fn has_tail(&self) -> bool {
        let mut settings = self.shared.iter();
        settings.any(|setting| setting.starts_with("eval.tail.file"))
    }

    pub(super) fn parse(text: &str, stem: &str, settings: &[String]) -> Result<Self> {
        let mut table: Table = toml::from_str(text)?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        let data = match table.remove("data") {
            Some(Value::Table(data)) => data,
            _ => Table::new(),
        };
        let mut keys = Vec::new();
        flatten(table, "", &mut keys);
        let get = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, v)| v);
        let text = |name| get(name).and_then(Value::as_str);
        let count = |name: &str| {
            let number = get(name).map(|value| value.as_integer().and_then(|n| n.try_into().ok()));
            let number: Option<Option<usize>> = number;
            number
                .map(|number| number.with_context(|| format!("{name} is not a whole number")))
                .transpose()
        };
        let architecture = text("model.architecture").unwrap_or(ATTENTION);
        let is_own = |key: &str| OWN.contains(&key);
        let is_shared = |key: &str| {
            let free = FREE_TO_CHANGE.contains(&key) || CHANGE_NOTHING.contains(&key);
            !is_own(key) && (SHARED.contains(&key) || free)
        };
        let all: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let settings = |of: &dyn Fn(&str) -> bool| {
            let chosen = keys.iter().filter(|(key, _)| of(key));
            let chosen = chosen.map(|(key, value)| format!("{key}={value}"));
            chosen.collect::<Vec<String>>()
        };
        let shared = settings(&is_shared);
        let (attention, note) = match architecture {
            ATTENTION => (settings(&|key| !is_own(key)), None),
            other => (shared.clone(), Some(left_aside(other, &all, is_shared))),
        };
        Ok(Self {
            name: text("run").unwrap_or(stem).into(),
            runs_dir: text("runs_dir").unwrap_or("runs").into(),
            seed: count("seed")?.unwrap_or(0) as u64,
            n_latents: count("model.n_latents")?.context("model.n_latents is missing")?,
            steps: count("training.steps")?,
            data,
            attention,
            shared,
            note,
        })
    }

    /// The steps of a run: those that are asked for, or the config's own, at most [`STEPS`].
    pub(super) fn steps(&self, asked: Option<usize>) -> usize {
        asked.unwrap_or_else(|| self.steps.unwrap_or(STEPS).min(STEPS))
    }

    /// The plan that runs these candidates with these seeds.
    pub(super) fn plan(
        &self,
        candidates: &[Candidate],
        steps: usize,
        seeds: &[u64],
    ) -> Result<Plan> {
        let data = Data::of_config(self.data.clone())?;
        let methods = candidates.iter().map(|candidate| self.method(candidate));
        let shape = [steps, self.n_latents];
        Plan::of_one((&self.name, data), shape, seeds, methods.collect())
    }

    fn method(&self, candidate: &Candidate) -> Method {
        let Candidate { architecture, k } = candidate;
        let (mut name, mut set) = (architecture.to_string(), self.attention.clone());
        if let Some(k) = k {
            name += &format!("-{k}");
            let own = [
                format!("model.architecture={architecture}"),
                format!("model.k={k}"),
            ];
            set = self.shared.iter().cloned().chain(own).collect();
        }
        Method::fixed(name, candidate.label(), set)
    }
}

/// Says what is taken of a config of another architecture.
fn left_aside(architecture: &str, keys: &[&str], is_shared: impl Fn(&str) -> bool) -> String {
    let left = keys
        .iter()
        .filter(|key| !is_shared(key) && !OWN.contains(key) && **key != "model.architecture");
    let left: Vec<&str> = left.copied().collect();
    let rest = match left.is_empty() {
        true => String::new(),
        false => format!("; left aside: {}", left.join(", ")),
    };
    format!(
        "the config is of the architecture {architecture}: sparse attention is trained with its default recipe on the same data, \
         n_latents, batch size and seed{rest}"
    )
}

/// Applies `a.b=value`, where the value is TOML, or a string where it is not.
fn set(table: &mut Table, setting: &str) -> Result<()> {
    let wrong = || format!("--set {setting}: write KEY=VALUE, for example training.lr=1e-3");
    let (path, text) = setting.split_once('=').with_context(wrong)?;
    let value = toml::from_str::<Table>(&format!("v = {text}"));
    let value = value.ok().and_then(|mut parsed| parsed.remove("v"));
    let mut keys = path.trim().split('.').rev();
    let last = keys.next().unwrap_or_default();
    ensure!(!last.is_empty(), wrong());
    let mut target = table;
    for key in keys.rev() {
        let inner = target
            .entry(key)
            .or_insert_with(|| Value::Table(Table::new()));
        target = inner.as_table_mut().with_context(wrong)?;
    }
    target.insert(last.into(), value.unwrap_or_else(|| text.into()));
    Ok(())
}

/// Every key with its section in front.
fn flatten(table: Table, before: &str, keys: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => flatten(inner, &format!("{before}{key}."), keys),
            value => keys.push((format!("{before}{key}"), value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        run = "small"
        seed = 3
        device = "cpu"
        [data]
        train = "a.npy"
        held_out = { fraction = 0.2 }
        max_norm = "none"
        [model]
        n_latents = 32
        preset = "paper"
        [training]
        steps = 2000
        batch_size = 64
        lr = 1e-3
        on_collapse = "go_on"
    "#;

    fn sets(config: &Config, candidate: Candidate) -> Vec<String> {
        let plan = config.plan(&[candidate], 20, &[0]).unwrap();
        let cell = plan.all_cells().next().unwrap();
        cell.runs(None).remove(0).set
    }

    #[test]
    fn sparse_attention_takes_all_and_the_others_what_is_shared() {
        let settings = ["model.n_latents=16".into(), "model.scale = 0.9".into()];
        let config = Config::parse(CONFIG, "x", &settings).unwrap();
        assert_eq!(
            (&*config.name, config.seed, config.n_latents),
            ("small", 3, 16)
        );
        assert_eq!(config.note, None);
        let shared = [
            "training.steps=20",
            "model.n_latents=16",
            "device=\"cpu\"",
            "training.batch_size=64",
            "training.on_collapse=\"go_on\"",
        ];
        let of = |candidate| {
            let mut sets = sets(&config, candidate);
            sets.sort();
            sets
        };
        let sorted = |more: &[&str]| {
            let mut all: Vec<String> = shared.iter().chain(more).map(|s| s.to_string()).collect();
            all.sort();
            all
        };
        let own = [
            "model.preset=\"paper\"",
            "model.scale=0.9",
            "training.lr=0.001",
        ];
        assert_eq!(of(Candidate::attention()), sorted(&own));
        let own = ["model.architecture=topk", "model.k=4"];
        assert_eq!(of(Candidate::of("topk", 4)), sorted(&own));
    }

    #[test]
    fn of_another_architecture_only_what_is_shared_is_taken_and_that_is_said() {
        let settings = ["model.architecture=topk".into(), "model.k=8".into()];
        let config = Config::parse(CONFIG, "x", &settings).unwrap();
        let note = config.note.as_deref().unwrap();
        assert!(note.contains("architecture topk"), "{note}");
        assert!(
            note.ends_with("left aside: model.k, model.preset, training.lr"),
            "{note}"
        );
        let set = sets(&config, Candidate::attention());
        let is_own = |one: &String| one.starts_with("model.a") || one.starts_with("training.lr");
        assert!(!set.iter().any(is_own), "{set:?}");
    }

    #[test]
    fn steps_are_few_unless_more_are_asked_for() {
        let steps = |steps: usize| {
            let settings = [format!("training.steps={steps}")];
            Config::parse(CONFIG, "x", &settings).unwrap()
        };
        assert_eq!(steps(2000).steps(None), STEPS);
        assert_eq!(steps(100).steps(None), 100);
        assert_eq!(steps(100).steps(Some(700)), 700);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text: &str, settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|one| one.to_string()).collect();
            let parsed = Config::parse(text, "x", &settings);
            let plan = parsed.and_then(|it| it.plan(&[Candidate::attention()], 1, &[0]));
            format!("{:#}", plan.unwrap_err())
        };
        assert!(wrong("", &[]).contains("model.n_latents is missing"));
        assert!(wrong("model.n_latents = 8", &[]).contains("data.train is missing"));
        assert!(wrong(CONFIG, &["model.n_latents=x"]).contains("not a whole number"));
        assert!(wrong(CONFIG, &["training.lr"]).contains("write KEY=VALUE"));
        assert!(wrong("run =", &[]).contains("expected"));
    }
}
