//! One run: check everything, then train through Burn's Learner, then save.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use burn::train::{Learner, LearningResult, SupervisedTraining, TrainingStrategy};
use indicatif::{ProgressBar, ProgressStyle};
use sae_data::config::Split;
use sae_data::{ActivationData, ActivationLoader, Summary, Waiting};
use sae_model::device::DeviceName;
use sae_model::ops::{self, Adam};
use sae_model::saved::SavedModelError;
use sae_model::sealed::SealError;
use sae_model::{Sae, saved};

use crate::checkpoint::{self, Checkpoints, Found, MODEL, OPTIMIZER, Part, SCHEDULER, Writer};
use crate::config::{Config, invalid};
use crate::failure::{Failure, Outcome, chain};
use crate::json_lines::{JsonLines, MetricsFile};
use crate::learner::{SaeLearner, Settings};
use crate::lock::RunLock;
use crate::metrics::{Dead, Fvu, L0, Loss, Mean};
use crate::nonfinite::NonFinite;
use crate::progress::PlainLines;
use crate::run::{Provenance, RunDir};
use crate::schedule::{Schedule, Scheduler};
use crate::signals::Signals;
use crate::steps::{Cadence, Steps};

/// Adam's epsilon, torch's default (Burn's is 1e-5).
const ADAM_EPSILON: f64 = 1e-8;

/// A run that can start: config, device and data fit together. Nothing has been written.
pub(crate) struct Prepared {
    config: Config,
    device: Device,
    train: ActivationData,
    held_out: ActivationData,
    train_summary: Summary,
    held_out_summary: Summary,
    provenance: Provenance,
    dir: RunDir,
    /// Held if there is a run to continue; a new one is locked when its directory is made.
    lock: Option<RunLock>,
    checkpoints: Checkpoints,
    /// Whether `--resume` was given.
    asked_to_resume: bool,
    /// The checkpoint to continue from, if any.
    found: Found,
}

/// Checks a run from config to data.
pub(crate) fn prepare(
    path: &Path,
    set: &[String],
    device: Option<&str>,
    resume: bool,
) -> Result<Prepared> {
    let mut config = Config::load(path, set, device)?;
    let dir = RunDir::new(config.run_dir());
    let asked_to_resume = resume;
    let resume = resume && dir.has_begun();
    let lock = if resume {
        Some(dir.lock()?)
    } else {
        dir.check_new()?;
        None
    };
    let device = config.device.parse::<DeviceName>()?.open()?;
    let split = match config.data.open() {
        Err(error) if resume => return Err(Failure::DataMissing(chain(&error)).into()),
        opened => opened?,
    };
    let check_rows = config.data.resolved_check_rows(&split);
    config.data.check_rows = Some(check_rows);
    let Split { train, held_out } = split;
    let batch = config.training.batch_size;
    if batch > train.rows() {
        let rows = train.rows();
        let remedy = format!("larger than the training data; use at most its {rows} rows");
        bail!(invalid("training.batch_size", batch, remedy));
    }
    let train_summary = summary(&train, check_rows)?;
    let held_out_summary = summary(&held_out, check_rows)?;
    let config = config.resolved(&train, train_summary.variance);
    let summaries = [&train_summary, &held_out_summary];
    let provenance = Provenance::new(&config, [&train, &held_out], summaries)?;
    let checkpoints = dir.checkpoints(&config, &provenance);
    let mut found = Found::default();
    if resume {
        dir.check_resumable(&config, &provenance)?;
        found = checkpoints.look()?;
    }
    Ok(Prepared {
        config,
        device,
        train,
        held_out,
        train_summary,
        held_out_summary,
        provenance,
        dir,
        lock,
        checkpoints,
        asked_to_resume,
        found,
    })
}

