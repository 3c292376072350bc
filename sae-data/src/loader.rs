//! The loader that Burn's trainer reads: whole batches, prepared ahead of time, in one defined order.
//!
//! Batches are numbered from the start of training. The batch at a position is a pure function of
//! (seed, position), so the loader's whole state is a number. One call of `iter` yields a *virtual epoch*,
//! a stretch of `steps` batches between two validations, and the next call continues behind it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::default_workers;
use crate::data::ActivationData;
use crate::pool::Pool;
use crate::stream::{Job, Stream};
use crate::window::Windows;

/// Bytes of float32 of a block where the format does not say better: long enough to read at the disk's speed,
/// short enough for many blocks to a window, and small enough for a processor's cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that a window should have at least, to be well shuffled.
const BLOCKS_PER_WINDOW: usize = 16;

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

/// How training data is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Memory for batches that wait, in MiB: two windows, one used up while the other is filled. Rows count as
    /// float32 whatever the files hold, so the order does not depend on the format.
    pub window_mb: usize,
    /// Rows of a block; `None` for blocks of 1 MiB, or four pages of Parquet where these are larger.
    pub block_rows: Option<usize>,
    /// Threads that read.
    pub workers: usize,
    /// Seed of the order.
    pub seed: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            window_mb: 512,
            block_rows: None,
            workers: default_workers(),
            seed: 0,
        }
    }
}

impl Streaming {
    /// The rows of the training batch at position `number`, as they are numbered in the whole data set.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn rows_of_batch(&self, data: &ActivationData, batch: usize, number: usize) -> Vec<usize> {
        let windows = self.plan(data).0;
        let (mut position, end) = ((number * batch) as u64, ((number + 1) * batch) as u64);
        let mut rows = Vec::with_capacity(batch);
        while position < end {
            let window = windows.at(position);
            let stop = end.min(window.positions.end);
            rows.extend((position..stop).map(|position| {
                let row = window.row((position - window.positions.start) as usize);
                data.row_in_source(row)
            }));
            position = stop;
        }
        rows
    }

    /// How `data` is cut into blocks and windows.
    pub fn plan(&self, data: &ActivationData) -> StreamingPlan {
        let row_bytes = 4 * data.width();
        let window = ((self.window_mb << 20) / 2 / row_bytes).max(1);
        let usual = (BLOCK_BYTES / row_bytes)
            .min(window / BLOCKS_PER_WINDOW)
            .max(1);
        let preferred = data
            .info()
            .preferred_block
            .map_or(usual, |rows| rows.max(usual));
        let block = self.block_rows.unwrap_or(preferred).min(window);
        StreamingPlan(Windows::shuffled(data.rows(), window, block, self.seed))
    }
}

/// Blocks and windows of a data set.
#[derive(Clone, Copy, Debug)]
pub struct StreamingPlan(Windows);

impl StreamingPlan {
    /// Rows of a block: what is read together.
    pub fn block_rows(&self) -> usize {
        self.0.block_rows()
    }

    /// Rows of a window: what is shuffled together.
    pub fn window_rows(&self) -> usize {
        self.0.window_rows()
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> usize {
        self.0.count()
    }
}

/// Batches of one data set, for training or for evaluation.
pub struct ActivationLoader {
    job: Job,
    /// Batches of the first virtual epoch; the k-th is moved by `k * stride`, cut off at both ends of `all`.
    first: Range<u64>,
    stride: u64,
    all: Range<u64>,
    epoch: AtomicU64,
    device: Device,
    waiting: Waiting,
    /// What has been started for the next virtual epoch, if it is the one that comes.
    stream: Arc<Mutex<Option<(u64, Stream)>>>,
}

impl ActivationLoader {
    /// A training loader: the batches `steps` of the shuffled sequence, in virtual epochs that end at the
    /// multiples of `epoch_steps`. Every row comes once in each pass over the data; the last batch of a pass is
    /// filled up from the next.
    ///
    /// # Panics
    /// If any size is zero: the caller has checked.
    pub fn training(
        data: &ActivationData,
        batch: usize,
        streaming: &Streaming,
        steps: Range<usize>,
        epoch_steps: usize,
        device: &Device,
    ) -> Self {
        assert!(
            batch > 0 && epoch_steps > 0,
            "a batch has rows, a virtual epoch steps"
        );
        let job = Job {
            data: data.clone(),
            windows: streaming.plan(data).0,
            batch,
            workers: streaming.workers,
            pool: Pool::default(),
            end: (steps.end * batch) as u64,
        };
        Self {
            job,
            first: 0..epoch_steps as u64,
            stride: epoch_steps as u64,
            all: steps.start.min(steps.end) as u64..steps.end as u64,
            epoch: AtomicU64::new((steps.start / epoch_steps) as u64),
            device: device.clone(),
            waiting: Waiting::default(),
            stream: Arc::default(),
        }
    }

