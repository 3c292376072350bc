//! `cargo xtask bench`: measures a training step, in multiples of the one dense product that it cannot avoid, and
//! beside the steps of other libraries.
//!
//! Each contestant is a process of its own (`worker.rs`; ours are in the crate `sae-bench`) that does its work once per
//! line on stdin. So its peak memory is its own. The contestants take turns, so that a machine that is slower for a
//! while is slower for all.

mod loader;
mod report;
mod worker;

pub(crate) use report::processor;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::files::At;
use crate::programs::{build, finish};
use report::{Measured, ShapeReport};
use worker::Worker;

/// Batch, width, latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Shape {
    batch: usize,
    width: usize,
    latents: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes = text
            .split('x')
            .map(|size| size.parse().ok().filter(|size| *size > 0));
        match sizes.collect::<Vec<Option<usize>>>()[..] {
            [Some(batch), Some(width), Some(latents)] => Ok(Self {
                batch,
                width,
                latents,
            }),
            _ => Err(format!(
                "{text}: write BATCHxWIDTHxLATENTS, for example 4096x768x24576"
            )),
        }
    }
}

/// The options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Shapes to measure, BATCHxWIDTHxLATENTS.
    #[arg(long, value_delimiter = ',', default_values = ["2048x384x6144", "4096x768x24576"])]
    shapes: Vec<Shape>,
    /// Number of turns that each contestant takes.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Measure dense torch and SAELens too, in a Python environment that this makes under target/.
    #[arg(long)]
    peers: bool,
    /// Measure the peers with this Python, which has what benches/peers/requirements.txt lists.
    #[arg(long, value_name = "PYTHON")]
    peers_python: Option<PathBuf>,
    /// Measure the data loader instead of the training step.
    #[arg(long)]
    loader: bool,
    /// Rows of width 768 in the file that the loader reads.
    #[arg(long, default_value_t = 819_200, requires = "loader")]
    rows: usize,
    /// Memory of the loader, as data.window_mb.
    #[arg(long, default_value_t = 256, requires = "loader")]
    window_mb: usize,
    /// Leave out the forward pass and the TopK step, to use less memory at once.
    #[arg(long)]
    step_only: bool,
    /// Write the measurements here as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    /// Writes what `--json` asks for.
    fn write(&self, measured: &impl serde::Serialize) -> Result<()> {
        let json = serde_json::to_string_pretty(measured)? + "\n";
        let mut path = self.json.iter();
        path.try_for_each(|path| std::fs::write(path, &json).at(path))
    }
}

const OURS: [(&str, &str); 4] = [
    ("sgemm", "one sgemm q C^T (gemm crate)"),
    ("forward", "our forward pass"),
    ("step", "our training step"),
    ("topk-step", "our TopK step, k = 32"),
];
const PEERS: [(&str, &str); 4] = [
    ("torch-sgemm", "one sgemm q C^T (torch)"),
    ("torch-released", "dense torch step, released model"),
    ("torch-topk", "dense torch step, TopK"),
    ("saelens-topk", "SAELens TopK step"),
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(arguments.rounds > 0, "--rounds 0: at least one turn each");
    let binary = build("sae-bench")?;
    let python = match (&arguments.peers_python, arguments.peers) {
        (Some(python), _) => Some(python.clone()),
        (None, true) => Some(environment()?),
        (None, false) => None,
    };
    if arguments.loader {
        return loader::run(arguments, &binary, python.as_deref());
    }
    let mut shapes = Vec::new();
    for shape in &arguments.shapes {
        let report = measure(*shape, arguments, &binary, python.as_deref())?;
        print!("{}", report.table());
        shapes.push(report);
        arguments.write(&report::json(arguments.rounds, &shapes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A Python environment with the peers, made once.
fn environment() -> Result<PathBuf> {
    let requirements = Path::new("benches/peers/requirements.txt");
    let dir = Path::new("target/bench-peers");
    let (python, stamp) = (dir.join("bin/python"), dir.join("installed.txt"));
    let wanted = std::fs::read_to_string(requirements).at(requirements);
    let wanted = wanted.context("run this in the root of the repository")?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    println!(
        "installing {} into {} (several GB, once)",
        requirements.display(),
        dir.display()
    );
    finish(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
    finish(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements),
    )?;
    std::fs::write(&stamp, wanted).at(&stamp)?;
    Ok(python)
}

fn measure(
    shape: Shape,
    arguments: &Arguments,
    binary: &Path,
    python: Option<&Path>,
) -> Result<ShapeReport> {
    let mut workers = Vec::new();
    let sizes = [shape.batch, shape.width, shape.latents].map(|size| size.to_string());
    for (work, name) in OURS {
        if arguments.step_only && !["sgemm", "step"].contains(&work) {
            continue;
        }
        let mut command = Command::new(binary);
        command.args(["step", work]).args(&sizes);
        workers.push((work, name, Worker::start(command)?));
    }
    for (peer, name) in PEERS {
        let Some(python) = python else { break };
        let mut command = Command::new(python);
        command.args(["benches/peers/worker.py", peer]).args(&sizes);
        workers.push((peer, name, Worker::start(command)?));
    }
    let measured = take_turns(workers, arguments.rounds)?;
    Ok(ShapeReport { shape, measured })
}

/// Gives each contestant (id, name, process) `rounds` turns.
fn take_turns(mut workers: Vec<(&str, &str, Worker)>, rounds: usize) -> Result<Vec<Measured>> {
    let mut measured: Vec<Measured> = workers
        .iter()
        .map(|(id, name, _)| Measured::new(id, name))
        .collect();
    for _ in 0..rounds {
        for ((id, _, worker), measured) in workers.iter_mut().zip(&mut measured) {
            let turn = worker.turn().with_context(|| format!("worker {id}"))?;
            measured.add(&turn);
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_read_as_they_are_written() {
        let shape = Shape {
            batch: 4096,
            width: 768,
            latents: 24576,
        };
        assert_eq!("4096x768x24576".parse(), Ok(shape));
        let huge = format!("{0}x{0}x2", 1u64 << 32);
        assert!(huge.parse::<Shape>().is_ok(), "no product overflows");
        for wrong in ["", "1x2", "1x2x3x4", "0x2x3", "axbxc"] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }
}
