//! Checks that training fits into memory, before anything is written.
//!
//! It counts only what training always holds, whatever the data: a run that is refused here could not have taken a
//! step. Sizes are saturating `u128`, so that no number in a config makes them wrap.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use sae_data::ActivationData;
use sae_model::device::DeviceName;
use sae_model::parameters::{self, Shape};
use sae_model::{Architecture, SaeConfig};

use crate::config::{Config, ConfigError, DataScale, invalid};

/// Bytes of a float.
const FLOAT: u128 = 4;
/// Bytes of an active latent in codes: its index and its value.
const ENTRY: u128 = 8;
/// More than any machine has: the limit if the available memory is unknown.
const ABSURD: u128 = 1 << 44;

/// Bytes that training holds at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Estimate {
    /// The parameters; each of Adam's two moments needs as much.
    parameters: u128,
    /// The gradients: of a part of the batch, and where it has several their sum.
    gradients: u128,
    /// True if gradients and moments lie in this memory, too (not on a GPU).
    trained_here: bool,
    /// The rows of a batch as loaded, and those of a part of it as queries and as reconstructions.
    batch: u128,
    /// Active latents of a part of the batch, values and gradients.
    codes: u128,
    /// The loader's windows.
    windows: u128,
}

impl Estimate {
    fn of(config: &Config, model: &SaeConfig, rows: usize) -> Self {
        let times = |factors: &[u128]| factors.iter().fold(1, |a: u128, b| a.saturating_mul(*b));
        let here = model.n_latents.div_ceil(config.training.latent_shards);
        let (m, d) = (here as u128, model.d_in as u128);
        let batch_rows = config.training.batch_size as u128;
        let part_rows = batch_rows / config.training.shards as u128;
        let with_sum = if config.training.shards > 1 { 2 } else { 1 };
        let rounded = u128::from(config.training.rounded_parts() > 0); // at least, in each of many processes
        let table = parameters::table(model);
        let of_shape = |shape| table.iter().filter(|p| p.shape == shape).count() as u128;
        let dictionaries = times(&[of_shape(Shape::Dictionary), m, d]);
        let floats = dictionaries.saturating_add(times(&[of_shape(Shape::Square), d, d]));
        let name = config.device.parse::<DeviceName>();
        let trained_here = !name.is_ok_and(DeviceName::is_gpu);
        let active = model.architecture.asked_l0().unwrap_or(1) as u128;
        let data = times(&[rows as u128, d, FLOAT]);
        let parameters = floats.saturating_mul(FLOAT);
        Self {
            parameters,
            gradients: if trained_here {
                parameters.saturating_mul(with_sum + rounded)
            } else {
                0
            },
            trained_here,
            batch: if trained_here {
                times(&[
                    batch_rows.saturating_add(part_rows.saturating_mul(2)),
                    d,
                    FLOAT,
                ])
            } else {
                0
            },
            codes: if trained_here {
                times(&[2, part_rows, active, ENTRY])
            } else {
                0
            },
            windows: data.min((config.data.window_mb as u128) << 20),
        }
    }

    fn total(&self) -> u128 {
        let parts = [self.kept(), self.of_step(), self.windows];
        parts.into_iter().fold(0, u128::saturating_add)
    }

    /// What stays from step to step: the parameters and Adam's moments.
    fn kept(&self) -> u128 {
        let copies = if self.trained_here { 3 } else { 1 };
        self.parameters.saturating_mul(copies)
    }

    /// What only a step needs: the gradients, and what belongs to a batch.
    fn of_step(&self) -> u128 {
        let batch = self.batch.saturating_add(self.codes);
        self.gradients.saturating_add(batch)
    }

    /// The config key of the largest part, its value, and what to use instead.
    fn key(&self, config: &Config) -> (&'static str, usize, &'static str) {
        let dictionary = self.total() - self.batch.saturating_add(self.codes).min(self.total());
        let dictionary = dictionary.saturating_sub(self.windows);
        let rows = self.batch.saturating_add(self.codes);
        if self.windows >= rows.max(dictionary) {
            ("data.window_mb", config.data.window_mb, "a smaller window")
        } else if rows >= dictionary {
            (
                "training.batch_size",
                config.training.batch_size,
                "fewer rows per step",
            )
        } else {
            (
                "model.n_latents",
                config.model.n_latents,
                "fewer latents, or spread them over processes (docs/DISTRIBUTED.md)",
            )
        }
    }
}

/// For messages: `parameters 160 TB, gradients 160 TB, ...`.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameters {}", size(self.parameters))?;
        if self.trained_here {
            let moments = self.parameters.saturating_mul(2);
            let (gradients, moments) = (size(self.gradients), size(moments));
            let (batch, codes) = (size(self.batch), size(self.codes));
            write!(
                f,
                ", gradients {gradients}, Adam's moments {moments}, batch {batch}, codes {codes}"
            )?;
        }
        write!(f, ", loader windows {}", size(self.windows))
    }
}

