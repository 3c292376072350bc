//! How the runs of a pass share a processor.
//!
//! A step in one thread does more per thread than a step in several, which wait for each other. So several runs train side by side, each
//! with a few threads of its own, as long as every thread has work: a *lane* is the runs that take turns with these threads.

use std::num::NonZeroUsize;

/// The part of a step that more threads do not make shorter. Twelve quickstart runs of 100 steps took 35.6 s in turn with both threads of a
/// machine, and 29.1 s as two sixes beside each other with one thread each: 0.22. Speed depends on it, and no number.
const SERIAL: f64 = 0.2;

/// Lanes of a pass on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    pub(super) count: usize,
    /// Threads of a lane.
    pub(super) threads: NonZeroUsize,
}

impl Lanes {
    /// The lanes with which so many runs take the least time with so many threads, among those for which there is memory; the fewest of
    /// several. One lane is always among them.
    pub(super) fn of(runs: usize, threads: usize, fits: impl Fn(usize) -> bool) -> Self {
        let lanes = |count: usize| Self {
            count,
            threads: NonZeroUsize::new(threads / count).unwrap_or(NonZeroUsize::MIN),
        };
        let more = (2..=runs.min(threads)).map(lanes);
        more.fold(lanes(1), |best, lanes| {
            let faster = lanes.time(runs) < best.time(runs);
            if faster && fits(lanes.count) {
                lanes
            } else {
                best
            }
        })
    }

    /// The time of a step of each run, in steps of one thread.
    fn time(self, runs: usize) -> f64 {
        let of_step = SERIAL + (1.0 - SERIAL) / self.threads.get() as f64;
        runs.div_ceil(self.count) as f64 * of_step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(runs: usize, threads: usize) -> (usize, usize) {
        let lanes = Lanes::of(runs, threads, |_| true);
        (lanes.count, lanes.threads.get())
    }

    #[test]
    fn every_thread_has_work() {
        assert_eq!(of(1, 8), (1, 8));
        assert_eq!(of(12, 1), (1, 1));
        assert_eq!(of(12, 2), (2, 1));
        assert_eq!(of(3, 2), (1, 2), "one lane would wait for half of the time");
        assert_eq!(of(7, 2), (2, 1), "for an eighth");
        assert_eq!(of(12, 16), (12, 1));
        assert_eq!(of(2, 16), (2, 8));
        assert_eq!(of(100, 64), (50, 1));
    }

    #[test]
    fn where_memory_is_short_fewer_train_side_by_side() {
        let lanes = Lanes::of(12, 4, |lanes| lanes <= 2);
        assert_eq!((lanes.count, lanes.threads.get()), (2, 2));
        assert_eq!(Lanes::of(12, 4, |_| false).count, 1);
    }
}
