//! The loader that Burn's trainer reads: whole batches, prepared ahead of time, in one defined order.
//!
//! Batches are numbered from the start of training. The batch at a position is a pure function of
//! (seed, position), so the loader's whole state is a number. One call of `iter` yields a *virtual epoch*,
//! a stretch of `steps` batches between two validations, and the next call continues behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};

use crate::file::ActivationFile;
use crate::shuffle::Shuffle;

/// Batches that wait, ready, for the trainer.
const PREFETCH: usize = 4;

/// A batch of activations `[B, d]`.
#[derive(Clone, Debug)]
pub struct ActivationBatch {
    /// Activations `[B, d]`, float32.
    pub activations: Tensor<2>,
}

/// How long the consumer of a loader has been waiting for batches.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<AtomicU64>);

impl Waiting {
    fn add(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Time spent waiting so far, over all iterators of the loader and its copies.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Which rows make up which batch.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// Every row once an epoch, in an order of its own for each; what does not fill a batch is left out.
    Shuffled { seed: u64 },
    /// File order; the last batch may be short.
    Sequential,
}

/// Batches of one activation file, for training or for evaluation.
pub struct ActivationLoader {
    file: Arc<ActivationFile>,
    batch: usize,
    order: Order,
    /// Positions of the first virtual epoch; the k-th is moved by `k * stride`, cut off at `end`.
    first: std::ops::Range<u64>,
    stride: u64,
    end: u64,
    epoch: AtomicU64,
    device: Device,
    waiting: Waiting,
}

impl ActivationLoader {
    /// A training loader: `total_steps` shuffled batches in virtual epochs of `epoch_steps`, of which the
    /// first `epochs_done` are behind us.
    ///
    /// # Panics
    /// If a batch is larger than the file, or any size is zero: the caller has checked.
    pub fn training(
        file: Arc<ActivationFile>,
        batch: usize,
        seed: u64,
        total_steps: usize,
        epoch_steps: usize,
        epochs_done: usize,
        device: &Device,
    ) -> Self {
        assert!((1..=file.rows()).contains(&batch), "1 <= batch <= rows");
        assert!(epoch_steps > 0, "a virtual epoch has steps");
        Self {
            file,
            batch,
            order: Order::Shuffled { seed },
            first: 0..epoch_steps as u64,
            stride: epoch_steps as u64,
            end: total_steps as u64,
            epoch: AtomicU64::new(epochs_done as u64),
            device: device.clone(),
            waiting: Waiting::default(),
        }
    }

    /// An evaluation loader: every row once, in file order, at each call of `iter`.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn evaluation(file: Arc<ActivationFile>, batch: usize, device: &Device) -> Self {
        assert!(batch > 0, "a batch has rows");
        let batches = file.rows().div_ceil(batch) as u64;
        Self {
            file,
            batch,
            order: Order::Sequential,
            first: 0..batches,
            stride: 0,
            end: batches,
            epoch: AtomicU64::new(0),
            device: device.clone(),
            waiting: Waiting::default(),
        }
    }

    /// The clock of this loader's consumers.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    fn copy(&self) -> Self {
        Self {
            file: self.file.clone(),
            first: self.first.clone(),
            epoch: AtomicU64::new(self.epoch.load(Ordering::Relaxed)),
            device: self.device.clone(),
            waiting: self.waiting.clone(),
            ..*self
        }
    }
}

/// The rows of batch `position`.
fn rows_of(file: &ActivationFile, batch: usize, order: Order, position: u64) -> Vec<usize> {
    match order {
        Order::Sequential => {
            let start = position as usize * batch;
            (start..(start + batch).min(file.rows())).collect()
        }
        Order::Shuffled { seed } => {
            let per_epoch = (file.rows() / batch) as u64;
            let shuffle = Shuffle::new(file.rows(), seed, position / per_epoch);
            let start = (position % per_epoch) as usize * batch;
            (start..start + batch).map(|i| shuffle.row(i)).collect()
        }
    }
}

/// Batch `position` as `[B, d]` on the host.
fn read_batch(file: &ActivationFile, batch: usize, order: Order, position: u64) -> TensorData {
    let _span = tracing::trace_span!("read_batch", position).entered();
    let rows = rows_of(file, batch, order, position);
    let mut values = vec![0.0; rows.len() * file.width()];
    for (row, out) in rows.iter().zip(values.chunks_exact_mut(file.width())) {
        file.read_row(*row, out);
    }
    TensorData::new(values, [rows.len(), file.width()])
}

impl DataLoader<ActivationBatch> for ActivationLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ActivationBatch> + 'a> {
        let moved = self.epoch.fetch_add(1, Ordering::Relaxed) * self.stride;
        let positions =
            (self.first.start + moved).min(self.end)..(self.first.end + moved).min(self.end);
        let total = match self.order {
            Order::Sequential => self.num_items(),
            Order::Shuffled { .. } => (positions.end - positions.start) as usize * self.batch,
        };
        let (sender, batches) = sync_channel(PREFETCH);
        let (file, batch, order) = (self.file.clone(), self.batch, self.order);
        thread::spawn(move || {
            for position in positions {
                if sender
                    .send(read_batch(&file, batch, order, position))
                    .is_err()
                {
                    return; // the consumer has stopped early
                }
            }
        });
        Box::new(Batches {
            batches,
            device: self.device.clone(),
            waiting: self.waiting.clone(),
            progress: Progress::new(0, total, Some("rows".into())),
        })
    }

    /// Rows of a full virtual epoch.
    fn num_items(&self) -> usize {
        let rows = (self.first.end - self.first.start) as usize * self.batch;
        match self.order {
            Order::Sequential => {
                rows.min(self.file.rows() - self.first.start as usize * self.batch)
            }
            Order::Shuffled { .. } => rows,
        }
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<ActivationBatch>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.copy()
        })
    }

    /// The batches that hold rows `start..end` of every virtual epoch; boundaries are rounded down to
    /// whole batches.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ActivationBatch>> {
        let position = |row: usize| self.first.start + (row / self.batch) as u64;
        let last = if end >= self.num_items() {
            self.first.end
        } else {
            position(end)
        };
        Arc::new(Self {
            first: position(start)..last,
            ..self.copy()
        })
    }
}

/// One virtual epoch.
struct Batches {
    batches: Receiver<TensorData>,
    device: Device,
    waiting: Waiting,
    progress: Progress,
}

impl Iterator for Batches {
    type Item = Result<ActivationBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = Instant::now();
        let data = self.batches.recv();
        self.waiting.add(start.elapsed());
        let data = data.ok()?; // the producer ends when its positions do
        self.progress.items_processed += data.shape()[0];
        let activations = Tensor::from_data(data, &self.device);
        Some(Ok(ActivationBatch { activations }))
    }
}

impl DataLoaderIterator<ActivationBatch> for Batches {
    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