/// Bytes that a training step of `rows` rows holds on a GPU at its peak, where a row has at most `longest` active latents:
///
/// ```text
/// 5 P + 3 D + 16 B d + 12 C + 40 N      in float32 numbers of 4 bytes, but for C and N in bytes
/// ```
///
/// P are the parameters (those of the step before and after it, gradients, two moments), D the largest of them (what Adam writes
/// before the old ones go), C the slots for candidates, and N those of the codes. None of it is `B M`.
pub fn device_memory(model: &SaeConfig, rows: usize, longest: usize) -> u64 {
    let (m, d) = (model.n_latents as u64, model.d_in as u64);
    let of = |parameter: &parameters::Parameter| match parameter.shape {
        Shape::Dictionary => m * d,
        Shape::Square => d * d,
        _ => m.max(d), // a vector
    };
    let table = parameters::table(model);
    let parameters: u64 = table.iter().map(of).sum();
    let largest = table.iter().map(of).max().unwrap_or(0);
    let (rows, longest) = (rows as u64, longest as u64);
    let room = longest.max(1024).min(m).next_power_of_two();
    let floats = 5 * parameters + 3 * largest + 16 * rows * d;
    4 * floats + 12 * rows * room + 40 * rows * longest
}

/// Fails if training on `train` cannot fit.
pub(crate) fn check(config: &Config, train: &ActivationData) -> Result<(), ConfigError> {
    judge(config, &estimate(config, train)?, available())
}

/// Fails if runs that train beside each other on `train`, and take turns, cannot fit.
pub(crate) fn check_together(
    runs: &[(&Config, usize)],
    train: &ActivationData,
) -> Result<(), ConfigError> {
    let of = |(config, lane): &(&Config, usize)| Ok((estimate(config, train)?, *lane));
    let estimates = runs
        .iter()
        .map(of)
        .collect::<Result<Vec<_>, ConfigError>>()?;
    judge_together(&estimates, available())
}

fn estimate(config: &Config, train: &ActivationData) -> Result<Estimate, ConfigError> {
    let model = config.resolve(DataScale::unknown(train.width()))?.model;
    Ok(Estimate::of(config, &model, train.rows()))
}

fn judge_together(
    estimates: &[(Estimate, usize)],
    available: Option<u128>,
) -> Result<(), ConfigError> {
    let limit = available.unwrap_or(ABSURD);
    let needed = together(estimates);
    if needed <= limit {
        return Ok(());
    }
    let fit = |at_once: &usize| {
        estimates
            .chunks(*at_once)
            .all(|part| together(part) <= limit)
    };
    let remedy = match (1..estimates.len()).rev().find(fit) {
        Some(at_once) => format!("train {at_once} of them at once (--at-once {at_once})"),
        None => "use fewer latents: not each of them fits alone".into(),
    };
    let (runs, needed, limit) = (estimates.len(), size(needed), size(limit));
    let message = format!(
        "runs that share a pass over the data need at least {needed} of memory (of every run the parameters and Adam's moments, \
         and the largest step), but only {limit} is available; {remedy}"
    );
    Err(invalid("sweep", format!("{runs} runs"), message))
}

/// Bytes that runs of one pass hold at least: one of each lane computes at a time.
fn together(estimates: &[(Estimate, usize)]) -> u128 {
    let all = |of: fn(&Estimate) -> u128| estimates.iter().map(move |(estimate, _)| of(estimate));
    let kept = all(Estimate::kept).fold(0, u128::saturating_add);
    let mut steps = BTreeMap::new();
    for (estimate, lane) in estimates {
        let largest = steps.entry(lane).or_insert(0);
        *largest = estimate.of_step().max(*largest);
    }
    let steps = steps.into_values().fold(0, u128::saturating_add);
    let windows = all(|estimate| estimate.windows).max().unwrap_or(0);
    [kept, steps, windows]
        .into_iter()
        .fold(0, u128::saturating_add)
}

fn judge(config: &Config, estimate: &Estimate, available: Option<u128>) -> Result<(), ConfigError> {
    let (needed, limit) = (estimate.total(), available.unwrap_or(ABSURD));
    if needed <= limit {
        return Ok(());
    }
    let (key, value, remedy) = estimate.key(config);
    let there = match available {
        Some(bytes) => format!("only {} is available", size(bytes)),
        None => format!("no machine has more than {}", size(ABSURD)),
    };
    let needed = size(needed);
    let message = format!(
        "training needs at least {needed} of memory ({estimate}), but {there}; use {remedy}"
    );
    Err(invalid(key, value, message))
}

