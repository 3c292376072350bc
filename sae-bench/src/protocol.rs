//! The protocol between a worker and `cargo xtask bench`: the worker prints one line when it is ready, then takes one
//! turn per line on stdin and prints one JSON object about it.

use std::io::{BufRead, Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Takes one turn and returns its numbers: `seconds`, and others that depend on the worker.
pub(crate) type Job = Box<dyn FnMut() -> Result<Value>>;

/// Takes turns until stdin ends.
pub(crate) fn serve(mut job: Job) -> Result<()> {
    print(&json!({ "ready": true }))?;
    for line in std::io::stdin().lock().lines() {
        line.context("reading stdin")?;
        let mut turn = job()?;
        turn["peak_bytes"] = peak_bytes().into();
        print(&turn)?;
    }
    Ok(())
}

fn print(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("writing to stdout")
}

/// Peak resident memory of this process, if the system reports it.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
