//! Evaluates sparse autoencoders: a run directory, which is what the binary `sae-eval` does ([`cli::main`]), or any model on
//! any rows ([`Evaluation`]).

pub mod cli;

mod all_rows;
mod classes;
mod criteria;
mod evaluate;
mod evaluation;
mod head;
mod model;
mod ranking;
mod recovery;
mod report;
mod run;

pub use evaluation::Evaluation;
