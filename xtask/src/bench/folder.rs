//! `cargo xtask bench --folder`: the bench in one folder, for a machine that has a driver and Python and nothing else.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use super::Arguments;
use crate::files::At;
use crate::programs::{build_with, finish};

/// What compiles our kernels on the machine, as wheels.
const WHEELS: &str = include_str!("../../../sae-model/tests/cuda/requirements.txt");

/// Writes the two binaries, the peers, the list of wheels, and a script that measures.
pub(super) fn write(dir: &Path, arguments: &Arguments, feature: Option<&str>) -> Result<ExitCode> {
    fs::create_dir_all(dir).at(dir)?;
    let xtask = std::env::current_exe().context("finding this program")?;
    let bench = build_with("sae-bench", feature)?;
    for (from, name) in [(&xtask, "xtask"), (&bench, "sae-bench")] {
        let to = dir.join(name);
        fs::copy(from, &to).at(&to)?;
        finish(Command::new("strip").arg(&to))?;
    }
    let worker = arguments.peers_dir.join("worker.py");
    fs::copy(&worker, dir.join("worker.py")).at(&worker)?;
    let peers = arguments.peers_dir.join("requirements.txt");
    fs::copy(&peers, dir.join("peers.txt")).at(&peers)?;
    let wheels = dir.join("cuda.txt");
    fs::write(&wheels, WHEELS).at(&wheels)?;
    let script = dir.join("run.sh");
    fs::write(&script, self::script(arguments)).at(&script)?;
    finish(Command::new("chmod").arg("+x").arg(&script))?;
    println!(
        "{}: copy it to the machine and run ./run.sh there",
        dir.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The script of the folder.
fn script(arguments: &Arguments) -> String {
    let (device, rounds) = (&arguments.device, arguments.rounds);
    SCRIPT
        .replace("DEVICE", device)
        .replace("ROUNDS", &rounds.to_string())
}

const SCRIPT: &str = r#"#!/usr/bin/env bash
# Measures ours, torch and SAELens on DEVICE. Arguments go to the bench, for example --shapes 4096x768x24576.
#   CUDA_PATH      folder of a CUDA toolkit; without it cuda.txt is installed from PyPI, or from wheels/ where that is there
#   PEERS_PYTHON   a Python with what peers.txt lists; without it one is made in the same way; "none" leaves the peers out
set -euo pipefail
cd "$(dirname "$0")"
from=(); [ ! -d wheels ] || from=(--no-index --find-links wheels)
environment() { # NAME LIST
    [ -x "$1/bin/python" ] || python3 -m venv "$1"
    "$1/bin/python" -m pip install --quiet "${from[@]}" --requirement "$2"
}
if [ -z "${CUDA_PATH:-}" ]; then
    environment cuda cuda.txt
    CUDA_PATH=$(echo "$PWD"/cuda/lib/python3*/site-packages/nvidia/cu13)
fi
export CUDA_PATH
if [ -z "${PEERS_PYTHON:-}" ]; then
    environment peers peers.txt
    PEERS_PYTHON=peers/bin/python
fi
peers=(--peers-dir . --peers-python "$PEERS_PYTHON"); [ "$PEERS_PYTHON" != none ] || peers=()
nvidia-smi || true
./xtask bench --device DEVICE --rounds ROUNDS --binary ./sae-bench "${peers[@]}" --json bench.json "$@"
"#;
