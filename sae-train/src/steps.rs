//! The training loop, as a strategy of Burn's trainer. It does what Burn's own loop does, and makes a run safe.
//!
//! Burn's loop saves only at the end of a virtual epoch and loses an interrupted one. This loop checks after every step
//! whether a checkpoint is due, whether it was asked to stop, and whether the numbers are finite. Burn's metrics and
//! dashboard are still organised by virtual epochs (the steps between two validations).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::data::dataloader::Progress;
use burn::module::Module;
use burn::tensor::Device;
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, LearningCheckpointer,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, ValidLoader,
};
use sae_data::ActivationBatch;

use crate::checkpoint::{Checkpoints, Writer};
use crate::collapse::{Streak, Watch};
use crate::failure::{Failure, Outcome, chain};
use crate::json_lines::MetricsFile;
use crate::learner::SaeLearner;
use crate::nonfinite::{NonFinite, last_good};
use crate::numbers::StepOutput;
use crate::output::{self, say};
use crate::shards::{Portion, Shards, Trainee};
use crate::signals::Signals;
use crate::sys;
use crate::whole::WholeSet;

/// The message when nobody reads standard output any more.
pub(crate) const READER_GONE: &str = "stopped (the reader of standard output has gone)";

/// When to validate, to save and to end, in steps from the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cadence {
    pub(crate) steps: usize,
    pub(crate) validate_every: usize,
    pub(crate) checkpoint_every: usize,
    /// Time after which a checkpoint is due at any step.
    pub(crate) checkpoint_interval: Option<Duration>,
}

/// The settings of the loop, and where it reports.
pub(crate) struct Steps {
    pub(crate) device: Device,
    pub(crate) cadence: Cadence,
    /// Number of steps done before, and true if the validation due there is done, too.
    pub(crate) first: (usize, bool),
    pub(crate) checkpoints: Checkpoints,
    pub(crate) writer: Arc<Writer>,
    pub(crate) metrics: Arc<MetricsFile>,
    pub(crate) nonfinite: NonFinite,
    pub(crate) watch: Watch,
    /// How long the numbers had looked like collapse before this process.
    pub(crate) streak: Streak,
    /// All held-out rows, if validations use fewer.
    pub(crate) whole: Option<WholeSet>,
    pub(crate) signals: Signals,
    pub(crate) outcome: Arc<Outcome>,
    /// True if Burn's dashboard has the terminal.
    pub(crate) use_tui: bool,
    /// How the parts of a batch are shared.
    pub(crate) shards: Shards,
    /// What is trained, if other processes take part. It is taken once.
    pub(crate) together: Mutex<Option<Portion>>,
}

impl SupervisedLearningStrategy<SaeLearner> for Steps {
    fn fit(
        &self,
        components: TrainingComponents<SaeLearner>,
        learner: Learner<SaeLearner>,
        train: TrainLoader<SaeLearner>,
        held_out: ValidLoader<SaeLearner>,
        _starting_epoch: usize,
    ) -> (SaeLearner, SupervisedTrainingEventProcessor<SaeLearner>) {
        if self.use_tui {
            sys::let_ctrl_c_through();
        }
        let together = self
            .together
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let learner = match together {
            Some(together) => {
                drop(learner); // its model becomes an old one
                Trainee::Together(together)
            }
            None => Trainee::here(learner, self.shards.clone(), &self.device),
        };
        let mut session = Session {
            steps: self,
            learner,
            events: components.event_processor,
            checkpointer: components.checkpointer,
            store: components.event_store,
            interrupter: components.interrupter,
            step: self.first.0,
            validated: self.first.1,
            saved: (self.first.0, Instant::now()),
            skipped_in_a_row: 0,
            streak: self.streak,
        };
        let train = train.to_device(&self.device);
        let held_out = held_out.to_device(&self.device.clone().inner());
        if let Err(failure) = session.run(&train, &held_out) {
            self.outcome.fail(failure);
        }
        drop(session.checkpointer); // waits until its checkpoints are written
        session.learner.end(!self.outcome.has_failed());
        (session.learner.model(), session.events)
    }
}

