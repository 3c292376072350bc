//! Activation data sets on disk, and the loader that feeds them to training.
//!
//! ```
//! use burn::data::dataloader::DataLoader;
//! use burn::tensor::Device;
//! use sae_data::{ActivationData, ActivationLoader, Options, Streaming};
//!
//! let path = "../data/wordnet_minilm/train.safetensors".as_ref();
//! let data = ActivationData::open(path, &Options::default())?;
//! let first = data.read(0..3)?; // [3, width] in float32
//! assert_eq!(first.len(), 3 * data.width());
//!
//! // the first 10 shuffled batches of 256 rows, on the CPU
//! let streaming = Streaming { seed: 1, ..Streaming::default() };
//! let loader = ActivationLoader::training(&data, 256, &streaming, 0..10, 10, &Device::flex());
//! for batch in loader.iter() {
//!     assert_eq!(batch?.activations.dims(), [256, data.width()]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`ActivationData`] opens files that other tools write (see [`formats`]) or a [`Source`] of your own
//! (`examples/custom_source.rs`), and returns rows as float32. [`ActivationLoader`] streams them as Burn batches, prepared
//! ahead of time in an order that is a pure function of (seed, epoch). [`Meanings`] has what people can look at of a row: its
//! token, its text, its thumbnail. [`Summary`] is the result of one pass over the
//! data, [`convert`] writes shards, and [`synthetic`] generates data with known concepts. [`DataConfig`] is the section
//! `[data]` of a config file. The crate does not depend on the model.
//!
//! The feature `parquet` adds the reader of Parquet files.

pub mod config;
pub mod convert;
pub mod synthetic;

mod class_head;
mod data;
mod duplicates;
mod element;
mod error;
mod feed;
mod fingerprint;
mod limit;
mod loader;
mod meanings;
mod moments;
mod parts;
mod pool;
mod selection;
mod shared;
mod shuffle;
mod source;
mod stream;
mod summary;
mod tail;
mod truth;
mod window;

pub use class_head::ClassHead;
pub use config::DataConfig;
pub use data::ActivationData;
pub use duplicates::Duplicates;
pub use element::Element;
pub use error::DataError;
pub use feed::Waiting;
pub use fingerprint::Fingerprint;
pub use limit::{MaxNorm, norm};
pub use loader::{ActivationBatch, ActivationLoader, Streaming};
pub use meanings::{
    ImagePlace, Meanings, MediaType, Neighbour, Neighbourhood, Per, RowMeaning, Text, Thumbnail,
    Token,
};
pub use parts::{Parts, PartsLoader};
pub use shared::{Seat, Series, Share};
pub use source::{
    Documents, ImageGrid, IndexedShard, Info, Options, ShardIndex, Source, SourceFile, formats,
};
pub use summary::{Beyond, Statistics, Summary};
pub use tail::{EvalConfig, TailConfig};
pub use truth::Truth;
pub use window::StreamingPlan;
