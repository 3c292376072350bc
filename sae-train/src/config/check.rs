//! Checks everything about a config that does not need the data.

use super::{Config, ConfigError, Resolved, TrainingConfig, invalid};

impl Config {
    /// Checks everything that does not need the data.
    pub(super) fn check(&self, resolved: &Resolved) -> Result<(), ConfigError> {
        self.check_run_name()?;
        self.training.check_counts()?;
        self.training.check_numbers()?;
        resolved
            .model
            .validate()
            .map_err(|error| invalid(&format!("model.{}", error.key), error.value, error.remedy))
    }

    fn check_run_name(&self) -> Result<(), ConfigError> {
        let run = self.run_name();
        let no_file_name = run.is_empty() || run == "." || run == "..";
        if no_file_name || run.contains(|c: char| c == '/' || c == '\\' || c.is_control()) {
            return Err(invalid(
                "run",
                format!("{run:?}"),
                "a run's name is one directory name without control characters, such as \"quickstart\"",
            ));
        }
        Ok(())
    }
}

impl TrainingConfig {
    fn check_counts(&self) -> Result<(), ConfigError> {
        let t = self;
        for (key, value) in [
            ("training.steps", t.steps),
            ("training.batch_size", t.batch_size),
            ("training.validate_every", t.validate_every),
            ("training.log_every", t.log_every),
            ("training.dead_window", t.dead_window),
            ("training.keep_checkpoints", t.keep_checkpoints),
            ("training.checkpoint_every", t.checkpoint_every()),
        ] {
            if value == 0 {
                return Err(invalid(key, 0, "must be at least 1"));
            }
        }
        let rows = (t.steps as u128) * (t.batch_size as u128);
        if rows > i64::MAX as u128 {
            return Err(invalid(
                "training.steps",
                t.steps,
                format!(
                    "with a batch_size of {} these are more rows than can be counted",
                    t.batch_size
                ),
            ));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        let t = self;
        if let Some(lr) = t.lr.filter(|lr| !(*lr > 0.0 && lr.is_finite())) {
            return Err(invalid(
                "training.lr",
                lr,
                "the learning rate must be a positive number, such as 1e-3",
            ));
        }
        if !(0.0..=1e6).contains(&t.checkpoint_minutes) {
            return Err(invalid(
                "training.checkpoint_minutes",
                t.checkpoint_minutes,
                "must be zero (none) or a number of minutes",
            ));
        }
        let part = 0.0..=1.0;
        for (key, value) in [
            ("training.decay_fraction", t.decay_fraction),
            ("training.frequency_cutoff", t.frequency_cutoff),
        ] {
            if value.is_some_and(|value| !part.contains(&value)) {
                return Err(invalid(
                    key,
                    value.unwrap_or_default(),
                    "must lie between 0 and 1",
                ));
            }
        }
        for (key, value) in [
            ("training.projection_lr", t.projection_lr),
            ("training.pre_bias_lr", t.pre_bias_lr),
        ] {
            if value.is_some_and(|value| !(value.is_finite() && value >= 0.0)) {
                let value = value.unwrap_or_default();
                return Err(invalid(key, value, "must be zero or a positive number"));
            }
        }
        for (key, value) in [("training.beta_1", t.beta_1), ("training.beta_2", t.beta_2)] {
            if value.is_some_and(|value| !(0.0..1.0).contains(&value)) {
                return Err(invalid(
                    key,
                    value.unwrap_or_default(),
                    "must be at least 0 and below 1",
                ));
            }
        }
        Ok(())
    }
}
