//! What operations on a model that is spread over processes do with numbers of all of them (`across.rs` says why).

use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use sae_comm::Comm;

use super::backend::Host;
use super::codes::Pattern;

/// Of so many things, the part that is process `rank`'s.
pub(crate) fn part(rank: usize, ranks: usize, things: usize) -> Range<usize> {
    let start = |rank: usize| (things as u128 * rank as u128 / ranks as u128) as usize;
    start(rank)..start(rank + 1)
}

/// The sum of the numbers of all processes, the same bits in each. Each process adds up a slice, in the order of the processes, and
/// tells it the others.
pub(super) fn total(comm: &dyn Comm, own: &[f32]) -> Vec<f32> {
    let ranks = comm.ranks();
    let slice = |rank: usize| own[part(rank, ranks, own.len())].to_vec();
    let mut parts = comm.exchange((0..ranks).map(slice).collect()).into_iter();
    let mut sum = parts.next().expect("at least one process");
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    comm.gather(&sum).concat()
}

/// [`total`] of a tensor of any shape.
pub(super) fn total_of<B: Host>(x: &FloatTensor<B>, comm: &dyn Comm) -> FloatTensor<B> {
    let shape: Vec<usize> = x.shape().iter().copied().collect();
    B::write(total(comm, &B::read(x)), &shape, x)
}

/// `da - mean over S of da` at the entries of rows whose support S is spread over processes: `sizes[i]` is |S| of row i.
pub(super) fn centred<B: Host>(
    grad: &FloatTensor<B>,
    pattern: &Pattern,
    sizes: &[usize],
    comm: &dyn Comm,
) -> FloatTensor<B> {
    let values = B::read(grad);
    let rows = 0..pattern.rows();
    let own: Vec<f32> = rows
        .map(|row| values[pattern.row(row)].iter().sum())
        .collect();
    let sums = total(comm, &own);
    let mut out = values.into_owned();
    for (row, (sum, size)) in sums.iter().zip(sizes).enumerate() {
        let mean = sum / *size as f32;
        out[pattern.row(row)].iter_mut().for_each(|g| *g -= mean);
    }
    B::write(out, &[pattern.len()], grad)
}
