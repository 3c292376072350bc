//! What a browser is told: how far the run is, and which report there is.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::progress::{Model, Progress};
use super::records::Curve;
use super::reports::Report;

/// Everything that is shown.
pub(super) struct View {
    /// Name of the run.
    pub(super) run: String,
    pub(super) progress: Progress,
    pub(super) report: Option<Report>,
    /// The model whose report is being made.
    pub(super) making: Option<Model>,
    /// Why the last report could not be made.
    pub(super) failure: Option<String>,
}

impl View {
    /// The state as JSON. `shown` is another text whenever the report is another one.
    pub(super) fn state(&self) -> Value {
        let progress = &self.progress;
        let numbers = |curve: &Curve| {
            curve.last().map(|last| json!({ "step": last.step, "fvu": last.fvu, "l0": last.l0, "dead": last.dead }))
        };
        json!({
            "run": self.run,
            "step": progress.step(),
            "steps": progress.steps(),
            "ended": progress.has_ended(),
            "words": progress.words(SystemTime::now()),
            "training": numbers(&progress.records.train),
            "held_out": numbers(&progress.records.held_out),
            "checkpoint": self.report.as_ref().and_then(|report| step(report.model)),
            "shown": self.report.as_ref().map(|report| name(report.model)),
            "about": self.about(),
            "failure": self.failure,
        })
    }

    /// Of which model the report is, and which one comes next.
    fn about(&self) -> String {
        let shown = self.report.as_ref().map(|report| match report.model {
            Model::Checkpoint(step) => format!("Report of the checkpoint of step {step}."),
            Model::Trained(_) => "Report of the trained model.".into(),
        });
        let next = match self.making {
            Some(Model::Checkpoint(step)) => Some(format!("That of step {step} is being made.")),
            Some(Model::Trained(_)) => Some("That of the trained model is being made.".into()),
            None if shown.is_none() && self.progress.newest().is_none() => {
                Some(self.progress.first_checkpoint())
            }
            None => None,
        };
        let words: Vec<String> = shown.into_iter().chain(next).collect();
        words.join(" ")
    }
}

fn step(model: Model) -> Option<usize> {
    match model {
        Model::Checkpoint(step) => Some(step),
        Model::Trained(_) => None,
    }
}

/// A text that no other model has.
fn name(model: Model) -> String {
    match model {
        Model::Checkpoint(step) => format!("checkpoint-{step}"),
        Model::Trained(written) => {
            let time = written
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            format!("trained-{}", time.as_millis())
        }
    }
}
