//! One pass over the data for several consumers, which take turns.
//!
//! Runs that read the same batches in the same order need them once. Each run keeps its own loaders and its own pace; what it
//! asks for is a place in the common order: the step, then the pass over held-out rows or the training batch of that step, then
//! the number of the batch. The turn goes to the run that asks for the earliest place, and to the first of those that ask for
//! the same. So a batch is read when the first run comes to it, and is at hand until the last one has had it; a run that lags,
//! because it was killed earlier than the others, catches up alone.
//!
//! A turn has several training steps, whose places count as one and whose batches are kept: a model that comes back into the
//! processor's cache stays there for as many.
//!
//! Each device, or group of threads, is a lane. One run of a lane computes at a time, so that N of them need the time of N, and the memory
//! of one step.
//! Lanes go side by side: none is more than one batch ahead of another, or more than a turn.

use std::collections::VecDeque;
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

impl Place {
    /// Where this place stands among those of other runs, if a turn has so many training steps.
    fn in_turns(&self, turn: u64) -> Self {
        match self.series {
            Series::Training => Self {
                step: self.step / turn * turn,
                number: 0,
                ..*self
            },
            _ => *self,
        }
    }

    /// Whether a run may read this place while another computes with `at`: one of the same turn, whose batches are all kept, or what
    /// the other asks for next, which is the next batch of the series, or the first one of a later series or of the next step.
    fn is_near(&self, at: &Self, turn: u64) -> bool {
        if self <= at || self.in_turns(turn) == at.in_turns(turn) {
            return true;
        }
        if (self.step, self.series) == (at.step, at.series) {
            return self.number == at.number + 1;
        }
        let next_step = at.series == Series::Training && self.step == at.step + 1;
        let first = self.series == Series::Training || self.number == 0;
        first && (self.step == at.step || next_step)
    }
}

/// What a run does next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// It has not begun; those that have not come first.
    Begins,
    Wants(Place),
    /// It computes with the batch of this place; with none yet if it has only begun.
    Computes(Option<Place>),
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
    /// The device or the threads of each run.
    lanes: Vec<usize>,
    /// Training steps of a turn.
    turn: u64,
    /// The stream that is open for each series, and the number of its next batch.
    streams: [Option<(u64, Stream)>; 3],
    /// The batches of each series that were read last, with their numbers: of training those of a turn, of the others one.
    last: [VecDeque<(u64, Batch)>; 3],
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
    /// A pass of `steps` steps for as many runs as there are entries in `runs`: the steps that each of them has taken, and its
    /// lane. A turn has `turn` training steps, whose batches are kept.
    pub fn of_pass(steps: usize, runs: &[(usize, usize)], turn: usize) -> Vec<Self> {
        let pass = Arc::new(Pass {
            batches: steps as u64,
            state: Mutex::new(State {
                next: vec![Next::Begins; runs.len()],
                steps: runs.iter().map(|(done, _)| *done as u64).collect(),
                lanes: runs.iter().map(|(_, lane)| *lane).collect(),
                turn: turn.max(1) as u64,
                streams: [None, None, None],
                last: Default::default(),
            }),
            changed: Condvar::new(),
        });
        let share = |run| Self {
            pass: pass.clone(),
            run,
            away: Arc::default(),
        };
        (0..runs.len()).map(share).collect()
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
        self.pass.changed.notify_all();
        let not_yet = |state: &mut State| !state.may_go(self.run);
        let waited = self.pass.changed.wait_while(state, not_yet);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.next[self.run] = Next::Computes(match next {
            Next::Wants(place) => Some(place),
            _ => None,
        });
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
        pass.changed.notify_all();
    }
}

impl State {
    /// Whether a run waits and it is its turn.
    fn may_go(&self, run: usize) -> bool {
        let waits = matches!(self.next[run], Next::Begins | Next::Wants(_));
        let mut others = (0..self.next.len()).filter(|other| *other != run);
        waits && others.all(|other| !self.comes_before(other, run))
    }

    /// Whether a run must wait for another.
    fn comes_before(&self, other: usize, run: usize) -> bool {
        let same_lane = self.lanes[other] == self.lanes[run];
        match (&self.next[other], &self.next[run]) {
            (Next::Gone, _) => false,
            (Next::Computes(_), _) if same_lane => true,
            (Next::Computes(_), Next::Begins) => false,
            (Next::Computes(Some(at)), Next::Wants(place)) => !place.is_near(at, self.turn),
            (Next::Wants(theirs), Next::Wants(place)) => {
                let [theirs, place] = [theirs, place].map(|place| place.in_turns(self.turn));
                theirs < place || (theirs == place && same_lane && other < run)
            }
            (Next::Begins, Next::Begins) => same_lane && other < run,
            (Next::Wants(_), Next::Begins) => false,
            // the other has not said where it begins
            (Next::Begins | Next::Computes(None), _) => true,
            // this one does not wait
            (_, Next::Computes(_) | Next::Gone) => true,
        }
    }

