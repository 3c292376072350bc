//! The workers that `cargo xtask bench` measures. Each is a process that does one thing per line on stdin, so that
//! peak memory is its own and the contestants, ours and others', can take turns.

mod loader;
mod protocol;
mod step;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Be a worker of `cargo xtask bench`.
#[derive(Parser)]
enum Arguments {
    /// The training step and its parts.
    Step {
        work: step::Work,
        batch: usize,
        width: usize,
        latents: usize,
    },
    /// The data loader and plain copies, on a file of f16 rows.
    Loader {
        work: loader::Work,
        path: PathBuf,
        batch: usize,
        window_mb: usize,
    },
}

fn main() -> Result<()> {
    protocol::serve(match Arguments::parse() {
        Arguments::Step {
            work,
            batch,
            width,
            latents,
        } => step::job(work, [batch, width, latents]),
        Arguments::Loader {
            work,
            path,
            batch,
            window_mb,
        } => loader::job(work, &path, batch, window_mb)?,
    })
}
