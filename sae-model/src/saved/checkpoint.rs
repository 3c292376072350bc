//! The model within a checkpoint of a run: `cfg.json` says what it is made of, `model.bpk` has its parameters among the
//! counters of training, as Burn records a module.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Bytes, DType, Device};
use burn_pack::Tensor;
use sae_run::RunDir;
use sae_run::checkpoints::{Checkpoint, MODEL_FILE, Which};

use super::{CONFIG_FILE, SavedConfig, SavedModelError, finite, io, load_config};
use crate::parameters::Parameters;
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

fn load(dir: &Path, saved: &SavedConfig, device: &Device) -> Result<Sae, SavedModelError> {
    let path = dir.join(MODEL_FILE);
    let wrong = |reason: String| SavedModelError::Record {
        path: path.clone(),
        reason,
    };
    let bytes = fs::read(&path).map_err(io(&path))?;
    let record = burn_pack::Reader::from_bytes(Bytes::from_bytes_vec(bytes));
    let record = record.and_then(burn_pack::Reader::into_tensors);
    let record = record.map_err(|error| wrong(error.to_string()))?;
    let mut tensors: HashMap<String, Tensor> = record
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    // Matrices and vectors are numbered each on their own, in the order of the table.
    let mut counts = [0, 0];
    let parameters = Parameters::build(&saved.model, device, |parameter, dims| {
        let (list, count) = match dims.len() {
            2 => ("matrices", &mut counts[0]),
            _ => ("vectors", &mut counts[1]),
        };
        let place = format!("{PARAMETERS}.{list}.{count}");
        *count += 1;
        let tensor = tensors.remove(&place);
        let tensor = tensor.ok_or_else(|| wrong(format!("{place} is missing")))?;
        let (dtype, shape) = (tensor.dtype, tensor.shape.to_vec());
        if dtype != DType::F32 || shape != dims {
            let reason = format!(
                "{place}, {}, is {dtype:?} {shape:?}, not F32 {dims:?}",
                parameter.name
            );
            return Err(wrong(reason));
        }
        let bytes = tensor
            .into_bytes()
            .map_err(|error| wrong(error.to_string()))?;
        finite(&bytes, &path, parameter.name)
    })?;
    match tensors.keys().find(|name| name.starts_with(PARAMETERS)) {
        Some(name) => Err(wrong(format!("{name} is not part of the model"))),
        None => Ok(Sae {
            parameters,
            config: saved.model.clone(),
        }),
    }
}
