//! The rest of a model goes on from reconstructions: what its predictions or its answers lose.
//!
//! A tail is an ONNX file (`file.rs`; docs/TAIL.md has the format). What it would compute is known in size before anything runs
//! (`sizes.rs`, by the rules of `operators.rs`; `scan.rs` looks at it before it is parsed); tract runs it (`network.rs`).
//! `documents.rs` has the documents, `survey.rs` looks at all of them, `opened.rs` holds everything together, `pass.rs` replaces rows in several versions, and `loss.rs`
//! and `answers.rs` judge what comes out, of language models and of classifiers. `kept.rs` keeps what is done, so that a stopped
//! evaluation goes on.

mod answers;
mod documents;
mod file;
mod kept;
mod likelihood;
mod loss;
mod network;
mod opened;
mod operators;
mod pass;
mod scan;
mod sizes;
mod survey;
#[cfg(test)]
mod tests;

use crate::criteria::bootstrap::{COLUMNS, Draws};

pub(crate) use opened::Opened;
pub(crate) use pass::Asked;

/// The sum of one number per document, for all documents and for each draw of documents.
fn bootstrap_over(draws: &Draws, each: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sums = vec![0.0; COLUMNS];
    for (document, number) in each.enumerate() {
        let times = draws.of(document).iter();
        let columns = sums.iter_mut().zip(times);
        columns.for_each(|(sum, times)| *sum += f64::from(*times) * number);
    }
    sums
}
