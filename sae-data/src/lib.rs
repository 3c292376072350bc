//! Activation data sets on disk, and the loader that feeds them to training.
//!
//! [`ActivationFile`] maps a safetensors file into memory and hands out rows as float32;
//! [`ActivationLoader`] turns it into Burn batches, shuffled by a pure function of (seed, epoch) and
//! prepared ahead of time. [`synthetic`] makes data whose concepts are known. The crate knows nothing of
//! the model.

pub mod synthetic;

mod error;
mod file;
mod loader;
mod shuffle;

pub use error::DataError;
pub use file::{ActivationFile, Fingerprint, read_matrix};
pub use loader::{ActivationBatch, ActivationLoader, Waiting};
pub use shuffle::Shuffle;
