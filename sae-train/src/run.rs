//! Starts a new run directory, or continues in an existing one.

use anyhow::{Context, Result, bail};
use sae_data::{Fingerprint, Summary};
use sae_run::{FREE_TO_CHANGE, Raise, RunDir, Sides};
use toml::{Table, Value};

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::failure::Failure;
use crate::lock::RunLock;
use crate::output;
use crate::start::Start;

/// The keys that may change, for a message.
pub(crate) fn free_to_change() -> String {
    let keys = FREE_TO_CHANGE.join(", ");
    format!("{keys}; training.steps may be raised")
}

/// Where the numbers of a run come from.
pub(crate) type Provenance = sae_run::Provenance<Fingerprint>;

/// The provenance of the run of `config` by this process.
pub(crate) fn provenance(
    config: &Config,
    data: Sides<Fingerprint>,
    summaries: [&Summary; 2],
) -> Provenance {
    Provenance {
        version: env!("CARGO_PKG_VERSION").into(),
        burn: env!("SAE_BURN").into(),
        git_revision: Some(env!("SAE_REVISION").into())
            .filter(|commit: &String| !commit.is_empty()),
        device: config.device.clone(),
        card: None,
        threads: rayon::current_num_threads(),
        seed: config.seed,
        data,
        variances: summaries.map(|summary| summary.variance),
        from: None,
        raised: Vec::new(),
    }
}

