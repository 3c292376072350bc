//! Rows on their way through the model: one thread reads ahead, this one encodes (on all threads of the pool), one
//! writes. Between them wait at most [`WAITING`] batches of rows and as many of codes, which bounds the memory.
//!
//! Batches begin at multiples of the batch size, whatever was encoded before: an encoding that continues runs the same
//! products as one that was never interrupted. Rows of its first batch that are already written are dropped.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::anyhow;
use burn::tensor::{Device, Tensor, TensorData};
use sae_data::ActivationData;
use sae_model::SparseCodes;
use sae_model::ops::Pattern;

use super::failure::Failure;
use super::index::Output;
use super::keep::{Entries, Keep};
use super::rows::RowShard;
use super::shards::{CodeShard, Dtype, Layout};
use super::stop::Stop;
use crate::model::{Model, values};
use crate::progress::Progress;

/// Batches that wait between two threads.
const WAITING: usize = 2;

/// What is encoded, and how.
pub(crate) struct Job<'a> {
    pub(crate) model: &'a Model,
    pub(crate) latents: usize,
    /// The device of rows and codes.
    pub(crate) host: Device,
    pub(crate) data: &'a ActivationData,
    /// Rows per batch.
    pub(crate) batch: usize,
    pub(crate) keep: Keep,
    pub(crate) layout: Layout,
    pub(crate) stop: Stop,
}

/// Rows that were read.
struct Rows {
    /// Index of the first.
    start: usize,
    /// `[n, d]`
    x: Vec<f32>,
}

/// Rows that were encoded.
#[derive(Default)]
struct Encoded {
    entries: Entries,
    /// `[n, d]`, if rows are reconstructed.
    x_hat: Option<Vec<f32>>,
}

impl Encoded {
    /// The same without its first `rows` rows of this width.
    fn without_first(mut self, rows: usize, width: usize) -> Self {
        if rows > 0 {
            self.entries.drop_first(rows);
            if let Some(x_hat) = &mut self.x_hat {
                x_hat.drain(..rows * width);
            }
        }
        self
    }
}

