//! All checks that come before anything is written: config, device, data, memory, and the run directory.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use sae_data::config::Split;
use sae_data::{ActivationData, Fingerprint, MaxNorm, Summary};
use sae_model::device::{DeviceError, DeviceName};
use sae_model::ops::set_precision;
use sae_run::{Raise, RunDir, Sides};

use crate::checkpoint::{Checkpoints, Found};
use crate::config::{Config, ConfigError, Resolved, Written, invalid};
use crate::failure::{Failure, chain};
use crate::lock::RunLock;
use crate::memory;
use crate::run::{self, Provenance};
use crate::shards::Shards;
use crate::start::Start;

/// A run that can start: config, device and data fit together. Nothing has been written.
pub(crate) struct Prepared {
    pub(crate) config: Config,
    /// The config, resolved by the recipe and the data.
    pub(crate) resolved: Resolved,
    pub(crate) device: Device,
    pub(crate) data: Measured,
    pub(crate) provenance: Provenance,
    /// The model to start from, in place of fresh parameters.
    pub(crate) start: Option<Start>,
    pub(crate) dir: RunDir,
    /// Held if there is a run to continue; a new run is locked when its directory is made.
    pub(crate) lock: Option<RunLock>,
    pub(crate) checkpoints: Checkpoints,
    /// True if there are to be event files for TensorBoard.
    pub(crate) tensorboard: bool,
    /// True if `--resume` was given.
    pub(crate) asked_to_resume: bool,
    /// The checkpoint to continue from, if any.
    pub(crate) found: Found,
    /// Which runs of its sweep it takes turns with: those of its device, or of its threads.
    pub(crate) lane: usize,
    /// The threads of its lane, where it does not have all of the program's.
    pub(crate) threads: Option<NonZeroUsize>,
    /// How the parts of a batch are shared.
    pub(crate) shards: Shards,
}

/// A run whose config, directory and device are right; nobody has looked at its data.
pub(crate) struct Asked {
    /// As it was written.
    pub(crate) config: Config,
    device: Device,
    /// Which card the device is, if it is one.
    card: Option<String>,
    start: Option<Start>,
    dir: RunDir,
    lock: Option<RunLock>,
    asked_to_resume: bool,
    /// Which runs of its sweep it takes turns with: those of its device, or of its threads.
    pub(crate) lane: usize,
    /// The threads of its lane, where it does not have all of the program's.
    pub(crate) threads: Option<NonZeroUsize>,
}

/// The data of a run: opened, limited to `data.max_norm`, and measured. Runs of one `[data]` share it.
#[derive(Clone)]
pub(crate) struct Measured {
    pub(crate) train: ActivationData,
    pub(crate) held_out: ActivationData,
    pub(crate) train_summary: Summary,
    pub(crate) held_out_summary: Summary,
    /// The held-out rows that validations use, and their variance `mean ||x - mean(x)||^2`.
    pub(crate) validated: ActivationData,
    pub(crate) validated_variance: f64,
    fingerprints: Sides<Fingerprint>,
    /// About how many rows of each side are checked, and the limit of norms.
    check_rows: usize,
    limit: MaxNorm,
}

/// Checks a run from config to data; `from` is the saved model to start from.
pub(crate) fn prepare(written: &Written, from: Option<&Path>, resume: bool) -> Result<Prepared> {
    whole(ask(written, from, resume)?)
}

/// The same in a process that another leads, which has the run directory.
pub(crate) fn prepare_to_follow(
    written: &Written,
    from: Option<&Path>,
    resume: bool,
) -> Result<Prepared> {
    whole(asked(written, from, resume, |_| Ok(None))?)
}

/// A run with its data.
fn whole(asked: Asked) -> Result<Prepared> {
    let data = measure(&asked, |train| {
        asked.check_batch(train)?;
        Ok(memory::check(&asked.config, train)?)
    })?;
    asked.with(data)
}

/// Checks a run as far as that is possible without its data.
pub(crate) fn ask(written: &Written, from: Option<&Path>, resume: bool) -> Result<Asked> {
    asked(written, from, resume, |dir| {
        if resume && dir.has_begun() {
            return Ok(Some(RunLock::take(dir)?));
        }
        run::check_new(dir)?;
        Ok(None)
    })
}

