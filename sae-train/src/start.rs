//! The saved model that a run starts from, in place of fresh parameters (`--from`).
//!
//! A copy of it lies in the run directory (`start/`), so that a run goes on, and begins again, without the model that was
//! named; `provenance.json` has its path and its fingerprint.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::Device;
use sae_model::{Sae, saved};
use sae_run::checkpoints::MODEL_FILE;
use sae_run::{Origin, RunDir, sealed};
use serde::Deserialize;

use crate::config::Fixed;
use crate::failure::Failure;

/// A model to start from.
#[derive(Debug)]
pub(crate) struct Start {
    /// The model, on the host.
    pub(crate) sae: Sae,
    /// Seed that its parameters were once initialised from.
    pub(crate) seed: u64,
    pub(crate) origin: Origin,
}

/// The part of `provenance.json` that is read here.
#[derive(Deserialize)]
struct Recorded {
    from: Option<Origin>,
}

impl Start {
    /// The model at `path`: a run directory that has one, or the directory of a saved model.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let dir = model_dir(path)?;
        let blake3 = fingerprint(&dir)?;
        let path = std::path::absolute(&dir).unwrap_or_else(|_| dir.clone());
        Self::at(&dir, Origin { path, blake3 })
    }

    /// The model that the run `run` was started from, if it was. `path` is the one that is asked for now.
    pub(crate) fn of_run(run: &RunDir, path: Option<&Path>) -> Result<Option<Self>> {
        let Recorded { from } = run.read_provenance()?;
        if let Some(path) = path {
            check_same(run, from.as_ref(), path)?;
        }
        from.map(|origin| Self::at(&run.start(), origin))
            .transpose()
    }

    /// The model in `dir`, which comes from `origin`.
    fn at(dir: &Path, origin: Origin) -> Result<Self> {
        Ok(Self {
            sae: saved::load(dir, &Device::flex())?,
            seed: saved::load_config(dir)?.seed,
            origin,
        })
    }

    /// The model, as a config must agree with it.
    pub(crate) fn fixed(&self) -> Fixed {
        Fixed {
            model: self.sae.config().clone(),
            path: Some(self.origin.path.clone()),
        }
    }

    /// Writes the copy.
    pub(crate) fn write(&self, run: &RunDir) -> Result<()> {
        let dir = run.start();
        saved::save(&self.sae, self.seed, &dir).map_err(|error| Failure::saving(&dir, error))
    }
}

/// The directory of the model that `path` names.
fn model_dir(path: &Path) -> Result<PathBuf> {
    let of_run = RunDir::new(path).model();
    for dir in [path, &of_run] {
        if dir.join(saved::CONFIG_FILE).exists() && !dir.join(MODEL_FILE).exists() {
            return Ok(dir.into());
        }
    }
    let remedy = match path {
        path if !path.exists() => "no such directory",
        path if path.join(MODEL_FILE).exists() => {
            "this is a checkpoint; make a model of it with sae-train export"
        }
        path if RunDir::new(path).has_begun() => {
            "this run has no trained model yet; finish it, or make one of a checkpoint with sae-train export"
        }
        _ => {
            "no saved model; name a run directory, or a directory with cfg.json and sae.safetensors"
        }
    };
    bail!("--from {}: {remedy}", path.display())
}

/// BLAKE3 of the file of parameters.
fn fingerprint(dir: &Path) -> Result<String> {
    let path = dir.join(saved::WEIGHTS_FILE);
    let sum = sealed::checksum(&path);
    sum.map_err(|source| saved::SavedModelError::Io { path, source }.into())
}

/// Fails if `path` is not the model that the run was started from. If that one is gone, its path is enough.
fn check_same(run: &RunDir, from: Option<&Origin>, path: &Path) -> Result<()> {
    let now = model_dir(path).and_then(|dir| Ok((fingerprint(&dir)?, dir)));
    let words = |path: &Path, blake3: &str| format!("{} (BLAKE3 {blake3})", path.display());
    let difference = match (from, now) {
        (Some(then), Ok((blake3, _))) if then.blake3 == blake3 => return Ok(()),
        (Some(then), Err(_))
            if std::path::absolute(path).is_ok_and(|path| then.path.starts_with(path)) =>
        {
            return Ok(());
        }
        (_, Err(error)) => return Err(error),
        (Some(then), Ok((blake3, dir))) => {
            format!(
                "--from: {} -> {}",
                words(&then.path, &then.blake3),
                words(&dir, &blake3)
            )
        }
        (None, Ok((blake3, dir))) => format!("--from: (absent) -> {}", words(&dir, &blake3)),
    };
    Err(Failure::ConfigChanged {
        run: run.path().into(),
        differences: difference,
        free: crate::run::free_to_change(),
    }
    .into())
}
