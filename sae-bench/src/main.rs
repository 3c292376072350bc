//! The workers that `cargo xtask bench` measures. Each is a process that takes one turn per line on stdin: its peak
//! memory is its own, and the contestants (ours and others) can alternate.

mod loader;
mod protocol;
mod step;

use anyhow::Result;
use clap::Parser;

/// A worker of `cargo xtask bench`.
#[derive(Parser)]
enum Arguments {
    /// The training step and its parts.
    Step(step::Arguments),
    /// The data loader and plain copies, on a file of f16 rows.
    Loader(loader::Arguments),
}

fn main() -> Result<()> {
    protocol::serve(match Arguments::parse() {
        Arguments::Step(arguments) => step::job(&arguments)?,
        Arguments::Loader(arguments) => loader::job(&arguments)?,
    })
}
