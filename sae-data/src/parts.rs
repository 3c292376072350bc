//! Batches in parts, for training whose gradients are added up part by part, in one process or in several.
//!
//! The training rows are cut into as many consecutive stretches as a batch has parts, and part p of every batch comes from stretch p,
//! in an order of its own. So a process that computes some parts reads their stretches alone, and what it reads does not depend on
//! how many processes there are.

use std::ops::Range;
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor};

use crate::data::ActivationData;
use crate::feed::Waiting;
use crate::loader::{ActivationBatch, ActivationLoader, Streaming};

/// The parts of batches that one process computes.
#[derive(Clone, Debug)]
pub struct Parts {
    data: ActivationData,
    streaming: Streaming,
    batch: usize,
    of: usize,
    own: Range<usize>,
}

impl Parts {
    /// Parts `own` of the `of` parts of batches of `batch` rows. One part is the whole batch.
    ///
    /// # Panics
    /// If the parts do not divide the batch, there are fewer rows than parts, or `own` are not some of them.
    pub fn new(
        data: &ActivationData,
        streaming: Streaming,
        batch: usize,
        of: usize,
        own: Range<usize>,
    ) -> Self {
        assert!(batch.is_multiple_of(of), "parts of the same size");
        assert!(of <= data.rows(), "a row for each part");
        assert!(!own.is_empty() && own.end <= of, "some of the parts");
        let window_mb = streaming.window_mb.div_ceil(of);
        Self {
            data: data.clone(),
            streaming: Streaming {
                window_mb,
                ..streaming
            },
            batch,
            of,
            own,
        }
    }

    /// The rows of batch `number` that this process computes, numbered in the whole data set.
    pub fn rows_of_batch(&self, number: usize) -> Vec<usize> {
        let rows = |stretch| {
            self.streaming
                .rows_of_batch(&stretch, self.batch / self.of, number)
        };
        self.stretches().flat_map(rows).collect()
    }

    /// The data set.
    pub fn data(&self) -> &ActivationData {
        &self.data
    }

    fn stretches(&self) -> impl Iterator<Item = ActivationData> {
        let at = |part: usize| {
            let rows = self.data.rows() as u128 * part as u128 / self.of as u128;
            rows as usize
        };
        let stretch = move |part: usize| match self.of {
            1 => self.data.clone(),
            _ => self.data.stretch(at(part)..at(part + 1)),
        };
        self.own.clone().map(stretch)
    }

    /// A training loader as [`ActivationLoader::training`], whose batches are this process's parts, one behind the other.
    pub fn training(
        &self,
        steps: Range<usize>,
        epoch_steps: usize,
        device: &Device,
    ) -> PartsLoader {
        let waiting = Waiting::default();
        let loader = |stretch: ActivationData| -> Arc<dyn DataLoader<ActivationBatch>> {
            let loader = ActivationLoader::training(
                &stretch,
                self.batch / self.of,
                &self.streaming,
                steps.clone(),
                epoch_steps,
                device,
            );
            Arc::new(loader.timed_by(&waiting))
        };
        PartsLoader {
            parts: self.stretches().map(loader).collect(),
            waiting: waiting.clone(),
        }
    }
}

/// Parts of batches, for Burn's trainer.
pub struct PartsLoader {
    parts: Vec<Arc<dyn DataLoader<ActivationBatch>>>,
    waiting: Waiting,
}

impl PartsLoader {
    /// The clock of this loader.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    fn with(&self, parts: impl Iterator<Item = Arc<dyn DataLoader<ActivationBatch>>>) -> Arc<Self> {
        Arc::new(Self {
            parts: parts.collect(),
            waiting: self.waiting.clone(),
        })
    }
}

impl DataLoader<ActivationBatch> for PartsLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ActivationBatch> + 'a> {
        let parts = self.parts.iter().map(|part| part.iter());
        Box::new(PartBatches(parts.collect()))
    }

    /// Rows per full virtual epoch.
    fn num_items(&self) -> usize {
        self.parts.iter().map(|part| part.num_items()).sum()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<ActivationBatch>> {
        self.with(self.parts.iter().map(|part| part.to_device(device)))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ActivationBatch>> {
        let of = self.parts.len();
        let slice = |part: &Arc<dyn DataLoader<ActivationBatch>>| part.slice(start / of, end / of);
        self.with(self.parts.iter().map(slice))
    }
}

/// One virtual epoch.
struct PartBatches<'a>(Vec<Box<dyn DataLoaderIterator<ActivationBatch> + 'a>>);

