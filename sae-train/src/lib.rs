//! Trains sparse autoencoders: from a TOML config, which is what the binary `sae-train` does ([`cli::main`]), or from Rust
//! ([`Trainer`]). [`TrainingStep`] is one training step without a loop around it.

pub mod cli;

mod announce;
mod checkpoint;
mod collapse;
mod config;
mod distributed;
mod export;
mod failure;
mod json_lines;
mod learner;
mod lock;
mod logging;
mod memory;
mod metrics;
mod nonfinite;
mod numbers;
mod output;
mod prepare;
mod progress;
mod run;
mod schedule;
mod shards;
mod signals;
mod start;
mod steps;
mod sweep;
mod sys;
mod tensorboard;
mod train;
mod trainer;
mod training_step;
mod whole;

pub use config::ConfigError;
pub use memory::device_memory;
pub use trainer::{TrainError, Trainer};
pub use training_step::TrainingStep;
