//! The model within a checkpoint of a run: `cfg.json` says what it is made of, `model.bpk` has its parameters among the
//! counters of training, as Burn records a module.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bytes, DType, Device};
use burn_pack::Tensor;
use sae_run::RunDir;
use sae_run::checkpoints::{Checkpoint, MODEL_FILE, Which, part_of};

use super::{CONFIG_FILE, SavedConfig, SavedModelError, finite, io, load_config};
use crate::sae::Sae;

/// Where the parameters stand in the module that is trained.
const PARAMETERS: &str = "sae.parameters";

/// Loads the model of a checkpoint of `run` to a device, with its `cfg.json` and the checkpoint. Takes no lock: the run may
/// be in progress.
///
/// # Errors
/// [`SavedModelError`] if there is no such checkpoint or it has no whole model.
pub fn load_checkpoint(
    run: &RunDir,
    which: Which,
    device: &Device,
) -> Result<(Sae, SavedConfig, Checkpoint), SavedModelError> {
    run.with_checkpoint(which, |found| {
        let saved = config(run, &found.path)?;
        let sae = load(&found.path, &saved, device)?;
        Ok((sae, saved, found.clone()))
    })
}

/// The `cfg.json` of the checkpoint `dir`; checkpoints of earlier versions have none, but a run that has ended has its model's.
fn config(run: &RunDir, dir: &Path) -> Result<SavedConfig, SavedModelError> {
    let own = dir.join(CONFIG_FILE).exists();
    match own || !run.model().exists() {
        true => load_config(dir),
        false => load_config(&run.model()),
    }
}

/// The record of one process: its file, and its tensors by name.
struct Record {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Record {
    fn read(path: PathBuf) -> Result<Self, SavedModelError> {
        let bytes = fs::read(&path).map_err(io(&path))?;
        let record = burn_pack::Reader::from_bytes(Bytes::from_bytes_vec(bytes));
        let record = record.and_then(burn_pack::Reader::into_tensors);
        let tensors = record.map_err(|error| Self::wrong(&path, error.to_string()))?;
        let tensors = tensors.into_iter();
        let tensors = tensors
            .map(|tensor| (tensor.name.clone(), tensor))
            .collect();
        Ok(Self { path, tensors })
    }

    fn wrong(path: &Path, reason: String) -> SavedModelError {
        SavedModelError::Record {
            path: path.into(),
            reason,
        }
    }

    /// The values at `place`, and how many rows they have, of a parameter of this shape; the number of rows may be another.
    fn take(
        &mut self,
        place: &str,
        name: &str,
        dims: &[usize],
    ) -> Result<(Vec<f32>, usize), SavedModelError> {
        let wrong = |reason| Self::wrong(&self.path, reason);
        let tensor = self.tensors.remove(place);
        let tensor = tensor.ok_or_else(|| wrong(format!("{place} is missing")))?;
        let (dtype, shape) = (tensor.dtype, tensor.shape.to_vec());
        if dtype != DType::F32 || shape.len() != dims.len() || shape[1..] != dims[1..] {
            return Err(wrong(wrong_shape(place, name, (dtype, &shape), dims)));
        }
        let bytes = tensor.into_bytes();
        let bytes = bytes.map_err(|error| wrong(error.to_string()))?;
        Ok((finite(&bytes, &self.path, name)?, shape[0]))
    }
}

fn wrong_shape(
    place: &str,
    name: &str,
    (dtype, shape): (DType, &[usize]),
    dims: &[usize],
) -> String {
    format!("{place}, {name}, is {dtype:?} {shape:?}, not F32 {dims:?}")
}

/// The records of all processes among which the latents were spread: one, if they were not.
fn records(dir: &Path) -> Result<Vec<Record>, SavedModelError> {
    let path = |rank| dir.join(part_of(MODEL_FILE, rank));
    let there = (1..).map(path).take_while(|path| path.exists());
    std::iter::once(path(0))
        .chain(there)
        .map(Record::read)
        .collect()
}

fn load(dir: &Path, saved: &SavedConfig, device: &Device) -> Result<Sae, SavedModelError> {
    let mut records = records(dir)?;
    // Matrices and vectors are numbered each on their own, in the order of the table.
    let mut counts = [0, 0];
    let sae = Sae::with_values(&saved.model, device, |parameter, dims| {
        let (list, count) = match dims.len() {
            2 => ("matrices", &mut counts[0]),
            _ => ("vectors", &mut counts[1]),
        };
        let place = format!("{PARAMETERS}.{list}.{count}");
        *count += 1;
        let (mut all, mut rows) = (Vec::new(), 0);
        for (rank, record) in records.iter_mut().enumerate() {
            let (values, own) = record.take(&place, parameter.name, dims)?;
            // what is not of latents every process has
            if rank == 0 || parameter.shape.is_of_latents() {
                all.extend(values);
                rows += own;
            }
        }
        if rows == dims[0] {
            return Ok(all);
        }
        let shape = [&[rows], &dims[1..]].concat();
        let wrong = wrong_shape(&place, parameter.name, (DType::F32, &shape), dims);
        Err(Record::wrong(&records[0].path, wrong))
    })?;
    let stranger = |record: &Record| {
        let mut names = record.tensors.keys();
        let name = names.find(|name| name.starts_with(PARAMETERS))?;
        Some(Record::wrong(
            &record.path,
            format!("{name} is not part of the model"),
        ))
    };
    match records.iter().find_map(stranger) {
        Some(error) => Err(error),
        None => Ok(sae),
    }
}
