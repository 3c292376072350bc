//! What all processes but the first do: what process 0 says.

use burn::data::dataloader::DataLoader;
use sae_comm::Comm;
use sae_data::{ActivationBatch, PartsLoader};

use super::Apart;
use crate::failure::{Failure, chain};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// A step, with the next batch.
    Step = 1,
    /// A checkpoint.
    Save = 2,
    /// Training ends.
    End = 3,
}

impl Command {
    /// Tells all processes, from process 0.
    pub(crate) fn tell(self, comm: &dyn Comm) {
        comm.broadcast(vec![self as u8]);
    }

    fn hear(comm: &dyn Comm) -> Self {
        match comm.broadcast(Vec::new())[..] {
            [1] => Self::Step,
            [2] => Self::Save,
            _ => Self::End,
        }
    }
}

/// One of the processes that follow.
pub(crate) struct Follower {
    pub(crate) apart: Apart,
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
            mut apart,
            batches,
            mut step,
        } = self;
        let mut epoch = batches.iter();
        loop {
            match Command::hear(apart.comm()) {
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
                    take_step(&mut apart, batch.map_err(lost)?);
                    step += 1;
                }
                Command::Save => {
                    apart.gathered();
                }
                Command::End => return Ok(()),
            }
        }
    }
}

/// A step; one whose numbers are not finite is passed over, as process 0 does.
fn take_step(apart: &mut Apart, batch: ActivationBatch) {
    let output = apart.train_step(batch);
    apart.lr_step();
    if output.item.is_finite() {
        apart.optimizer_step(output.grads);
    }
}
