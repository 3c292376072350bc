//! Tests `sae-train` from the outside: the real binary on small synthetic data.
#![allow(clippy::unwrap_used)] // a test may

mod collapse;
#[cfg(feature = "mpi")]
mod distributed;
mod errors;
mod export;
mod faults;
#[cfg(feature = "mpi")]
mod latents;
mod outliers;
mod raise;
mod records;
mod resume;
mod running;
mod shards;
mod start;
mod sweep;
mod tensorboard;
mod threads;
mod trainer;
mod training;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sae_data::synthetic::Synthetic;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// The trained parameters, within a run directory.
const WEIGHTS: &str = "model/sae.safetensors";
/// Width of the synthetic activations.
const WIDTH: usize = 24;

/// Lets W_Q and W_K learn as fast as the dictionary. Attention then diverges at learning rates that the default preset
/// survives on this data.
const TURNING_AT_FULL_RATE: [&str; 6] = [
    "--set",
    "training.projection_lr=1",
    "--set",
    "model.query_projection=true",
    "--set",
    "model.key_projection=true",
];

/// The source of the data: each row is a sum of three of these concepts.
const SOURCE: Synthetic = Synthetic {
    width: WIDTH,
    concepts: 40,
    active: 3,
    noise: 0.01,
    seed: 3,
};

/// A directory with data, a config and room for runs.
struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    fn new() -> Self {
        let workspace = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        let rows = SOURCE.rows(1200);
        let (train, held_out) = rows.split_at(1000 * WIDTH);
        workspace.write_rows("train.safetensors", train, WIDTH);
        workspace.write_rows("heldout.safetensors", held_out, WIDTH);
        let config = format!(
            "runs_dir = {runs:?}\n[data]\ntrain = {train:?}\nheld_out = {held_out:?}\n[model]\nn_latents = 64\n\
             [training]\nsteps = 30\nbatch_size = 50\nlr = 3e-3\nwarmup_steps = 5\nvalidate_every = 10\nlog_every = 10\n",
            runs = workspace.path("runs"),
            train = workspace.path("train.safetensors"),
            held_out = workspace.path("heldout.safetensors"),
        );
        std::fs::write(workspace.path("small.toml"), config).expect("written");
        workspace
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_rows(&self, name: &str, rows: &[f32], width: usize) {
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view =
            TensorView::new(Dtype::F32, vec![rows.len() / width, width], &bytes).expect("a view");
        let file = safetensors::serialize([("activations", view)], None).expect("serialized");
        std::fs::write(self.path(name), file).expect("written");
    }

    /// Runs `sae-train small.toml` with more arguments.
    fn train(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sae-train"))
            .arg(self.path("small.toml"))
            .args(arguments)
            .env_remove("BURN_DEVICE") // as without cargo
            .output()
            .expect("sae-train runs")
    }

    /// Starts `sae-train small.toml` with more arguments, without waiting.
    fn start(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_sae-train"))
            .arg(self.path("small.toml"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sae-train starts")
    }

    /// Trains the run `run` and expects success; returns the run directory.
    fn trained(&self, run: &str, arguments: &[&str]) -> PathBuf {
        let run_argument = format!("run={run}");
        let output = self.train(&[&["--set", &run_argument], arguments].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.path("runs").join(run)
    }
}

/// Fails unless two runs ended with the same bytes.
fn same_model(a: &Path, b: &Path) {
    let [a, b] = [a, b].map(|run| std::fs::read(run.join(WEIGHTS)).expect("a trained model"));
    assert!(a == b, "other bytes");
}

/// Removes the checkpoint of `step`, as if the run had died before it.
fn forget(run: &Path, step: usize) {
    std::fs::remove_dir_all(run.join(format!("checkpoint/step-{step:08}"))).expect("a checkpoint");
}

/// Waits until `run` has recorded `steps` steps.
fn wait_for_steps(run: &Path, steps: usize) {
    let started = Instant::now();
    let count = || {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        text.matches("\"split\":\"train\"").count()
    };
    while count() < steps {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "step {steps} does not come"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Steps of the existing checkpoints.
fn checkpoints(run: &Path) -> Vec<usize> {
    let entries = std::fs::read_dir(run.join("checkpoint"))
        .into_iter()
        .flatten()
        .flatten();
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| step(entry.file_name().into_string().ok()?))
        .collect();
    steps.sort_unstable();
    steps
}

/// Returns true if there is a Vulkan device; prints a note if not.
#[cfg(feature = "wgpu")]
fn has_wgpu() -> bool {
    let opened = sae_model::device::DeviceName::Wgpu(None).open();
    if let Err(error) = &opened {
        use std::io::Write;
        // not eprintln!: the test harness would swallow it
        let _ = writeln!(std::io::stderr(), "SKIPPED a wgpu training test: {error}");
    }
    opened.is_ok()
}

/// Waits for a started process; returns its exit code and standard error.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("it ends");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Writes rows as `.npy` files into a new directory, at most 5000 rows per file.
fn as_npy(dir: &Path, rows: &[f32]) {
    std::fs::create_dir(dir).unwrap();
    for (i, part) in rows.chunks(5000 * WIDTH).enumerate() {
        let shape = format!("({}, {WIDTH})", part.len() / WIDTH);
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        std::fs::write(dir.join(format!("part-{i}.npy")), bytes).unwrap();
    }
}

/// The `key` of every record of `metrics.jsonl` with this split.
fn recorded(run: &Path, split: &str, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a JSON line"))
        .filter(|record| record["split"] == split)
        .map(|record| {
            record[key]
                .as_f64()
                .unwrap_or_else(|| panic!("{key} in {record}"))
        })
        .collect()
}
