//! The parts of a run directory that evaluation needs: the model and the data.

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
    /// How it was trained, if known.
    pub(crate) recipe: Option<Recipe>,
    /// Its `cfg.json`.
    pub(crate) config: SavedConfig,
    /// The training split, on which latents are ranked and probes are fitted.
    pub(crate) train: ActivationData,
    /// The held-out split, on which everything is measured.
    pub(crate) held_out: ActivationData,
    /// The same with the rows beyond `data.max_norm`.
    pub(crate) all_held_out: ActivationData,
    /// Fingerprints of the training and the held-out split.
    pub(crate) fingerprints: [Fingerprint; 2],
    /// Rows with `||x||` above this are left out of both splits.
    pub(crate) max_norm: Option<f64>,
    /// About how many training rows the initial mean was computed from; 0 means all.
    pub(crate) check_rows: usize,
    /// The zero-shot head, or why there is none.
    pub(crate) head: Result<Head, String>,
    /// The concepts that the data was made of, if known.
    pub(crate) truth: Option<Truth>,
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
    /// File with labels of the training activations, in place of data.labels.
    #[arg(long, value_name = "PATH")]
    labels: Option<PathBuf>,
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
}

impl Elsewhere {
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
            config.data.max_norm = MaxNorm::None; // a run older than this key used all rows
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
        let sae = saved::load(&model, host)?; // first, because it compares the checksums
        let saved = saved::load_config(&model)?;
        let split = data.open()?;
        let head = data.class_head(&split)?;
        let truth = data.truth(&split)?;
        let check_rows = data.resolved_check_rows(&split);
        let all_held_out = split.held_out.clone();
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
            all_held_out,
            fingerprints,
            max_norm: max_norm.number(),
            head: head.map(|head| Head::new(head, host)),
            truth,
        })
    }
}

/// True if a config has `data.max_norm`.
fn says_max_norm(config: &str) -> bool {
    let table = config.parse::<toml::Table>().ok();
    let data = table.as_ref().and_then(|table| table.get("data"));
    data.is_some_and(|data| data.get("max_norm").is_some())
}

/// Fails if this is not the data that the run was trained and validated on.
fn check_data(run: &RunDir, now: &[Fingerprint; 2]) -> Result<()> {
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
