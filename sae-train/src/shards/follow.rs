//! What all processes but the first do: what process 0 says.

use std::path::PathBuf;

use burn::data::dataloader::DataLoader;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use sae_comm::Comm;
use sae_data::{ActivationBatch, PartsLoader};
use serde::{Deserialize, Serialize};

use super::Portion;
use super::spread::collected;
use crate::failure::{Failure, chain};

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A step, with the next batch.
    Step,
    /// A checkpoint, in a directory that has another name until it is whole.
    Save(PathBuf),
    /// The numbers of held-out rows, which follow.
    Validate,
    /// The reconstruction of rows, which follow.
    Look,
    /// Whether all parameters are finite.
    CheckFinite,
    /// A parameter by its name, for the model.
    Collect(String),
    /// Training ends.
    End,
}

impl Command {
    /// Tells all processes, from process 0.
    pub(crate) fn tell(&self, comm: &dyn Comm) {
        comm.broadcast(serde_json::to_vec(self).expect("plain data"));
    }

    /// The same, with rows `[n, d]`.
    pub(super) fn tell_with(&self, comm: &dyn Comm, x: &Tensor<2>) {
        self.tell(comm);
        let data = x.to_data();
        let values = data.iter::<f32>().flat_map(f32::to_le_bytes);
        comm.broadcast(values.collect());
    }

    fn hear(comm: &dyn Comm) -> Self {
        let heard = comm.broadcast(Vec::new());
        serde_json::from_slice(&heard).expect("what another process of this version says")
    }
}

/// The rows of width d that follow a command.
fn hear_rows(comm: &dyn Comm, d: usize, device: &Device) -> Tensor<2> {
    let heard = comm.broadcast(Vec::new());
    let (numbers, _) = heard.as_chunks::<4>();
    let values: Vec<f32> = numbers
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect();
    let shape = [values.len() / d, d];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// One of the processes that follow.
pub(crate) struct Follower {
    pub(crate) portion: Portion,
    pub(crate) batches: PartsLoader,
    /// Steps done.
    pub(crate) step: usize,
}

impl Follower {
    /// Follows to the end of training.
    ///
    /// # Errors
    /// [`Failure::DataLost`]. The others wait for this process then: it has to end them.
    pub(crate) fn follow(self) -> Result<(), Failure> {
        let Self {
            mut portion,
            batches,
            mut step,
        } = self;
        let shards = portion.shards().clone();
        let mut epoch = batches.iter();
        loop {
            match Command::hear(shards.comm()) {
                Command::Step => {
                    let next = epoch.next().or_else(|| {
                        epoch = batches.iter(); // the next virtual epoch
                        epoch.next()
                    });
                    let batch = next.expect("as many steps as process 0 takes");
                    let lost = |error| Failure::DataLost {
                        step,
                        reason: chain(&error),
                    };
                    portion.take(batch.map_err(lost)?);
                    step += 1;
                }
                Command::End => return Ok(()),
                other => portion.take_part(&other),
            }
        }
    }
}

impl Portion {
    /// A step; one whose numbers are not finite is passed over, as process 0 does.
    fn take(&mut self, batch: ActivationBatch) {
        let output = self.train_step(batch);
        self.own_mut().lr_step();
        if output.item.is_finite() {
            self.optimizer_step(output.grads);
        }
    }

    /// What else process 0 cannot do alone.
    fn take_part(&self, command: &Command) {
        let spread = match (self, command) {
            (Self::Rows(apart), Command::Save(staging)) => {
                let written = apart.shards.write_rounding(staging, &apart.whole);
                if written.is_ok() {
                    apart.gathered();
                } // else process 0 says what is wrong
                return;
            }
            (Self::Rows(_), other) => unreachable!("{other:?}: process 0 does it alone"),
            (Self::Latents(spread), _) => spread,
        };
        let comm = self.shards().comm();
        let rows = || {
            let sae = spread.own.learner.valid().sae;
            hear_rows(comm, sae.config().d_in, &sae.w_dec().device())
        };
        match command {
            Command::Save(staging) => {
                let _ = spread.write_part(staging); // process 0 says what is wrong
            }
            Command::Validate => {
                spread.validate(rows());
            }
            Command::Look => {
                spread.look(rows());
            }
            Command::CheckFinite => {
                spread.is_finite();
            }
            Command::Collect(name) => {
                collected(&spread.own.learner.sae, name);
            }
            Command::Step | Command::End => unreachable!("the loop's"),
        }
    }
}