/// The state that changes from step to step.
struct Session<'a> {
    steps: &'a Steps,
    learner: Trainee,
    events: SupervisedTrainingEventProcessor<SaeLearner>,
    checkpointer: Option<LearningCheckpointer<SaeLearner>>,
    store: Arc<EventStoreClient>,
    interrupter: Interrupter,
    /// Number of steps done.
    step: usize,
    /// True if the validation due at this step is done.
    validated: bool,
    /// Step and time of the last checkpoint.
    saved: (usize, Instant),
    skipped_in_a_row: usize,
    /// How long the numbers have looked like collapse.
    streak: Streak,
}

impl Session<'_> {
    fn run(
        &mut self,
        train: &TrainLoader<SaeLearner>,
        held_out: &ValidLoader<SaeLearner>,
    ) -> Result<(), Failure> {
        let Cadence { steps, .. } = self.steps.cadence;
        if self.step > 0 && self.ends_epoch() && !self.validated {
            self.validate(held_out)?;
        }
        while self.step < steps && !self.asked_to_stop() {
            self.train(train)?;
            if self.ends_epoch() && !self.asked_to_stop() {
                self.validate(held_out)?;
            }
            self.save_if_due()?;
        }
        self.save()?;
        if let Some(error) = self.interrupter.error() {
            return Err(Failure::Burn(chain(&*error)));
        }
        match self.steps.signals.caught() {
            _ if self.step == steps && self.validated => Ok(()),
            Some((what, code)) => Err(self.stopped(what, code)),
            None if output::is_closed() => Err(self.stopped(READER_GONE, 141)),
            None => Err(self.stopped("stopped", 130)),
        }
    }

    fn stopped(&self, what: &'static str, code: u8) -> Failure {
        let (step, steps) = (self.step, self.steps.cadence.steps);
        Failure::Stopped {
            what,
            step,
            steps,
            code,
        }
    }

    /// The virtual epoch that the next step belongs to, from 1.
    fn epoch(&self) -> usize {
        self.step / self.steps.cadence.validate_every + 1
    }

    /// Returns true if this step is the last of a virtual epoch.
    fn ends_epoch(&self) -> bool {
        let Cadence {
            steps,
            validate_every,
            ..
        } = self.steps.cadence;
        self.step == steps || self.step.is_multiple_of(validate_every)
    }

    fn asked_to_stop(&self) -> bool {
        self.interrupter.should_stop()
            || self.steps.signals.caught().is_some()
            || output::is_closed()
            || self.steps.outcome.has_failed()
    }

    /// Takes steps to the end of the virtual epoch, or until asked to stop.
    fn train(&mut self, loader: &TrainLoader<SaeLearner>) -> Result<(), Failure> {
        let epoch_number = self.epoch();
        self.tell_train(LearnerEvent::StartSplit {
            epoch_number,
            total_items: loader.num_items(),
        });
        let mut batches = loader.iter();
        while let Some(batch) = batches.next() {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Err(self.data_lost(chain(&error))),
            };
            self.take_step(batch, batches.progress())?;
            if self.asked_to_stop() {
                break;
            }
            // At the end of a virtual epoch the checkpoint follows the validation. The loop goes on even there: the
            // loader must be asked once more, to keep the batches that it has prepared for the next epoch.
            if !self.ends_epoch() {
                self.save_if_due()?;
            }
        }
        self.tell_train(LearnerEvent::EndSplit(epoch_number));
        Ok(())
    }

    fn take_step(&mut self, batch: ActivationBatch, progress: Progress) -> Result<(), Failure> {
        let x = batch.activations.clone();
        let output = self.learner.train_step(batch);
        let seen = output.item.seen();
        self.learner.lr_step();
        if output.item.is_finite() {
            self.learner.optimizer_step(output.grads);
            self.skipped_in_a_row = 0;
        } else {
            self.skipped_in_a_row += 1;
            let (nonfinite, last_saved) = (&self.steps.nonfinite, self.saved.0);
            let reconstruct = |x| self.learner.look(x).x_hat;
            let found = nonfinite.found(self.step, reconstruct, x, &output.item, last_saved);
            self.steps
                .nonfinite
                .pass_over(found, self.skipped_in_a_row)?;
        }
        self.step += 1;
        self.validated = false;
        let lr = Some(self.learner.lr_current());
        let item = TrainingItem::new(output.item, progress, Some(self.step), lr);
        self.tell_train(LearnerEvent::ProcessedItem(item));
        if let Some(failure) = self.steps.metrics.failure() {
            return Err(failure);
        }
        let (watch, last_saved) = (&self.steps.watch, self.saved.0);
        self.streak = watch.look(self.streak, self.step, seen, last_saved)?;
        Ok(())
    }

    /// Makes one pass over the held-out rows that validations use and, when training ends, one over all held-out rows.
    /// Gives up if asked to stop; a resumed run then validates again.
    fn validate(&mut self, loader: &ValidLoader<SaeLearner>) -> Result<(), Failure> {
        let whole = match &self.steps.whole {
            Some(whole) if self.step == self.steps.cadence.steps => {
                let model = self.learner.model().valid();
                let look = |x| self.learner.look(x);
                match whole.judge(&model, look, || self.asked_to_stop()) {
                    Ok(Some(record)) => Some(record),
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(self.data_lost(chain(&error))),
                }
            }
            _ => None,
        };
        let epoch_number = self.step.div_ceil(self.steps.cadence.validate_every);
        self.tell_valid(LearnerEvent::StartSplit {
            epoch_number,
            total_items: loader.num_items(),
        });
        let model = self.learner.model().valid();
        let mut batches = loader.iter();
        let mut done = 0;
        while let Some(batch) = batches.next() {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return Err(self.data_lost(chain(&error))),
            };
            done += 1;
            let item = self.learner.validate(&model, batch);
            let item = TrainingItem::new(item, batches.progress(), Some(done), None);
            self.tell_valid(LearnerEvent::ProcessedItem(item));
            if self.asked_to_stop() {
                return Ok(());
            }
        }
        self.tell_valid(LearnerEvent::EndSplit(epoch_number));
        self.tell_train(LearnerEvent::EndEpoch(epoch_number));
        // Nothing interrupts from here on, so either both records are written or neither.
        if let Some(record) = whole {
            self.interrupter.fail_on_error(self.events.flush());
            say(record.line(self.step));
            let record = record.into_map();
            self.steps.metrics.append_whole(self.step, record)?;
        }
        self.validated = true;
        Ok(())
    }

    /// Saves a checkpoint to continue from when the data is back.
    fn data_lost(&mut self, reason: String) -> Failure {
        match self.save() {
            Ok(()) => Failure::DataLost {
                step: self.step,
                reason,
            },
            Err(failure) => failure,
        }
    }

    fn save_if_due(&mut self) -> Result<(), Failure> {
        let Cadence {
            checkpoint_every,
            checkpoint_interval,
            ..
        } = self.steps.cadence;
        let (step, time) = self.saved;
        let late = checkpoint_interval.is_some_and(|interval| time.elapsed() >= interval);
        if self.step > step && (self.step.is_multiple_of(checkpoint_every) || late) {
            self.save()?;
        }
        Ok(())
    }

    /// Hands a checkpoint of this step to the threads that write it.
    fn save(&mut self) -> Result<(), Failure> {
        if self.step == self.saved.0 || self.steps.outcome.has_failed() {
            return Ok(());
        }
        let _span = tracing::debug_span!("checkpoint", step = self.step).entered();
        let started = Instant::now();
        self.interrupter.fail_on_error(self.events.flush());
        let (metrics, fvu) = self.steps.metrics.position(self.step, self.validated)?;
        self.check_finite()?;
        let position =
            self.steps
                .checkpoints
                .position(self.step, self.validated, fvu, metrics, self.streak);
        let staging = self.steps.writer.begin(&position)?;
        if let Some(checkpointer) = &mut self.checkpointer {
            self.learner.save(&staging, |learner| {
                checkpointer.checkpoint(learner, self.step, &self.store);
                self.steps.writer.wait_until_fetched(self.step);
            })?;
        }
        self.saved = (self.step, Instant::now());
        self.steps.writer.add_time(started.elapsed());
        Ok(())
    }

    /// Fails if a parameter is not finite. Gradients and moments are finite, but a step along them may still overflow
    /// float32.
    fn check_finite(&self) -> Result<(), Failure> {
        match self.learner.is_finite() {
            true => Ok(()),
            false => Err(Failure::NonFinite(format!(
                "step {}: the parameters are no longer finite; {}: lower training.lr and start another run",
                self.step,
                last_good(self.saved.0)
            ))),
        }
    }

    fn tell_train(&mut self, event: LearnerEvent<StepOutput>) {
        self.interrupter
            .fail_on_error(self.events.process_train(event));
    }

    fn tell_valid(&mut self, event: LearnerEvent<StepOutput>) {
        self.interrupter
            .fail_on_error(self.events.process_valid(event));
    }
}
