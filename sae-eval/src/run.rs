//! The parts of a run directory that evaluation needs: the model and the data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::Args;
use sae_data::config::{HeldOut, Split};
use sae_data::{ActivationData, DataConfig, EvalConfig, Fingerprint, MaxNorm, TailConfig, Truth};
use sae_model::Sae;
use sae_model::saved::{self, SavedConfig};
use sae_run::checkpoints::Which;
use sae_run::{RunDir, Sides};
use serde::Deserialize;

use crate::head::Head;

/// The part of `config.toml` that evaluation reads.
#[derive(Deserialize)]
struct RunConfig {
    /// Absent in a run that was imported without data.
    data: Option<DataConfig>,
    training: Option<Recipe>,
    #[serde(default)]
    eval: EvalConfig,
}

/// The facts about training that the report mentions.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Recipe {
    /// Optimizer steps.
    pub(crate) steps: usize,
    /// Steps of linear warm-up.
    pub(crate) warmup_steps: Option<usize>,
}

/// The path of the training rows of a run that has none.
pub(crate) const NO_DATA: &str = "(none: the run was imported without data)";

/// A run, opened.
pub(crate) struct Run {
    /// The run directory.
    pub(crate) dir: PathBuf,
    /// The model, on the host.
    pub(crate) sae: Sae,
    /// The step of the checkpoint that it is of, if it is not the trained model.
    pub(crate) step: Option<usize>,
    /// The saved model that the run started from, if it did not start from fresh parameters.
    pub(crate) start: Option<Sae>,
    /// How the run is trained, if known.
    pub(crate) recipe: Option<Recipe>,
    /// Its `cfg.json`.
    pub(crate) config: SavedConfig,
    /// The rows that it is evaluated on, and those it was trained on.
    pub(crate) data: Data,
    /// The section `[data]` of its config, with the paths as they are now.
    #[cfg(feature = "tail")]
    pub(crate) data_config: DataConfig,
    /// The rest of its model, if the config names one.
    pub(crate) tail: Option<TailConfig>,
}

/// What data is opened for.
#[derive(Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub(crate) run: &'a RunDir,
    pub(crate) config: &'a DataConfig,
    /// Width d of the rows that the model takes.
    pub(crate) d_in: usize,
    /// Where the head goes.
    pub(crate) host: &'a Device,
}

/// The data of an evaluation.
pub(crate) struct Data {
    /// The training split, on which latents are ranked and probes are fitted, or why it cannot be used (only if the rows to
    /// evaluate on are not the run's own).
    pub(crate) train: Result<ActivationData, String>,
    /// The rows on which everything is measured: the held-out split, or others.
    pub(crate) held_out: ActivationData,
    /// The same with the rows beyond `data.max_norm`.
    pub(crate) all_held_out: ActivationData,
    /// Fingerprint of the training split, if it is known.
    pub(crate) train_fingerprint: Option<Fingerprint>,
    /// Fingerprint of the rows on which everything is measured.
    pub(crate) held_out_fingerprint: Fingerprint,
    /// Rows with `||x||` above this are left out of both.
    pub(crate) max_norm: Option<f64>,
    /// About how many training rows the initial mean was computed from; 0 means all.
    pub(crate) check_rows: usize,
    /// The zero-shot head, or why there is none.
    pub(crate) head: Result<Head, String>,
    /// The concepts that the data was made of, if known.
    pub(crate) truth: Option<Truth>,
    /// What must be known about rows that are not the run's own; empty if they are.
    pub(crate) others: Vec<String>,
}

/// Paths of data that has moved since training, or was added later. The activations must be unchanged.
#[derive(Args, Debug, Default)]
pub(crate) struct Elsewhere {
    /// The training activations, if they have moved.
    #[arg(long, value_name = "PATH")]
    train: Option<PathBuf>,
    /// The held-out activations, if they are a data set of their own and have moved.
    #[arg(long, value_name = "PATH")]
    held_out: Option<PathBuf>,
    /// File with labels of the training activations, in place of data.labels; with --data, of the rows that it names.
    #[arg(long, value_name = "PATH")]
    pub(crate) labels: Option<PathBuf>,
    /// File with labels of the held-out activations, if they are a data set of their own, in place of
    /// data.held_out_labels.
    #[arg(long, value_name = "PATH")]
    held_out_labels: Option<PathBuf>,
    /// Class embeddings [classes, d] for top-n classification, in place of data.class_embeddings.
    #[arg(long, value_name = "PATH")]
    class_embeddings: Option<PathBuf>,
    /// JSON list of class names, in place of data.class_names.
    #[arg(long, value_name = "PATH")]
    class_names: Option<PathBuf>,
    /// Evaluate on all rows of these activations, not on the run's held-out rows; data.max_norm, data.layer and
    /// data.drop_first_token hold for them, too. The training data is needed only for sections about classes.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["held_out", "held_out_labels"], requires = "output")]
    pub(crate) data: Option<PathBuf>,
    /// Name of the activation tensor or column of --data. Default: data.tensor, or the only one.
    #[arg(long, value_name = "NAME", requires = "data")]
    pub(crate) tensor: Option<String>,
}

impl Elsewhere {
    /// Other rows than the run's own, as `--data` and `--tensor` name them.
    pub(crate) fn rows(data: Option<PathBuf>, tensor: Option<String>) -> Self {
        Self {
            data,
            tensor,
            ..Self::default()
        }
    }

    /// The run's own rows, which have moved to these paths.
    pub(crate) fn moved(train: Option<PathBuf>, held_out: Option<PathBuf>) -> Self {
        Self {
            train,
            held_out,
            ..Self::default()
        }
    }

