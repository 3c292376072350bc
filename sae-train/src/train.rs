//! Trains a checked run through Burn's Learner and saves the model.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use sae_data::{ActivationLoader, Waiting};
use sae_model::ops;
use sae_model::verdict::RunFacts;
use sae_model::{Architecture, saved};
use sae_run::{Raise, Usage};

use crate::checkpoint::{self, MODEL, OPTIMIZER, Part, SCHEDULER, Writer};
use crate::collapse::{Streak, Watch};
use crate::failure::{Failure, Outcome, chain};
use crate::json_lines::{JsonLines, MetricsFile};
use crate::learner::{SaeLearner, Settings};
use crate::metrics::Mean;
use crate::nonfinite::NonFinite;
use crate::output::{self, say};
use crate::prepare::Prepared;
use crate::progress::PlainLines;
use crate::run;
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

impl Prepared {
    /// Trains to the last step and saves the model. Shows a dashboard on a terminal, unless `plain`. A run that stops
    /// early is an error.
    pub(crate) fn train(mut self, plain: bool) -> Result<()> {
        let config = &self.config;
        let settings = trainer::settings(
            &self.resolved,
            &self.train_summary.typical,
            self.validated_variance,
            self.config.training.dead_window,
        );
        let _lock = match self.lock.take() {
            Some(lock) => {
                run::record_raises(&self.dir, &self.provenance.raised)?;
                lock
            }
            None => run::create(&self.dir, config, &self.provenance, self.start.as_ref())?,
        };
        run::write_config(&self.dir, config)?;
        let use_tui = !plain && std::io::stdout().is_terminal();
        crate::logging::start(&self.dir.log())?;
        self.checkpoints.tidy(&self.found.damaged)?;
        let done = self.steps_done();
        tracing::info!(run = config.run_name(), done, "training starts");
        self.announce(done);
        let learner = self.learner(settings)?;
        let outcome = Arc::new(Outcome::default());
        let setup = self.supervised(use_tui, &outcome)?;
        let started = Instant::now();
        if use_tui {
            output::hold();
        }
        let result = setup.builder.launch(learner);
        let elapsed = started.elapsed();
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
        self.finish(&result.model, &setup.metrics, elapsed, held_up)
    }

    /// Steps done at the checkpoint to continue from; 0 without one.
    fn steps_done(&self) -> usize {
        self.found
            .newest
            .as_ref()
            .map_or(0, |position| position.step)
    }

    /// Prints what is trained, with warnings about the data. A dashboard hides this until it closes.
    fn announce(&self, done: usize) {
        let c = &self.config;
        say(format!(
            "run {}: {}, {} latents, width {}, {} training rows, {} held out, device {}",
            c.run_name(),
            self.resolved.model.architecture.describe(),
            c.model.n_latents,
            self.train.width(),
            self.train.rows(),
            self.held_out.rows(),
            sae_run::on_card(&c.device, self.provenance.card.as_deref()),
        ));
        if let Some(from) = &self.provenance.from {
            let (path, sum) = (from.path.display(), &from.blake3);
            say(format!(
                "starts from the model {path} (BLAKE3 of its parameters: {sum})"
            ));
        }
        self.say_pre_bias();
        self.say_left_out();
        self.say_notes();
        self.say_raises();
        if done > 0 {
            say(format!("continuing after step {done}"));
        } else if self.asked_to_resume {
            say("there is no checkpoint to continue from; starting from the beginning");
        }
    }

    /// Prints where the number of steps was changed, and what that means.
    fn say_raises(&self) {
        for raise in &self.provenance.raised {
            let Raise { at, from, to, .. } = raise;
            say(format!(
                "raised from {from} to {to} steps after step {at}: from there on the learning rate, and all else that follows the \
                 number of steps, is that of step {} of {to}; a run of {to} steps from the start is another run",
                at + 1
            ));
        }
    }

    /// Prints why there is no pre-bias, if the architecture could have one.
    fn say_pre_bias(&self) {
        let model = &self.resolved.model;
        if self.start.is_none() && !model.pre_bias && model.architecture.pre_bias(f64::INFINITY) {
            let ratio = self.train_summary.typical.mean_over_sigma();
            say(format!(
                "no pre-bias: the mean of the rows is {ratio:.2} sigma long (model.pre_bias)"
            ));
        }
    }

    /// Prints how many rows were left out because of their norm.
    fn say_left_out(&self) {
        let Some(limit) = self.config.data.max_norm.number() else {
            return;
        };
        let sides = [(&self.train, "training"), (&self.held_out, "held-out")];
        if sides.iter().all(|(data, _)| data.rows_left_out() == 0) {
            return;
        }
        let [train, held_out] = sides.map(|(data, side)| {
            let left_out = data.rows_left_out();
            let all = data.rows() + left_out;
            let percent = 100.0 * left_out as f64 / all as f64;
            format!("{left_out} of {all} {side} rows ({percent:.3} %)")
        });
        let medians = limit / self.train_summary.typical.median_norm;
        say(format!(
            "left out: {train} and {held_out}, of norms above {limit:.4}, {medians:.1} times the median (data.max_norm)"
        ));
    }

