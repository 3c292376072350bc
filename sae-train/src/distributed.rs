//! A run over several processes, which `mpirun` or Slurm has started: how they find out that they are about to train the same run.
//!
//! Process 0 prepares the run as if it were alone. The others prepare it without its directory, and all compare what they have found
//! before anything is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use sae_comm::{Comm, CommError};
use sae_model::ops;
use sae_run::RunDir;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::failure::{self, Failure};
use crate::prepare::Prepared;
use crate::run;
use crate::shards::Shards;

/// Variables by which launchers tell a process how many there are, and which of those on its machine it is.
const RANKS: [&str; 4] = [
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
];
const LOCAL_RANK: [&str; 3] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "SLURM_LOCALID",
];

/// Longest wait for a file that another process has written to show in a shared directory.
const PATIENCE: Duration = Duration::from_secs(10);

/// A number that a launcher has put into the environment.
fn told(names: &[&str]) -> Option<usize> {
    let value = |name: &&str| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(value)
}

/// Number of processes that a launcher says it has started; 1 if there is none.
pub(crate) fn launched() -> usize {
    told(&RANKS).unwrap_or(1)
}

/// The other processes. MPI is asked only where a launcher has been: without one it may end the process with words of its own.
pub(crate) fn world() -> Result<Arc<dyn Comm>> {
    if cfg!(feature = "mpi") && told(&RANKS).is_none() {
        bail!(
            "--distributed: no launcher has started this process; start it by `mpirun -n 2 sae-train ... --distributed` (Debian: \
             openmpi-bin) or srun"
        );
    }
    sae_comm::world().map_err(|error| match error {
        CommError::NotCompiled => anyhow!(
            "--distributed: {error}; build with --features mpi (Debian: openmpi-bin, libopenmpi-dev and libclang-dev), for \
             example `cargo build -p sae-train --features mpi`"
        ),
        error => anyhow!("--distributed: {error}"),
    })
}

/// The device of this process, of several: those on a machine take turns.
pub(crate) fn device_of(devices: &[&str], comm: &dyn Comm) -> Option<String> {
    let at = told(&LOCAL_RANK).unwrap_or(comm.rank());
    let device = devices.get(at % devices.len().max(1));
    device.map(|name| name.to_string())
}

/// What a process has found when it prepared.
#[derive(Serialize, Deserialize)]
enum Found {
    /// A run: its config as TOML, and the fingerprints of its data.
    Run { config: String, data: Vec<String> },
    /// Something is wrong.
    Wrong,
}

/// Prepares a run in every process, and fails in all if it cannot start in one.
pub(crate) fn agreed(
    comm: Arc<dyn Comm>,
    prepare: impl FnOnce() -> Result<Prepared>,
) -> Result<Prepared> {
    let prepared = prepare().and_then(|run| {
        check_shards(&run, comm.ranks())?;
        Ok((found(&run)?, run))
    });
    let said = match &prepared {
        Ok((found, _)) => serde_json::to_vec(found)?,
        Err(_) => serde_json::to_vec(&Found::Wrong)?,
    };
    let all = comm.gather_bytes(&said);
    let all = all.iter().map(|said| serde_json::from_slice(said));
    let all: Vec<Found> = all
        .collect::<Result<_, _>>()
        .context("what another process has found: they are not of one version")?;
    let wrong = all.iter().position(|found| matches!(found, Found::Wrong));
    let run = match (prepared, wrong) {
        (Ok((_, run)), None) => run,
        // the first that has found something wrong says it
        (Err(error), Some(first)) if first == comm.rank() => {
            return Err(match first {
                0 => error,
                _ => error.context(format!("process {first} of {}", comm.ranks())),
            });
        }
        _ => return Err(Failure::Elsewhere.into()),
    };
    match difference(&all)? {
        Some(difference) if comm.rank() == 0 => Err(anyhow!(difference)),
        Some(_) => Err(Failure::Elsewhere.into()),
        None => {
            let shards = match run.config.training.latent_shards {
                1 => Shards::new(comm, run.config.training.shards)
                    .with_gradients(run.config.training.part_gradients),
                _ => Shards::of_latents(comm),
            };
            Ok(Prepared { shards, ..run })
        }
    }
}

