//! Trains a checked run through Burn's Learner and saves the model.

use std::io::IsTerminal;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use burn::data::dataloader::DataLoader;
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use sae_data::{ActivationBatch, ActivationLoader, Parts, Series, Share, Waiting};
use sae_model::ops;
use sae_model::saved::{self, SavedModelError};
use sae_model::verdict::RunFacts;
use sae_model::{Architecture, Sae};
use sae_run::Usage;

use crate::checkpoint::{self, MODEL, OPTIMIZER, Part, SCHEDULER, Writer};
use crate::collapse::{Streak, Watch};
use crate::distributed;
use crate::failure::{Failure, Outcome, chain};
use crate::json_lines::{JsonLines, MetricsFile};
use crate::learner::SaeLearner;
use crate::metrics::Mean;
use crate::nonfinite::NonFinite;
use crate::output::{self, say};
use crate::prepare::Prepared;
use crate::progress::{PlainLines, Row};
use crate::run;
use crate::shards::{Follower, Portion, Start};
use crate::signals::Signals;
use crate::steps::{Cadence, Steps};
use crate::trainer::{self, Parameters};
use crate::whole::WholeSet;

/// Burn's trainer, and what is read when it has ended.
struct Setup {
    builder: SupervisedTraining<SaeLearner>,
    waiting: Waiting,
    writer: Arc<Writer>,
    metrics: Arc<MetricsFile>,
}

/// Where a run trains: alone in its process, or as one of a sweep.
pub(crate) struct Place {
    pub(crate) signals: Signals,
    /// True if Burn's dashboard has the terminal.
    pub(crate) use_tui: bool,
    /// Its part in the pass of a sweep.
    pub(crate) share: Option<Share>,
    /// Its row of a table, if there is one.
    pub(crate) row: Option<Row>,
}

impl Place {
    /// The batches of a loader, from the pass that the run has a share in.
    fn shared(&self, loader: ActivationLoader, series: Series) -> ActivationLoader {
        match &self.share {
            Some(share) => loader.in_pass(share, series),
            None => loader,
        }
    }

    /// Time for which the run has waited while others computed.
    fn away(&self) -> Duration {
        self.share.as_ref().map_or(Duration::ZERO, Share::away)
    }
}

impl Prepared {
    /// Trains alone in this process; shows a dashboard on a terminal, unless `plain`.
    pub(crate) fn train(self, plain: bool) -> Result<()> {
        self.train_in(&Place {
            signals: Signals::watch().context("watching for Ctrl-C")?,
            use_tui: !plain && std::io::stdout().is_terminal(),
            share: None,
            row: None,
        })
    }

    /// Trains to the last step and saves the model. A run that stops early is an error.
    pub(crate) fn train_in(mut self, place: &Place) -> Result<()> {
        let use_tui = place.use_tui;
        let config = &self.config;
        let _lock = match self.lock.take() {
            Some(lock) => {
                run::record_raises(&self.dir, &self.provenance.raised)?;
                lock
            }
            None => run::create(&self.dir, config, &self.provenance, self.start.as_ref())?,
        };
        run::write_config(&self.dir, config)?;
        match place.share {
            Some(_) => crate::logging::of_this_thread(&self.dir.log())?,
            None => crate::logging::start(&self.dir.log())?,
        }
        self.checkpoints.tidy(&self.found.damaged)?;
        let done = self.steps_done();
        tracing::info!(run = config.run_name(), done, "training starts");
        self.announce(done, place.share.is_none());
        let state = self.state(done)?;
        let (learner, together) = match self.shards.are_apart() {
            true => {
                distributed::begin(&self.shards, &self.dir, done)?;
                let shards = self.shards.clone();
                let portion = Portion::new(shards, state);
                (portion.without_moments(), Some(portion))
            }
            false => (Learner::new(state.0, state.1, state.2), None),
        };
        let outcome = Arc::new(Outcome::default());
        let setup = self.supervised(place, together, &outcome)?;
        let (started, away) = (Instant::now(), place.away());
        if use_tui {
            output::hold();
        }
        let result = setup.builder.launch(learner);
        let elapsed = started.elapsed().saturating_sub(place.away() - away);
        drop(result.renderer); // gives the terminal back
        if use_tui {
            output::release();
            self.say_notes(); // the dashboard hid them
        }
        if let Some(failure) = outcome.take() {
            return Err(failure.into());
        }
        if let Some(error) = result.error {
            return Err(anyhow!("training failed: {}", chain(&*error)));
        }
        let held_up = [setup.waiting.total(), setup.writer.held_up()];
        self.finish(&result.model, &setup.metrics, elapsed, held_up)?;
        if place.share.is_none() {
            say(format!("model: {}", self.dir.model().display()));
            let run = self.dir.path().display();
            say(format!("report: cargo xtask eval {run}"));
        }
        Ok(())
    }

