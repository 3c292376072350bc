//! What is encoded: a model, and rows of its width.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use sae_data::{ActivationData, DataError};
use sae_model::saved::{self, CONFIG_FILE, WEIGHTS_FILE};
use sae_model::{Architecture, Sae};
use sae_run::RunDir;
use sae_run::sealed::checksum;

use super::EncodeArguments;
use super::index::ModelPrint;
use crate::run::{Elsewhere, Run};

/// A model, and rows of its width.
pub(crate) struct Input {
    /// The model, on the host.
    pub(crate) sae: Sae,
    /// Which model it is.
    pub(crate) model: ModelPrint,
    /// The rows.
    pub(crate) data: ActivationData,
    /// Whether they are only a part of their data set.
    is_part: bool,
}

impl Input {
    /// Opens both.
    ///
    /// # Errors
    /// If one of the two cannot be read, or they do not belong together.
    pub(crate) fn open(arguments: &EncodeArguments, host: &Device) -> Result<Self> {
        let path = model_in(&arguments.run)?;
        let (sae, data) = match (&arguments.data, arguments.held_out) {
            (Some(data), false) => {
                let sae = saved::load(&path, host)?; // first, because it compares the checksums
                (sae, arguments.open_data(data)?)
            }
            (None, true) => {
                arguments.check_own_rows(&path)?;
                let run = Run::open(&arguments.run, None, &Elsewhere::default(), host)?;
                (run.sae, run.data.all_held_out)
            }
            (Some(data), true) => bail!(
                "--held-out: the run's own rows and {} cannot both be encoded; leave one of the two out",
                data.display()
            ),
            (None, false) => bail!(
                "{}: DATA or OUT is missing; it is encode RUN DATA OUT, or encode RUN OUT --held-out",
                arguments.out.display()
            ),
        };
        let width = sae.config().d_in;
        ensure!(
            data.width() == width,
            "{}: its rows have width {}, those of the model {} have width {width}; name activations of the layer that the \
             model was trained on",
            data.path().display(),
            data.width(),
            path.display()
        );
        Ok(Self {
            model: print(path, &sae)?,
            sae,
            data,
            is_part: arguments.held_out,
        })
    }

    /// The rows of the data set that are encoded, if these are not all.
    pub(crate) fn data_rows(&self) -> Option<Vec<[usize; 2]>> {
        const AT_ONCE: usize = 1 << 16;
        if !self.is_part {
            return None;
        }
        let mut stretches: Vec<[usize; 2]> = Vec::new();
        for start in (0..self.data.rows()).step_by(AT_ONCE) {
            let rows = start..(start + AT_ONCE).min(self.data.rows());
            for row in self.data.rows_in_source(rows) {
                match stretches.last_mut() {
                    Some([_, end]) if *end == row => *end += 1,
                    _ => stretches.push([row, row + 1]),
                }
            }
        }
        Some(stretches)
    }
}

impl EncodeArguments {
    fn open_data(&self, path: &Path) -> Result<ActivationData> {
        let options = sae_data::Options {
            tensor: self.tensor.clone(),
            layer: self.layer,
            drop_first_token: self.drop_first_token,
            labels: None,
        };
        Ok(ActivationData::open(path, &options)?)
    }

    /// Fails if there are no rows of the run's own, or options describe other data.
    fn check_own_rows(&self, model: &Path) -> Result<()> {
        ensure!(
            model != self.run,
            "--held-out: {} is a model without a run; name DATA",
            self.run.display()
        );
        let described = self.tensor.is_some() || self.layer.is_some() || self.drop_first_token;
        ensure!(
            !described,
            "--held-out: the run's config says how its rows are read; leave --tensor, --layer and --drop-first-token out"
        );
        Ok(())
    }
}

/// The saved model that is, or is in, `path`.
pub(crate) fn model_in(path: &Path) -> Result<PathBuf> {
    if path.join(CONFIG_FILE).exists() {
        return Ok(path.into());
    }
    let run = RunDir::new(path);
    ensure!(
        run.has_begun(),
        "{}: neither a run directory nor a saved model",
        path.display()
    );
    ensure!(
        run.model().exists(),
        "{}: this run has no trained model yet; finish it with sae-train --resume",
        path.display()
    );
    Ok(run.model())
}

fn print(path: PathBuf, sae: &Sae) -> Result<ModelPrint> {
    let sum = |name| {
        let path = path.join(name);
        checksum(&path).with_context(|| format!("{}", path.display()))
    };
    Ok(ModelPrint {
        architecture: sae.config().architecture.describe(),
        config_blake3: sum(CONFIG_FILE)?,
        weights_blake3: sum(WEIGHTS_FILE)?,
        path,
    })
}

/// The remedy for an error, in the options of this program.
pub(crate) fn remedy(error: &anyhow::Error) -> String {
    match error.downcast_ref::<DataError>() {
        Some(DataError::Ambiguous { .. }) => " with --tensor".into(),
        Some(DataError::Option { key, .. }) => format!(" (--{})", key.replace('_', "-")),
        Some(error) => error.missing_feature().map_or(String::new(), |feature| {
            format!(
                "; start this program with cargo run -p sae-eval --features {feature} -- encode ..."
            )
        }),
        None => String::new(),
    }
}
