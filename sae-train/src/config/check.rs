//! Checks everything about a config that does not need the data.

use sae_model::recipe::Recipe;

use super::{Config, ConfigError, PartGradients, Resolved, TrainingConfig, invalid};

impl Config {
    /// Checks everything that does not need the data.
    pub(super) fn check(&self, resolved: &Resolved) -> Result<(), ConfigError> {
        self.check_run_name()?;
        self.training.check_counts()?;
        self.training.check_minutes()?;
        resolved.check_recipe(self.fixed.is_some())?;
        resolved.check_model()?;
        self.check_shards()?;
        self.check_latent_shards()
    }

    /// Either the rows of a batch are spread over processes, or the latents.
    fn check_latent_shards(&self) -> Result<(), ConfigError> {
        let (spread, latents) = (self.training.latent_shards, self.model.n_latents);
        let wrong = |remedy| Err(invalid("training.latent_shards", spread, remedy));
        if spread > latents {
            return wrong(format!(
                "must be at most model.n_latents, {latents}: every process has a latent"
            ));
        }
        match self.training.shards {
            parts if spread > 1 && parts > 1 => wrong(format!(
                "must be 1 where training.shards is {parts}: a run spreads its rows or its latents"
            )),
            _ => Ok(()),
        }
    }

    /// Fails if a run needs more processes than one.
    pub(crate) fn check_alone(&self) -> Result<(), ConfigError> {
        match self.training.latent_shards {
            1 => Ok(()),
            n => Err(invalid(
                "training.latent_shards",
                n,
                format!(
                    "the latents are spread over {n} processes, and this is one; start them by mpirun -n {n} sae-train ... \
                     --distributed --shard latents"
                ),
            )),
        }
    }

    /// Each part of a batch has a block of latents (`shards/slices.rs`).
    fn check_shards(&self) -> Result<(), ConfigError> {
        let (shards, batch) = (self.training.shards, self.training.batch_size);
        let wrong = |remedy| Err(invalid("training.shards", shards, remedy));
        if !batch.is_multiple_of(shards) {
            return wrong(format!(
                "must divide training.batch_size, {batch}: all parts have equally many rows"
            ));
        }
        match self.model.n_latents {
            latents if shards > latents => {
                wrong(format!("must be at most model.n_latents, {latents}"))
            }
            _ if shards == 1 && self.training.part_gradients == PartGradients::Bf16 => wrong(
                "must be more than 1 where training.part_gradients is bf16: a batch of one part hands no gradients on".into(),
            ),
            _ => Ok(()),
        }
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
    /// Parts of a batch whose gradients are rounded.
    pub(crate) fn rounded_parts(&self) -> usize {
        match self.part_gradients {
            PartGradients::F32 => 0,
            PartGradients::Bf16 => self.shards,
        }
    }

    fn check_counts(&self) -> Result<(), ConfigError> {
        let t = self;
        for (key, value) in [
            ("training.steps", t.steps),
            ("training.batch_size", t.batch_size),
            ("training.shards", t.shards),
            ("training.latent_shards", t.latent_shards),
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

    fn check_minutes(&self) -> Result<(), ConfigError> {
        let minutes = self.checkpoint_minutes;
        let remedy = "must be zero (none) or a number of minutes";
        within(
            "checkpoint_minutes",
            minutes,
            (0.0..=1e6).contains(&minutes),
            remedy,
        )
    }
}

impl Resolved {
    /// Fails if the model has a number that no model can have.
    pub(super) fn check_model(&self) -> Result<(), ConfigError> {
        let checked = self.model.validate();
        checked.map_err(|error| invalid(&format!("model.{}", error.key), error.value, error.remedy))
    }

    /// A learning rate of zero leaves a model as it is; where there is none to start from, that is a mistake.
    fn check_recipe(&self, has_start: bool) -> Result<(), ConfigError> {
        let Recipe {
            lr,
            projection_lr,
            decay_fraction,
            beta_1,
            beta_2,
            frequency_cutoff,
            ..
        } = self.recipe;
        let remedy = "the learning rate must be a positive number, such as 1e-3";
        let good = lr.is_finite() && (lr > 0.0 || (lr == 0.0 && has_start));
        within("lr", lr, good, remedy)?;
        for (key, part) in [
            ("decay_fraction", decay_fraction),
            ("frequency_cutoff", frequency_cutoff),
        ] {
            within(
                key,
                part,
                (0.0..=1.0).contains(&part),
                "must lie between 0 and 1",
            )?;
        }
        for (key, factor) in [
            ("projection_lr", projection_lr),
            ("pre_bias_lr", self.pre_bias_lr),
        ] {
            let good = factor.is_finite() && factor >= 0.0;
            within(key, factor, good, "must be zero or a positive number")?;
        }
        for (key, beta) in [("beta_1", beta_1), ("beta_2", beta_2)] {
            within(
                key,
                beta,
                (0.0..1.0).contains(&beta),
                "must be at least 0 and below 1",
            )?;
        }
        Ok(())
    }
}

/// Fails if a number of `[training]` is not `good`.
fn within(key: &str, value: f64, good: bool, remedy: &str) -> Result<(), ConfigError> {
    match good {
        true => Ok(()),
        false => Err(invalid(&format!("training.{key}"), value, remedy)),
    }
}
