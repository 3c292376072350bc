//! Sends `tracing` events to `train.log` and to standard error (see [`crate::output`]); `RUST_LOG` sets the level.
//!
//! A process has one log. Of several runs in a process, each has a log of its own for what its thread does; what happens in
//! other threads is in the log of the sweep.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tracing_subscriber::fmt::MakeWriter;
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

thread_local! {
    /// The log of the run that this thread trains, if it is one of several.
    static RUN: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// What this thread does is written to this log from now on, after [`start`].
pub(crate) fn of_this_thread(path: &Path) -> Result<(), Failure> {
    let file = open(path)?;
    RUN.set(Some(file));
    Ok(())
}

fn open(path: &Path) -> Result<File, Failure> {
    let file = File::options().create(true).append(true).open(path);
    file.map_err(Failure::write(path))
}

/// The log of this thread's run, or else that of the process.
struct Log<'a>(&'a Mutex<File>);

impl Write for Log<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        RUN.with_borrow_mut(|run| match run {
            Some(file) => file.write(bytes),
            None => {
                let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                file.write(bytes)
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writer of the file layer.
struct Logs(Mutex<File>);

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Log<'a>;

    fn make_writer(&'a self) -> Log<'a> {
        Log(&self.0)
    }
}

/// Starts logging. Spans (`forward`, `backward`, `optimize`; level debug) report their times when they close.
pub(crate) fn start(path: &Path) -> Result<()> {
    let file = open(path)?;
    let filter = |default: &str| {
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
    };
    let file = fmt::layer()
        .with_ansi(false)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(Logs(Mutex::new(file)))
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