    /// Steps done at the checkpoint to continue from; 0 without one.
    pub(crate) fn steps_done(&self) -> usize {
        self.found
            .newest
            .as_ref()
            .map_or(0, |position| position.step)
    }

    /// Takes part in the training of a run that another process leads.
    pub(crate) fn follow(self) -> Result<()> {
        let _signals = Signals::watch().context("watching for signals")?; // the leader decides what they mean
        let begun = distributed::begun(&self.shards, &self.dir, |done| self.state(done));
        let (done, state) = begun?;
        let t = &self.config.training;
        let batches = self.batches().training(
            done..t.steps,
            t.epoch_steps(),
            &self.device.clone().autodiff(),
        );
        let shards = self.shards.clone();
        let follower = Follower {
            portion: Portion::new(shards, state),
            batches,
            step: done,
        };
        Ok(follower.follow()?)
    }

    /// The parts of training batches that this process has.
    fn batches(&self) -> Parts {
        self.parts(self.shards.own())
    }

    /// Some of the parts of training batches.
    fn parts(&self, of: Range<usize>) -> Parts {
        Parts::new(
            &self.data.train,
            self.config.data.streaming(self.config.seed),
            self.config.training.batch_size,
            self.shards.parts(),
            of,
        )
    }

    /// Model, optimizer and schedule, from the checkpoint of step `done` if that is not zero.
    fn state(&self, done: usize) -> Result<Start> {
        let settings = trainer::settings(
            &self.resolved,
            &self.data.train_summary.typical,
            self.data.validated_variance,
            self.config.training.dead_window,
        );
        let (seed, steps) = (self.config.seed, self.config.training.steps);
        let origin = match &self.start {
            Some(start) => Parameters::Of(&start.sae),
            None => Parameters::Fresh(&self.data.train_summary.typical.mean),
        };
        let (mut learner, mut optimizer, mut scheduler) = trainer::start(
            &self.resolved,
            (seed, steps),
            origin,
            self.shards.across(self.resolved.model.n_latents),
            settings,
            &self.device,
        );
        if done > 0 {
            let dir = self.checkpoints.path(done);
            let rank = match self.shards.are_latents() {
                true => self.shards.comm().rank(),
                false => 0,
            };
            (learner, optimizer, scheduler) =
                checkpoint::restore(&dir, (done, rank), learner, optimizer, scheduler)?;
            self.shards.read_rounding(&dir, &learner)?;
        }
        Ok((learner, optimizer, scheduler))
    }