    /// Batch `number` of a series of `batches`: one that was read last, or the next of the open stream, or the first of a new
    /// stream. `None` if the stream ends before its batches do.
    fn read(&mut self, job: &Job, (series, number, batches): (Series, u64, u64)) -> Option<Batch> {
        let last = &mut self.last[series as usize];
        if let Some((_, batch)) = last.iter().find(|(at, _)| *at == number) {
            return Some(batch.clone());
        }
        let kept = match series {
            Series::Training => self.turn as usize,
            _ => 1,
        };
        if last.len() >= kept {
            last.pop_front(); // its memory is used again
        }
        let slot = &mut self.streams[series as usize];
        let stream = match slot.take() {
            Some((next, stream)) if next == number => stream,
            _ => Stream::start(job.clone(), number..batches),
        };
        let batch = stream.next()?.map_err(Arc::new);
        if batch.is_ok() && number + 1 < batches {
            *slot = Some((number + 1, stream));
        }
        self.last[series as usize].push_back((number, batch.clone()));
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

    fn computes(step: u64) -> Next {
        Next::Computes(Some(Place {
            step,
            series: Series::Training,
            number: step,
        }))
    }

    /// The runs of four in these lanes whose turn it is when they do this next, and a turn has one step.
    fn may_go(lanes: [usize; 4], next: [Next; 4]) -> Vec<usize> {
        may_go_in_turns(1, lanes, next)
    }

    fn may_go_in_turns(turn: usize, lanes: [usize; 4], next: [Next; 4]) -> Vec<usize> {
        let share = &Share::of_pass(9, &lanes.map(|lane| (0, lane)), turn)[0];
        let mut state = locked(&share.pass.state);
        state.next = next.to_vec();
        (0..4).filter(|run| state.may_go(*run)).collect()
    }

    #[test]
    fn the_turn_goes_to_the_earliest_place_and_then_to_the_first_run() {
        use Next::{Begins, Gone};
        use Series::{Training, Validation, Whole};
        let one = |next| may_go([0; 4], next);
        let step = want(4, Training, 4);
        let validates = want(4, Validation, 7);
        assert_eq!(one([Begins; 4]), [0]);
        assert_eq!(
            one([step, Begins, Begins, Begins]),
            [1],
            "those that have not begun"
        );
        let whole = want(4, Whole, 9);
        assert_eq!(
            one([step, validates, whole, Gone]),
            [2],
            "all rows, a validation, a step"
        );
        assert_eq!(
            one([step, validates, validates, Gone]),
            [1],
            "the first of two"
        );
        let next = want(5, Validation, 0);
        assert_eq!(one([step, Gone, next, Gone]), [0], "the one that lags");
        assert_eq!(
            one([step, Gone, Next::Computes(None), Gone]),
            [0; 0],
            "one computes"
        );
        assert_eq!(one([Gone; 4]), [0; 0]);
    }

    #[test]
    fn a_turn_has_several_training_steps() {
        use Next::Gone;
        use Series::{Training, Validation};
        let step = |step| want(step, Training, step);
        let one = |next| may_go_in_turns(4, [0; 4], next);
        assert_eq!(one([step(6), step(4), step(4), Gone]), [0], "it goes on");
        assert_eq!(
            one([step(8), step(4), step(4), Gone]),
            [1],
            "the next one's turn"
        );
        assert_eq!(one([step(8), step(8), step(6), Gone]), [2]);
        assert_eq!(
            one([want(6, Validation, 0), step(4), step(5), Gone]),
            [1],
            "a validation waits for all"
        );
        assert_eq!(
            one([
                step(6),
                want(6, Validation, 2),
                want(6, Validation, 2),
                Gone
            ]),
            [0],
            "one whose validation is done goes on to the end of its turn"
        );
        assert_eq!(one([step(8), want(6, Validation, 2), step(6), Gone]), [2]);
        let two = |next| may_go_in_turns(4, [0, 1, 0, 1], next);
        assert_eq!(
            two([computes(4), step(7), step(4), step(4)]),
            [1],
            "the same turn"
        );
        assert_eq!(
            two([computes(4), step(8), step(4), Gone]),
            [0; 0],
            "the next one"
        );
        assert_eq!(
            two([computes(7), step(8), Gone, Gone]),
            [1],
            "one batch ahead"
        );
    }

    #[test]
    fn lanes_go_side_by_side_and_none_runs_ahead() {
        use Next::{Begins, Computes, Gone};
        use Series::{Training, Validation};
        let two = |next| may_go([0, 1, 0, 1], next);
        let step = |step| want(step, Training, step);
        assert_eq!(two([Begins; 4]), [0, 1]);
        assert_eq!(
            two([Computes(None), step(0), Gone, Gone]),
            [0; 0],
            "where does it begin?"
        );
        assert_eq!(two([step(3), step(3), step(3), step(3)]), [0, 1]);
        assert_eq!(two([computes(3), step(3), step(3), step(3)]), [1]);
        assert_eq!(
            two([step(4), computes(3), step(3), step(3)]),
            [2],
            "the one that lags"
        );
        assert_eq!(
            two([step(4), computes(3), Gone, Gone]),
            [0],
            "one batch ahead"
        );
        assert_eq!(two([step(5), computes(3), Gone, Gone]), [0; 0], "two");
        let at = |number| Place {
            step: 4,
            series: Validation,
            number,
        };
        let validates = Computes(Some(at(0)));
        assert_eq!(two([want(4, Validation, 1), validates, Gone, Gone]), [0]);
        assert_eq!(two([want(4, Validation, 2), validates, Gone, Gone]), [0; 0]);
        assert_eq!(two([step(5), validates, Gone, Gone]), [0; 0]);
        assert_eq!(two([want(4, Validation, 0), computes(3), Gone, Gone]), [0]);
        assert_eq!(
            two([want(4, Validation, 1), computes(3), Gone, Gone]),
            [0; 0],
            "the other begins with the first"
        );
    }
}
