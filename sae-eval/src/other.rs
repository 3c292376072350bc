//! Rows that are not the run's own: what of an evaluation they allow, and what the report has to say of them.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use sae_data::config::Split;
use sae_data::{ActivationData, DataConfig, Fingerprint, MaxNorm};
use sae_run::{RunDir, Sides};

use crate::head::Head;
use crate::run::{Data, Elsewhere, NO_DATA, Purpose};

impl Elsewhere {
    /// The rows of `path` as the data of an evaluation.
    ///
    /// The training data may be gone or unlabelled: only the sections about classes need it, and they say why they are
    /// missing.
    pub(crate) fn other(&self, path: &Path, purpose: Purpose) -> Result<Data> {
        let Purpose {
            run, config, d_in, ..
        } = purpose;
        let rows = config.open_other(
            "--data",
            path,
            self.tensor.as_deref(),
            self.labels.as_deref(),
        )?;
        if rows.width() != d_in {
            bail!(
                "--data {}: its activations have width {}, the model of {} was trained on width {d_in}",
                path.display(),
                rows.width(),
                run.path().display()
            );
        }
        let own = config.open();
        let shared = own.as_ref().is_ok_and(|own| rows.shares_files(&own.train));
        let own = own.map_err(|error| match config.train == Path::new(NO_DATA) {
            true => "the run was imported without data.train".into(),
            false => error.to_string(),
        });
        let max_norm = limit(config, own.as_ref())?;
        let all_held_out = rows.clone();
        let rows = within(rows, max_norm)?;
        let train = own.and_then(|own| training_rows(run, own, max_norm));
        // These rows stand in for training rows that are missing, so that mistakes in other files are found anyway.
        let split = Split {
            train: train.as_ref().unwrap_or(&rows).clone(),
            held_out: rows.clone(),
        };
        let classes = config.class_head(&split)?;
        let check_rows = config.resolved_check_rows(&split);
        let truth = DataConfig {
            true_codes: None, // they are of the run's own rows
            ..config.clone()
        };
        let truth = truth.truth(&split)?;
        Ok(Data {
            head: classes.and_then(|classes| match &train {
                Ok(_) => Ok(Head::new(classes, purpose.host)),
                Err(reason) => Err(reason.clone()),
            }),
            train_fingerprint: match &train {
                Ok(train) => Some(train.fingerprint()?),
                Err(_) => recorded(run),
            },
            train,
            held_out_fingerprint: rows.fingerprint()?,
            others: notes(&rows, shared),
            held_out: rows,
            all_held_out,
            max_norm,
            check_rows,
            truth,
        })
    }
}

/// The run's limit of norms. A run of `sae-train` has it as a number; otherwise the training rows decide.
fn limit(config: &DataConfig, own: Result<&Split, &String>) -> Result<Option<f64>> {
    let limit = match (config.max_norm, own) {
        (MaxNorm::Medians(_), Ok(own)) => config.within_max_norm(own.clone(), |_| {})?.1,
        (MaxNorm::Medians(_), Err(reason)) => {
            bail!("data.max_norm depends on the training rows, which cannot be read: {reason}")
        }
        (limit, _) => limit,
    };
    Ok(limit.number())
}

/// The rows within the limit.
fn within(rows: ActivationData, max_norm: Option<f64>) -> Result<ActivationData> {
    let Some(limit) = max_norm else {
        return Ok(rows);
    };
    let within = rows.within(limit, |_| {})?;
    if within.rows() < 2 {
        bail!(
            "--data {}: {} of its {} rows have a norm above {limit}, the run's data.max_norm, and at least 2 are needed; are \
             these activations of the same layer and scale?",
            rows.path().display(),
            rows.rows() - within.rows(),
            rows.rows()
        );
    }
    Ok(within)
}

/// The rows that the run was trained on, or why they cannot be used.
fn training_rows(
    run: &RunDir,
    own: Split,
    max_norm: Option<f64>,
) -> Result<ActivationData, String> {
    let read = || -> Result<ActivationData> {
        let train = match max_norm {
            Some(limit) => own.train.within(limit, |_| {})?,
            None => own.train,
        };
        if let Some(then) = recorded(run)
            && let Some(difference) = then.difference(&train.fingerprint()?)
        {
            return Err(anyhow!(
                "data.train is not the data that the run was trained with: {difference}"
            ));
        }
        Ok(train)
    };
    read().map_err(|error| format!("{error:#}"))
}

/// The fingerprint of the training rows that the run has recorded.
fn recorded(run: &RunDir) -> Option<Fingerprint> {
    let sides: Option<Sides<Fingerprint>> = run.read_provenance().ok();
    sides.map(|sides| sides.train)
}

/// What a reader has to know about these rows before the numbers.
fn notes(rows: &ActivationData, shared: bool) -> Vec<String> {
    let path = rows.path().display();
    let mut notes = vec![format!(
        "these are not the run's own held-out rows: everything is measured on {path}"
    )];
    if shared {
        notes.push(format!(
            "{path} shares files with the data that the run was trained on, so some of these rows may be training rows"
        ));
    }
    notes
}