    /// Burn's trainer, set up for the remaining steps of this run.
    fn supervised(
        &self,
        place: &Place,
        together: Option<Portion>,
        outcome: &Arc<Outcome>,
    ) -> Result<Setup> {
        let (t, done) = (&self.config.training, self.steps_done());
        let (train, waiting) = self.training_loader(place);
        let held_out =
            ActivationLoader::evaluation(&self.data.validated, t.batch_size, &self.device);
        let held_out = place.shared(held_out, Series::Validation);
        let position = self.found.newest.as_ref().map(|position| &position.metrics);
        let metrics = MetricsFile::open(&self.dir.metrics(), done, position)?;
        if self.tensorboard {
            metrics.write_events(&self.dir.tensorboard())?;
        }
        let on_gpu = !ops::is_cpu(&self.device);
        let made_of = saved::config_file(&self.resolved.model, self.config.seed);
        let writer = Writer::new(self.checkpoints.clone(), made_of, on_gpu, outcome.clone());
        let writer = Arc::new(writer);
        let part = |name| Part {
            name,
            writer: writer.clone(),
        };
        let mut builder = SupervisedTraining::new(self.dir.path(), train, Arc::new(held_out))
            .metric_train_numeric(Mean::loss())
            .metrics(Mean::of_both())
            .with_metric_logger(JsonLines::new(
                metrics.clone(),
                trainer::schedule(&self.resolved, t.steps),
            ))
            .with_application_logger(None)
            .with_custom_checkpointers(part(MODEL), part(OPTIMIZER), part(SCHEDULER))
            .with_checkpointing_strategy(checkpoint::Always)
            .num_epochs(t.steps.div_ceil(t.epoch_steps()));
        let terms = self.resolved.model.architecture.terms();
        for term in terms {
            builder = builder.metric_train_numeric(Mean::term(term));
        }
        if !place.use_tui {
            let validated = match (self.data.validated.rows(), self.data.held_out.rows()) {
                (some, all) if some < all => format!(" ({some} of {all} rows)"),
                _ => String::new(),
            };
            let lines = PlainLines::new(
                terms,
                t.log_every,
                t.batch_size,
                t.steps,
                done,
                validated,
                place.row.clone(),
            );
            builder = builder.renderer(Box::new(lines));
        }
        let steps = self.steps(place, together, (metrics.clone(), writer.clone()), outcome)?;
        let strategy = TrainingStrategy::Custom(Arc::new(steps));
        Ok(Setup {
            builder: builder.with_training_strategy(strategy),
            waiting,
            writer,
            metrics,
        })
    }

    /// The batches of the remaining steps, and the clock of the time that was waited for them.
    fn training_loader(&self, place: &Place) -> (Arc<dyn DataLoader<ActivationBatch>>, Waiting) {
        let t = &self.config.training;
        let steps = self.steps_done()..t.steps;
        if self.shards.parts() > 1 {
            let train = self
                .batches()
                .training(steps, t.epoch_steps(), &self.device);
            let waiting = train.waiting();
            return (Arc::new(train), waiting);
        }
        let train = ActivationLoader::training(
            &self.data.train,
            t.batch_size,
            &self.config.data.streaming(self.config.seed),
            steps,
            t.epoch_steps(),
            &self.device,
        );
        let waiting = train.waiting();
        (Arc::new(place.shared(train, Series::Training)), waiting)
    }

    /// The training loop.
    fn steps(
        &self,
        place: &Place,
        together: Option<Portion>,
        (metrics, writer): (Arc<MetricsFile>, Arc<Writer>),
        outcome: &Arc<Outcome>,
    ) -> Result<Steps> {
        let t = &self.config.training;
        let validated = self
            .found
            .newest
            .as_ref()
            .is_some_and(|position| position.validated);
        Ok(Steps {
            device: self.device.clone().autodiff(),
            cadence: Cadence {
                steps: t.steps,
                validate_every: t.epoch_steps(),
                checkpoint_every: t.checkpoint_every(),
                checkpoint_interval: t.checkpoint_interval(),
            },
            first: (self.steps_done(), validated),
            checkpoints: self.checkpoints.clone(),
            writer,
            metrics,
            nonfinite: NonFinite {
                policy: t.on_nonfinite,
                batches: self.parts(0..self.shards.parts()),
                has_some: self.shards.own().len() < self.shards.parts(),
            },
            watch: self.watch(),
            streak: self
                .found
                .newest
                .as_ref()
                .map_or(Streak::default(), |position| position.streak),
            whole: (self.data.validated.rows() < self.data.held_out.rows())
                .then(|| self.whole(place)),
            signals: place.signals.clone(),
            outcome: outcome.clone(),
            use_tui: place.use_tui,
            shards: self.shards.clone(),
            together: Mutex::new(together),
        })
    }