impl Iterator for PartBatches<'_> {
    type Item = Result<ActivationBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        // every part is asked at the end, too: each keeps what it has prepared for the next virtual epoch
        let parts: Vec<Option<Self::Item>> = self.0.iter_mut().map(Iterator::next).collect();
        let parts: Option<Vec<Result<ActivationBatch, DatasetError>>> = parts.into_iter().collect();
        let joined = |parts: Vec<ActivationBatch>| {
            let mut rows: Vec<Tensor<2>> = parts.into_iter().map(|part| part.activations).collect();
            let activations = match rows.len() {
                1 => rows.remove(0),
                _ => Tensor::cat(rows, 0),
            };
            ActivationBatch { activations }
        };
        let parts: Result<Vec<ActivationBatch>, DatasetError> = parts?.into_iter().collect();
        Some(parts.map(joined))
    }
}

impl DataLoaderIterator<ActivationBatch> for PartBatches<'_> {
    fn progress(&self) -> Progress {
        let all = self.0.iter().map(|part| part.progress());
        let sum = |a: Progress, b: Progress| {
            let (done, total) = (
                a.items_processed + b.items_processed,
                a.items_total + b.items_total,
            );
            Progress::new(done, total, Some("rows".into()))
        };
        all.reduce(sum).expect("a process has a part")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row i is i, i.
    fn data(rows: usize) -> ActivationData {
        let values = (0..rows).flat_map(|row| [row as f32; 2]).collect();
        ActivationData::from_rows(values, 2)
    }

    fn batches(loader: &dyn DataLoader<ActivationBatch>) -> Vec<Vec<usize>> {
        let rows = |batch: Result<ActivationBatch, DatasetError>| -> Vec<usize> {
            let values: Vec<f32> = batch
                .expect("a batch")
                .activations
                .into_data()
                .iter()
                .collect();
            values.chunks(2).map(|row| row[0] as usize).collect()
        };
        loader.iter().map(rows).collect()
    }

    fn parts(of: usize, own: Range<usize>) -> Parts {
        let streaming = Streaming {
            block_rows: Some(3),
            seed: 7,
            ..Streaming::default()
        };
        Parts::new(&data(53), streaming, 12, of, own)
    }

    #[test]
    fn processes_see_the_batch_of_one_process_in_pieces() {
        let device = Device::flex();
        let whole = batches(&parts(4, 0..4).training(0..9, 4, &device));
        assert_eq!(whole.len(), 4); // a virtual epoch
        for ranks in [2, 4] {
            let own = |rank: usize| rank * 4 / ranks..(rank + 1) * 4 / ranks;
            let pieces: Vec<_> = (0..ranks)
                .map(|rank| batches(&parts(4, own(rank)).training(0..9, 4, &device)))
                .collect();
            for (number, batch) in whole.iter().enumerate() {
                let joined: Vec<usize> = pieces.iter().flat_map(|p| p[number].clone()).collect();
                assert_eq!(joined, *batch, "{ranks} processes, batch {number}");
            }
        }
    }

    #[test]
    fn every_part_has_its_stretch_and_every_row_comes_once_per_pass() {
        let all = parts(4, 0..4);
        let mut seen: Vec<usize> = (0..4)
            .flat_map(|number| all.rows_of_batch(number))
            .collect();
        for batch in seen.chunks(12) {
            for (part, rows) in batch.chunks(3).enumerate() {
                let stretch = 53 * part / 4..53 * (part + 1) / 4;
                assert!(
                    rows.iter().all(|row| stretch.contains(row)),
                    "{part}: {rows:?}"
                );
            }
        }
        seen.sort_unstable();
        let distinct = {
            let mut rows = seen.clone();
            rows.dedup();
            rows.len()
        };
        assert_eq!((seen.len(), distinct), (48, 48)); // each stretch has 13 rows or 14: more than four batches take
    }

    #[test]
    fn virtual_epochs_follow_each_other_and_training_continues_anywhere() {
        let device = Device::flex();
        let numbered = |parts: &Parts, steps: Range<usize>| -> Vec<Vec<usize>> {
            steps.map(|number| parts.rows_of_batch(number)).collect()
        };
        let two = parts(4, 1..3);
        let loader = two.training(0..9, 4, &device);
        let epochs: Vec<_> = (0..3).flat_map(|_| batches(&loader)).collect();
        assert_eq!(epochs, numbered(&two, 0..9));
        let later = two.training(6..9, 4, &device);
        let epochs: Vec<_> = (0..2).flat_map(|_| batches(&later)).collect();
        assert_eq!(epochs, numbered(&two, 6..9));
    }

    #[test]
    fn one_part_is_the_batch_itself() {
        let one = parts(1, 0..1);
        let plain =
            ActivationLoader::training(&one.data, 12, &one.streaming, 0..9, 4, &Device::flex());
        assert_eq!(
            batches(&one.training(0..9, 4, &Device::flex())),
            batches(&plain)
        );
    }
}
