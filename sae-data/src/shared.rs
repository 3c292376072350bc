//! One pass over the data for several consumers, which take turns.
//!
//! Runs that read the same batches in the same order need them once. Each run keeps its own loaders and its own pace; what it
//! asks for is a place in the common order: the step, then the pass over held-out rows or the training batch of that step, then
//! the number of the batch. The turn goes to the run that asks for the earliest place, and to the first of those that ask for
//! the same. So a batch is read when the first run comes to it, and is at hand until the last one has had it; a run that lags,
//! because it was killed earlier than the others, catches up alone. One run computes at a time, so that N of them need the
//! time of N, and the memory of one step.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::TensorData;

use crate::error::DataError;
use crate::stream::{Job, Stream};

/// What a run reads at a step, in this order: a validation precedes the batch that the next step trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// All held-out rows.
    Whole,
    /// The held-out rows that validations use.
    Validation,
    /// The training rows.
    Training,
}

/// A place in the common order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    step: u64,
    series: Series,
    number: u64,
}

/// What a run does next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// It has not begun; those that have not come first.
    Begins,
    Wants(Place),
    /// It has ended.
    Gone,
}

/// A batch, or why there is none.
type Batch = Result<TensorData, Arc<DataError>>;

#[derive(Debug)]
struct State {
    next: Vec<Next>,
    /// Steps that each run has taken.
    steps: Vec<u64>,
    /// The run whose turn it is.
    turn: Option<usize>,
    /// The stream that is open for each series, and the number of its next batch.
    streams: [Option<(u64, Stream)>; 3],
    /// The batch that was read last.
    last: Option<(Series, u64, Batch)>,
}

#[derive(Debug)]
struct Pass {
    /// Batches of the longest run.
    batches: u64,
    state: Mutex<State>,
    changed: Condvar,
}

/// The part that one run has in a pass.
#[derive(Clone, Debug)]
pub struct Share {
    pass: Arc<Pass>,
    run: usize,
    away: Arc<Mutex<Duration>>,
}

/// The right to take turns, until it is dropped: then the others go on without this run.
#[derive(Debug)]
pub struct Seat(Share);

impl Share {
    /// A pass of `steps` steps for as many runs as there are entries in `done`, the steps that each of them has taken.
    pub fn of_pass(steps: usize, done: &[usize]) -> Vec<Self> {
        let pass = Arc::new(Pass {
            batches: steps as u64,
            state: Mutex::new(State {
                next: vec![Next::Begins; done.len()],
                steps: done.iter().map(|done| *done as u64).collect(),
                turn: None,
                streams: [None, None, None],
                last: None,
            }),
            changed: Condvar::new(),
        });
        let share = |run| Self {
            pass: pass.clone(),
            run,
            away: Arc::default(),
        };
        (0..done.len()).map(share).collect()
    }

    /// The right of this run to take turns. Nobody's turn comes before every run has begun, or has dropped its seat.
    pub fn seat(&self) -> Seat {
        Seat(self.clone())
    }

    /// Time that this run has waited while others computed.
    pub fn away(&self) -> Duration {
        *locked(&self.away)
    }

    /// Batches of the longest run.
    pub(crate) fn batches(&self) -> u64 {
        self.pass.batches
    }

    /// Gives the turn away, waits for it, and returns batch `number` of a series of `batches`. The time that is spent on
    /// reading is added to `reading`.
    pub(crate) fn batch(
        &self,
        job: &Job,
        (series, number, batches): (Series, u64, u64),
        reading: impl FnOnce(Duration),
    ) -> Option<Batch> {
        let step = match series {
            Series::Training => number,
            _ => locked(&self.pass.state).steps[self.run],
        };
        let mut state = self.turn(Next::Wants(Place {
            step,
            series,
            number,
        }));
        let started = Instant::now();
        let batch = state.read(job, (series, number, batches));
        reading(started.elapsed());
        if series == Series::Training {
            state.steps[self.run] = number + 1;
        }
        batch
    }

    /// Gives the turn away and waits until this run may do `next`.
    fn turn(&self, next: Next) -> MutexGuard<'_, State> {
        let started = Instant::now();
        let mut state = locked(&self.pass.state);
        state.next[self.run] = next;
        if state.turn == Some(self.run) {
            state.turn = None;
        }
        self.pass.changed.notify_all();
        let mine = |state: &mut State| !(state.turn.is_none() && state.first() == Some(self.run));
        let waited = self.pass.changed.wait_while(state, mine);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.turn = Some(self.run);
        *locked(&self.away) += started.elapsed();
        state
    }
}

impl Seat {
    /// Waits for the first turn. It lasts until the run asks one of its loaders for a batch, or drops its seat.
    pub fn begin(&self) {
        drop(self.0.turn(Next::Begins));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Share { pass, run, .. } = &self.0;
        let mut state = locked(&pass.state);
        state.next[*run] = Next::Gone;
        if state.turn == Some(*run) {
            state.turn = None;
        }
        pass.changed.notify_all();
    }
}

impl State {
    /// The run whose turn is next.
    fn first(&self) -> Option<usize> {
        let order = |next: &Next| match next {
            Next::Begins => Some(None),
            Next::Wants(place) => Some(Some(*place)),
            Next::Gone => None,
        };
        let waiting = self.next.iter().enumerate();
        let waiting = waiting.filter_map(|(run, next)| Some((order(next)?, run)));
        waiting.min().map(|(_, run)| run)
    }

    /// Batch `number` of a series of `batches`: the one that was read last, or the next of the open stream, or the first of a new
    /// stream. `None` if the stream ends before its batches do.
    fn read(&mut self, job: &Job, (series, number, batches): (Series, u64, u64)) -> Option<Batch> {
        if let Some((_, _, batch)) = self
            .last
            .as_ref()
            .filter(|(of, at, _)| (*of, *at) == (series, number))
        {
            return Some(batch.clone());
        }
        self.last = None; // its memory is used again
        let slot = &mut self.streams[series as usize];
        let stream = match slot.take() {
            Some((next, stream)) if next == number => stream,
            _ => Stream::start(job.clone(), number..batches),
        };
        let batch = stream.next()?.map_err(Arc::new);
        if batch.is_ok() && number + 1 < batches {
            *slot = Some((number + 1, stream));
        }
        self.last = Some((series, number, batch.clone()));
        Some(batch)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(step: u64, series: Series, number: u64) -> Next {
        Next::Wants(Place {
            step,
            series,
            number,
        })
    }

    #[test]
    fn the_turn_goes_to_the_earliest_place_and_then_to_the_first_run() {
        let share = &Share::of_pass(9, &[0, 0, 0, 0])[0];
        let mut state = locked(&share.pass.state);
        assert_eq!(state.first(), Some(0));
        state.next[0] = want(4, Series::Training, 4);
        assert_eq!(state.first(), Some(1), "those that have not begun");
        state.next[1] = want(4, Series::Validation, 7);
        state.next[2] = want(4, Series::Whole, 9);
        state.next[3] = Next::Gone;
        assert_eq!(state.first(), Some(2), "all rows, a validation, a step");
        state.next[2] = want(4, Series::Validation, 7);
        assert_eq!(state.first(), Some(1), "the first of two");
        state.next[1] = Next::Gone;
        state.next[2] = want(5, Series::Validation, 0);
        assert_eq!(state.first(), Some(0), "the one that lags");
        state.next[0] = Next::Gone;
        state.next[2] = Next::Gone;
        assert_eq!(state.first(), None);
    }
}
