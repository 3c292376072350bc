//! The same bytes for any number of threads: every architecture, at shapes where products are small, or not a
//! multiple of anything.

use std::path::{Path, PathBuf};
use std::process::Command;

use sae_data::synthetic::Synthetic;
use sae_model::{AnyArchitecture, Architecture};

use crate::{WEIGHTS, Workspace};

/// A run: latents, width, batch size, true with projections, steps.
struct Shape(usize, usize, usize, bool, usize);

const SHAPES: [Shape; 8] = [
    Shape(1, 19, 7, false, 6),
    Shape(3, 1, 64, true, 6),
    Shape(48, 640, 64, true, 6),
    Shape(48, 640, 512, false, 6),
    Shape(200, 96, 512, true, 60),
    Shape(513, 384, 7, false, 6),
    Shape(1301, 19, 1030, true, 6),
    Shape(200, 96, 1, false, 6),
];

/// The settings of an architecture: at most five active latents, and as many dead ones in the auxiliary loss.
fn settings_of(architecture: &AnyArchitecture, latents: usize) -> Vec<String> {
    let k = latents.min(5);
    let mut settings = vec![format!("model.architecture={}", architecture.name())];
    if architecture.switches().contains_key("k") {
        settings.push(format!("model.k={k}"));
    }
    if architecture
        .coefficients()
        .iter()
        .any(|own| own.name == "aux_k")
    {
        settings.push(format!("training.aux_k={k}"));
    }
    settings
}

impl Workspace {
    /// Writes data of this width, with few held-out rows.
    fn with_width(&self, width: usize) {
        let source = Synthetic {
            width,
            concepts: 40,
            active: 3,
            noise: 0.01,
            seed: 5,
        };
        let rows = source.rows(1100);
        let (train, held_out) = rows.split_at(1060 * width);
        self.write_rows("train.safetensors", train, width);
        self.write_rows("heldout.safetensors", held_out, width);
    }

    fn trained_on(&self, threads: usize, run: &str, settings: &[String]) -> PathBuf {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-train"));
        command
            .arg(self.path("small.toml"))
            .env("RAYON_NUM_THREADS", threads.to_string())
            .args(["--set", &format!("run={run}")]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let output = command.output().expect("sae-train runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{run}: {error}");
        self.path("runs").join(run)
    }
}

/// The records of `metrics.jsonl` without their times.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics.jsonl");
    let record = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        record.as_object_mut().expect("an object").remove("seconds");
        record
    };
    text.lines().map(record).collect()
}

#[test]
fn threads_change_no_byte() {
    let mut differ = Vec::new();
    for Shape(latents, width, batch, projections, steps) in SHAPES {
        let w = Workspace::new();
        w.with_width(width);
        for architecture in AnyArchitecture::all() {
            let mut settings = settings_of(&architecture, latents);
            let architecture = architecture.name();
            settings.extend([
                format!("model.n_latents={latents}"),
                format!("training.batch_size={batch}"),
                format!("model.query_projection={projections}"),
                format!("model.key_projection={projections}"),
                format!("model.value_projection={projections}"),
                format!("training.steps={steps}"),
                "training.dead_window=2".into(),
                "training.warmup_steps=2".into(),
                "training.validate_every=30".into(),
            ]);
            let run = |threads| {
                let name = format!("{architecture}-{threads}");
                let run = w.trained_on(threads, &name, &settings);
                let model = std::fs::read(run.join(WEIGHTS)).expect("a trained model");
                (model, metrics(&run))
            };
            let one = run(1);
            for threads in [2, 3, 8] {
                if run(threads) != one {
                    differ.push(format!(
                        "{architecture} {latents}x{width}, batch {batch}, {threads} threads"
                    ));
                }
            }
        }
    }
    assert!(
        differ.is_empty(),
        "{} runs differ: {differ:#?}",
        differ.len()
    );
}
