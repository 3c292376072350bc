//! Sends `tracing` events to `train.log` and to standard error (see [`crate::output`]); `RUST_LOG` sets the level.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::failure::Failure;
use crate::output::Stderr;

/// Filter for `train.log`, unless `RUST_LOG` sets another.
const FILE_DEFAULT: &str = "info,burn_train=warn,wgpu=warn,naga=warn,cubecl=warn";
/// Filter for standard error, unless `RUST_LOG` sets another. `sae_train::failure` is off: `main` prints what ends the
/// run.
const STDERR_DEFAULT: &str = "warn,wgpu_hal=error,burn_train=off,sae_train::failure=off";

/// Starts logging. Spans (`forward`, `backward`, `optimize`; level debug) report their times when they close.
pub(crate) fn start(path: &Path) -> Result<()> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Failure::write(path))?;
    let filter = |default: &str| {
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
    };
    let file = fmt::layer()
        .with_ansi(false)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::sync::Mutex::new(file))
        .with_filter(filter(FILE_DEFAULT));
    let stderr = fmt::layer()
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(|| Stderr)
        .with_filter(filter(STDERR_DEFAULT));
    tracing_subscriber::registry()
        .with(file)
        .with(stderr)
        .try_init()
        .context("starting the log")
}
