//! The loader: whole batches, one defined order, virtual epochs that continue where the last one ended.

use std::sync::Arc;

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::{ActivationBatch, ActivationFile, ActivationLoader};

use crate::numbered;

const ROWS: usize = 103;

fn file() -> Arc<ActivationFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = numbered(dir.path(), ROWS, 3);
    Arc::new(ActivationFile::open(&path, None).unwrap()) // the mapping outlives the directory
}

/// Row numbers of every batch of one call of `iter`.
fn epoch(loader: &dyn DataLoader<ActivationBatch>) -> Vec<Vec<usize>> {
    let rows = |batch: ActivationBatch| -> Vec<usize> {
        let values: Vec<f32> = batch.activations.into_data().iter().collect();
        assert!(
            values
                .chunks(3)
                .all(|row| row[0] == row[1] && row[1] == row[2])
        );
        values.iter().step_by(3).map(|v| *v as usize).collect()
    };
    loader
        .iter()
        .map(|batch| rows(batch.expect("a batch")))
        .collect()
}

fn training(seed: u64, total: usize, epoch_steps: usize, done: usize) -> ActivationLoader {
    ActivationLoader::training(file(), 10, seed, total, epoch_steps, done, &Device::flex())
}

#[test]
fn virtual_epochs_are_one_sequence() {
    let whole = epoch(&training(1, 25, 25, 0));
    assert_eq!(whole.len(), 25);
    let loader = training(1, 25, 7, 0);
    let parts: Vec<_> = (0..5).map(|_| epoch(&loader)).collect();
    assert_eq!(
        parts.iter().map(Vec::len).collect::<Vec<_>>(),
        [7, 7, 7, 4, 0]
    );
    assert_eq!(parts.concat(), whole);
    assert_eq!(
        epoch(&training(1, 25, 7, 2)),
        parts[2],
        "resumed behind two virtual epochs"
    );
}

#[test]
fn every_row_at_most_once_a_pass_and_in_another_order_each() {
    let batches = epoch(&training(3, 20, 20, 0));
    assert!(batches.iter().all(|batch| batch.len() == 10));
    let (first, second) = (batches[..10].concat(), batches[10..].concat());
    for pass in [&first, &second] {
        let mut sorted = pass.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 100);
    }
    assert_ne!(first, second);
    assert_ne!(epoch(&training(4, 20, 20, 0)), batches);
}

#[test]
fn evaluation_sees_every_row_in_order_each_time() {
    let loader = ActivationLoader::evaluation(file(), 10, &Device::flex());
    assert_eq!(loader.num_items(), ROWS);
    for _ in 0..2 {
        assert_eq!(epoch(&loader).concat(), (0..ROWS).collect::<Vec<_>>());
    }
    let mut batches = loader.iter();
    while batches.next().is_some() {}
    assert!(batches.progress().is_completed());
}

#[test]
fn slices_share_out_a_virtual_epoch() {
    let loader = training(5, 12, 6, 0);
    let (a, b) = (loader.slice(0, 30), loader.slice(30, 60));
    let (a1, b1, a2, b2) = (epoch(&*a), epoch(&*b), epoch(&*a), epoch(&*b));
    assert_eq!([a1, b1, a2, b2].concat(), epoch(&training(5, 12, 12, 0)));
}

#[test]
fn stopping_early_is_fine() {
    let loader = training(6, 1000, 1000, 0);
    let mut batches = loader.iter();
    assert!(batches.next().is_some());
    drop(batches);
    assert!(loader.waiting().total().as_nanos() > 0);
}
