//! Evaluates sparse autoencoders. The binary `sae-eval` evaluates a run directory and encodes data sets ([`cli::main`]);
//! [`Evaluation`] evaluates any model on any rows.

pub mod cli;

mod all_rows;
mod classes;
mod compare;
mod criteria;
mod directions;
mod encode;
mod evaluate;
mod evaluation;
mod exchange;
mod head;
mod matching;
mod model;
mod neuronpedia;
mod other;
mod packed;
mod page;
mod progress;
mod ranking;
mod ranking_pass;
mod recovery;
mod report;
mod run;
#[cfg(feature = "tail")]
mod tail;
mod tail_arguments;
mod through;

pub use evaluation::Evaluation;
