//! One contestant: a process that does its work once for each line that it is sent.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The numbers of a turn, as a worker prints them.
#[derive(Debug, Deserialize)]
pub(super) struct Turn {
    pub(super) seconds: f64,
    /// Number of rows delivered; only loaders have it.
    pub(super) rows: Option<f64>,
    /// Mean L0; only models have it.
    pub(super) l0: Option<f64>,
    /// Peak resident memory of the process so far.
    pub(super) peak_bytes: Option<u64>,
    /// Peak memory of the device, where it has its own.
    pub(super) device_bytes: Option<u64>,
}

pub(super) struct Worker {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts `command` and waits until it is ready.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let input = process.stdin.take();
        let output = process.stdout.take().context("a worker has an output")?;
        let mut worker = Self {
            process,
            input,
            output: BufReader::new(output),
        };
        worker
            .line()
            .with_context(|| format!("{command:?} did not get ready"))?;
        Ok(worker)
    }

    /// Asks for one turn and waits for its numbers.
    pub(super) fn turn(&mut self) -> Result<Turn> {
        let input = self.input.as_mut().context("a worker has an input")?;
        input
            .write_all(b"\n")
            .and_then(|()| input.flush())
            .context("the worker is gone")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("not a turn: {line}"))
    }

    /// The next line that is an object; libraries may print others.
    fn line(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            let read = self
                .output
                .read_line(&mut line)
                .context("reading from the worker")?;
            anyhow::ensure!(read > 0, "the worker ended; its message is above");
            if line.starts_with('{') {
                return Ok(line);
            }
        }
    }
}

impl Drop for Worker {
    /// Ends the process, which may hang.
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
