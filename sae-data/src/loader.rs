//! The loader for Burn's trainer: whole batches, prepared ahead of time, in a defined order.
//!
//! Batches are numbered from the start of training. A batch is a pure function of (seed, number), so the loader's whole
//! state is a number. One call of `iter` yields a *virtual epoch*, the batches between two validations; the next call
//! continues after it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::default_workers;
use crate::data::ActivationData;
use crate::feed::{Feed, Waiting};
use crate::pool::Pool;
use crate::shared::{Series, Share};
use crate::stream::{Job, Stream};
use crate::window::StreamingPlan;

/// Bytes per block, as float32, unless the format prefers more: large enough to read at the disk's speed, small enough for
/// many blocks per window and for a processor's cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that a window needs at least to be well shuffled.
const BLOCKS_PER_WINDOW: usize = 16;

/// A batch of activations `[B, d]`.
#[derive(Clone, Debug)]
pub struct ActivationBatch {
    /// Activations `[B, d]`, float32.
    pub activations: Tensor<2>,
}

/// How training data is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Memory for prepared batches, in MiB: two windows, one in use while the other is filled. Rows count as float32
    /// whatever their type in the files, so the order does not depend on the format.
    pub window_mb: usize,
    /// Rows per block; `None` for blocks of 1 MiB, or four pages of Parquet if these are larger.
    pub block_rows: Option<usize>,
    /// Number of reading threads.
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
    /// The rows of training batch `number`, numbered in the whole data set.
    ///
    /// # Panics
    /// If there are no rows.
    pub fn rows_of_batch(&self, data: &ActivationData, batch: usize, number: usize) -> Vec<usize> {
        let windows = self.plan(data);
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

    /// The blocks and windows of `data`.
    ///
    /// # Panics
    /// If there are no rows.
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
        StreamingPlan::shuffled(data.rows(), window, block, self.seed)
    }
}

/// Batches of one data set, for training or for evaluation.
pub struct ActivationLoader {
    job: Job,
    epochs: Epochs,
    epoch: AtomicU64,
    device: Device,
    waiting: Waiting,
    /// The running stream, and the virtual epoch with which it continues.
    stream: Arc<Mutex<Option<(u64, Stream)>>>,
    /// The pass that batches come from, if they are not read for this loader alone.
    shared: Option<(Share, Series)>,
}

/// The batches of virtual epochs.
#[derive(Clone, Debug)]
struct Epochs {
    /// Batches of the first virtual epoch; the k-th is shifted by `k * stride` and clipped to `all`.
    first: Range<u64>,
    /// Zero for evaluation, which repeats the same batches.
    stride: u64,
    all: Range<u64>,
}

impl Epochs {
    fn batches(&self, epoch: u64) -> Range<u64> {
        let moved =
            |number: u64| (number + epoch * self.stride).clamp(self.all.start, self.all.end);
        moved(self.first.start)..moved(self.first.end)
    }
}

impl ActivationLoader {
    /// A training loader: batches `steps` of the shuffled sequence, in virtual epochs that end at multiples of
    /// `epoch_steps`. Every row comes once per pass over the data; the last batch of a pass is completed with rows of the
    /// next.
    ///
    /// # Panics
    /// If any size is zero, or there are no rows.
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
            windows: streaming.plan(data),
            batch,
            workers: streaming.workers,
            pool: Pool::default(),
            end: (steps.end * batch) as u64,
        };
        let stride = epoch_steps as u64;
        let epochs = Epochs {
            first: 0..stride,
            stride,
            all: steps.start.min(steps.end) as u64..steps.end as u64,
        };
        Self::new(job, epochs, (steps.start / epoch_steps) as u64, device)
    }

    /// An evaluation loader: every row once, in file order, at each call of `iter`.
    ///
    /// # Panics
    /// If `batch` is zero, or there are no rows.
    pub fn evaluation(data: &ActivationData, batch: usize, device: &Device) -> Self {
        assert!(batch > 0, "a batch has rows");
        let batches = data.rows().div_ceil(batch) as u64;
        let window = data.together(batch);
        let job = Job {
            data: data.clone(),
            windows: StreamingPlan::sequential(data.rows(), window),
            batch,
            workers: 1,
            pool: Pool::default(),
            end: data.rows() as u64,
        };
        let epochs = Epochs {
            first: 0..batches,
            stride: 0,
            all: 0..batches,
        };
        Self::new(job, epochs, 0, device)
    }

    fn new(job: Job, epochs: Epochs, epoch: u64, device: &Device) -> Self {
        Self {
            job,
            epochs,
            epoch: AtomicU64::new(epoch),
            device: device.clone(),
            waiting: Waiting::default(),
            stream: Arc::default(),
            shared: None,
        }
    }

    /// The same batches, from a pass that other loaders of this data, with batches of this size in this order, have a share in.
    pub fn in_pass(mut self, share: &Share, series: Series) -> Self {
        if series == Series::Training {
            self.job.end = share.batches() * self.job.batch as u64;
        }
        self.shared = Some((share.clone(), series));
        self
    }

    /// The same, with the clock of others.
    pub(crate) fn timed_by(mut self, waiting: &Waiting) -> Self {
        self.waiting = waiting.clone();
        self
    }

    /// The clock of this loader.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// Another loader of the same data, with its own stream.
    fn copy(&self, epochs: Epochs, device: &Device) -> Arc<dyn DataLoader<ActivationBatch>> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        Arc::new(Self {
            waiting: self.waiting.clone(),
            shared: self.shared.clone(),
            ..Self::new(self.job.clone(), epochs, epoch, device)
        })
    }

    /// The stream that begins with virtual epoch `epoch`.
    fn stream(&self, epoch: u64) -> Stream {
        let mut kept = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, stream)) = kept.take().filter(|(next, _)| *next == epoch) {
            return stream;
        }
        // A training stream continues in the next virtual epoch; evaluation starts again.
        let last = if self.epochs.stride == 0 {
            epoch + 1
        } else {
            u64::MAX
        };
        let epochs = self.epochs.clone();
        let numbers = (epoch..last)
            .map(move |epoch| epochs.batches(epoch))
            .take_while(|batches| !batches.is_empty())
            .flatten();
        Stream::start(self.job.clone(), numbers)
    }
}