/// What there is to know of a data set before it is trained or judged on.
fn summary(data: &ActivationData, sample: usize) -> Result<Summary> {
    let rows = if sample == 0 {
        data.rows()
    } else {
        sample.min(data.rows())
    };
    let bar =
        ProgressBar::new(rows as u64).with_message(format!("checking {}", data.path().display()));
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % ETA {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let summary = Summary::of(data, Some(sample), |rows| bar.inc(rows as u64))?;
    bar.finish_and_clear();
    if let Some((count, row, column, value)) = summary.non_finite {
        bail!(
            "{}: row {row}, column {column} is {value}, and {} more values are NaN or infinite; remove such rows, training cannot use them",
            data.path().display(),
            count - 1
        );
    }
    if summary.variance <= 0.0 {
        bail!(
            "{}: all rows are the same, there is nothing to learn",
            data.path().display()
        );
    }
    Ok(summary)
}

impl Prepared {
    /// Trains to the end, or as far as it gets, and saves the model.
    pub(crate) fn train(mut self) -> Result<()> {
        let config = &self.config;
        let settings = self.settings()?;
        let _lock = match self.lock.take() {
            Some(lock) => lock,
            None => self.dir.create(config, &self.provenance)?,
        };
        self.dir.write_config(config)?;
        let use_tui = std::io::stdout().is_terminal();
        crate::logging::start(&self.dir.log(), !use_tui)?;
        self.checkpoints.tidy(&self.found.damaged)?;
        let done = self.steps_done();
        tracing::info!(run = config.run_name(), done, "training starts");
        if !use_tui {
            self.announce(done);
        }
        let learner = self.learner(settings)?;
        let outcome = Arc::new(Outcome::default());
        let (builder, waiting, writer) = self.supervised(use_tui, &outcome)?;
        let started = Instant::now();
        let result = builder.launch(learner);
        let held_up = [waiting.total(), writer.held_up()];
        self.finish(result, &outcome, started.elapsed(), held_up)
    }

    /// Steps behind the checkpoint to continue from.
    fn steps_done(&self) -> usize {
        self.found
            .newest
            .as_ref()
            .map_or(0, |position| position.step)
    }

    fn settings(&self) -> Result<Settings> {
        let training = &self.config.training;
        let loss = training.loss.context("a completed config has a loss")?;
        Ok(Settings {
            loss,
            variance: self.train_summary.variance,
            held_out_variance: self.held_out_summary.variance,
            frequency_cutoff: training.frequency_cutoff.unwrap_or(1.0),
            dead_window: training.dead_window,
            sparsity_coefficient: training.sparsity_coefficient.unwrap_or(0.0),
            sparsity_warmup_steps: training.sparsity_warmup_steps.unwrap_or(0),
            target_l0: training.target_l0.unwrap_or(1.0),
            aux_coefficient: training.aux_coefficient.unwrap_or(0.0),
            aux_k: training.aux_k.unwrap_or(0),
        })
    }

    fn announce(&self, done: usize) {
        let c = &self.config;
        println!(
            "run {}: {}, {} latents, width {}, {} training rows, {} held out, device {}",
            c.run_name(),
            c.model.describe(),
            c.model.n_latents,
            self.train.width(),
            self.train.rows(),
            self.held_out.rows(),
            c.device,
        );
        for warning in self.train_summary.warnings() {
            println!("note: {warning}");
        }
        if done > 0 {
            println!("continuing after step {done}");
        } else if self.asked_to_resume {
            println!("there is no checkpoint to continue from: beginning");
        }
    }

    fn schedule(&self) -> Schedule {
        let t = &self.config.training;
        Schedule::new(
            t.lr(),
            t.warmup_steps.unwrap_or(0),
            t.decay_fraction.unwrap_or(0.0),
            t.steps,
        )
    }

    /// Model, optimizer and schedule, as they were at the checkpoint to continue from.
    fn learner(&self, settings: Settings) -> Result<Learner<SaeLearner>> {
        let device = self.device.clone().autodiff();
        let variance = self.train_summary.variance;
        let sae_config = self.config.sae_config(self.train.width(), variance);
        let sae = Sae::init(
            &sae_config,
            self.config.seed,
            &self.train_summary.mean,
            &device,
        );
        let t = &self.config.training;
        let adam = Adam {
            beta_1: t.beta_1.unwrap_or(0.9),
            beta_2: t.beta_2.unwrap_or(0.999),
            epsilon: ADAM_EPSILON,
        };
        let mut learner = SaeLearner::new(sae, settings, &device);
        let mut optimizer = ModuleOptimizer::from(adam);
        let mut scheduler = ModuleLrScheduler::new(Scheduler::new(self.schedule()));
        let done = self.steps_done();
        if done > 0 {
            let dir = self.checkpoints.path(done);
            (learner, optimizer, scheduler) =
                checkpoint::restore(&dir, done, learner, optimizer, scheduler)?;
        }
        Ok(Learner::new(learner, optimizer, scheduler))
    }

    /// Burn's trainer, set up for what is left of this run.
    fn supervised(
        &self,
        use_tui: bool,
        outcome: &Arc<Outcome>,
    ) -> Result<(SupervisedTraining<SaeLearner>, Waiting, Arc<Writer>)> {
        let (t, done) = (&self.config.training, self.steps_done());
        let train = ActivationLoader::training(
            &self.train,
            t.batch_size,
            &self.config.data.streaming(self.config.seed),
            done..t.steps,
            t.validate_every,
            &self.device,
        );
        let waiting = train.waiting();
        let held_out = ActivationLoader::evaluation(&self.held_out, t.batch_size, &self.device);
        let position = self.found.newest.as_ref().map(|position| &position.metrics);
        let metrics = MetricsFile::open(&self.dir.metrics(), done, position)?;
        let on_gpu = !ops::is_cpu(&self.device);
        let writer = Arc::new(Writer::new(
            self.checkpoints.clone(),
            on_gpu,
            outcome.clone(),
        ));
        let part = |name| Part {
            name,
            writer: writer.clone(),
        };
        let mut builder =
            SupervisedTraining::new(self.dir.path(), Arc::new(train), Arc::new(held_out))
                .metrics((
                    Mean::<Loss>::new(),
                    Mean::<Fvu>::new(),
                    Mean::<L0>::new(),
                    Mean::<Dead>::new(),
                ))
                .with_metric_logger(JsonLines::new(metrics.clone(), self.schedule()))
                .with_application_logger(None)
                .with_custom_checkpointers(part(MODEL), part(OPTIMIZER), part(SCHEDULER))
                .with_checkpointing_strategy(checkpoint::Always)
                .num_epochs(t.steps.div_ceil(t.validate_every));
        if !use_tui {
            let lines = PlainLines::new(t.log_every, t.batch_size, t.steps, done);
            builder = builder.renderer(Box::new(lines));
        }
        let steps = self.steps(use_tui, metrics, writer.clone(), outcome)?;
        let strategy = TrainingStrategy::Custom(Arc::new(steps));
        let builder = builder.with_training_strategy(strategy);
        Ok((builder, waiting, writer))
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
                validate_every: t.validate_every,
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
            signals: Signals::watch().context("watching for Ctrl-C")?,
            outcome: outcome.clone(),
            use_tui,
        })
    }

    fn finish(
        &self,
        result: LearningResult<SaeLearner>,
        outcome: &Outcome,
        elapsed: Duration,
        held_up: [Duration; 2],
    ) -> Result<()> {
        drop(result.renderer); // gives the terminal back
        if let Some(failure) = outcome.take() {
            return Err(failure.into());
        }
        if let Some(error) = result.error {
            return Err(anyhow!("training failed: {}", chain(&*error)));
        }
        let model = self.dir.model();
        saved::save(&result.model.sae, self.config.seed, &model)
            .map_err(|error| save_failure(&model, error))?;
        let t = &self.config.training;
        let steps = t.steps - self.steps_done();
        let (seconds, rows) = (elapsed.as_secs_f64(), (steps * t.batch_size) as f64);
        let [waited, saving] = held_up.map(|time| time.as_secs_f64());
        println!(
            "trained {steps} steps in {seconds:.1} s ({:.0} rows/s, validation included); waited for data {waited:.2} s \
             ({:.2} %), for checkpoints {saving:.2} s ({:.2} %)",
            rows / seconds,
            100.0 * waited / seconds,
            100.0 * saving / seconds,
        );
        println!("model: {}", model.display());
        println!("report: cargo xtask eval {}", self.dir.path().display());
        tracing::info!(seconds, waited, saving, "training ends");
        Ok(())
    }
}

/// The failure to write a model, with its exit code where it has one.
fn save_failure(model: &Path, error: SavedModelError) -> anyhow::Error {
    match error {
        SavedModelError::Io { path, source }
        | SavedModelError::Seal(SealError::Io { path, source }) => {
            Failure::Write { path, source }.into()
        }
        other => anyhow::Error::new(other).context(format!("saving {}", model.display())),
    }
}
