//! Trains sparse autoencoders from a TOML config. The binary `sae-train` is [`cli::main`];
//! [`TrainingStep`] is one training step without a run around it.

pub mod cli;

mod checkpoint;
mod collapse;
mod config;
mod failure;
mod json_lines;
mod learner;
mod lock;
mod logging;
mod memory;
mod metrics;
mod nonfinite;
mod output;
mod prepare;
mod progress;
mod run;
mod schedule;
mod signals;
mod steps;
mod sys;
mod train;
mod training_step;
mod whole;

pub use training_step::TrainingStep;
