//! Ends a run early if its numbers stay those of a model that explains nothing.
//!
//! `sae_model::verdict` defines what collapse looks like, for the trainer and for the report; this module counts how
//! long it lasts. The count is a pure function of the steps and is kept in checkpoints, so an interrupted run ends at
//! the same step.

use sae_model::SaeConfig;
use sae_model::verdict::Signs;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::nonfinite::last_good;

/// Number of consecutive steps that must look like collapse.
const PATIENCE: usize = 100;
/// Least number of steps at the start that are not judged: L0 and the firing of latents settle there.
const GRACE: usize = 200;
/// The same, as a fraction of the run.
const GRACE_PART: f64 = 0.2;
/// Number of consecutive steps that must look like divergence; counted from the first step on.
const DIVERGED_PATIENCE: usize = 25;
/// Divergence is an FVU above this many times that of reconstructing every row as zeros.
const DIVERGED: f64 = 1000.0;
/// If an FVU above 1 falls below this fraction of its earlier value, the model still learns.
const FALLS: f32 = 0.99;

/// How to treat a run that has collapsed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnCollapse {
    /// End the run.
    #[default]
    Stop,
    /// Log a warning and go on.
    GoOn,
}

/// How long the numbers have looked like collapse; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Streak {
    /// Number of consecutive steps that look like collapse.
    steps: usize,
    /// Number of consecutive steps that look like divergence.
    diverged: usize,
    /// FVU when the streak began, or when it last fell below [`FALLS`] times this value.
    from_fvu: Option<f32>,
}

/// The numbers of a training step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) l0: f64,
    pub(crate) fvu: f64,
    pub(crate) dead: f64,
}

/// Judges every step of a run.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) policy: OnCollapse,
    pub(crate) model: SaeConfig,
    /// Optimizer steps of the run, and steps of warm-up.
    pub(crate) steps: usize,
    pub(crate) warmup_steps: usize,
    /// A latent that does not fire within this many rows is dead.
    pub(crate) dead_rows: usize,
    /// The target L0, if training has one.
    pub(crate) target_l0: Option<f64>,
    /// FVU of reconstructing every row as zeros, `1 + ||mean||^2 / sigma^2`.
    pub(crate) zero_fvu: f64,
    /// True if the FVU of a batch is meaningful: no rows of huge norm are left in the data.
    pub(crate) judge_fvu: bool,
    /// Peak learning rate, for the message.
    pub(crate) lr: f64,
}

impl Watch {
    /// Number of steps at the start that are not judged.
    fn grace(&self) -> usize {
        let part = (GRACE_PART * self.steps as f64) as usize;
        self.warmup_steps.max(GRACE).max(part)
    }

    /// The signs of collapse in the numbers of a step, in words; empty if there are none.
    fn signs(&self, seen: Seen) -> Vec<String> {
        let signs = Signs {
            model: &self.model,
            target_l0: self.target_l0,
            l0: seen.l0,
            fvu: Some(seen.fvu).filter(|_| self.judge_fvu),
            dead: seen.dead as u64,
            dead_rows: self.dead_rows,
        };
        signs.seen()
    }

    /// The streak after step `step` (counted from 1).
    fn next(&self, streak: Streak, step: usize, seen: Seen) -> Streak {
        let diverged = seen.fvu > DIVERGED * self.zero_fvu;
        let collapsed = step > self.grace() && !self.signs(seen).is_empty();
        if !diverged && !collapsed {
            return Streak::default();
        }
        let fvu = seen.fvu as f32;
        let by_fvu_alone = self.signs(Seen { fvu: 0.0, ..seen }).is_empty();
        let falls = streak.from_fvu.is_some_and(|from| fvu < FALLS * from);
        // one more than before, or the first of a new count
        let count = |before: usize, looks: bool, anew: bool| match looks {
            true if anew => 1,
            true => before + 1,
            false => 0,
        };
        Streak {
            steps: count(streak.steps, collapsed, falls && by_fvu_alone),
            diverged: count(streak.diverged, diverged, falls),
            from_fvu: streak.from_fvu.filter(|_| !falls).or(Some(fvu)),
        }
    }

    /// Describes a streak that has lasted long enough; `None` for a shorter one.
    fn found(&self, streak: Streak, seen: Seen) -> Option<String> {
        let Streak {
            steps, diverged, ..
        } = streak;
        if diverged >= DIVERGED_PATIENCE {
            let fvu = seen.fvu;
            return Some(format!(
                "has diverged, for {diverged} steps now: FVU is {fvu:.3e}"
            ));
        }
        let signs = || self.signs(seen).join(", ");
        (steps >= PATIENCE).then(|| format!("has collapsed, for {steps} steps now: {}", signs()))
    }