/// Fails if so many processes cannot share the parts of a batch, or the latents.
fn check_shards(run: &Prepared, ranks: usize) -> Result<()> {
    match run.config.training.latent_shards {
        1 => {}
        spread if spread != ranks => bail!(
            "training.latent_shards = {spread}: the latents are spread over {spread} processes, and these are {ranks}; start as many, \
             with --shard latents"
        ),
        _ if !ops::is_cpu(&run.device) => bail!(
            "device = \"{}\": latents are spread over processors only, so far; use --device cpu",
            run.config.device
        ),
        _ => return Ok(()),
    }
    let (shards, batch) = (run.config.training.shards, run.config.training.batch_size);
    if !shards.is_multiple_of(ranks) {
        let next = (ranks..=batch)
            .step_by(ranks)
            .find(|parts| batch.is_multiple_of(*parts));
        let remedy = next.map_or(String::new(), |parts| {
            format!(", for example --set training.shards={parts}")
        });
        bail!(
            "training.shards = {shards}: {ranks} processes cannot share these parts of a batch equally; take a multiple of \
             {ranks} that divides training.batch_size{remedy}"
        );
    }
    Ok(())
}

fn found(run: &Prepared) -> Result<Found> {
    let data = run.provenance.data.by_key().into_iter();
    let data = data.map(|(key, data)| {
        let (rows, sample) = (&data.rows_blake3, &data.sample_blake3);
        format!("{key} {rows:?} {sample}")
    });
    let mut config = run.config.to_table();
    config.remove("device"); // each has its own
    Ok(Found::Run {
        config: toml::to_string(&config).context("writing the config as TOML")?,
        data: data.collect(),
    })
}

/// How the run of some process differs from that of process 0.
fn difference(all: &[Found]) -> Result<Option<String>> {
    let runs = all.iter().filter_map(|found| match found {
        Found::Run { config, data } => Some((config, data)),
        Found::Wrong => None,
    });
    let runs: Vec<_> = runs.collect();
    let table = |config: &str| {
        config
            .parse::<Table>()
            .context("a config of another process")
    };
    for (rank, (config, data)) in runs.iter().enumerate().skip(1) {
        let differences = run::differences(&table(runs[0].0)?, &table(config)?);
        if !differences.is_empty() {
            let differences = differences.join("; ");
            return Ok(Some(format!(
                "process {rank} has another config than process 0: {differences}"
            )));
        }
        if *data != runs[0].1 {
            return Ok(Some(format!(
                "process {rank} has other data than process 0: the files of one name are not the same"
            )));
        }
    }
    Ok(None)
}

/// Where training begins, as process 0 tells it.
#[derive(Serialize, Deserialize)]
struct Beginning {
    /// Steps done.
    done: usize,
    /// The content of the run's config file.
    config: String,
}

/// Tells the others, from process 0, that the run directory is there, and training begins behind step `done`. Fails if one of them
/// cannot begin.
pub(crate) fn begin(shards: &Shards, dir: &RunDir, done: usize) -> Result<()> {
    let config = dir.read_config()?;
    let beginning = serde_json::to_vec(&Beginning { done, config })?;
    shards.comm().broadcast(beginning);
    let answers = shards.comm().gather_bytes(b"");
    let wrong = answers
        .iter()
        .enumerate()
        .find(|(_, answer)| !answer.is_empty());
    match wrong {
        None => Ok(()),
        Some((rank, answer)) => bail!("process {rank}: {}", String::from_utf8_lossy(answer)),
    }
}

/// Hears it, in the others; `build` makes what this process needs to begin behind a step.
pub(crate) fn begun<T>(
    shards: &Shards,
    dir: &RunDir,
    build: impl FnOnce(usize) -> Result<T>,
) -> Result<(usize, T)> {
    let heard = shards.comm().broadcast(Vec::new());
    let beginning: Beginning = serde_json::from_slice(&heard)
        .context("what process 0 says: they are not of one version")?;
    let built = see(dir, &beginning.config).and_then(|()| build(beginning.done));
    let answer = match &built {
        Ok(_) => String::new(),
        Err(error) => failure::message(error),
    };
    let answers = shards.comm().gather_bytes(answer.as_bytes());
    match (built, answers.iter().all(Vec::is_empty)) {
        (Ok(built), true) => Ok((beginning.done, built)),
        _ => Err(Failure::Elsewhere.into()),
    }
}

/// Waits until the run directory has this config: process 0 has written it.
fn see(dir: &RunDir, config: &str) -> Result<()> {
    let started = Instant::now();
    while dir.read_config().ok().as_deref() != Some(config) {
        if started.elapsed() > PATIENCE {
            bail!(
                "the run directory {} is not the one that process 0 writes; all processes need one, set runs_dir to a directory \
                 that they share",
                dir.path().display()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