impl Job<'_> {
    /// Encodes the rows that `output` does not have yet, and writes its index.
    ///
    /// # Errors
    /// [`Failure`]; the shards that are whole stay.
    pub(crate) fn run(&self, output: &mut Output, progress: &mut Progress) -> Result<(), Failure> {
        let done = output.index.rows_done();
        std::thread::scope(|scope| {
            let (read, rows) = sync_channel(WAITING);
            let (encoded, codes) = sync_channel(WAITING);
            scope.spawn(move || self.read(done - done % self.batch, &read));
            let writer = scope.spawn(move || self.write(&codes, output, progress));
            let encoding = self.encode_all(done, rows, &encoded);
            drop(encoded); // the writer ends with the codes that it has
            let writing = writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            encoding.and(writing)
        })
    }

    /// Reads the rows from `start` on, in batches.
    fn read(&self, start: usize, to: &SyncSender<Result<Rows, Failure>>) {
        let (total, width) = (self.data.rows(), self.data.width());
        let together = self.data.together(self.batch);
        for first in (start..total).step_by(together) {
            let rows = first..(first + together).min(total);
            let read = self.data.read(rows).map_err(Failure::from);
            let read = read.and_then(|x| self.check(first, x));
            let x = match read {
                Ok(x) => x,
                Err(failure) => {
                    let _ = to.send(Err(failure));
                    return;
                }
            };
            for (number, x) in x.chunks(self.batch * width).enumerate() {
                let start = first + number * self.batch;
                let x = x.to_vec();
                if to.send(Ok(Rows { start, x })).is_err() {
                    return;
                }
            }
        }
    }

    /// Fails at a NaN or infinity.
    fn check(&self, first: usize, x: Vec<f32>) -> Result<Vec<f32>, Failure> {
        let Some(at) = x.iter().position(|value| !value.is_finite()) else {
            return Ok(x);
        };
        let width = self.data.width();
        let (row, column, value) = (self.row(first + at / width), at % width, x[at]);
        Err(anyhow!(
            "{}: row {row}, column {column} is {value}, so the row has no codes; remove such rows, or put a number there",
            self.data.path().display()
        )
        .into())
    }

    /// The number of a row in the whole data set.
    fn row(&self, index: usize) -> usize {
        self.data.rows_in_source(index..index + 1)[0]
    }

    /// Encodes all rows that are read; the first `done` are written already.
    fn encode_all(
        &self,
        done: usize,
        rows: Receiver<Result<Rows, Failure>>,
        to: &SyncSender<Encoded>,
    ) -> Result<(), Failure> {
        for read in rows {
            if let Some(signal) = self.stop.caught() {
                let message =
                    "stopped; whole shards stay, and the same command continues after them".into();
                return Err(Failure::Stopped { signal, message });
            }
            let read = read?;
            let written = done.saturating_sub(read.start);
            let encoded = self.encode(read)?.without_first(written, self.data.width());
            if to.send(encoded).is_err() {
                return Ok(()); // the writer has failed, and says why
            }
        }
        Ok(())
    }

    fn encode(&self, rows: Rows) -> Result<Encoded, Failure> {
        let Rows { start, x } = rows;
        let width = self.data.width();
        let count = x.len() / width;
        let x = TensorData::new(x, [count, width]);
        let x = Tensor::from_data(x, &self.host);
        let reconstructs = self.layout.reconstructed.is_some();
        let (codes, x_hat) = match (reconstructs, self.keep.is_everything()) {
            (true, true) => {
                let (codes, x_hat) = self.model.reconstruct(x);
                (codes, Some(x_hat))
            }
            _ => (self.model.encode(x), None),
        };
        let mut entries = self.keep.of(&codes.codes);
        let x_hat = match (reconstructs, x_hat) {
            (true, None) => {
                let pattern = Pattern::new(
                    self.latents,
                    entries.offsets.clone(),
                    entries.latents.clone(),
                );
                let kept = SparseCodes::new(entries.values.clone(), pattern, &self.host);
                Some(self.model.decode(kept, &codes.input))
            }
            (_, x_hat) => x_hat,
        };
        let x_hat = x_hat.map(values);
        self.check_range(start, &entries, x_hat.as_deref())?;
        if self.layout.dtype == Dtype::F16 {
            entries = entries.rounded(|value| Dtype::F16.round(value));
        }
        Ok(Encoded { entries, x_hat })
    }

    /// Fails at a value that is not finite in the type that is written.
    fn check_range(
        &self,
        start: usize,
        entries: &Entries,
        x_hat: Option<&[f32]>,
    ) -> Result<(), Failure> {
        let is_wrong = |value: &f32| !self.layout.dtype.round(*value).is_finite();
        if let Some(at) = entries.values.iter().position(is_wrong) {
            let row = entries.offsets.partition_point(|end| *end <= at) - 1;
            let what = format!("latent {}", entries.latents[at]);
            return Err(self.too_large(start + row, &what, entries.values[at]));
        }
        let x_hat = x_hat.unwrap_or_default();
        if let Some(at) = x_hat.iter().position(is_wrong) {
            let (row, column) = (at / self.data.width(), at % self.data.width());
            let what = format!("column {column} of the reconstruction");
            return Err(self.too_large(start + row, &what, x_hat[at]));
        }
        Ok(())
    }

    fn too_large(&self, index: usize, what: &str, value: f32) -> Failure {
        let remedy = match value.is_finite() {
            true => "too large for f16; use --dtype f32",
            false => {
                "the values of the row are too large to compute with; remove it, or scale it down"
            }
        };
        anyhow!(
            "{}: row {}: {what} is {value}: {remedy}",
            self.data.path().display(),
            self.row(index)
        )
        .into()
    }

    /// Writes all codes that come.
    fn write(
        &self,
        codes: &Receiver<Encoded>,
        output: &mut Output,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut shard = None;
        let total = output.index.rows;
        for encoded in codes {
            let rows = encoded.entries.offsets.len() - 1;
            let mut next = 0;
            while next < rows {
                let open = match shard.take() {
                    Some(open) => open,
                    None => self.open(output)?,
                };
                let (mut open, count) = self.fill(open, &encoded, next)?;
                next += count;
                progress.add(count);
                let is_last = open.rows + output.index.rows_done() == total;
                if next < rows || is_last {
                    let reconstructed = open.reconstructed.take().map(RowShard::finish);
                    output.add(open.codes.finish()?, reconstructed.transpose()?)?;
                } else {
                    shard = Some(open);
                }
            }
        }
        if output.index.rows_done() == total {
            output.finish(self.data.width())?;
        }
        Ok(())
    }

    /// Begins the next shard.
    fn open(&self, output: &Output) -> Result<Open, Failure> {
        let number = output.index.shards.len();
        let dtype = self.layout.dtype;
        let rows = self.layout.reconstructed;
        let rows = rows.map(|d| RowShard::create(&output.reconstruction(), number, dtype, d));
        let first = output.index.rows_done();
        Ok(Open {
            codes: self.layout.create(&output.dir, number, first)?,
            reconstructed: rows.transpose()?,
            bytes: 0,
            rows: 0,
        })
    }

    /// Adds the rows from `next` on to a shard, as far as they fit; returns their number.
    fn fill(
        &self,
        mut shard: Open,
        encoded: &Encoded,
        next: usize,
    ) -> Result<(Open, usize), Failure> {
        let entries = &encoded.entries;
        let all = next..entries.offsets.len() - 1;
        let used = (shard.bytes, shard.rows);
        let (count, bytes) = self.layout.fitting(entries, all, used);
        shard.codes.add(entries, next..next + count)?;
        if let (Some(rows), Some(x_hat)) = (&mut shard.reconstructed, &encoded.x_hat) {
            let width = self.data.width();
            rows.add(&x_hat[next * width..(next + count) * width])?;
        }
        shard.bytes += bytes;
        shard.rows += count;
        Ok((shard, count))
    }
}

/// A shard that is being written.
struct Open {
    codes: Box<dyn CodeShard>,
    reconstructed: Option<RowShard>,
    bytes: usize,
    rows: usize,
}
