//! The parts of a run directory that evaluation needs: the model, and where the data lies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clap::Args;
use sae_data::config::{HeldOut, Split};
use sae_data::{ActivationData, DataConfig, Fingerprint, MaxNorm, Truth};
use sae_model::Sae;
use sae_model::saved::{self, SavedConfig};
use sae_run::{RunDir, Sides};
use serde::Deserialize;

use crate::head::Head;

/// The part of `config.toml` that evaluation reads.
#[derive(Deserialize)]
struct RunConfig {
    data: DataConfig,
    training: Option<Recipe>,
}

/// The facts about training that the report mentions.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Recipe {
    /// Optimizer steps.
    pub(crate) steps: usize,
    /// Steps of linear warm-up.
    pub(crate) warmup_steps: Option<usize>,
}

/// A trained run, opened.
pub(crate) struct Run {
    /// The run directory.
    pub(crate) dir: PathBuf,
    /// The trained model, on the host.
    pub(crate) sae: Sae,
    /// How it was trained, where it is known.
    pub(crate) recipe: Option<Recipe>,
    /// Its `cfg.json`.
    pub(crate) config: SavedConfig,
    /// The training split: classes are ranked on it.
    pub(crate) train: ActivationData,
    /// The held-out split: everything is judged on it.
    pub(crate) held_out: ActivationData,
    /// The fingerprints of both.
    pub(crate) fingerprints: [Fingerprint; 2],
    /// `||x||` above which rows are left out of both.
    pub(crate) max_norm: Option<f64>,
    /// About how many training rows were looked at for their mean; 0 for all.
    pub(crate) check_rows: usize,
    /// The zero-shot head, or why there is none.
    pub(crate) head: Result<Head, String>,
    /// The concepts that the data was made of, where they are known.
    pub(crate) truth: Option<Truth>,
}

/// Data that has moved since the run was trained, or that came later. Activations must be the same as then.
#[derive(Args, Debug, Default)]
pub(crate) struct Elsewhere {
    /// The training activations, if they have moved.
    #[arg(long, value_name = "PATH")]
    train: Option<PathBuf>,
    /// The held-out activations, if they are a data set of their own and have moved.
    #[arg(long, value_name = "PATH")]
    held_out: Option<PathBuf>,
    /// Labels of the training activations: a file, in place of data.labels.
    #[arg(long, value_name = "PATH")]
    labels: Option<PathBuf>,
    /// Labels of the held-out activations, if they are a data set of their own: a file, in place of
    /// data.held_out_labels.
    #[arg(long, value_name = "PATH")]
    held_out_labels: Option<PathBuf>,
    /// Class embeddings [classes, d] for top-n classification, in place of data.class_embeddings.
    #[arg(long, value_name = "PATH")]
    class_embeddings: Option<PathBuf>,
    /// JSON list of class names, in place of data.class_names.
    #[arg(long, value_name = "PATH")]
    class_names: Option<PathBuf>,
}

impl Elsewhere {
    /// Puts these paths in the place of the config's.
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
        for (given, key) in [
            (&self.labels, &mut data.labels),
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
    /// Opens a run directory; the model and the head go to `host`.
    pub(crate) fn open(dir: &Path, elsewhere: &Elsewhere, host: &Device) -> Result<Self> {
        let run = RunDir::new(dir);
        let text = run
            .read_config()
            .with_context(|| format!("{}: not a run directory", dir.display()))?;
        let mut config: RunConfig =
            toml::from_str(&text).with_context(|| format!("{}", run.config().display()))?;
        if !says_max_norm(&text) {
            config.data.max_norm = MaxNorm::None; // a run from before there was one: of all rows
        }
        elsewhere.apply(&mut config.data)?;
        let data = &config.data;
        let model = run.model();
        if !model.exists() {
            bail!(
                "{}: this run has no trained model yet; finish it with sae-train --resume",
                dir.display()
            );
        }
        let sae = saved::load(&model, host)?; // compares the checksums, so it comes first
        let saved = saved::load_config(&model)?;
        let split = data.open()?;
        let head = data.class_head(&split)?;
        let truth = data.truth(&split)?;
        let check_rows = data.resolved_check_rows(&split);
        let (Split { train, held_out }, max_norm) = data.within_max_norm(split, |_| {})?;
        if train.width() != saved.model.d_in {
            bail!(
                "{}: activations have width {}, the model was trained on width {}",
                train.path().display(),
                train.width(),
                saved.model.d_in
            );
        }
        let fingerprints = [train.fingerprint()?, held_out.fingerprint()?];
        check_data(&run, &fingerprints)?;

        Ok(Self {
            dir: dir.into(),
            sae,
            recipe: config.training,
            check_rows,
            config: saved,
            train,
            held_out,
            fingerprints,
            max_norm: max_norm.number(),
            head: head.map(|head| Head::new(head, host)),
            truth,
        })
    }
}

/// Whether a config has `data.max_norm`.
fn says_max_norm(config: &str) -> bool {
    let table = config.parse::<toml::Table>().ok();
    let data = table.as_ref().and_then(|table| table.get("data"));
    data.is_some_and(|data| data.get("max_norm").is_some())
}

/// Fails if the data is not the data that the run was trained and judged on.
fn check_data(run: &RunDir, now: &[Fingerprint; 2]) -> Result<()> {
    let path = run.provenance();
    if !path.exists() {
        tracing::warn!(
            "{}: there is none, so whether this is the data of the run is not known",
            path.display()
        );
        return Ok(());
    }
    let then: Sides<Fingerprint> = run.read_provenance()?;
    for ((key, then), now) in then.by_key().into_iter().zip(now) {
        if let Some(difference) = then.difference(now) {
            bail!(
                "{key} is not the data that the run was trained with: {difference}; put the data and config.toml back as \
                 they were, the report would be about something else"
            );
        }
    }
    Ok(())
}