/// The identity of a run: BLAKE3 of everything that its numbers depend on.
fn identity(config: &Config, provenance: &Provenance) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in flatten(&config.to_table()) {
        if !FREE_TO_CHANGE.contains(&key.as_str()) {
            hasher.update(format!("{key} = {value}\n").as_bytes());
        }
    }
    for (_, data) in provenance.data.by_key() {
        let (rows, sample) = (&data.rows_blake3, &data.sample_blake3);
        hasher.update(format!("{rows:?} {sample}\n").as_bytes());
    }
    if let Some(from) = &provenance.from {
        hasher.update(format!("from {}\n", from.blake3).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The checkpoints of the run of `config`.
pub(crate) fn checkpoints(dir: &RunDir, config: &Config, provenance: &Provenance) -> Checkpoints {
    let keep = config.training.keep_checkpoints;
    let all = Checkpoints::new(dir.checkpoints(), identity(config, provenance), keep);
    all.raised(provenance.raised.clone())
        .spread_over(config.training.latent_shards)
        .rounded(config.training.rounded_parts())
}

/// Fails if the directory of a new run holds anything but leftovers of a process that died before its run had begun.
pub(crate) fn check_new(dir: &RunDir) -> Result<()> {
    let path = dir.path().display();
    if dir.has_begun() {
        bail!(
            "run directory {path} exists; continue it with --resume, or start another with --set run=NAME \
             (or remove the directory)"
        );
    }
    if let Some(name) = dir.foreign_entry() {
        bail!(
            "run directory {path} holds no run, but {name:?}; start the run with --set run=NAME, or empty the directory"
        );
    }
    Ok(())
}

/// Fails if the directory does not hold a run of `config` on the same data.
pub(crate) fn check_resumable(
    dir: &RunDir,
    config: &Config,
    provenance: &Provenance,
) -> Result<()> {
    let differences = differences(&recorded_config(dir)?, &config.to_table());
    // Other data also changes the values derived from it, so a change of the data is reported first, unless the config
    // asks for it.
    let asks = |difference: &String| match difference.strip_prefix("data.") {
        Some(rest) if rest.starts_with("max_norm") => has_files_of(dir, provenance),
        rest => rest.is_some(),
    };
    if !differences.iter().any(asks) {
        check_data(dir, provenance)?;
    }
    if !differences.is_empty() {
        return Err(Failure::ConfigChanged {
            run: dir.path().into(),
            differences: differences.join("; "),
            free: free_to_change(),
        }
        .into());
    }
    Ok(())
}

/// The config of the run in this directory.
fn recorded_config(dir: &RunDir) -> Result<Table> {
    let config = dir.read_config()?.parse();
    config.with_context(|| format!("{}", dir.config().display()))
}

/// The number of steps that the run in this directory was last told to take.
pub(crate) fn recorded_steps(dir: &RunDir) -> Result<Option<usize>> {
    let config = recorded_config(dir)?;
    let steps = config.get("training").and_then(|table| table.get("steps"));
    let steps = steps.and_then(Value::as_integer);
    Ok(steps.and_then(|steps| usize::try_from(steps).ok()))
}

/// The changes of the number of steps of a run that now has `steps`. One that was recorded and never applied, because the
/// process died, is left out.
pub(crate) fn raises(dir: &RunDir, steps: usize) -> Result<Vec<Raise>> {
    let mut raised = dir.read_provenance::<Provenance>()?.raised;
    raised.retain(|raise| raise.to <= steps);
    Ok(raised)
}

/// Records changes of the number of steps. The config, which has the new number, is written after it: in between the run
/// still is what it was.
pub(crate) fn record_raises(dir: &RunDir, raised: &[Raise]) -> Result<()> {
    let mut provenance: Provenance = dir.read_provenance()?;
    if provenance.raised != raised {
        provenance.raised = raised.to_vec();
        dir.write_provenance(&provenance).map_err(Failure::from)?;
    }
    Ok(())
}

/// Returns true if the training data has the same files as before; then a different limit of norms was asked for.
fn has_files_of(dir: &RunDir, now: &Provenance) -> bool {
    let then = dir.read_provenance::<Provenance>();
    then.is_ok_and(|then| then.data.train.same_files(&now.data.train))
}

/// Fails if the data is not the data that the run was started with.
fn check_data(dir: &RunDir, now: &Provenance) -> Result<()> {
    let then: Provenance = dir.read_provenance()?;
    let sides = then.data.by_key().into_iter().zip(now.data.by_key());
    let variances = then.variances.into_iter().zip(now.variances);
    for (((key, then), (_, now)), (was, is)) in sides.zip(variances) {
        let difference = match then.difference(now) {
            Some(difference) => difference,
            None if same_variance(was, is) => continue,
            None => format!("its variance was {was}, and is {is}"),
        };
        return Err(Failure::DataChanged { key, difference }.into());
    }
    for difference in then.differences(now) {
        output::complain(format!(
            "note: the run was started with {difference}: the result may differ in its last bits"
        ));
    }
    Ok(())
}

/// Creates the directory of a new run, locks it, and writes the files that describe the run.
pub(crate) fn create(
    dir: &RunDir,
    config: &Config,
    provenance: &Provenance,
    start: Option<&Start>,
) -> Result<RunLock> {
    std::fs::create_dir_all(dir.path()).map_err(Failure::write(dir.path()))?;
    let lock = RunLock::take(dir)?;
    check_new(dir)?; // another process may have been quicker
    dir.write_provenance(provenance).map_err(Failure::from)?;
    if let Some(start) = start {
        start.write(dir)?;
    }
    write_config(dir, config)?;
    Ok(lock)
}

/// Writes the config, unless the file has this content already.
pub(crate) fn write_config(dir: &RunDir, config: &Config) -> Result<()> {
    let toml = toml::to_string(config).context("writing the config as TOML")?;
    Ok(dir.write_config(&toml).map_err(Failure::from)?)
}

/// Returns true if two variances are of the same data: serde_json may read a number one unit in the last place off the
/// number that it wrote.
fn same_variance(was: f64, is: f64) -> bool {
    (was - is).abs() <= 1e-12 * is.abs()
}

/// The keys in which two configs differ, as `key: old -> new`.
pub(crate) fn differences(old: &Table, new: &Table) -> Vec<String> {
    let (old, new) = (flatten(old), flatten(new));
    let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let value = |of: &[(String, Value)], key: &String| {
        let found = of.iter().find(|(k, _)| k == key);
        found.map_or("(absent)".to_string(), |(_, value)| value.to_string())
    };
    keys.into_iter()
        .filter(|key| !FREE_TO_CHANGE.contains(&key.as_str()))
        .filter_map(|key| {
            let (old, new) = (value(&old, key), value(&new, key));
            (old != new).then(|| format!("{key}: {old} -> {new}"))
        })
        .collect()
}

/// Plain values by dotted key.
fn flatten(table: &Table) -> Vec<(String, Value)> {
    let nested = |(key, value): (&String, &Value)| match value {
        Value::Table(inner) => flatten(inner)
            .into_iter()
            .map(|(rest, value)| (format!("{key}.{rest}"), value))
            .collect(),
        value => vec![(key.clone(), value.clone())],
    };
    table.iter().flat_map(nested).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_key_and_both_values() {
        let old: Table = "seed = 0\n[training]\nlr = 1e-3\nlog_every = 5"
            .parse()
            .unwrap();
        let new: Table = "seed = 1\n[training]\nlr = 1e-3\nlog_every = 9"
            .parse()
            .unwrap();
        assert_eq!(differences(&old, &new), ["seed: 0 -> 1"]);
    }

    #[test]
    fn a_variance_may_be_read_back_one_unit_off() {
        let written = 23.749591092613002_f64;
        let json = serde_json::to_string(&written).unwrap();
        let read: f64 = serde_json::from_str(&json).unwrap();
        assert!(same_variance(read, written), "{read} {written}");
        assert!(same_variance(written.next_up(), written));
        assert!(!same_variance(written * 1.000001, written));
    }
}
