//! Sparse autoencoders with dynamic attention (arXiv 2604.14925) on [Burn](https://burn.dev).
//!
//! A model's activations are queries, a learned dictionary of concepts is key and value, and sparsemax
//! decides for each input how many concepts it needs. [`Sae`] is the model, [`architectures`] how latents come from scores,
//! [`ops`] the operations that Burn is extended with, [`loss`] what training minimises, [`stats`] every metric with its
//! formula, [`saved`] the files that a trained model is kept in.
//!
//! The crate is mathematics: it reads and writes nothing but models (saved ones, and those within checkpoints) and knows no
//! command line.
//!
//! # Example
//!
//! Train elsewhere, encode here:
//!
//! ```
//! use sae_model::burn::tensor::{Device, Tensor};
//! use sae_model::{Sae, SaeConfig, architectures::TopK, saved};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = &dir.path().join("model");
//! # let fresh = Sae::init(&SaeConfig::new(TopK::default(), 4, 64), 0, &[0.0; 4], &Device::flex());
//! # saved::save(&fresh, 0, path)?;
//! let device = Device::flex(); // the CPU
//! let sae = saved::load(path, &device)?;
//! let x = Tensor::from_data([[0.1, 2.0, -0.3, 0.4], [1.0, 0.0, 0.0, -1.0]], &device);
//! let codes = sae.encode(x).latents.on_host();
//! let (latents, values) = (codes.pattern.indices(), codes.host_values());
//! for entry in codes.pattern.row(0) {
//!     println!("latent {} = {}", latents[entry], values[entry]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use burn;

pub mod architectures;
pub mod config;
pub mod device;
pub mod loss;
#[cfg_attr(feature = "ndarray", allow(deprecated))] // Burn 0.22 announces NdArray's removal
pub mod ops;
pub mod parameters;
pub mod recipe;
pub mod saved;
pub mod stats;
pub mod verdict;

mod across;
mod refinement;
mod sae;
mod scores;

pub use across::Across;
pub use architectures::{AnyArchitecture, Architecture, Preset};
pub use config::SaeConfig;
pub use ops::{SparseCodes, SparseValue};
pub use sae::{Encoded, Forward, Input, Sae};
pub use scores::{Attended, Mode, Scores, Selected};
