//! The loader: whole batches, one defined order, virtual epochs that continue where the last one ended.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::{ActivationBatch, ActivationData, ActivationLoader, Options, Streaming};

use crate::numbered;

const ROWS: usize = 103;
/// So wide that a megabyte is two windows of 32 rows.
const WIDTH: usize = 4096;

/// Numbered rows, on disk as long as the directory is.
struct Data(ActivationData, #[allow(dead_code)] tempfile::TempDir); // the directory goes when this does

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = numbered(dir.path(), ROWS, WIDTH);
        Self(
            ActivationData::open(&path, &Options::default()).unwrap(),
            dir,
        )
    }

    /// Batches of ten rows, blocks of four, windows of 28.
    fn training(
        &self,
        seed: u64,
        total: usize,
        epoch_steps: usize,
        done: usize,
    ) -> ActivationLoader {
        self.with_workers(2, seed, total, epoch_steps, done)
    }

    fn streaming(&self, workers: usize, seed: u64) -> Streaming {
        Streaming {
            window_mb: 1,
            block_rows: Some(4),
            workers,
            seed,
        }
    }

    fn with_workers(
        &self,
        workers: usize,
        seed: u64,
        total: usize,
        epoch_steps: usize,
        done: usize,
    ) -> ActivationLoader {
        let streaming = self.streaming(workers, seed);
        assert_eq!(
            (
                streaming.plan(&self.0).window_rows(),
                streaming.plan(&self.0).windows()
            ),
            (28, 4)
        );
        ActivationLoader::training(
            &self.0,
            10,
            &streaming,
            done..total,
            epoch_steps,
            &Device::flex(),
        )
    }
}

/// Row numbers of every batch of one call of `iter`.
fn epoch(loader: &dyn DataLoader<ActivationBatch>) -> Vec<Vec<usize>> {
    let rows = |batch: ActivationBatch| -> Vec<usize> {
        let values: Vec<f32> = batch.activations.into_data().iter().collect();
        assert!(
            values
                .chunks(WIDTH)
                .all(|row| row.iter().all(|v| *v == row[0]))
        );
        values.iter().step_by(WIDTH).map(|v| *v as usize).collect()
    };
    loader
        .iter()
        .map(|batch| rows(batch.expect("a batch")))
        .collect()
}

#[test]
fn virtual_epochs_are_one_sequence() {
    let data = Data::new();
    let whole = epoch(&data.training(1, 25, 25, 0));
    assert_eq!(whole.len(), 25);
    let loader = data.training(1, 25, 7, 0);
    let parts: Vec<_> = (0..5).map(|_| epoch(&loader)).collect();
    assert_eq!(
        parts.iter().map(Vec::len).collect::<Vec<_>>(),
        [7, 7, 7, 4, 0]
    );
    assert_eq!(parts.concat(), whole);
    for (done, part) in parts.iter().enumerate() {
        let resumed = epoch(&data.training(1, 25, 7, 7 * done));
        assert_eq!(&resumed, part, "resumed behind {done} virtual epochs");
    }
    for done in 0..25 {
        let loader = data.training(1, 25, 7, done);
        let rest: Vec<_> = (0..4).flat_map(|_| epoch(&loader)).collect();
        assert_eq!(rest, whole[done..], "resumed behind step {done}");
        let within = epoch(&data.training(1, 25, 7, done));
        assert_eq!(
            within.len(),
            (7 - done % 7).min(25 - done),
            "the rest of its virtual epoch"
        );
    }
}

#[test]
fn the_rows_of_a_batch_are_named() {
    let data = Data::new();
    for (number, batch) in epoch(&data.training(5, 25, 25, 0)).into_iter().enumerate() {
        let streaming = data.streaming(2, 5);
        assert_eq!(streaming.rows_of_batch(&data.0, 10, number), batch);
    }
}

#[test]
fn the_order_does_not_depend_on_the_workers() {
    let data = Data::new();
    let one = epoch(&data.with_workers(1, 2, 40, 40, 0));
    for workers in [2, 3, 7] {
        assert_eq!(epoch(&data.with_workers(workers, 2, 40, 40, 0)), one);
    }
}

#[test]
fn every_row_exactly_once_per_pass_in_a_new_order() {
    let data = Data::new();
    let batches = epoch(&data.training(3, 31, 31, 0));
    assert!(batches.iter().all(|batch| batch.len() == 10));
    let rows = batches.concat();
    let passes: Vec<&[usize]> = rows.chunks_exact(ROWS).collect();
    for pass in &passes {
        let mut sorted = pass.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..ROWS).collect::<Vec<_>>());
    }
    assert!(passes[0] != passes[1] && passes[1] != passes[2] && passes[0] != passes[2]);
    assert_ne!(epoch(&data.training(4, 31, 31, 0)), batches);
}

#[test]
fn evaluation_sees_every_row_in_order_each_time() {
    let data = Data::new();
    let loader = ActivationLoader::evaluation(&data.0, 10, &Device::flex());
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
    let data = Data::new();
    let loader = data.training(5, 12, 6, 0);
    let (a, b) = (loader.slice(0, 30), loader.slice(30, 60));
    let (a1, b1, a2, b2) = (epoch(&*a), epoch(&*b), epoch(&*a), epoch(&*b));
    assert_eq!(
        [a1, b1, a2, b2].concat(),
        epoch(&data.training(5, 12, 12, 0))
    );
}

#[test]
fn stopping_early_is_fine() {
    let data = Data::new();
    let loader = data.training(6, 1000, 1000, 0);
    let mut batches = loader.iter();
    assert!(batches.next().is_some());
    drop(batches);
    assert!(loader.waiting().total().as_nanos() > 0);
}

/// Takes batches until one is an error.
fn first_error(loader: &ActivationLoader) -> String {
    let error = loader.iter().find_map(Result::err);
    error.expect("an error, not an end").to_string()
}

#[test]
fn files_that_change_while_they_are_read_are_named() {
    for (change, says) in [
        ("shorten", "changed while in use"),
        ("remove", "it is missing"),
        ("rewrite", "written to since"),
    ] {
        let data = Data::new();
        let path = data.0.path().to_path_buf();
        let loader = data.training(7, 1000, 1000, 0);
        let bytes = std::fs::read(&path).unwrap();
        match change {
            "shorten" => std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
            "remove" => std::fs::remove_file(&path).unwrap(),
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(20));
                std::fs::write(&path, &bytes).unwrap();
            }
        }
        let message = first_error(&loader);
        assert!(
            message.contains(says) && message.contains("numbered.safetensors"),
            "{change}: {message}"
        );
    }
}

#[test]
fn a_shard_that_vanishes_while_batches_flow() {
    let data = Data::new();
    let path = data.0.path().to_path_buf();
    let loader = data.training(8, 1000, 1000, 0);
    let mut batches = loader.iter();
    assert!(batches.next().expect("a first batch").is_ok());
    std::fs::remove_file(&path).unwrap();
    let error = batches.find_map(Result::err).expect("an error, not an end");
    assert!(
        error.to_string().contains("numbered.safetensors"),
        "{error}"
    );
}
