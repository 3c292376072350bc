//! `cargo xtask bench`: measures a training step, in multiples of the one dense product that it cannot avoid, and
//! beside the steps of other libraries.
//!
//! Each contestant is a process of its own (`contestants.rs`, `worker.rs`; ours are in the crate `sae-bench`) that does its work
//! once per line on stdin. So its peak memory is its own. On the CPU the contestants take turns, so that a machine that is slower
//! for a while is slower for all. On a GPU, whose memory they would share, they come one after the other.

mod contestants;
mod folder;
mod launches;
mod loader;
mod report;
mod worker;

pub(crate) use report::processor;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

use crate::files::At;
use crate::programs::{build_with, finish};
use contestants::{CPU, Contestant, Programs, contestants};
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
    /// Shapes to measure, BATCHxWIDTHxLATENTS [default: two on the CPU, three larger ones elsewhere]
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<Shape>,
    /// Device to measure, with its torch name in torch's workers: cpu, wgpu, cuda:0.
    #[arg(long, default_value = CPU)]
    device: String,
    /// Numbers that products are made of, on a device other than the CPU.
    #[arg(long, value_delimiter = ',', default_values = ["f32", "tf32", "bf16"], value_parser = ["f32", "tf32", "bf16"])]
    precision: Vec<String>,
    /// How often the work is done in a turn, on a device other than the CPU.
    #[arg(long, default_value_t = 20)]
    times: u32,
    /// Use this binary of sae-bench instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Write a folder with all that this bench needs on a machine without Rust, and measure nothing.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Where worker.py and requirements.txt of the peers are.
    #[arg(long, value_name = "DIR", default_value = "benches/peers")]
    peers_dir: PathBuf,
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
    fn shapes(&self) -> Result<Vec<Shape>> {
        if !self.shapes.is_empty() {
            return Ok(self.shapes.clone());
        }
        let usual: &[&str] = match self.device == CPU {
            true => &["2048x384x6144", "4096x768x24576"],
            false => &["4096x768x24576", "4096x2304x65536", "16384x768x131072"],
        };
        let shapes = usual.iter().map(|shape| shape.parse().map_err(Error::msg));
        shapes.collect()
    }

    /// Writes what `--json` asks for.
    fn write(&self, measured: &impl serde::Serialize) -> Result<()> {
        let json = serde_json::to_string_pretty(measured)? + "\n";
        let mut path = self.json.iter();
        path.try_for_each(|path| std::fs::write(path, &json).at(path))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(arguments.rounds > 0, "--rounds 0: at least one turn each");
    let kind = arguments.device.split(':').next().unwrap_or(CPU);
    let feature = Some(kind).filter(|kind| *kind != CPU);
    if let Some(dir) = &arguments.folder {
        return folder::write(dir, arguments, feature);
    }
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => build_with("sae-bench", feature)?,
    };
    let python = match (&arguments.peers_python, arguments.peers) {
        (Some(python), _) => Some(python.clone()),
        (None, true) => Some(environment(&arguments.peers_dir)?),
        (None, false) => None,
    };
    if arguments.loader {
        return loader::run(arguments, &binary, python.as_deref());
    }
    let programs = Programs {
        ours: &binary,
        python: python.as_deref(),
    };
    let mut shapes = Vec::new();
    for shape in arguments.shapes()? {
        let measured = measure(contestants(shape, arguments, &programs), arguments)?;
        let mut report = ShapeReport {
            shape,
            measured,
            launches: Vec::new(),
        };
        print!("{}", report.table());
        if arguments.device != CPU {
            let all = contestants(shape, arguments, &programs);
            report.launches = launches::of_steps(all, arguments.times)?;
            report
                .launches
                .iter()
                .for_each(|of| print!("{}", of.table()));
        }
        shapes.push(report);
        arguments.write(&report::json(arguments, &shapes))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A Python environment with the peers, made once.
fn environment(peers_dir: &Path) -> Result<PathBuf> {
    let requirements = &peers_dir.join("requirements.txt");
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

/// Measures contestants: on the CPU in turns, elsewhere one after the other. There one that fails is said and left out: a peer may
/// not fit into the memory.
fn measure(contestants: Vec<Contestant>, arguments: &Arguments) -> Result<Vec<Measured>> {
    if arguments.device == CPU {
        let start = |of: Contestant| Ok((Measured::of(&of), Worker::start(of.command)?));
        let workers = contestants.into_iter().map(start).collect::<Result<_>>()?;
        return take_turns(workers, arguments.rounds);
    }
    let mut all = Vec::new();
    for contestant in contestants {
        let measured = Measured::of(&contestant);
        let name = contestant.name;
        let taken = Worker::start(contestant.command)
            .and_then(|worker| take_turns(vec![(measured, worker)], arguments.rounds));
        match taken {
            Ok(measured) => all.extend(measured),
            Err(error) => println!("not measured: {name}: {error:#}"),
        }
    }
    Ok(all)
}

/// Gives each contestant `rounds` turns.
fn take_turns(mut workers: Vec<(Measured, Worker)>, rounds: usize) -> Result<Vec<Measured>> {
    for _ in 0..rounds {
        for (measured, worker) in &mut workers {
            let turn = worker.turn();
            measured.add(&turn.with_context(|| format!("worker {}", measured.name))?);
        }
    }
    Ok(workers.into_iter().map(|(measured, _)| measured).collect())
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