/// A run whose directory `lock` looks at.
fn asked(
    written: &Written,
    from: Option<&Path>,
    resume: bool,
    lock: impl FnOnce(&RunDir) -> Result<Option<RunLock>>,
) -> Result<Asked> {
    let start = start(&RunDir::new(written.run_dir()), from, resume)?;
    let config = written.complete(start.as_ref().map(Start::fixed))?;
    let dir = RunDir::new(config.run_dir());
    let lock = lock(&dir)?;
    let (device, card) = open_device(&config.device)?;
    set_precision(config.precision);
    Ok(Asked {
        device,
        card,
        config,
        start,
        dir,
        lock,
        asked_to_resume: resume,
        lane: 0,
        threads: None,
    })
}

/// Opens and measures the data of a run. What `fits` refuses is found before the data is read.
pub(crate) fn measure(
    asked: &Asked,
    fits: impl FnOnce(&ActivationData) -> Result<()>,
) -> Result<Measured> {
    let config = &asked.config;
    let split = open_data(config, asked.lock.is_some())?;
    asked.check_width(&split.train)?;
    let check_rows = config.data.resolved_check_rows(&split);
    let (Split { train, held_out }, limit) = within_max_norm(config, split)?;
    fits(&train)?;
    let train_summary = summary(&train, check_rows)?;
    let held_out_summary = summary(&held_out, check_rows)?;
    let (validated, validated_variance) =
        validation(&held_out, &held_out_summary, config.training.validate_rows)?;
    Ok(Measured {
        fingerprints: Sides {
            train: train.fingerprint()?,
            held_out: held_out.fingerprint()?,
        },
        train,
        held_out,
        train_summary,
        held_out_summary,
        validated,
        validated_variance,
        check_rows,
        limit,
    })
}

impl Asked {
    /// Fails if the activations do not have the width of the model to start from.
    pub(crate) fn check_width(&self, train: &ActivationData) -> Result<(), ConfigError> {
        match &self.config.fixed {
            Some(fixed) => fixed.check_width(train.path(), train.width()),
            None => Ok(()),
        }
    }

    /// Fails if a batch has more rows than the training data.
    pub(crate) fn check_batch(&self, train: &ActivationData) -> Result<(), ConfigError> {
        let (batch, rows) = (self.config.training.batch_size, train.rows());
        if batch > rows {
            let remedy = format!("larger than the training data; use at most its {rows} rows");
            return Err(invalid("training.batch_size", batch, remedy));
        }
        Ok(())
    }

    /// The run on this data, which is that of its config.
    pub(crate) fn with(self, data: Measured) -> Result<Prepared> {
        let written_out = |config: &Config| -> Result<(Resolved, Config)> {
            let resolved = config.resolve_for(&data.train_summary.typical)?;
            let mut config = config.written_out(&resolved, &data.train, data.check_rows);
            config.data.max_norm = data.limit;
            Ok((resolved, config))
        };
        let Self { config, dir, .. } = self;
        let as_asked = config;
        let (resolved, config) = written_out(&as_asked)?;
        let summaries = [&data.train_summary, &data.held_out_summary];
        let mut provenance = run::provenance(&config, data.fingerprints.clone(), summaries);
        provenance.card = self.card;
        provenance.from = self.start.as_ref().map(|start| start.origin.clone());
        let mut found = Found::default();
        if self.lock.is_some() {
            let recorded = run::recorded_steps(&dir)?;
            let steps = as_asked.training.steps;
            let before = recorded.filter(|before| *before < steps).unwrap_or(steps);
            let (_, was) = written_out(&as_asked.with_steps(before))?;
            found = resumed(&dir, [&was, &config], &mut provenance)?;
        }
        Ok(Prepared {
            checkpoints: run::checkpoints(&dir, &config, &provenance),
            shards: Shards::alone(config.training.shards)
                .with_gradients(config.training.part_gradients),
            config,
            resolved,
            device: self.device,
            data,
            provenance,
            start: self.start,
            tensorboard: dir.tensorboard().exists(),
            dir,
            lock: self.lock,
            asked_to_resume: self.asked_to_resume,
            found,
            lane: self.lane,
            threads: self.threads,
        })
    }
}

