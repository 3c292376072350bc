//! The moments of Adam, spread over processes: cut when a checkpoint is read, and put together when one is written.
//!
//! Burn's record of an optimizer is a pack of tensors, which have the identity and the shape of their parameter. Their rows are cut like
//! the parameter's (`slices.rs`), byte by byte.

use std::collections::BTreeMap;

use burn::optim::OptimizerRecord;
use burn::tensor::Bytes;
use burn_pack::{Reader, Scalar, Tensor, Writer};

use super::slices::Slices;

/// The content of a record.
pub(super) struct Moments<'a> {
    tensors: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
    scalars: BTreeMap<String, Scalar>,
    /// The parameters that are cut, and their numbers of rows.
    cut: &'a BTreeMap<u64, usize>,
}

impl<'a> Moments<'a> {
    /// The moments in a record, of parameters of which `cut` are cut.
    pub(super) fn of(record: OptimizerRecord, cut: &'a BTreeMap<u64, usize>) -> Self {
        let bytes = record.into_bytes().expect("a record of this process");
        let reader = Reader::from_bytes(bytes).expect("a record that was just written");
        Self {
            metadata: reader.metadata().clone(),
            scalars: reader.scalars().clone(),
            tensors: reader
                .into_tensors()
                .expect("tensors that were just written"),
            cut,
        }
    }

    /// The number of rows of all processes, of a tensor that is cut.
    fn rows(&self, tensor: &Tensor) -> Option<usize> {
        self.cut.get(&tensor.param_id?).copied()
    }

    /// The slice of process `rank`, of moments of all rows.
    pub(super) fn slice(self, slices: Slices, rank: usize) -> OptimizerRecord {
        let own = |tensor: &Tensor, all_rows: usize| {
            let all = bytes(tensor);
            let (row, rows) = (all.len() / all_rows, slices.of(rank, all_rows));
            with_rows(
                tensor,
                rows.len(),
                all[rows.start * row..rows.end * row].to_vec(),
            )
        };
        self.with_cut(own)
    }

    /// The numbers of a slice that other processes do not have.
    pub(super) fn numbers(&self) -> Vec<f32> {
        let own = self.tensors.iter();
        let own = own.filter(|tensor| self.rows(tensor).is_some());
        own.flat_map(|tensor| floats(&bytes(tensor))).collect()
    }

    /// The moments of all rows, of which these are one slice: those of every process are `messages`, each as [`Moments::numbers`]
    /// has it.
    pub(super) fn joined(self, slices: Slices, messages: &[Vec<f32>]) -> OptimizerRecord {
        let mut rest: Vec<&[f32]> = messages.iter().map(|message| &message[..]).collect();
        self.with_cut(|tensor, rows| {
            let width = tensor.shape.to_vec()[1..].iter().product();
            let all = slices.together(&mut rest, rows, width);
            let bytes = all.iter().flat_map(|value| value.to_le_bytes()).collect();
            with_rows(tensor, rows, bytes)
        })
    }

    /// The record with others in place of the tensors that are cut.
    fn with_cut(self, mut other: impl FnMut(&Tensor, usize) -> Tensor) -> OptimizerRecord {
        let tensors = self.tensors.iter().map(|tensor| match self.rows(tensor) {
            Some(rows) => other(tensor, rows),
            None => tensor.clone(),
        });
        let mut writer = Writer::new(tensors.collect());
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

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    debug_assert!(rest.is_empty());
    numbers
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect()
}
