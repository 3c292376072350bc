//! Training from Rust: the same steps as a run of `sae-train`, on rows of any source, without a run directory.

use burn::data::dataloader::DataLoader;
use burn::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::module::{Module, ParamGroup};
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use burn::train::Learner;
use sae_data::{ActivationData, DataError, Parts, Statistics, Streaming, Summary};
use sae_model::ops::Adam;
use sae_model::parameters::W_DEC;
use sae_model::{Across, AnyArchitecture, Architecture, Sae};
use toml::{Table, Value};

use crate::config::{Config, ConfigError, Fixed, Resolved, invalid};
use crate::learner::{SaeLearner, Settings};
use crate::schedule::{self, Factors, Schedule};
use crate::shards::Shards;

/// Adam's epsilon, torch's default (Burn's is 1e-5).
pub(crate) const ADAM_EPSILON: f64 = 1e-8;
/// In the training loss, a row whose norm is more than this many times the median counts as a row of that norm. Of
/// 218,605 rows of SmolLM2, layer 15, 43 are beyond 2 medians and 32 beyond 5; of the MiniLM rows, none are.
const ROW_LIMIT: f64 = 4.0;

/// Trains sparse autoencoders on rows of any source.
///
/// ```
/// use sae_data::ActivationData;
/// use sae_model::architectures::TopK;
/// use sae_train::Trainer;
///
/// let rows: Vec<f32> = (0..400 * 8).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
/// let data = ActivationData::from_rows(rows, 8);
/// let trainer = Trainer::new(TopK { k: 4, refinement: 0 }, 32, 20, 64).set("training.lr", 1e-3);
/// let sae = trainer.fit(&data)?;
/// assert_eq!(sae.w_dec().dims(), [32, 8]);
/// # Ok::<(), sae_train::TrainError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Trainer {
    /// A config, without its data.
    config: Table,
    /// The model to start from.
    start: Option<Sae>,
}

/// Where parameters start.
pub(crate) enum Parameters<'a> {
    /// As the architecture says, with this mean of the data.
    Fresh(&'a [f32]),
    /// As those of this model, which is whole.
    Of(&'a Sae),
}

/// The reason why [`Trainer::fit`] returns no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A key or a value that no config can have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A batch cannot be read.
    #[error(transparent)]
    Load(#[from] burn::data::dataset::DatasetError),
    /// The loss or a gradient is NaN or infinite.
    #[error("step {step}: {what}")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// The number that is not finite.
        what: String,
    },
}

impl Trainer {
    /// Trains this architecture with `n_latents` latents for `steps` steps of `batch_size` rows, by its recipe. An
    /// architecture of another crate must be [registered](sae_model::architectures::register).
    pub fn new(
        architecture: impl Into<AnyArchitecture>,
        n_latents: usize,
        steps: usize,
        batch_size: usize,
    ) -> Self {
        let architecture = architecture.into();
        let mut config = Table::new();
        config.insert("run".into(), "in_memory".into());
        let start = None;
        let trainer = Self { config, start }
            .set("data.train", "in memory")
            .set("model.architecture", architecture.name())
            .set("model.n_latents", n_latents as i64)
            .set("training.steps", steps as i64)
            .set("training.batch_size", batch_size as i64);
        let own = Table::try_from(architecture.switches()).expect("switches are plain values");
        own.into_iter().fold(trainer, |trainer, (key, value)| {
            trainer.set(&format!("model.{key}"), value)
        })
    }

    /// Trains this model further, for `steps` steps of `batch_size` rows, by the recipe of its architecture for so many steps.
    /// Adam and the counters of training start anew. A key of `[model]` may be set to what the model has, and to nothing else;
    /// `training.lr` may be zero.
    pub fn starting_from(sae: &Sae, steps: usize, batch_size: usize) -> Self {
        let model = sae.config();
        let mut trainer = Self::new(
            model.architecture.clone(),
            model.n_latents,
            steps,
            batch_size,
        );
        trainer.start = Some(sae.clone());
        trainer
    }