    /// Prints the warnings about both sides of the data.
    fn say_notes(&self) {
        let train = self.train_summary.warnings();
        let held_out = self.held_out_summary.warnings();
        for note in &train {
            say(format!("note: {note}"));
        }
        for note in held_out.iter().filter(|note| !train.contains(note)) {
            say(format!("note (held-out rows): {note}"));
        }
    }

    /// Model, optimizer and schedule, from the checkpoint to continue from if there is one.
    fn learner(&self, settings: Settings) -> Result<Learner<SaeLearner>> {
        let (seed, steps) = (self.config.seed, self.config.training.steps);
        let origin = match &self.start {
            Some(start) => Parameters::Of(&start.sae),
            None => Parameters::Fresh(&self.train_summary.typical.mean),
        };
        let (mut learner, mut optimizer, mut scheduler) = trainer::start(
            &self.resolved,
            (seed, steps),
            origin,
            settings,
            &self.device,
        );
        let done = self.steps_done();
        if done > 0 {
            let dir = self.checkpoints.path(done);
            (learner, optimizer, scheduler) =
                checkpoint::restore(&dir, done, learner, optimizer, scheduler)?;
        }
        Ok(Learner::new(learner, optimizer, scheduler))
    }

    /// Burn's trainer, set up for the remaining steps of this run.
    fn supervised(&self, use_tui: bool, outcome: &Arc<Outcome>) -> Result<Setup> {
        let (t, done) = (&self.config.training, self.steps_done());
        let train = ActivationLoader::training(
            &self.train,
            t.batch_size,
            &self.config.data.streaming(self.config.seed),
            done..t.steps,
            t.epoch_steps(),
            &self.device,
        );
        let waiting = train.waiting();
        let held_out = ActivationLoader::evaluation(&self.validated, t.batch_size, &self.device);
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
        let mut builder =
            SupervisedTraining::new(self.dir.path(), Arc::new(train), Arc::new(held_out))
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
        if !use_tui {
            let validated = match (self.validated.rows(), self.held_out.rows()) {
                (some, all) if some < all => format!(" ({some} of {all} rows)"),
                _ => String::new(),
            };
            let lines = PlainLines::new(terms, t.log_every, t.batch_size, t.steps, done, validated);
            builder = builder.renderer(Box::new(lines));
        }
        let steps = self.steps(use_tui, metrics.clone(), writer.clone(), outcome)?;
        let strategy = TrainingStrategy::Custom(Arc::new(steps));
        Ok(Setup {
            builder: builder.with_training_strategy(strategy),
            waiting,
            writer,
            metrics,
        })
    }

    /// The training loop.
    fn steps(
        &self,
        use_tui: bool,
        metrics: Arc<MetricsFile>,
        writer: Arc<Writer>,
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
                train: self.train.clone(),
                streaming: self.config.data.streaming(self.config.seed),
                batch_size: t.batch_size,
            },
            watch: self.watch(),
            streak: self
                .found
                .newest
                .as_ref()
                .map_or(Streak::default(), |position| position.streak),
            whole: (self.validated.rows() < self.held_out.rows())
                .then(|| WholeSet::new(&self.held_out, t.batch_size, &self.device)),
            signals: Signals::watch().context("watching for Ctrl-C")?,
            outcome: outcome.clone(),
            use_tui,
        })
    }

    /// The watch for collapse.
    fn watch(&self) -> Watch {
        let t = &self.config.training;
        let typical = &self.train_summary.typical;
        Watch {
            policy: t.on_collapse,
            model: self.resolved.model.clone(),
            steps: t.steps,
            warmup_steps: self.resolved.recipe.warmup_steps,
            dead_rows: t.dead_rows(),
            target_l0: self.resolved.coefficients.find("target_l0"),
            zero_fvu: 1.0 + typical.mean_over_sigma().powi(2),
            judge_fvu: self.train_summary.beyond.rows == 0,
            lr: self.resolved.recipe.lr,
        }
    }

    /// The reasons why the numbers of this run mean less than they seem to.
    fn verdict(&self, learner: &SaeLearner, metrics: &MetricsFile) -> Vec<String> {
        let t = &self.config.training;
        let Some((l0_mean, fvu)) = metrics.last_validation() else {
            return Vec::new(); // the file has been damaged since
        };
        let facts = RunFacts {
            model: learner.sae.config(),
            steps: t.steps,
            warmup_steps: self.resolved.recipe.warmup_steps,
            l0_mean,
            fvu,
            dead_rows: t.dead_rows(),
            dead: learner.dead().len() as u64,
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
        saved::save(&learner.sae, self.config.seed, &model)
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
        for note in self.verdict(learner, metrics) {
            say(format!("note: {note}"));
            tracing::info!("{note}");
        }
        self.record_usage(steps, seconds);
        say(format!("model: {}", model.display()));
        say(format!(
            "report: cargo xtask eval {}",
            self.dir.path().display()
        ));
        tracing::info!(seconds, waited, saving, "training ends");
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
