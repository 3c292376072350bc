//! A learner whose latents are spread over processes ([`sae_model::Across`]): every process sees the whole batch, and trains and saves
//! the latents that it has.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::train::checkpoint::Checkpoint;
use burn::train::{InferenceStep, Learner};
use sae_data::ActivationBatch;
use sae_model::parameters::table;
use sae_model::{Sae, ops};
use sae_run::checkpoints::part_of;

use super::Shards;
use super::own::{Own, Start};
use crate::checkpoint::{MODEL, OPTIMIZER};
use crate::failure::Failure;
use crate::learner::{Look, SaeLearner};
use crate::numbers::StepOutput;

/// Numbers of a parameter that all processes together send at a time: 64 MiB.
const PIECE: usize = 1 << 24;
/// Bytes of a float.
const FLOAT: usize = size_of::<f32>();

/// This process's latents, with their moments, and everything that is not of latents.
pub(crate) struct Spread {
    pub(super) shards: Shards,
    pub(super) own: Own,
}

impl Spread {
    pub(super) fn new(shards: Shards, start: Start) -> Self {
        let own = Own::new(start);
        Self { shards, own }
    }

    /// A batch of held-out rows, which every process looks at.
    pub(super) fn validate(&self, x: Tensor<2>) -> StepOutput {
        InferenceStep::step(
            &self.own.learner.valid(),
            ActivationBatch { activations: x },
        )
    }

    /// The same, in detail.
    pub(super) fn look(&self, x: Tensor<2>) -> Look {
        self.own.learner.valid().look(x)
    }

    /// Whether every parameter is finite in every process.
    pub(super) fn is_finite(&self) -> bool {
        let across = self.own.learner.sae.across();
        across.count(usize::from(!is_finite(&self.own.learner))) == 0
    }

    /// Writes this process's part of a checkpoint, and hears whether all have written theirs. Process 0 writes its own behind this.
    ///
    /// # Errors
    /// The first that a process has met.
    pub(super) fn write_part(&self, staging: &Path) -> Result<(), Failure> {
        let written = match self.shards.comm().rank() {
            0 => Ok(()),
            rank => self.write(staging, rank),
        };
        self.shards.all_have(written, staging)
    }

    fn write(&self, staging: &Path, rank: usize) -> Result<(), Failure> {
        let model = staging.join(part_of(MODEL, rank));
        let wrong = |path: &Path, error: String| Failure::write_message(path, &error);
        let record = self.own.learner.clone().into_record();
        let saved = Checkpoint::save(record, model.clone());
        saved.map_err(|error| wrong(&model, error.to_string()))?;
        let optimizer = staging.join(part_of(OPTIMIZER, rank));
        let saved = Checkpoint::save(self.own.optimizer.to_record(), optimizer.clone());
        saved.map_err(|error| wrong(&optimizer, error.to_string()))
    }

    /// The learner with all that process 0 saves of it.
    pub(super) fn to_save(&self) -> Learner<SaeLearner> {
        let Own {
            learner, optimizer, ..
        } = &self.own;
        self.own.to_save(learner.clone(), optimizer.clone())
    }
}

/// Whether every parameter of a module is finite.
pub(super) fn is_finite(learner: &SaeLearner) -> bool {
    let mut parameters = SquaredNorms(Vec::new());
    learner.visit(&mut parameters);
    let mut sums = parameters.0.into_iter();
    sums.all(|sum| sum.into_scalar::<f64>().is_finite())
}

fn bytes(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

/// Squared norms of a module's parameters.
struct SquaredNorms(Vec<Tensor<1>>);

impl ModuleVisitor for SquaredNorms {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(ops::squared_norm(param.val().inner()));
    }
}

/// All rows of a parameter of a model that is spread over processes, at process 0, as little-endian float32; all processes call this
/// with the same name.
pub(super) fn collected(sae: &Sae, name: &str) -> Vec<u8> {
    let (across, comm) = (sae.across(), sae.across().comm());
    let matrix = sae.parameters.matrix(name).map(Tensor::into_data);
    let vector = || sae.parameters.vector(name).map(Tensor::into_data);
    let data = matrix.or_else(vector).expect("a parameter of the model");
    let own: &[f32] = data.as_slice().expect("float32 parameters");
    let parameters = table(sae.config());
    let mut parameters = parameters.iter().filter(|p| p.name == name);
    if !parameters.any(|parameter| parameter.shape.is_of_latents()) {
        return bytes(own).collect(); // every process has it
    }
    let width = own.len() / across.own().len();
    let numbers = |rank: usize| {
        let latents = across.of(rank);
        latents.start * width..latents.end * width
    };
    let lengths: Vec<usize> = (0..comm.ranks()).map(|rank| numbers(rank).len()).collect();
    let most = lengths.iter().max().copied().unwrap_or_default();
    let mut all = match comm.rank() {
        0 => vec![0; sae.config().n_latents * width * FLOAT],
        _ => Vec::new(),
    };
    let each = (PIECE / comm.ranks()).max(1);
    for start in (0..most).step_by(each) {
        let piece = |length: usize| start.min(length)..(start + each).min(length);
        let mut messages = vec![Vec::new(); comm.ranks()];
        messages[0] = own[piece(own.len())].to_vec();
        for (rank, received) in comm.exchange(messages).into_iter().enumerate() {
            let at = numbers(rank).start + piece(lengths[rank]).start;
            let places = all.iter_mut().skip(at * FLOAT); // none in the others, which receive nothing
            places
                .zip(bytes(&received))
                .for_each(|(place, byte)| *place = byte);
        }
    }
    all
}