    /// The section `[data]` of a run that has none, because it was imported without data.
    fn in_place_of_data(&self, run: &Path) -> Result<DataConfig> {
        match (&self.train, &self.data) {
            (None, None) => bail!(
                "{}: this run has no data of its own, because it was imported without --train; name rows with --data PATH \
                 --output DIR",
                run.display()
            ),
            (Some(train), _) => Ok(DataConfig::of(train)),
            (None, Some(_)) => Ok(DataConfig::of(NO_DATA)),
        }
    }

    /// Replaces the config's paths by these.
    fn apply(&self, data: &mut DataConfig) -> Result<()> {
        if let Some(path) = &self.train {
            data.train.clone_from(path);
        }
        match (&self.held_out, &mut data.held_out) {
            (Some(path), HeldOut::Path(held_out)) => held_out.clone_from(path),
            (Some(path), _) => bail!(
                "--held-out {}: this run held out a part of data.train; leave it out, or name data.train by --train",
                path.display()
            ),
            (None, _) => {}
        }
        let of_train = self.labels.as_ref().filter(|_| self.data.is_none());
        for (given, key) in [
            (&of_train.cloned(), &mut data.labels),
            (&self.held_out_labels, &mut data.held_out_labels),
            (&self.class_embeddings, &mut data.class_embeddings),
            (&self.class_names, &mut data.class_names),
        ] {
            if given.is_some() {
                key.clone_from(given);
            }
        }
        Ok(())
    }
}

impl Run {
    /// Opens a run directory, with its trained model or that of a checkpoint; the model and the head go to `host`.
    pub(crate) fn open(
        dir: &Path,
        checkpoint: Option<Which>,
        elsewhere: &Elsewhere,
        host: &Device,
    ) -> Result<Self> {
        let run = RunDir::new(dir);
        let text = run
            .read_config()
            .with_context(|| format!("{}: not a run directory", dir.display()))?;
        let config: RunConfig =
            toml::from_str(&text).with_context(|| format!("{}", run.config().display()))?;
        let mut data_config = match config.data {
            Some(data) => data,
            None => elsewhere.in_place_of_data(dir)?,
        };
        if !says_max_norm(&text) {
            data_config.max_norm = MaxNorm::None; // a run older than this key used all rows
        }
        elsewhere.apply(&mut data_config)?;
        // The model first, because its checksums are compared.
        let (sae, saved, step) = match checkpoint {
            None => trained(&run, host)?,
            Some(which) => {
                let (sae, saved, found) = saved::load_checkpoint(&run, which, host)?;
                (sae, saved, Some(found.step))
            }
        };
        let purpose = Purpose {
            run: &run,
            config: &data_config,
            d_in: saved.model.d_in,
            host,
        };
        let data = match &elsewhere.data {
            None => Data::own(purpose)?,
            Some(path) => elsewhere.other(path, purpose)?,
        };
        Ok(Self {
            dir: dir.into(),
            sae,
            step,
            start: match run.start() {
                dir if dir.exists() => Some(saved::load(&dir, host)?),
                _ => None,
            },
            recipe: config.training,
            config: saved,
            data,
            #[cfg(feature = "tail")]
            data_config,
            tail: config.eval.tail,
        })
    }
}

impl Data {
    /// The run's own rows.
    fn own(purpose: Purpose) -> Result<Self> {
        let Purpose {
            run, config, d_in, ..
        } = purpose;
        let split = config.open()?;
        let classes = config.class_head(&split)?;
        let truth = config.truth(&split)?;
        let check_rows = config.resolved_check_rows(&split);
        let all_held_out = split.held_out.clone();
        let (Split { train, held_out }, max_norm) = config.within_max_norm(split, |_| {})?;
        if train.width() != d_in {
            bail!(
                "{}: activations have width {}, the model was trained on width {d_in}",
                train.path().display(),
                train.width(),
            );
        }
        let [of_train, of_held_out] = [train.fingerprint()?, held_out.fingerprint()?];
        check_data(run, [&of_train, &of_held_out])?;
        Ok(Self {
            train: Ok(train),
            held_out,
            all_held_out,
            train_fingerprint: Some(of_train),
            held_out_fingerprint: of_held_out,
            max_norm: max_norm.number(),
            check_rows,
            head: classes.map(|classes| Head::new(classes, purpose.host)),
            truth,
            others: Vec::new(),
        })
    }
}

/// The trained model of a run.
fn trained(run: &RunDir, host: &Device) -> Result<(Sae, SavedConfig, Option<usize>)> {
    let model = run.model();
    if !model.exists() {
        bail!(
            "{}: this run has no trained model yet; finish it with sae-train --resume, or evaluate it as it is with \
             --checkpoint newest",
            run.path().display()
        );
    }
    let sae = saved::load(&model, host)?;
    Ok((sae, saved::load_config(&model)?, None))
}

/// True if a config has `data.max_norm`.
fn says_max_norm(config: &str) -> bool {
    let table = config.parse::<toml::Table>().ok();
    let data = table.as_ref().and_then(|table| table.get("data"));
    data.is_some_and(|data| data.get("max_norm").is_some())
}

/// Fails if this is not the data that the run was trained and validated on.
fn check_data(run: &RunDir, now: [&Fingerprint; 2]) -> Result<()> {
    let path = run.provenance();
    if !path.exists() {
        tracing::warn!(
            "{}: no such file, so this may not be the data of the run",
            path.display()
        );
        return Ok(());
    }
    let then: Sides<Fingerprint> = run.read_provenance()?;
    for ((key, then), now) in then.by_key().into_iter().zip(now) {
        if let Some(difference) = then.difference(now) {
            bail!(
                "{key} is not the data that the run was trained with: {difference}; put the data and config.toml back as \
                 they were; otherwise the report would be about something else"
            );
        }
    }
    Ok(())
}
