//! Where the batches of a loader come from, and how long they were waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::data::dataset::DatasetError;
use burn::tensor::TensorData;

use crate::shared::{Series, Share};
use crate::stream::{Job, Stream};

/// Clock of the time that consumers of a loader have waited for batches.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<AtomicU64>);

impl Waiting {
    pub(crate) fn add(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Total time waited, over all iterators of the loader and its copies.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Where batches come from.
pub(crate) enum Feed {
    Own(Stream),
    Shared {
        share: Share,
        job: Box<Job>,
        series: Series,
        /// Number of the next batch, of so many.
        next: u64,
        batches: u64,
    },
}

impl Feed {
    /// The next batch; the time that was waited for it is added to `waiting`.
    pub(crate) fn next(&mut self, waiting: &Waiting) -> Option<Result<TensorData, DatasetError>> {
        match self {
            Self::Own(stream) => {
                let start = Instant::now();
                let data = stream.next();
                waiting.add(start.elapsed());
                data.map(|data| data.map_err(DatasetError::new))
            }
            Self::Shared {
                share,
                job,
                series,
                next,
                batches,
            } => {
                let place = (*series, *next, *batches);
                *next += 1;
                let data = share.batch(job, place, |time| waiting.add(time));
                data.map(|data| data.map_err(DatasetError::new))
            }
        }
    }
}