    /// An evaluation loader: every row once, in file order, at each call of `iter`.
    ///
    /// # Panics
    /// If `batch` is zero.
    pub fn evaluation(data: &ActivationData, batch: usize, device: &Device) -> Self {
        assert!(batch > 0, "a batch has rows");
        let batches = data.rows().div_ceil(batch) as u64;
        let window = data.together(batch);
        let job = Job {
            data: data.clone(),
            windows: Windows::sequential(data.rows(), window),
            batch,
            workers: 1,
            pool: Pool::default(),
            end: data.rows() as u64,
        };
        Self {
            job,
            first: 0..batches,
            stride: 0,
            all: 0..batches,
            epoch: AtomicU64::new(0),
            device: device.clone(),
            waiting: Waiting::default(),
            stream: Arc::default(),
        }
    }

    /// The clock of this loader's consumers.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Another loader of the same data, with a stream of its own.
    fn copy(&self) -> Self {
        Self {
            job: self.job.clone(),
            first: self.first.clone(),
            all: self.all.clone(),
            epoch: AtomicU64::new(self.epoch.load(Ordering::Relaxed)),
            device: self.device.clone(),
            waiting: self.waiting.clone(),
            stream: Arc::default(),
            ..*self
        }
    }

    /// The batches of a virtual epoch.
    fn batches(&self, epoch: u64) -> Range<u64> {
        batches(&self.first, self.stride, &self.all, epoch)
    }

    /// The stream that begins with virtual epoch `epoch`.
    fn stream(&self, epoch: u64) -> Stream {
        let waiting = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((_, stream)) = waiting.filter(|(next, _)| *next == epoch) {
            return stream;
        }
        let (first, stride, all) = (self.first.clone(), self.stride, self.all.clone());
        // Training goes on from one virtual epoch to the next, so the stream does; evaluation starts again.
        let epochs = if stride == 0 {
            epoch..epoch + 1
        } else {
            epoch..u64::MAX
        };
        let numbers = epochs
            .map(move |epoch| batches(&first, stride, &all, epoch))
            .take_while(|batches| !batches.is_empty())
            .flatten();
        Stream::start(self.job.clone(), numbers)
    }
}

fn batches(first: &Range<u64>, stride: u64, all: &Range<u64>, epoch: u64) -> Range<u64> {
    let moved = |number: u64| (number + epoch * stride).clamp(all.start, all.end);
    moved(first.start)..moved(first.end)
}

impl DataLoader<ActivationBatch> for ActivationLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ActivationBatch> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let batches = self.batches(epoch);
        let left = batches.end - batches.start;
        let rows = left as usize * self.job.batch;
        let past_the_end =
            (batches.end * self.job.batch as u64).saturating_sub(self.job.end) as usize;
        Box::new(Batches {
            stream: Some(self.stream(epoch)),
            next_epoch: (self.stride > 0).then_some(epoch + 1),
            left,
            device: self.device.clone(),
            waiting: self.waiting.clone(),
            progress: Progress::new(0, rows.saturating_sub(past_the_end), Some("rows".into())),
            keep: self.stream.clone(),
        })
    }

    /// Rows of a full virtual epoch.
    fn num_items(&self) -> usize {
        let rows = (self.first.end - self.first.start) as usize * self.job.batch;
        let past_the_end = (self.first.end * self.job.batch as u64).saturating_sub(self.job.end);
        match self.stride {
            0 => rows - past_the_end as usize,
            _ => rows,
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
        let position = |row: usize| self.first.start + (row / self.job.batch) as u64;
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
    stream: Option<Stream>,
    /// The virtual epoch that the stream goes on with.
    next_epoch: Option<u64>,
    /// Batches still to come.
    left: u64,
    device: Device,
    waiting: Waiting,
    progress: Progress,
    /// Where the stream goes for the next virtual epoch.
    keep: Arc<Mutex<Option<(u64, Stream)>>>,
}

impl Iterator for Batches {
    type Item = Result<ActivationBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let stream = self.stream.take()?;
            let mut keep = self.keep.lock().unwrap_or_else(PoisonError::into_inner);
            *keep = self.next_epoch.map(|epoch| (epoch, stream));
            return None;
        }
        let start = Instant::now();
        let data = self.stream.as_ref()?.next();
        self.waiting.add(start.elapsed());
        self.left -= 1;
        let error = match data {
            Some(Ok(data)) => return Some(Ok(self.deliver(data))),
            Some(Err(error)) => DatasetError::new(error),
            // not the end of the data: this many batches were promised
            None => DatasetError::new(std::io::Error::other(
                "the loader's thread ended before its batches did",
            )),
        };
        (self.left, self.stream) = (0, None);
        Some(Err(error))
    }
}

impl Batches {
    fn deliver(&mut self, data: TensorData) -> ActivationBatch {
        self.progress.items_processed += data.shape()[0];
        let activations = Tensor::from_data(data, &self.device);
        ActivationBatch { activations }
    }
}

impl DataLoaderIterator<ActivationBatch> for Batches {
    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
