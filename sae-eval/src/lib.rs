//! Evaluates trained sparse autoencoders. The binary `sae-eval` is [`cli::main`].

pub mod cli;

mod all_rows;
mod classes;
mod criteria;
mod evaluate;
mod head;
mod model;
mod ranking;
mod recovery;
mod report;
mod run;
