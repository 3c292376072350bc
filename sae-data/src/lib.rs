//! Activation data sets on disk, and the loader that feeds them to training.
//!
//! [`ActivationData`] opens what other tools write, and hands out rows as float32; [`ActivationLoader`] streams
//! them as Burn batches, shuffled by a pure function of (seed, epoch) and prepared ahead of time. [`Summary`]
//! is what a pass over the data finds, [`convert`] writes shards, [`synthetic`] makes data whose concepts are
//! known. The crate knows nothing of the model.

pub mod config;
pub mod convert;
pub mod synthetic;

mod class_head;
mod data;
mod duplicates;
mod element;
mod error;
mod fingerprint;
mod limit;
mod loader;
mod moments;
mod pool;
mod selection;
mod shuffle;
mod source;
mod stream;
mod summary;
mod truth;
mod window;

pub use class_head::ClassHead;
pub use config::DataConfig;
pub use data::{ActivationData, read_matrix};
pub use duplicates::Duplicates;
pub use element::Element;
pub use error::DataError;
pub use fingerprint::Fingerprint;
pub use limit::{MEDIANS, MaxNorm};
pub use loader::{ActivationBatch, ActivationLoader, Streaming, StreamingPlan, Waiting};
pub use shuffle::Shuffle;
pub use source::{Documents, IndexedShard, Info, Options, ShardIndex, Source, SourceFile, formats};
pub use summary::{Beyond, Statistics, Summary};
pub use truth::Truth;
