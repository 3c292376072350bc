//! The learning rate as a pure function of the step.

use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::module::ParamGroup;
use sae_model::Sae;
use sae_model::parameters::{B_DEC, W_K, W_Q, W_V};

/// Names of [`module_scheduler`]'s groups in its record: all parameters, the projections, the pre-bias.
pub(crate) const GROUPS: [&str; 3] = ["0", "1", "2"];
/// The projections, which have a learning rate of their own.
const PROJECTIONS: [&str; 3] = [W_Q.name, W_K.name, W_V.name];

/// Linear warm-up, a plateau, linear decay to zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    peak: f64,
    warmup: usize,
    decay: usize,
    total: usize,
}

impl Schedule {
    /// Reaches `peak` after `warmup` steps, and falls to zero over the last `decay_fraction` of `total` steps.
    pub(crate) fn new(peak: f64, warmup: usize, decay_fraction: f64, total: usize) -> Self {
        let decay = (decay_fraction * total as f64).round() as usize;
        Self {
            peak,
            warmup,
            decay,
            total,
        }
    }

    /// The same schedule with `factor` times its peak.
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

/// `schedule` for every parameter of a learner of `sae`, times the parameter's factor if it has one.
pub(crate) fn module_scheduler(
    sae: &Sae,
    schedule: Schedule,
    factors: Factors,
) -> ModuleLrScheduler {
    let group = |names: &[&str]| {
        let places = names.iter().filter_map(|name| sae.parameters.path(name));
        let paths = places.map(|place| format!("sae.parameters.{place}"));
        ParamGroup::from_paths(paths.collect::<Vec<_>>())
    };
    let scheduler = |factor| Scheduler::new(schedule.times(factor));
    ModuleLrScheduler::new(Scheduler::new(schedule))
        .with_group(group(&PROJECTIONS), scheduler(factors.projections))
        .with_group(group(&[B_DEC.name]), scheduler(factors.pre_bias))
}

/// [`Schedule`] with the counter that Burn's learner needs.
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