/// `16.0 GB`, in decimal units, like the documentation.
fn size(bytes: u128) -> String {
    const UNITS: [&str; 7] = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    match unit {
        0 => format!("{value} {}", UNITS[0]),
        _ if value >= 1e6 => format!("{value:.1e} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// Bytes of memory that this process can still get, if the system tells (Linux).
fn available() -> Option<u128> {
    available_in(Path::new("/"))
}

/// The same under another root, for tests.
fn available_in(root: &Path) -> Option<u128> {
    let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib = |name: &str| -> Option<u128> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let machine = 1024 * (kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0));
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|line| group_limits(root, line));
    Some(limits.fold(machine, u128::min))
}

/// The memory limits behind one line of `/proc/self/cgroup`: of the group and of all groups that contain it.
fn group_limits(root: &Path, line: &str) -> Vec<u128> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"), // version 2
        _ if controllers.split(',').any(|c| c == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let mount = root.join(mount);
    let group: PathBuf = mount.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|dir| dir.starts_with(&mount));
    let limit = |dir: &Path| -> Option<u128> {
        let text = std::fs::read_to_string(dir.join(file)).ok()?;
        text.trim().parse().ok() // or "max"
    };
    groups.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sae_model::architectures::TopK;

    fn config(set: &[&str]) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small.toml");
        let text = "[data]\ntrain = 'a'\n[model]\nn_latents = 1000\n[training]\nsteps = 1\nbatch_size = 10\n";
        std::fs::write(&path, text).unwrap();
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        Config::load(&path, &set, None).unwrap()
    }

    #[test]
    fn what_is_counted() {
        let topk = config(&["model.architecture=topk"]);
        let model = SaeConfig::new(TopK::default(), 20, 1000);
        let estimate = Estimate::of(&topk, &model, 7);
        assert_eq!(estimate.parameters, 2 * 1000 * 20 * 4);
        assert_eq!(estimate.batch, 3 * 10 * 20 * 4);
        assert_eq!(estimate.codes, 2 * 10 * 32 * 8);
        assert_eq!(estimate.windows, 7 * 20 * 4);
        assert_eq!(estimate.total(), 4 * 160_000 + 2400 + 5120 + 560);
        let parts = config(&["model.architecture=topk", "training.shards=5"]);
        let in_parts = Estimate::of(&parts, &model, 7);
        assert_eq!(in_parts.batch, (10 + 2 * 2) * 20 * 4);
        assert_eq!(in_parts.codes, 2 * 2 * 32 * 8);
        assert_eq!(in_parts.gradients, 2 * estimate.gradients);
        for device in ["device=wgpu", "device=cuda:1"] {
            let attention = config(&[device]);
            let model = attention.resolve(DataScale::unknown(20)).unwrap().model;
            let estimate = Estimate::of(&attention, &model, 7);
            assert_eq!(estimate.total(), (1000 * 20 + 20 * 20) * 4 + 560);
        }
    }

    #[test]
    fn runs_that_take_turns_need_one_step_and_all_moments() {
        let config = config(&["model.architecture=topk"]);
        let model = SaeConfig::new(TopK::default(), 20, 1000);
        let one = Estimate::of(&config, &model, 7);
        let lanes = |of: [usize; 5]| of.map(|lane| (one, lane));
        let together_in = |of: [usize; 5]| together(&lanes(of));
        assert_eq!(together(&[(one, 0)]), one.total());
        let in_one = one.total() + 4 * 3 * one.parameters;
        assert_eq!(together_in([0; 5]), in_one);
        assert_eq!(together_in([0, 1, 0, 1, 0]), in_one + one.of_step());
        let just = |runs: usize| Some(together(&vec![(one, 0); runs]));
        assert!(judge_together(&lanes([0; 5]), just(5)).is_ok());
        let refused = |available| {
            judge_together(&lanes([0; 5]), available)
                .unwrap_err()
                .to_string()
        };
        let error = refused(Some(just(3).unwrap() + 1));
        assert!(
            error.starts_with("sweep = 5 runs: runs that share a pass")
                && error.ends_with("(--at-once 3)"),
            "{error}"
        );
        assert!(refused(Some(10)).ends_with("not each of them fits alone"));
    }

    #[test]
    fn no_number_wraps_and_the_key_is_that_of_the_largest_part() {
        for (set, key) in [
            ("model.n_latents=10000000000000", "model.n_latents = 1"),
            ("model.n_latents=9223372036854775807", "model.n_latents = 9"),
            (
                "training.batch_size=9223372036854775807",
                "training.batch_size = 9",
            ),
            ("data.window_mb=9223372036854775807", "data.window_mb = 9"),
        ] {
            let config = config(&[set]);
            for width in [384, usize::MAX] {
                let model = config.resolve(DataScale::unknown(width)).unwrap().model;
                let estimate = Estimate::of(&config, &model, usize::MAX);
                for available in [None, Some(16_000_000_000)] {
                    let error = judge(&config, &estimate, available)
                        .unwrap_err()
                        .to_string();
                    assert!(width != 384 || error.starts_with(key), "{error}");
                    assert!(error.contains("training needs at least"), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_can_be_had_is_the_least_of_machine_and_groups() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(available_in(root.path()), None);
        write(
            "proc/meminfo",
            "MemTotal: 9000 kB\nMemAvailable:   8000 kB\nSwapFree: 100 kB\n",
        );
        assert_eq!(available_in(root.path()), Some(8100 * 1024));
        write("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/c/d\n");
        write("sys/fs/cgroup/c/d/memory.max", "max\n");
        assert_eq!(available_in(root.path()), Some(8100 * 1024));
        write("sys/fs/cgroup/c/memory.max", "5000000\n");
        assert_eq!(available_in(root.path()), Some(5_000_000));
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n");
        assert_eq!(available_in(root.path()), Some(4_000_000));
    }
}
