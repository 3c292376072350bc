//! Sparse autoencoders with dynamic attention (arXiv 2604.14925) on [Burn](https://burn.dev).
//!
//! A model's activations are queries, a learned dictionary of concepts is key and value, and sparsemax
//! decides for each input how many concepts it needs. [`Sae`] is the model, [`ops`] its custom operation,
//! [`loss`] what training minimises, [`stats`] every metric with its formula, [`saved`] the files that a
//! trained model is kept in.
//!
//! The crate is mathematics: it reads and writes nothing but saved models and knows no command line.

pub mod config;
pub mod device;
pub mod loss;
#[cfg_attr(feature = "ndarray", allow(deprecated))] // Burn 0.22 announces NdArray's removal
pub mod ops;
pub mod saved;
pub mod stats;
pub mod verdict;

mod baselines;
mod init;
mod refinement;
mod sae;

pub use config::{Architecture, Preset, SaeConfig};
pub use ops::{SparseCodes, SparseValue};
pub use sae::{Activations, Encoded, Input, Reconstructed, Sae, Training};