/// The checkpoint to continue from, of a run whose config was `was` and is to be `config`: the same, or with more steps.
/// `provenance` gets the changes of the number of steps.
fn resumed(
    dir: &RunDir,
    [was, config]: [&Config; 2],
    provenance: &mut Provenance,
) -> Result<Found> {
    run::check_resumable(dir, was, provenance)?;
    let (from, to) = (was.training.steps, config.training.steps);
    provenance.raised = run::raises(dir, from)?;
    let checkpoints = run::checkpoints(dir, was, provenance);
    let found = checkpoints.look()?;
    if from == to {
        return Ok(found);
    }
    match &found.newest {
        Some(newest) => provenance.raised.push(Raise {
            at: newest.step,
            from,
            to,
            run: checkpoints.identity().into(),
        }),
        None if dir.model().exists() => {
            let run = dir.path().into();
            return Err(Failure::NothingToRaise { run, from, to }.into());
        }
        // It begins again, so that all of its steps are those of a run of the new number.
        None => provenance.raised.clear(),
    }
    Ok(found)
}

/// The model to start from. A run that has begun has its own.
fn start(dir: &RunDir, from: Option<&Path>, resume: bool) -> Result<Option<Start>> {
    match from {
        _ if resume && dir.has_begun() => Start::of_run(dir, from),
        from => from.map(Start::load).transpose(),
    }
}

/// Opens the data. Also opens the classes and the true concepts, so that evaluation does not find their mistakes after
/// training.
fn open_data(config: &Config, resume: bool) -> Result<Split> {
    let split = match config.data.open() {
        Err(error) if resume => return Err(Failure::DataMissing(chain(&error)).into()),
        opened => opened?,
    };
    let _ = config.data.class_head(&split)?;
    let _ = config.data.truth(&split)?;
    Ok(split)
}

/// Opens a device by its name, and asks which card it is. If it is not compiled in, the error says how to build with it.
fn open_device(name: &str) -> Result<(Device, Option<String>)> {
    let opened = name.parse().and_then(|name: DeviceName| {
        let device = name.open()?;
        let card = name.card(&device);
        Ok((device, card))
    });
    opened.map_err(|error| match error {
        DeviceError::NotCompiled { feature, .. } => anyhow!(
            "{error}; build with `--features {feature}`, for example `cargo run -p sae-train --features {feature} -- ...`"
        ),
        error => error.into(),
    })
}

/// The rows within `data.max_norm`, and the limit that applies.
fn within_max_norm(config: &Config, split: Split) -> Result<(Split, MaxNorm)> {
    let rows = split.train.rows() + split.held_out.rows();
    let bar = bar(rows, "measuring norms".into());
    let within = config
        .data
        .within_max_norm(split, |rows| bar.inc(rows as u64))?;
    bar.finish_and_clear();
    Ok(within)
}

/// A progress bar on stderr, if that is a terminal.
fn bar(rows: usize, what: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % ETA {eta}");
    let bar = ProgressBar::new(rows as u64).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The sample of held-out rows that validations use (`rows` of them, 0 for all), and its variance.
fn validation(
    held_out: &ActivationData,
    of_all: &Summary,
    rows: usize,
) -> Result<(ActivationData, f64)> {
    let rows = if rows == 0 { held_out.rows() } else { rows };
    let validated = held_out.spread(rows);
    if validated.rows() == held_out.rows() && of_all.rows == held_out.rows() {
        return Ok((validated, of_all.variance));
    }
    let variance = summary(&validated, 0)?.variance;
    Ok((validated, variance))
}

/// The summary of a data set, from about `sample` rows (0 for all). Fails if training cannot use them.
fn summary(data: &ActivationData, sample: usize) -> Result<Summary> {
    let rows = match sample {
        0 => data.rows(),
        sample => sample.min(data.rows()),
    };
    let bar = bar(rows, format!("checking {}", data.path().display()));
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
