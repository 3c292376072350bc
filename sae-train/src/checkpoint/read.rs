//! Reads checkpoints. Every record is checked against the model first, because Burn would panic or silently leave out
//! what does not fit. Tensors are read from the file when they are asked for: in memory there is one copy of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::lr_scheduler::LrSchedulerRecord;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::{DType, Tensor};
use sae_run::checkpoints::part_of;

use super::{MODEL, OPTIMIZER, SCHEDULER};
use crate::learner::SaeLearner;
use crate::schedule;

/// A checkpoint that cannot be read, or whose checksums are right but whose content is not of this model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: not a record of this model ({reason})", path.display())]
    Record { path: PathBuf, reason: String },
}

/// Loads the state in the checkpoint `dir`, of step `step`, into the parts of a learner; `rank` is the process, where its latents are
/// spread over several.
pub(crate) fn restore(
    dir: &Path,
    (step, rank): (usize, usize),
    learner: SaeLearner,
    optimizer: ModuleOptimizer,
    scheduler: ModuleLrScheduler,
) -> Result<(SaeLearner, ModuleOptimizer, ModuleLrScheduler), RestoreError> {
    let learner = part(dir, &part_of(MODEL, rank), |path| {
        let record = ModuleRecord::load(path).map_err(words)?;
        learner.try_load_record(record).map_err(words)
    })?;
    let optimizer = part(dir, &part_of(OPTIMIZER, rank), |path| {
        check_moments(path, &learner)?;
        let record = OptimizerRecord::load(path).map_err(words)?;
        let saved = record.len();
        let optimizer = optimizer.load_record(record);
        match optimizer.to_record().len() {
            loaded if loaded == saved => Ok(optimizer),
            loaded => Err(format!("{loaded} of its {saved} tensors could be used")),
        }
    })?;
    let scheduler = part(dir, SCHEDULER, |path| {
        let record = LrSchedulerRecord::load(path).map_err(words)?;
        for group in schedule::GROUPS {
            match record.record(group).scalar::<u64>("step") {
                Some(found) if found == step as u64 => {}
                found => return Err(format!("its step is {found:?}, not {step}")),
            }
        }
        Ok(scheduler.load_record(record))
    })?;
    Ok((learner, optimizer, scheduler))
}

fn words(error: RecordError) -> String {
    error.to_string()
}

fn part<T>(
    dir: &Path,
    name: &str,
    load: impl FnOnce(&Path) -> Result<T, String>,
) -> Result<T, RestoreError> {
    let path = dir.join(name);
    if let Err(source) = File::open(&path) {
        return Err(RestoreError::Io { path, source });
    }
    load(&path).map_err(|reason| RestoreError::Record { path, reason })
}

/// Fails unless the optimizer's state has two moments per parameter, with the parameter's shape. The rank is checked on
/// its own because Burn believes the one that the record names.
fn check_moments(path: &Path, learner: &SaeLearner) -> Result<(), String> {
    let reader = burn_pack::Reader::from_file_exact(path).map_err(|error| error.to_string())?;
    let mut wanted = Shapes::default();
    learner.visit(&mut wanted);
    let ranks: Vec<_> = reader
        .scalars()
        .iter()
        .filter_map(|(name, rank)| Some((name.strip_suffix(".__rank")?.to_string(), *rank)))
        .collect();
    for (id, rank) in ranks {
        let shape = id.parse().ok().and_then(|id| wanted.0.get(&id));
        if shape.is_none_or(|shape| usize::try_from(rank) != Ok(shape.len())) {
            return Err(format!("{id}: rank {rank:?} is not that of a parameter"));
        }
    }
    let mut found: BTreeMap<u64, usize> = BTreeMap::new();
    for tensor in reader.into_tensors().map_err(|error| error.to_string())? {
        let shape = tensor.param_id.and_then(|id| wanted.0.get(&id));
        let shape = shape.ok_or_else(|| format!("{}: no such parameter", tensor.name))?;
        if tensor.dtype != DType::F32 || tensor.shape.to_vec() != *shape {
            let (name, dtype, found) = (&tensor.name, tensor.dtype, tensor.shape.to_vec());
            return Err(format!("{name} is {dtype:?} {found:?}, not {shape:?}"));
        }
        *found
            .entry(tensor.param_id.unwrap_or_default())
            .or_default() += 1;
    }
    match found.values().find(|count| **count != 2) {
        Some(count) => Err(format!("{count} moments of a parameter, not 2")),
        None => Ok(()),
    }
}

/// Shapes of the parameters that an optimizer touches, by id.
#[derive(Default)]
struct Shapes(BTreeMap<u64, Vec<usize>>);

impl ModuleVisitor for Shapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        if tensor.is_require_grad() {
            self.0.insert(param.id.val(), tensor.dims().to_vec());
        }
    }
}
