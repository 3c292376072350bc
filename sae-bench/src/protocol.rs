//! How a worker talks to `cargo xtask bench`: it prints a line when it is ready, then takes a turn for each line on
//! stdin and prints one JSON object about it.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The numbers of one turn.
pub(crate) struct Turn {
    pub(crate) seconds: f64,
    /// Rows that were delivered, by a loader.
    pub(crate) rows: Option<usize>,
    /// Mean number of active latents, of a model.
    pub(crate) l0: Option<f64>,
}

impl Turn {
    /// Times `work`, which returns L0 if it has one.
    pub(crate) fn timed(work: impl FnOnce() -> Option<f64>) -> Self {
        let start = Instant::now();
        let l0 = work();
        Self {
            seconds: start.elapsed().as_secs_f64(),
            rows: None,
            l0,
        }
    }
}

/// Does the work once.
pub(crate) type Job = Box<dyn FnMut() -> Result<Turn>>;

/// Takes turns until stdin ends.
pub(crate) fn serve(mut job: Job) -> Result<()> {
    print(&json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        line.context("reading stdin")?;
        let Turn { seconds, rows, l0 } = job()?;
        let peak_bytes = peak_bytes();
        print(&json!({ "seconds": seconds, "rows": rows, "l0": l0, "peak_bytes": peak_bytes }))?;
    }
    Ok(())
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("writing to stdout")
}

/// Peak resident memory of this process, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
