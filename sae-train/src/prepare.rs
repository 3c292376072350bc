//! All checks that come before anything is written: config, device, data, memory, and the run directory.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use burn::tensor::Device;
use indicatif::{ProgressBar, ProgressStyle};
use sae_data::config::Split;
use sae_data::{ActivationData, MaxNorm, Summary};
use sae_model::device::{DeviceError, DeviceName};
use sae_run::{Raise, RunDir};

use crate::checkpoint::{Checkpoints, Found};
use crate::config::{Config, Resolved, Written, invalid};
use crate::failure::{Failure, chain};
use crate::lock::RunLock;
use crate::memory;
use crate::run::{self, Provenance};
use crate::start::Start;

/// A run that can start: config, device and data fit together. Nothing has been written.
pub(crate) struct Prepared {
    pub(crate) config: Config,
    /// The config, resolved by the recipe and the data.
    pub(crate) resolved: Resolved,
    pub(crate) device: Device,
    pub(crate) train: ActivationData,
    pub(crate) held_out: ActivationData,
    pub(crate) train_summary: Summary,
    pub(crate) held_out_summary: Summary,
    /// The held-out rows that validations use, and their variance `mean ||x - mean(x)||^2`.
    pub(crate) validated: ActivationData,
    pub(crate) validated_variance: f64,
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
}

/// Checks a run from config to data; `from` is the saved model to start from.
pub(crate) fn prepare(written: &Written, from: Option<&Path>, resume: bool) -> Result<Prepared> {
    let start = start(&RunDir::new(written.run_dir()), from, resume)?;
    let config = written.complete(start.as_ref().map(Start::fixed))?;
    let dir = RunDir::new(config.run_dir());
    let asked_to_resume = resume;
    let resume = resume && dir.has_begun();
    let lock = if resume {
        Some(RunLock::take(&dir)?)
    } else {
        run::check_new(&dir)?;
        None
    };
    let (device, card) = open_device(&config.device)?;
    let (Split { train, held_out }, check_rows, limit) = rows(&config, resume)?;
    let train_summary = summary(&train, check_rows)?;
    let held_out_summary = summary(&held_out, check_rows)?;
    let (validated, validated_variance) =
        validation(&held_out, &held_out_summary, config.training.validate_rows)?;
    let written_out = |config: &Config| -> Result<(Resolved, Config)> {
        let resolved = config.resolve_for(&train_summary.typical)?;
        let mut config = config.written_out(&resolved, &train, check_rows);
        config.data.max_norm = limit;
        Ok((resolved, config))
    };
    let as_asked = config;
    let (resolved, config) = written_out(&as_asked)?;
    let summaries = [&train_summary, &held_out_summary];
    let mut provenance = run::provenance(&config, [&train, &held_out], summaries)?;
    provenance.card = card;
    provenance.from = start.as_ref().map(|start| start.origin.clone());
    let mut found = Found::default();
    if resume {
        let recorded = run::recorded_steps(&dir)?;
        let steps = as_asked.training.steps;
        let before = recorded.filter(|before| *before < steps).unwrap_or(steps);
        let (_, was) = written_out(&as_asked.with_steps(before))?;
        found = resumed(&dir, [&was, &config], &mut provenance)?;
    }
    let checkpoints = run::checkpoints(&dir, &config, &provenance);
    Ok(Prepared {
        config,
        resolved,
        device,
        train,
        held_out,
        train_summary,
        held_out_summary,
        validated,
        validated_variance,
        provenance,
        start,
        tensorboard: dir.tensorboard().exists(),
        dir,
        lock,
        checkpoints,
        asked_to_resume,
        found,
    })
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

/// Both sides of the data within `data.max_norm`, about how many rows of each are checked, and the limit. Fails if they cannot
/// be trained on.
fn rows(config: &Config, resume: bool) -> Result<(Split, usize, MaxNorm)> {
    let split = open_data(config, resume)?;
    if let Some(fixed) = &config.fixed {
        fixed.check_width(split.train.path(), split.train.width())?;
    }
    let check_rows = config.data.resolved_check_rows(&split);
    let (split, limit) = within_max_norm(config, split)?;
    check_batch(config.training.batch_size, split.train.rows())?;
    memory::check(config, &split.train)?;
    Ok((split, check_rows, limit))
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

/// Fails if a batch has more rows than the training data.
fn check_batch(batch: usize, rows: usize) -> Result<()> {
    if batch > rows {
        let remedy = format!("larger than the training data; use at most its {rows} rows");
        bail!(invalid("training.batch_size", batch, remedy));
    }
    Ok(())
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
