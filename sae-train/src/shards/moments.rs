//! The moments of Adam, spread over processes: cut when a checkpoint is read, and put together when one is written.
//!
//! Burn's record of an optimizer is a pack of tensors, which carry the shape of their parameter. Their rows are cut like the
//! parameter's (`slices.rs`), byte by byte.

use burn::optim::OptimizerRecord;
use burn::tensor::Bytes;
use burn_pack::{Reader, Scalar, Tensor, Writer};
use std::collections::BTreeMap;

use super::slices::Slices;

/// The content of a record.
struct Pack {
    tensors: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
    scalars: BTreeMap<String, Scalar>,
}

impl Pack {
    fn of(record: OptimizerRecord) -> Self {
        let bytes = record.into_bytes().expect("a record of this process");
        let reader = Reader::from_bytes(bytes).expect("a record that was just written");
        Self {
            metadata: reader.metadata().clone(),
            scalars: reader.scalars().clone(),
            tensors: reader
                .into_tensors()
                .expect("tensors that were just written"),
        }
    }

    /// The record with other tensors of the same names.
    fn with(self, tensors: Vec<Tensor>) -> OptimizerRecord {
        let mut writer = Writer::new(tensors);
        for (name, value) in &self.metadata {
            writer = writer.with_metadata(name, value);
        }
        for (name, value) in self.scalars {
            writer = writer.with_scalar(&name, value);
        }
        let bytes = writer.into_bytes().expect("tensors of the right length");
        OptimizerRecord::from_bytes(bytes).expect("the form of the record it was")
    }
}

/// The tensor with other rows.
fn with_rows(tensor: &Tensor, rows: usize, bytes: Vec<u8>) -> Tensor {
    let mut shape = tensor.shape.to_vec();
    shape[0] = rows;
    let (name, dtype, id) = (tensor.name.clone(), tensor.dtype, tensor.param_id);
    Tensor::new(name, dtype, shape, id, Bytes::from_bytes_vec(bytes))
}

fn bytes(tensor: &Tensor) -> Bytes {
    tensor.to_bytes().expect("bytes in memory")
}

/// The slice of process `rank` of the moments of all latents.
pub(super) fn cut(record: OptimizerRecord, slices: Slices, rank: usize) -> OptimizerRecord {
    let pack = Pack::of(record);
    let cut = |tensor: &Tensor| {
        if !slices.cut(&tensor.shape.to_vec()) {
            return tensor.clone();
        }
        let all = bytes(tensor);
        let (row, rows) = (all.len() / slices.latents, slices.of(rank));
        let own = all[rows.start * row..rows.end * row].to_vec();
        with_rows(tensor, rows.len(), own)
    };
    let tensors = pack.tensors.iter().map(cut).collect();
    pack.with(tensors)
}

/// The numbers of a slice that other processes do not have; `cut` tells by a tensor's parameter.
pub(super) fn numbers(record: OptimizerRecord, cut: &dyn Fn(u64) -> bool) -> Vec<f32> {
    let pack = Pack::of(record);
    let own = pack.tensors.iter().filter(|tensor| is_cut(tensor, cut));
    own.flat_map(|tensor| floats(&bytes(tensor))).collect()
}

/// The moments of all latents, of which `record` is one slice: those of every process are `messages`, as [`numbers`] has them.
pub(super) fn joined(
    record: OptimizerRecord,
    messages: &[Vec<f32>],
    slices: Slices,
    cut: &dyn Fn(u64) -> bool,
) -> OptimizerRecord {
    let pack = Pack::of(record);
    let mut rest: Vec<&[f32]> = messages.iter().map(|message| &message[..]).collect();
    let join = |tensor: &Tensor| {
        if !is_cut(tensor, cut) {
            return tensor.clone();
        }
        let width: usize = tensor.shape.to_vec()[1..].iter().product();
        let mut all = Vec::with_capacity(slices.latents * width * size_of::<f32>());
        for (rank, rest) in rest.iter_mut().enumerate() {
            let (part, behind) = rest.split_at(slices.of(rank).len() * width);
            all.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            *rest = behind;
        }
        with_rows(tensor, slices.latents, all)
    };
    let tensors = pack.tensors.iter().map(join).collect();
    pack.with(tensors)
}

fn is_cut(tensor: &Tensor, cut: &dyn Fn(u64) -> bool) -> bool {
    tensor.param_id.is_some_and(cut)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    debug_assert!(rest.is_empty());
    numbers
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect()
}