impl DataLoader<ActivationBatch> for ActivationLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ActivationBatch> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let batches = self.epochs.batches(epoch);
        let left = batches.end - batches.start;
        let end = (batches.end * self.job.batch as u64).min(self.job.end);
        let rows = end.saturating_sub(batches.start * self.job.batch as u64) as usize;
        let feed = match &self.shared {
            Some((share, series)) => Feed::Shared {
                share: share.clone(),
                job: Box::new(self.job.clone()),
                series: *series,
                next: batches.start,
                // one stream serves the runs of a pass, however long each of them is
                batches: match series {
                    Series::Training => share.batches(),
                    _ => batches.end,
                },
            },
            None => Feed::Own(self.stream(epoch)),
        };
        Box::new(Batches {
            feed: Some(feed),
            next_epoch: (self.epochs.stride > 0).then_some(epoch + 1),
            left,
            device: self.device.clone(),
            waiting: self.waiting.clone(),
            progress: Progress::new(0, rows, Some("rows".into())),
            keep: self.stream.clone(),
        })
    }

    /// Rows per full virtual epoch.
    fn num_items(&self) -> usize {
        let first = &self.epochs.first;
        let rows = (first.end - first.start) * self.job.batch as u64;
        let past_the_end = (first.end * self.job.batch as u64).saturating_sub(self.job.end);
        match self.epochs.stride {
            0 => (rows - past_the_end) as usize,
            _ => rows as usize,
        }
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<ActivationBatch>> {
        self.copy(self.epochs.clone(), device)
    }

    /// The batches that hold rows `start..end` of every virtual epoch; boundaries are rounded down to
    /// whole batches.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ActivationBatch>> {
        let first = &self.epochs.first;
        let position = |row: usize| first.start + (row / self.job.batch) as u64;
        let last = if end >= self.num_items() {
            first.end
        } else {
            position(end)
        };
        let epochs = Epochs {
            first: position(start)..last,
            ..self.epochs.clone()
        };
        self.copy(epochs, &self.device)
    }
}

/// One virtual epoch.
struct Batches {
    feed: Option<Feed>,
    /// The virtual epoch with which the stream continues.
    next_epoch: Option<u64>,
    /// Batches still to come.
    left: u64,
    device: Device,
    waiting: Waiting,
    progress: Progress,
    /// Keeps the stream for the next virtual epoch.
    keep: Arc<Mutex<Option<(u64, Stream)>>>,
}

impl Iterator for Batches {
    type Item = Result<ActivationBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if let Feed::Own(stream) = self.feed.take()? {
                let mut keep = self.keep.lock().unwrap_or_else(PoisonError::into_inner);
                *keep = self.next_epoch.map(|epoch| (epoch, stream));
            }
            return None;
        }
        let data = self.feed.as_mut()?.next(&self.waiting);
        self.left -= 1;
        let error = match data {
            Some(Ok(data)) => return Some(Ok(self.deliver(data))),
            Some(Err(error)) => error,
            // not the end of the data: more batches were promised
            None => DatasetError::new(std::io::Error::other(
                "the loader's thread ended before its batches did",
            )),
        };
        (self.left, self.feed) = (0, None);
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
