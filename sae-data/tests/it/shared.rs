//! A pass that several consumers share: each gets the batches of a loader of its own, and the source is read once.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::{
    ActivationBatch, ActivationData, ActivationLoader, DataError, Element, Info, Series, Share,
    Source, Streaming,
};

const ROWS: usize = 700;
const WIDTH: usize = 4096;
const BATCH: usize = 10;
/// Steps between two validations.
const EPOCH: usize = 6;

/// Rows of their own number, which counts how many rows are read.
#[derive(Debug)]
struct Counting {
    info: Info,
    read: AtomicUsize,
    /// The row from which on reading fails.
    lost: AtomicUsize,
}

impl Source for Counting {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &self,
        pieces: &[Range<usize>],
        _scratch: &mut Vec<u8>,
        out: &mut [Option<&mut [f32]>],
    ) -> Result<(), DataError> {
        let rows = pieces.iter().cloned().flatten();
        for (row, place) in rows.zip(out) {
            if row >= self.lost.load(Ordering::Relaxed) {
                let error = std::io::Error::other("the disk is gone");
                return Err(DataError::Io {
                    path: "rows".into(),
                    source: error,
                });
            }
            self.read.fetch_add(1, Ordering::Relaxed);
            if let Some(place) = place {
                place.fill(row as f32);
            }
        }
        Ok(())
    }

    fn labels(&self, _pieces: &[Range<usize>]) -> Result<Option<Vec<i64>>, DataError> {
        Ok(None)
    }
}

fn source() -> Arc<Counting> {
    Arc::new(Counting {
        info: Info::new("rows", "computed", Element::F32, [ROWS, WIDTH]),
        read: AtomicUsize::new(0),
        lost: AtomicUsize::new(usize::MAX),
    })
}

/// The first value of every row, or the error.
fn rows(batch: Result<ActivationBatch, impl ToString>) -> Result<Vec<f32>, String> {
    let values = batch.map_err(|error| error.to_string())?.activations;
    let values: Vec<f32> = values.into_data().iter().collect();
    Ok(values.into_iter().step_by(WIDTH).collect())
}

/// What a run of `steps` steps reads from step `done` on: training batches, with the held-out rows after every epoch. It ends at an
/// error.
fn reads(
    source: &Arc<Counting>,
    share: Option<&Share>,
    (done, steps): (usize, usize),
) -> Vec<Result<Vec<f32>, String>> {
    let data = ActivationData::from_source(source.clone() as Arc<dyn Source>);
    let (train, held_out) = data.split_fraction(0.2, 0).unwrap();
    let streaming = Streaming {
        window_mb: 1,
        block_rows: Some(4),
        workers: 2,
        seed: 5,
    };
    let device = Device::flex();
    let mut training =
        ActivationLoader::training(&train, BATCH, &streaming, done..steps, EPOCH, &device);
    let mut evaluation = ActivationLoader::evaluation(&held_out, BATCH, &device);
    if let Some(share) = share {
        training = training.in_pass(share, Series::Training);
        evaluation = evaluation.in_pass(share, Series::Validation);
    }
    let mut read = Vec::new();
    let mut step = done;
    while step < steps {
        for batch in training.iter() {
            step += 1;
            read.push(rows(batch));
            if read.last().is_some_and(Result::is_err) {
                return read;
            }
        }
        read.extend(evaluation.iter().map(rows));
    }
    read
}

/// What runs that stand at these steps, and end at those, read in one pass, in so many lanes and in turns of so many steps.
fn together(
    source: &Arc<Counting>,
    runs: &[(usize, usize)],
    (lanes, turn): (usize, usize),
) -> Vec<Vec<Result<Vec<f32>, String>>> {
    let places = runs.iter().enumerate();
    let places: Vec<_> = places.map(|(i, (done, _))| (*done, i % lanes)).collect();
    let most = runs.iter().map(|(_, steps)| *steps).max().unwrap();
    let shares = Share::of_pass(most, &places, turn);
    thread::scope(|scope| {
        let threads: Vec<_> = runs
            .iter()
            .zip(&shares)
            .map(|(run, share)| {
                let seat = share.seat();
                scope.spawn(move || {
                    seat.begin();
                    reads(source, Some(share), *run)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn each_run_gets_the_batches_of_a_loader_of_its_own() {
    // one that was interrupted between two validations, one that has ended, shorter and longer ones
    for runs in [
        &[(0, 40), (0, 40), (0, 40)][..],
        &[(0, 40), (17, 40), (0, 23), (40, 40), (6, 70)],
    ] {
        for (lanes, turn) in [(1, 1), (2, 1), (3, 1), (1, 4), (1, 8), (2, 3), (3, 8)] {
            let read = together(&source(), runs, (lanes, turn));
            for (run, read) in runs.iter().zip(read) {
                assert!(read.iter().all(Result::is_ok));
                let alone = reads(&source(), None, *run);
                assert!(
                    read == alone,
                    "{run:?} of {runs:?}, {lanes} lanes, turns of {turn}"
                );
            }
        }
    }
}

#[test]
fn eight_runs_read_as_much_as_one() {
    let one = source();
    reads(&one, None, (0, 120));
    let one = one.read.load(Ordering::Relaxed);
    for turn in [1, 3, 8] {
        for lanes in [1, 2, 8] {
            let eight = source();
            together(&eight, &[(0, 120); 8], (lanes, turn));
            let eight = eight.read.load(Ordering::Relaxed);
            // a stream may read ahead a little more or less
            assert!(
                eight as f64 <= 1.05 * one as f64,
                "{eight} and {one} rows, {lanes} lanes, turns of {turn}"
            );
        }
    }
}

#[test]
fn every_run_is_told_that_the_data_is_gone() {
    let source = source();
    source.lost.store(300, Ordering::Relaxed);
    for read in together(&source, &[(0, 80), (0, 80)], (1, 8)) {
        let error = read.iter().find_map(|batch| batch.as_ref().err());
        assert!(
            error.is_some_and(|error| error.contains("rows")),
            "{error:?}"
        );
    }
}
