//! Wrong input: one clear message that names the key, the value and the remedy; exit code 2; nothing written.

#[cfg(feature = "cuda")]
use std::process::Command;

use crate::{WIDTH, Workspace};

/// Runs with `arguments`; checks that this is refused, in one message that contains each of `expected`.
fn refused(workspace: &Workspace, arguments: &[&str], expected: &[&str]) {
    let output = workspace.train(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(message.trim().lines().count(), 1, "one message: {message}");
    for part in expected {
        assert!(
            message.contains(part),
            "{arguments:?}: {message:?} does not say {part:?}"
        );
    }
    assert!(
        !workspace.path("runs").exists(),
        "{arguments:?} left a run directory behind"
    );
}

#[test]
fn wrong_values() {
    let w = Workspace::new();
    for (set, expected) in [
        (
            "training.learning_rate=1",
            &["training.learning_rate = 1", "no such key", "`lr`"][..],
        ),
        (
            "training.lr=fast",
            &["training.lr = \"fast\"", "expected f64"],
        ),
        (
            "training.lr=-0.5",
            &["training.lr = -0.5", "positive number"],
        ),
        (
            "model.n_latents=0",
            &["model.n_latents = 0", "at least one latent"],
        ),
        (
            "model.architecture=rulu",
            &["model.architecture = \"rulu\"", "`batch_topk`"],
        ),
        (
            "model={architecture = \"topk\", n_latents = 64, k = 65}",
            &["model.k = 65", "between 1 and n_latents"],
        ),
        (
            "model.norm_exponent=9",
            &["model.norm_exponent = 9", "between -4 and 4"],
        ),
        (
            "model.n_latents=10000000000000",
            &[
                "model.n_latents = 10000000000000",
                "training needs at least 3.8 PB",
                "is available",
                "fewer latents",
            ],
        ),
        (
            "model.n_latents=5000000000000000000",
            &[
                "model.n_latents = 5000000000000000000",
                "training needs at least",
                "Adam's moments",
            ],
        ),
        (
            "training.steps=9000000000000000000",
            &[
                "training.steps = 9000000000000000000",
                "more rows than can be counted",
            ],
        ),
        (
            "model.k=7",
            &[
                "model.k = 7",
                "model.architecture = \"attention\" has no use",
                "topk, batch_topk",
            ],
        ),
        (
            "training.aux_coefficient=0",
            &["training.aux_coefficient = 0", "topk, batch_topk, gated"],
        ),
        (
            "run=\"a\\nb\"",
            &["run = \"a\\nb\"", "without control characters"],
        ),
        (
            "training.batch_size=1001",
            &["training.batch_size = 1001", "at most its 1000 rows"],
        ),
        (
            "data.train=nowhere.safetensors",
            &["data.train = \"nowhere.safetensors\"", "no such file"],
        ),
        (
            "device=tpu",
            &[
                "\"tpu\"",
                "use cpu, ndarray, wgpu or wgpu:N, cuda or cuda:N",
            ],
        ),
        ("data.window_mb=0", &["data.window_mb = 0", "at least 1"]),
        (
            "data.held_out={ fraction = 1.5 }",
            &["data.held_out = { fraction = 1.5 }", "between 0 and 1"],
        ),
        (
            "data.held_out={ rows = [900, 1100] }",
            &["data.held_out = { rows = [900, 1100] }", "rows 0 to 1000"],
        ),
        (
            "data.held_out=7",
            &["data.held_out = 7", "{ fraction = 0.1, seed = 0 }"],
        ),
        (
            "data.drop_first_token=true",
            &["data.drop_first_token = true", "have no positions"],
        ),
        (
            "data.tensor=x",
            &[
                "data.train",
                "no tensor \"x\"",
                "\"activations\" F32 [1000, 24]",
            ],
        ),
    ] {
        refused(&w, &["--set", set], expected);
    }
    let set = [
        "--set",
        "model.architecture=relu",
        "--set",
        "training.sparsity_coefficient=-1",
    ];
    let expected = ["training.sparsity_coefficient = -1", "zero or a positive"];
    refused(&w, &set, &expected);
}

#[test]
fn widths_must_agree() {
    let w = Workspace::new();
    w.write_rows("heldout.safetensors", &[0.5; 7 * 5], 7);
    refused(
        &w,
        &[],
        &["data.held_out", "width 7", &format!("width {WIDTH}")],
    );
}

#[test]
fn the_two_sides_may_not_share_files() {
    let w = Workspace::new();
    // the same file under another name, in a directory
    std::fs::create_dir(w.path("all")).unwrap();
    std::os::unix::fs::symlink(w.path("train.safetensors"), w.path("all/a.safetensors")).unwrap();
    let set = format!("data.held_out={:?}", w.path("all").display().to_string());
    refused(
        &w,
        &["--set", &set],
        &["data.held_out", "shares files with data.train"],
    );
}

#[test]
fn data_must_be_finite_and_vary() {
    let w = Workspace::new();
    let mut rows: Vec<f32> = (0..60 * WIDTH).map(|i| i as f32).collect();
    rows[41 * WIDTH + 3] = f32::INFINITY;
    w.write_rows("train.safetensors", &rows, WIDTH);
    refused(&w, &[], &["train.safetensors", "row 41, column 3 is inf"]);
    w.write_rows("train.safetensors", &vec![1.0; 60 * WIDTH], WIDTH);
    refused(&w, &[], &["all rows are the same"]);
}

#[test]
fn what_is_held_out_has_no_key_that_does_nothing() {
    let w = Workspace::new();
    for wrong in [
        "{ fraction = 0.2, sed = 3 }",
        "{ fraction = 0.2, rows = [0, 9] }",
    ] {
        let set = format!("data.held_out={wrong}");
        let expected = ["data.held_out", "{ fraction = 0.1, seed = 0 }"];
        refused(&w, &["--set", &set], &expected);
    }
}

#[test]
fn data_must_have_a_scale_that_a_model_can_have() {
    let w = Workspace::new();
    let expected = ["model.input_scale = ", "positive", "finite in float32"];
    // all rows are the same but for two of huge norm, which the scale leaves out
    let mut rows = vec![1.0; 60 * WIDTH];
    rows[..2 * WIDTH].fill(1000.0);
    rows[..WIDTH].fill(3000.0);
    w.write_rows("train.safetensors", &rows, WIDTH);
    refused(&w, &["--set", "data.max_norm=none"], &expected);
    // float32 holds each number, but not their standard deviation
    let signs = |i: usize| {
        if (i / WIDTH).is_multiple_of(2) {
            3e38
        } else {
            -3e38
        }
    };
    let rows: Vec<f32> = (0..60 * WIDTH).map(signs).collect();
    w.write_rows("train.safetensors", &rows, WIDTH);
    refused(&w, &[], &expected);
}

#[test]
fn a_damaged_file_is_named() {
    let w = Workspace::new();
    let path = w.path("train.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(
        &w,
        &[],
        &[
            "data.train",
            "damaged safetensors file, at byte",
            "copy is complete",
        ],
    );
}

#[test]
fn a_missing_config_is_named() {
    let w = Workspace::new();
    std::fs::remove_file(w.path("small.toml")).unwrap();
    refused(&w, &[], &["small.toml", "No such file"]);
}

#[test]
fn a_device_that_is_not_compiled_in_names_its_feature() {
    let w = Workspace::new();
    for (device, compiled) in [
        ("wgpu", cfg!(feature = "wgpu")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("cuda:1", cfg!(feature = "cuda")),
    ] {
        if !compiled {
            let feature = device.trim_end_matches(":1");
            let (name, flag) = (format!("{device:?}"), format!("--features {feature}"));
            refused(&w, &["--device", device], &[&name, "not compiled", &flag]);
        }
    }
}

#[test]
fn a_device_that_is_not_offered_is_answered_with_one_that_is() {
    let w = Workspace::new();
    let rocm = ["\"rocm\" is not offered", "LLVM", "device = \"wgpu\""];
    refused(&w, &["--device", "rocm"], &rocm);
}

/// All that CUDA needs is looked for before Burn is asked, which would panic on another thread. One machine has a driver, NVRTC
/// or headers, another has none: CUDA_PATH names an empty folder, so that headers are missing everywhere.
#[cfg(feature = "cuda")]
#[test]
fn what_cuda_lacks_is_said_in_one_message() {
    let w = Workspace::new();
    let empty = w.path("no toolkit");
    std::fs::create_dir(&empty).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .args(["--device", "cuda"])
        .env("CUDA_PATH", &empty)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    let folder = format!("{} has no include/cuda_fp16.h", empty.display());
    for part in ["device = \"cuda\" needs", &folder, "pip install"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let (panics, needs) = ("panicked", "needs what was not found");
    assert!(!message.contains(panics), "{message}");
    assert_eq!(message.matches(needs).count(), 1, "{message}");
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let w = Workspace::new();
    let run = w.trained("once", &[]);
    let model = run.join("model/sae.safetensors");
    let before = std::fs::read(&model).unwrap();
    let output = w.train(&["--set", "run=once"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        message.contains("exists") && message.contains("--resume"),
        "{message}"
    );
    let output = w.train(&["--set", "run=once", "--resume", "--set", "training.lr=1"]);
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(
        message.contains("training.lr: 0.003 -> 1") && message.contains("keys may change: run,"),
        "{message}"
    );
    assert_eq!(std::fs::read(&model).unwrap(), before);
}
