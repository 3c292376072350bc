//! One run: check everything, then train through Burn's Learner, then save.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::{Learner, LearningResult, SupervisedTraining};
use indicatif::{ProgressBar, ProgressStyle};
use sae_data::config::Split;
use sae_data::{ActivationData, ActivationLoader, Summary, Waiting};
use sae_model::device::DeviceName;
use sae_model::ops::Adam;
use sae_model::{Sae, saved};

use crate::config::{Config, invalid};
use crate::learner::{SaeLearner, Settings};
use crate::metrics::{Dead, Fvu, JsonLines, L0, Loss, Mean};
use crate::progress::PlainLines;
use crate::run::{Provenance, RunDir};
use crate::schedule::{Schedule, Scheduler};

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
    pub(crate) dir: RunDir,
    /// Checkpoint to continue from; 0 for the beginning.
    checkpoint: usize,
}

/// Checks a run from config to data.
pub(crate) fn prepare(
    path: &Path,
    set: &[String],
    device: Option<&str>,
    resume: bool,
) -> Result<Prepared> {
    let config = Config::load(path, set, device)?;
    let dir = RunDir::new(config.run_dir());
    if !resume {
        dir.check_new()?;
    }
    let device = config.device.parse::<DeviceName>()?.open()?;
    let Split { train, held_out } = config.data.open()?;
    let batch = config.training.batch_size;
    if batch > train.rows() {
        let rows = train.rows();
        let remedy = format!("larger than the training data; use at most its {rows} rows");
        bail!(invalid("training.batch_size", batch, remedy));
    }
    let train_summary = summary(&train, config.data.check_rows)?;
    let held_out_summary = summary(&held_out, config.data.check_rows)?;
    let config = config.resolved(&train, train_summary.variance);
    let provenance = Provenance::new(&config, &train, &held_out)?;
    let checkpoint = if resume {
        dir.check_resumable(&config, &provenance)?
    } else {
        0
    };
    Ok(Prepared {
        config,
        device,
        train,
        held_out,
        train_summary,
        held_out_summary,
        provenance,
        dir,
        checkpoint,
    })
}

/// What there is to know of a data set before it is trained or judged on.
fn summary(data: &ActivationData, sample: Option<usize>) -> Result<Summary> {
    let rows = sample.unwrap_or(data.rows()).min(data.rows());
    let bar =
        ProgressBar::new(rows as u64).with_message(format!("checking {}", data.path().display()));
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % ETA {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let summary = Summary::of(data, sample, |rows| bar.inc(rows as u64))?;
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
    pub(crate) fn train(self) -> Result<()> {
        let config = &self.config;
        let settings = self.settings()?;
        self.dir.create(config, &self.provenance)?;
        let use_tui = std::io::stdout().is_terminal();
        crate::logging::start(&self.dir.log(), !use_tui)?;
        tracing::info!(
            run = config.run_name(),
            checkpoint = self.checkpoint,
            "training starts"
        );
        let training = &config.training;
        // the last virtual epoch may be a shorter one
        let done = (self.checkpoint * training.validate_every).min(training.steps);
        if !use_tui {
            self.announce(done);
        }
        let (builder, waiting) = self.supervised(done, use_tui)?;
        let started = Instant::now();
        let result = builder.launch(self.learner(settings));
        self.finish(result, done, started.elapsed(), &waiting)
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

    fn learner(&self, settings: Settings) -> Learner<SaeLearner> {
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
        Learner::new(
            SaeLearner::new(sae, settings, &device),
            ModuleOptimizer::from(adam),
            Scheduler::new(self.schedule()),
        )
    }

    /// Burn's trainer, set up for this run after its first `done` steps.
    fn supervised(
        &self,
        done: usize,
        use_tui: bool,
    ) -> Result<(SupervisedTraining<SaeLearner>, Waiting)> {
        let t = &self.config.training;
        let train = ActivationLoader::training(
            &self.train,
            t.batch_size,
            &self.config.data.streaming(self.config.seed),
            t.steps,
            t.validate_every,
            self.checkpoint,
            &self.device,
        );
        let waiting = train.waiting();
        let held_out = ActivationLoader::evaluation(&self.held_out, t.batch_size, &self.device);
        let metrics = self.dir.metrics();
        let metrics = JsonLines::open(&metrics, self.schedule(), done)
            .with_context(|| format!("writing {}", metrics.display()))?;
        let mut builder =
            SupervisedTraining::new(self.dir.path(), Arc::new(train), Arc::new(held_out))
                .metrics((
                    Mean::<Loss>::new(),
                    Mean::<Fvu>::new(),
                    Mean::<L0>::new(),
                    Mean::<Dead>::new(),
                ))
                .with_metric_logger(metrics)
                .with_application_logger(None)
                .with_default_checkpointers()
                .with_checkpointing_strategy(KeepLastNCheckpoints::new(t.keep_checkpoints))
                .num_epochs(t.steps.div_ceil(t.validate_every));
        if self.checkpoint > 0 {
            builder = builder.checkpoint(self.checkpoint);
        }
        if !use_tui {
            let lines = PlainLines::new(t.log_every, t.batch_size, t.steps, done);
            builder = builder.renderer(Box::new(lines));
        }
        Ok((builder, waiting))
    }

    fn finish(
        &self,
        result: LearningResult<SaeLearner>,
        done: usize,
        elapsed: Duration,
        waiting: &Waiting,
    ) -> Result<()> {
        drop(result.renderer); // gives the terminal back
        if let Some(error) = result.error {
            return Err(anyhow!("training stopped: {error}"));
        }
        // Not `result.interrupted`: Burn's TUI clears it when it closes.
        let steps = result.model.steps_done();
        if steps < self.config.training.steps {
            bail!(
                "training was stopped at step {steps} of {}, so there is no model yet; continue from \
                 the last checkpoint with --resume ({})",
                self.config.training.steps,
                self.dir.path().display()
            );
        }
        let sae = result.model.sae;
        if !sae
            .concepts
            .val()
            .into_data()
            .iter::<f32>()
            .all(f32::is_finite)
        {
            bail!("the dictionary holds NaN or infinity, so no model is saved; lower training.lr");
        }
        let model = self.dir.model();
        saved::save(&sae, self.config.seed, &model)?;
        let t = &self.config.training;
        let (seconds, rows) = (
            elapsed.as_secs_f64(),
            ((t.steps - done) * t.batch_size) as f64,
        );
        let waited = waiting.total().as_secs_f64();
        println!(
            "trained {} steps in {seconds:.1} s ({:.0} rows/s, validation included); waited for data {waited:.2} s ({:.2} %)",
            t.steps - done,
            rows / seconds,
            100.0 * waited / seconds,
        );
        println!("model: {}", model.display());
        println!("report: cargo xtask eval {}", self.dir.path().display());
        tracing::info!(seconds, waited, "training ends");
        Ok(())
    }
}
