//! Makes a saved model of a checkpoint: `sae-train export`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use burn::tensor::Device;
use clap::Args;
use sae_model::saved;
use sae_run::RunDir;
use sae_run::checkpoints::Which;

use crate::failure::Failure;
use crate::output::say;

/// Options of `sae-train export`.
#[derive(Args)]
pub(crate) struct Export {
    /// The run directory, for example runs/quickstart. The run may be in progress.
    run: PathBuf,
    /// Which checkpoint: best (the least held-out FVU), newest, or the number of a step.
    #[arg(long, value_name = "WHICH", default_value_t = Which::Best)]
    checkpoint: Which,
    /// Directory for the model; it must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Export {
    /// Writes the model, whole or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        let (run, out) = (RunDir::new(&self.run), &self.out);
        check(&run, out)?;
        let (sae, saved, found) = saved::load_checkpoint(&run, self.checkpoint, &Device::flex())?;
        saved::save(&sae, saved.seed, out).map_err(|error| Failure::saving(out, error))?;
        let fvu = found.held_out_fvu;
        let fvu = fvu.map_or(String::new(), |fvu| format!(" (held-out FVU {fvu:.4})"));
        say(format!(
            "model of step {}{fvu}: {}",
            found.step,
            out.display()
        ));
        Ok(())
    }
}

fn check(run: &RunDir, out: &Path) -> Result<()> {
    if !run.has_begun() {
        bail!("{}: not a run directory", run.path().display());
    }
    if out.exists() {
        bail!("--out {}: it exists; name a new directory", out.display());
    }
    Ok(())
}