    /// The streak after step `step`; `last_saved` is the step of the last checkpoint.
    ///
    /// # Errors
    /// [`Failure::Collapsed`] if the streak has lasted long enough, unless the policy is to go on.
    pub(crate) fn look(
        &self,
        streak: Streak,
        step: usize,
        seen: Seen,
        last_saved: usize,
    ) -> Result<Streak, Failure> {
        let streak = self.next(streak, step, seen);
        let Some(found) = self.found(streak, seen) else {
            return Ok(streak);
        };
        let found = format!("step {step} of {}: the run {found}", self.steps);
        if self.policy == OnCollapse::GoOn {
            if streak.steps == PATIENCE || streak.diverged == DIVERGED_PATIENCE {
                tracing::warn!("{found}; it goes on (training.on_collapse)");
            }
            return Ok(streak);
        }
        let last = match last_saved {
            0 => last_good(0),
            saved => format!(
                "checkpoints up to step {saved} are kept, with the one of the least held-out FVU"
            ),
        };
        Err(Failure::Collapsed(format!(
            "{found}; {last}; start another run with a lower training.lr (it is {}), or let this one go on: --resume --set \
             training.on_collapse=go_on",
            self.lr
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sae_model::architectures::Attention;

    const WELL: Seen = Seen {
        l0: 30.0,
        fvu: 0.3,
        dead: 0.0,
    };
    const BADLY: Seen = Seen {
        l0: 1.1,
        fvu: 0.9,
        dead: 0.0,
    };

    fn watch(steps: usize) -> Watch {
        Watch {
            policy: OnCollapse::Stop,
            model: SaeConfig::new(Attention::default(), 8, 1000),
            steps,
            warmup_steps: 150,
            dead_rows: 100_000,
            target_l0: None,
            zero_fvu: 2.0,
            judge_fvu: true,
            lr: 1.0,
        }
    }

    /// The step at which a run with these numbers ends, if it does.
    fn ends(watch: &Watch, numbers: impl Fn(usize) -> Seen) -> Option<usize> {
        let mut streak = Streak::default();
        for step in 1..=watch.steps {
            match watch.look(streak, step, numbers(step), 0) {
                Ok(next) => streak = next,
                Err(failure) => {
                    assert_eq!(failure.code(), 11);
                    return Some(step);
                }
            }
        }
        None
    }

    #[test]
    fn a_collapse_ends_the_run_when_it_has_lasted() {
        assert_eq!(ends(&watch(600), |_| WELL), None);
        assert_eq!(ends(&watch(600), |_| BADLY), Some(300));
        assert_eq!(ends(&watch(5000), |_| BADLY), Some(1100));
        let late = |step| if step < 400 { WELL } else { BADLY };
        assert_eq!(ends(&watch(600), late), Some(499));
        let go_on = Watch {
            policy: OnCollapse::GoOn,
            ..watch(600)
        };
        assert_eq!(ends(&go_on, |_| BADLY), None);
    }

    #[test]
    fn a_good_step_begins_the_count_again() {
        let now_and_then = |step| if step % 99 == 0 { WELL } else { BADLY };
        assert_eq!(ends(&watch(5000), now_and_then), None);
    }

    #[test]
    fn an_fvu_above_one_that_falls_is_no_collapse() {
        let at = |fvu: f64| Seen { fvu, ..WELL };
        assert_eq!(ends(&watch(2000), |_| at(1.2)), Some(500));
        // 1 % every 90 steps, with noise
        let falling =
            |step: usize| at(9.0 * (-1.2e-4 * step as f64).exp() + 0.001 * (step % 2) as f64);
        assert_eq!(ends(&watch(2000), falling), None);
        let blind = Watch {
            judge_fvu: false,
            ..watch(2000)
        };
        assert_eq!(ends(&blind, |_| at(1.2)), None);
    }

    #[test]
    fn divergence_ends_the_run_before_it_is_not_a_number() {
        let at = |fvu: f64| Seen { fvu, ..WELL };
        assert_eq!(ends(&watch(2000), |_| at(1e9)), Some(25));
        let rising = |step: usize| at(1.5f64.powi(step as i32));
        // above 2,000 from step 19 on
        assert_eq!(ends(&watch(2000), rising), Some(43));
        // a bad start, with hardly any active latent, from which the run recovers
        let recovers = |step: usize| Seen {
            l0: 1.0,
            ..at(1e5 * 0.9f64.powi(step as i32))
        };
        let steps = 200;
        assert_eq!(ends(&watch(steps), recovers), None);
        assert_eq!(
            ends(&watch(600), |step| at(1e5 * 0.9f64.powi(step as i32))),
            None
        );
    }

    #[test]
    fn a_streak_survives_a_checkpoint() {
        let streak = watch(600).next(Streak::default(), 400, BADLY);
        let json = serde_json::to_string(&streak).unwrap();
        assert_eq!(serde_json::from_str::<Streak>(&json).unwrap(), streak);
        assert_ne!(streak, Streak::default());
    }
}