    /// Sets a key of the config (docs/CONFIG.md), for example `training.lr` or `seed`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let table = match section {
            "" => Some(&mut self.config),
            section => {
                let section = self.config.entry(section).or_insert(Table::new().into());
                section.as_table_mut()
            }
        };
        // A value that was set where a section belongs stays there: `fit` says what is wrong with it.
        if let Some(table) = table {
            table.insert(name.into(), value.into());
        }
        self
    }

    /// Trains on all rows of `data`, on the CPU, and returns the model.
    ///
    /// # Errors
    /// [`TrainError`], for the first problem found.
    pub fn fit(&self, data: &ActivationData) -> Result<Sae, TrainError> {
        let fixed = self.start.as_ref().map(|sae| Fixed {
            model: sae.config().clone(),
            path: None,
        });
        if let Some(fixed) = &fixed {
            fixed.check_width(data.path(), data.width())?;
        }
        let config = Config::of_table(&self.config, None, fixed)?;
        config.check_alone()?;
        if data.rows() == 0 {
            let path = format!("{:?}", data.path());
            return Err(invalid("data.train", path, "it has no rows").into());
        }
        let typical = Summary::of(data, None, |_| {})?.typical;
        let resolved = config.resolve_for(&typical)?;
        let (t, device) = (&config.training, Device::flex());
        let settings = settings(&resolved, &typical, typical.variance, t.dead_window);
        let (learner, optimizer, scheduler) = start(
            &resolved,
            (config.seed, t.steps),
            match &self.start {
                Some(sae) => Parameters::Of(sae),
                None => Parameters::Fresh(&typical.mean),
            },
            Across::alone(resolved.model.n_latents),
            settings,
            &device,
        );
        let mut learner = Learner::new(learner, optimizer, scheduler);
        let shards = Shards::alone(t.shards).with_gradients(t.part_gradients);
        let streaming: Streaming = config.data.streaming(config.seed);
        let parts = Parts::new(data, streaming, t.batch_size, t.shards, shards.own());
        let batches = parts.training(0..t.steps, t.steps, &device.autodiff());
        for (step, batch) in batches.iter().enumerate() {
            let output = shards.train_step(&learner.model(), batch?);
            learner.lr_step();
            if !output.item.is_finite() {
                let (step, what) = (step + 1, output.item.what_is_not_finite());
                return Err(TrainError::NotFinite { step, what });
            }
            learner.optimizer_step(output.grads);
        }
        Ok(learner.model().valid().sae)
    }
}

/// The settings of a step, for training data with these statistics and held-out rows of this variance.
pub(crate) fn settings(
    resolved: &Resolved,
    typical: &Statistics,
    held_out_variance: f64,
    dead_window: usize,
) -> Settings {
    Settings {
        loss: resolved.recipe.loss,
        variance: typical.variance,
        row_limit: ROW_LIMIT * typical.median_norm,
        held_out_variance,
        frequency_cutoff: resolved.recipe.frequency_cutoff,
        dead_window,
        coefficients: resolved.coefficients.clone(),
    }
}

/// The learning rate over `steps` steps: linear warm-up, a plateau and decay, as the recipe says.
pub(crate) fn schedule(resolved: &Resolved, steps: usize) -> Schedule {
    let recipe = &resolved.recipe;
    Schedule::new(recipe.lr, recipe.warmup_steps, recipe.decay_fraction, steps)
}

/// The optimizer of a learner: Adam, which keeps the rows of W_dec at length one where the model wants it.
pub(crate) fn optimizer_of(sae: &Sae, adam: Adam) -> ModuleOptimizer {
    let optimizer = ModuleOptimizer::from(adam);
    let w_dec = sae.parameters.path(W_DEC.name);
    match w_dec.filter(|_| sae.config().unit_norm_decoder) {
        Some(place) => {
            let unit_rows = Adam {
                unit_rows: true,
                ..adam
            };
            let decoder = ParamGroup::from_paths(vec![format!("sae.parameters.{place}")]);
            optimizer.with_group(decoder, unit_rows, None)
        }
        None => optimizer,
    }
}

/// Model, optimizer and schedule before the first of `steps` steps, of the latents that are here.
pub(crate) fn start(
    resolved: &Resolved,
    (seed, steps): (u64, usize),
    parameters: Parameters,
    across: Across,
    settings: Settings,
    device: &Device,
) -> (SaeLearner, ModuleOptimizer, ModuleLrScheduler) {
    let device = device.clone().autodiff();
    let Resolved { model, recipe, .. } = resolved;
    let sae = match parameters {
        Parameters::Fresh(mean) => Sae::init_across(model, seed, mean, &device, across),
        Parameters::Of(sae) => sae.part(&device, across),
    };
    let adam = Adam {
        beta_1: recipe.beta_1,
        beta_2: recipe.beta_2,
        epsilon: ADAM_EPSILON,
        unit_rows: false,
    };
    let factors = Factors {
        projections: recipe.projection_lr,
        pre_bias: resolved.pre_bias_lr,
    };
    let scheduler = schedule::module_scheduler(&sae, schedule(resolved, steps), factors);
    let optimizer = optimizer_of(&sae, adam);
    (
        SaeLearner::new(sae, settings, &device),
        optimizer,
        scheduler,
    )
}
