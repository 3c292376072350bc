//! `cargo xtask bench --loader`: shuffled batches of f16 rows as float32, beside the plain conversion of the
//! same bytes in memory, and beside torch's DataLoader.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;

use super::report::Measured;
use super::worker::Worker;
use super::{Arguments, take_turns};
use crate::files::{At, npy_head};

const WIDTH: usize = 768;
const BATCH: usize = 4096;
/// Batches that a peer delivers in a turn; ours delivers an epoch.
const PEER_BATCHES: &str = "40";

const OURS: [(&str, &str); 3] = [
    ("copy", "plain parallel copy-and-convert in memory (`half`)"),
    ("copy-own", "the same with the loader's own kernel"),
    ("stream", "our loader, shuffled batches from files"),
];
const PEERS: [(&str, &str, &str); 4] = [
    ("copy", "0", "copy-and-convert in memory by torch"),
    ("items", "0", "torch DataLoader over np.memmap, row by row"),
    ("items", "2", "the same, two worker processes"),
    ("batched", "0", "the same, whole batches indexed at once"),
];

pub(super) fn run(arguments: &Arguments, binary: &Path, python: Option<&Path>) -> Result<ExitCode> {
    let data = data(arguments.rows)?;
    let mut workers = Vec::new();
    for (work, name) in OURS {
        let mut command = Command::new(binary);
        command.args(["loader", work]).arg(&data);
        command.args([BATCH, arguments.window_mb].map(|number| number.to_string()));
        workers.push((Measured::new(name), Worker::start(command)?));
    }
    for (variant, processes, name) in PEERS {
        let Some(python) = python else { break };
        let mut command = Command::new(python);
        command.arg("benches/peers/loader.py").arg(&data);
        command.args([&BATCH.to_string(), PEER_BATCHES, variant, processes]);
        workers.push((Measured::new(name), Worker::start(command)?));
    }
    let measured = take_turns(workers, arguments.rounds)?;
    print!("{}", table(arguments, &measured));
    arguments.write(&measured)?;
    Ok(ExitCode::SUCCESS)
}

/// Markdown: medians with their range, in rows and bytes of the file per second.
fn table(arguments: &Arguments, measured: &[Measured]) -> String {
    let gigabytes = |seconds: f64| (2 * WIDTH) as f64 / seconds / 1e9;
    let ours = measured[OURS.len() - 1].median();
    let mut out = format!(
        "\n{} rows of width {WIDTH} in f16 ({:.2} GB) from the page cache, batches of {BATCH}, window {} MB\n\n\
         | | GB/s of f16, median (range) | million rows/s | our loader is | peak memory |\n|---|---:|---:|---:|---:|\n",
        arguments.rows,
        (arguments.rows * WIDTH * 2) as f64 / 1e9,
        arguments.window_mb
    );
    for m in measured {
        let (fastest, slowest) = m.extremes();
        out.push_str(&format!(
            "| {} | {:.2} ({:.2} to {:.2}) | {:.2} | {:.2}x | {} |\n",
            m.name,
            gigabytes(m.median()),
            gigabytes(slowest),
            gigabytes(fastest),
            1e-6 / m.median(),
            m.median() / ours,
            m.peak(),
        ));
    }
    out
}

/// A `.npy` file of `rows` rows under target/, made once; reading it once puts it into the page cache.
fn data(rows: usize) -> Result<PathBuf> {
    let path = PathBuf::from(format!("target/bench-loader-{rows}x{WIDTH}.npy"));
    let head = npy_head("<f2", rows, WIDTH);
    let length = (head.len() + rows * WIDTH * 2) as u64;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == length) {
        std::io::copy(&mut File::open(&path)?, &mut std::io::sink())?;
        return Ok(path);
    }
    let mut file = BufWriter::new(File::create(&path).at(&path)?);
    file.write_all(&head).at(&path)?;
    let mut state = 1u64;
    for _ in 0..rows * WIDTH / 4 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // four values of either sign between 0.5 and 1
        let values = (state ^ state >> 29) & 0x83ff_83ff_83ff_83ff | 0x3800_3800_3800_3800;
        file.write_all(&values.to_le_bytes()).at(&path)?;
    }
    file.into_inner().at(&path)?.sync_all()?;
    Ok(path)
}
