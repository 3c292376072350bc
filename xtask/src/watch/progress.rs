//! How far a run is, by the files of its directory. Nothing is locked and nothing written there.

use std::time::{Duration, SystemTime};

use sae_run::{RunDir, checkpoints};
use serde::Deserialize;

use super::records::Records;

/// Time without a new record after which a run is said to stand still.
const STANDS_STILL: Duration = Duration::from_mins(2);

/// The part of `config.toml` that is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Config {
    #[serde(default)]
    training: Training,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct Training {
    steps: Option<usize>,
    validate_every: Option<usize>,
    checkpoint_every: Option<usize>,
    checkpoint_minutes: Option<f64>,
}

/// A model of the run, which can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// That of the checkpoint of this step.
    Checkpoint(usize),
    /// The trained one, written at this time.
    Trained(SystemTime),
}

/// What the directory says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Progress {
    pub(super) records: Records,
    config: Training,
    checkpoint: Option<usize>,
    trained: Option<SystemTime>,
    /// When `metrics.jsonl` was last written to.
    written: Option<SystemTime>,
}

impl Progress {
    /// Looks at a run for the first time.
    pub(super) fn of(dir: &RunDir) -> Self {
        let mut progress = Self {
            records: Records::default(),
            config: Training::default(),
            checkpoint: None,
            trained: None,
            written: None,
        };
        progress.update(dir);
        progress
    }

    /// Looks again.
    pub(super) fn update(&mut self, dir: &RunDir) {
        if let Some(config) = dir
            .read_config()
            .ok()
            .and_then(|text| toml::from_str(&text).ok())
        {
            let Config { training } = config;
            self.config = training; // the number of steps can be raised
        }
        self.records.update(&dir.metrics());
        self.checkpoint = checkpoints::steps(&dir.checkpoints()).first().copied();
        let modified =
            |path: std::path::PathBuf| path.metadata().and_then(|about| about.modified()).ok();
        self.trained = modified(dir.model());
        self.written = modified(dir.metrics());
    }

    /// Steps of the whole run.
    pub(super) fn steps(&self) -> Option<usize> {
        self.config.steps
    }

    /// Steps done.
    pub(super) fn step(&self) -> usize {
        let record = self.records.train.last().map(|record| record.step);
        record.max(self.checkpoint).unwrap_or(0)
    }

    /// Whether all steps are done and the model is there.
    pub(super) fn has_ended(&self) -> bool {
        let all = self.steps().is_none_or(|steps| self.step() >= steps);
        self.trained.is_some() && (all || self.records.train.last().is_none())
    }

    /// The newest model.
    pub(super) fn newest(&self) -> Option<Model> {
        match self.trained {
            Some(written) if self.has_ended() => Some(Model::Trained(written)),
            _ => self.checkpoint.map(Model::Checkpoint),
        }
    }

    /// The state in words, at the time `now`.
    pub(super) fn words(&self, now: SystemTime) -> String {
        if self.has_ended() {
            return "The run has ended.".into();
        }
        let silence = self
            .written
            .and_then(|written| now.duration_since(written).ok());
        if let Some(silence) = silence.filter(|silence| *silence > STANDS_STILL) {
            return format!(
                "No new record for {}: the run stands still or was stopped; sae-train with --resume goes on with it.",
                lasting(silence.as_secs_f64())
            );
        }
        let left = self.steps().map(|steps| steps.saturating_sub(self.step()));
        match (left, self.records.train.pace()) {
            (_, _) if self.records.train.last().is_none() => "The run has no records yet.".into(),
            (Some(0), _) => "All steps are done; the model is not written yet.".into(),
            (Some(left), Some(pace)) => format!(
                "In progress, about {} left.",
                lasting(left as f64 * pace.max(0.0))
            ),
            _ => "In progress.".into(),
        }
    }

    /// When the first checkpoint is due.
    pub(super) fn first_checkpoint(&self) -> String {
        let Training {
            steps,
            validate_every,
            checkpoint_every,
            checkpoint_minutes,
        } = self.config;
        let every = checkpoint_every
            .or(validate_every)
            .filter(|every| *every > 0);
        let step = match (every, steps) {
            (Some(every), Some(steps)) => Some(every.min(steps)),
            (every, steps) => every.or(steps),
        };
        let minutes = checkpoint_minutes.filter(|minutes| *minutes > 0.0);
        match (step, minutes) {
            (Some(step), Some(minutes)) => {
                format!(
                    "The first checkpoint is due at step {step}, or after {}.",
                    lasting(60.0 * minutes)
                )
            }
            (Some(step), None) => format!("The first checkpoint is due at step {step}."),
            (None, _) => "There is no checkpoint yet.".into(),
        }
    }
}

/// A time in words.
fn lasting(seconds: f64) -> String {
    let of = |count: f64, unit: &str| {
        let count = count.round().max(1.0);
        format!("{count} {unit}{}", if count == 1.0 { "" } else { "s" })
    };
    match seconds {
        s if s < 90.0 => of(s, "second"),
        s if s < 5400.0 => of(s / 60.0, "minute"),
        s if s < 129_600.0 => of(s / 3600.0, "hour"),
        s => of(s / 86_400.0, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_run_from_its_beginning_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let config =
            "run = \"x\"\n[training]\nsteps = 40\nvalidate_every = 20\ncheckpoint_minutes = 10.0\n";
        fs::write(run.config(), config).unwrap();
        let mut progress = Progress::of(&run);
        let now = SystemTime::now();
        assert_eq!(
            (progress.newest(), progress.step(), progress.steps()),
            (None, 0, Some(40))
        );
        assert_eq!(progress.words(now), "The run has no records yet.");
        let due = "The first checkpoint is due at step 20, or after 10 minutes.";
        assert_eq!(progress.first_checkpoint(), due);

        let record = |step: usize| {
            format!(
                "{{\"split\":\"train\",\"step\":{step},\"seconds\":{}}}\n",
                60 * step
            )
        };
        fs::write(run.metrics(), record(1) + &record(3)).unwrap();
        progress.update(&run);
        assert_eq!(progress.words(now), "In progress, about 37 minutes left.");
        let later = SystemTime::now() + Duration::from_mins(7);
        assert!(
            progress
                .words(later)
                .starts_with("No new record for 7 minutes")
        );

        fs::create_dir_all(run.checkpoints().join("step-00000020")).unwrap();
        fs::create_dir(run.checkpoints().join("step-00000040.tmp")).unwrap();
        progress.update(&run);
        assert_eq!(progress.newest(), Some(Model::Checkpoint(20)));

        fs::create_dir(run.model()).unwrap();
        fs::write(run.metrics(), record(1) + &record(40)).unwrap();
        progress.update(&run);
        assert!(progress.has_ended() && matches!(progress.newest(), Some(Model::Trained(_))));

        // more steps: the model that is there is not that of the end
        fs::write(run.config(), config.replace("40", "80")).unwrap();
        progress.update(&run);
        assert_eq!(progress.newest(), Some(Model::Checkpoint(20)));
    }

    #[test]
    fn times_in_words() {
        let words = [0.2, 44.0, 100.0, 7200.0, 200_000.0].map(lasting);
        assert_eq!(
            words,
            ["1 second", "44 seconds", "2 minutes", "2 hours", "2 days"]
        );
    }
}
