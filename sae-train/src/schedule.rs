//! The learning rate as a pure function of the step.

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::module::ParamGroup;

/// Names of [`module_scheduler`]'s groups in its record: all parameters, the projections, the pre-bias.
pub(crate) const GROUPS: [&str; 3] = ["0", "1", "2"];
/// Parameters with a learning rate of their own, as [`SaeLearner`](crate::learner::SaeLearner) names them.
const PROJECTIONS: [&str; 3] = ["sae.w_q", "sae.w_k", "sae.w_v"];
const PRE_BIAS: &str = "sae.pre_bias";

/// Linear warm-up, a plateau, linear decay to zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    peak: f64,
    warmup: usize,
    decay: usize,
    total: usize,
}

impl Schedule {
    /// `peak` after `warmup` steps; down to zero over the last `decay_fraction` of `total` steps.
    pub(crate) fn new(peak: f64, warmup: usize, decay_fraction: f64, total: usize) -> Self {
        let decay = (decay_fraction * total as f64).round() as usize;
        Self {
            peak,
            warmup,
            decay,
            total,
        }
    }

    /// The same with another peak.
    fn times(self, factor: f64) -> Self {
        Self {
            peak: factor * self.peak,
            ..self
        }
    }

    /// Learning rate of step `step`, counted from 0.
    pub(crate) fn at(&self, step: usize) -> f64 {
        let rising = (step + 1) as f64 / self.warmup.max(1) as f64;
        let falling = self.total.saturating_sub(step) as f64 / self.decay.max(1) as f64;
        self.peak * rising.min(falling).min(1.0)
    }
}

/// Factors on the learning rate of some parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    /// Of W_Q, W_K and W_V.
    pub(crate) projections: f64,
    pub(crate) pre_bias: f64,
}

/// `schedule` for every parameter, times its factor where it has one.
pub(crate) fn module_scheduler(schedule: Schedule, factors: Factors) -> ModuleLrScheduler {
    ModuleLrScheduler::new(Scheduler::new(schedule))
        .with_group(
            ParamGroup::from_paths(PROJECTIONS.to_vec()),
            Scheduler::new(schedule.times(factors.projections)),
        )
        .with_group(
            ParamGroup::from_path(PRE_BIAS),
            Scheduler::new(schedule.times(factors.pre_bias)),
        )
}

/// [`Schedule`] with the counter that Burn's learner asks for.
#[derive(Clone, Debug)]
struct Scheduler {
    schedule: Schedule,
    step: usize,
}

impl Scheduler {
    fn new(schedule: Schedule) -> Self {
        Self { schedule, step: 0 }
    }
}

impl LrScheduler for Scheduler {
    fn step(&mut self) -> f64 {
        let lr = self.schedule.at(self.step);
        self.step += 1;
        lr
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar("step", self.step as u64)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        self.step = record.scalar::<u64>("step").unwrap_or(0) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_holds_and_falls() {
        let schedule = Schedule::new(1.0, 4, 0.5, 20);
        let lr: Vec<f64> = [0, 1, 3, 4, 9, 10, 15, 19].map(|s| schedule.at(s)).to_vec();
        assert_eq!(lr, [0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.1]);
        assert_eq!(Schedule::new(2.0, 0, 0.0, 5).at(0), 2.0);
        assert_eq!(Schedule::new(2.0, 0, 0.0, 5).at(4), 2.0);
    }

    #[test]
    fn the_counter_survives_a_record() {
        let schedule = Schedule::new(1.0, 4, 0.5, 20);
        let mut first = Scheduler::new(schedule);
        for _ in 0..7 {
            first.step();
        }
        let mut second = Scheduler::new(schedule);
        second.load_record(first.to_record());
        assert_eq!(first.step(), second.step());
    }
}