    /// All held-out rows.
    fn whole(&self, place: &Place) -> WholeSet {
        let (rows, batch) = (&self.data.held_out, self.config.training.batch_size);
        let loader = ActivationLoader::evaluation(rows, batch, &self.device);
        WholeSet::new(place.shared(loader, Series::Whole))
    }

    /// The watch for collapse.
    fn watch(&self) -> Watch {
        let t = &self.config.training;
        let typical = &self.data.train_summary.typical;
        Watch {
            policy: t.on_collapse,
            model: self.resolved.model.clone(),
            steps: t.steps,
            warmup_steps: self.resolved.recipe.warmup_steps,
            dead_rows: t.dead_rows(),
            target_l0: self.resolved.coefficients.find("target_l0"),
            zero_fvu: 1.0 + typical.mean_over_sigma().powi(2),
            judge_fvu: self.data.train_summary.beyond.rows == 0,
            lr: self.resolved.recipe.lr,
        }
    }

    /// The reasons why the numbers of this run mean less than they seem to.
    fn verdict(&self, learner: &SaeLearner, metrics: &MetricsFile) -> Vec<String> {
        let t = &self.config.training;
        let Some((l0_mean, fvu, dead)) = metrics.last_validation() else {
            return Vec::new(); // the file has been damaged since
        };
        let facts = RunFacts {
            model: learner.sae.config(),
            steps: t.steps,
            warmup_steps: self.resolved.recipe.warmup_steps,
            l0_mean,
            fvu,
            dead_rows: t.dead_rows(),
            dead,
        };
        facts.notes()
    }

    /// Saves the model and prints how training went.
    fn finish(
        &self,
        learner: &SaeLearner,
        metrics: &MetricsFile,
        elapsed: Duration,
        held_up: [Duration; 2],
    ) -> Result<()> {
        let model = self.dir.model();
        self.save_model(&learner.sae, &model)
            .map_err(|error| Failure::saving(&model, error))?;
        let t = &self.config.training;
        let steps = t.steps - self.steps_done();
        let (seconds, rows) = (elapsed.as_secs_f64(), (steps * t.batch_size) as f64);
        let [waited, saving] = held_up.map(|time| time.as_secs_f64());
        say(format!(
            "trained {steps} steps in {seconds:.1} s ({:.0} rows/s, validation included); waited for data {waited:.2} s \
             ({:.2} %), for checkpoints {saving:.2} s ({:.2} %)",
            rows / seconds,
            100.0 * waited / seconds,
            100.0 * saving / seconds,
        ));
        if self.shards.are_apart() && steps > 0 {
            let comm = self.shards.comm();
            let (megabytes, spent) = (comm.sent() as f64 / 1e6, comm.spent().as_secs_f64());
            say(format!(
                "of {} processes this one sent {:.2} MB per step, and spent {spent:.1} s ({:.1} %) with exchanges",
                comm.ranks(),
                megabytes / steps as f64,
                100.0 * spent / seconds,
            ));
        }
        for note in self.verdict(learner, metrics) {
            say(format!("note: {note}"));
            tracing::info!("{note}");
        }
        self.record_usage(steps, seconds);
        tracing::info!(seconds, waited, saving, "training ends");
        Ok(())
    }

    /// Saves the trained model, wherever its latents are.
    fn save_model(&self, sae: &Sae, dir: &Path) -> Result<(), SavedModelError> {
        let seed = self.config.seed;
        if !self.shards.are_latents() {
            return saved::save(sae, seed, dir);
        }
        let collected = |name: &str| self.shards.collected(sae, name);
        saved::save_collected(sae.config(), seed, dir, collected)?;
        self.shards.end();
        Ok(())
    }

    /// Writes what this process needed, unless it had nothing left to train. A run that lacks it is a whole run.
    fn record_usage(&self, steps: usize, seconds: f64) {
        if steps == 0 {
            return;
        }
        let usage = Usage {
            steps,
            seconds,
            peak_memory_bytes: sae_run::peak_memory(),
        };
        if let Err(error) = self.dir.write_usage(&usage) {
            tracing::warn!("{error}: time and memory are not recorded");
        }
    }
}
