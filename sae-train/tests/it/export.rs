//! `sae-train export`: checkpoints as models.

use std::process::{Command, Output};

use crate::{WEIGHTS, Workspace, checkpoints, ended, recorded, wait_for_steps};

impl Workspace {
    fn export(&self, run: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sae-train"))
            .arg("export")
            .arg(self.path("runs").join(run))
            .args(arguments)
            .current_dir(self.path("."))
            .output()
            .expect("sae-train runs")
    }

    fn exported(&self, run: &str, arguments: &[&str]) -> String {
        let output = self.export(run, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[test]
fn the_last_checkpoint_is_the_trained_model_to_the_byte() {
    let w = Workspace::new();
    for (name, set) in [
        ("default", vec![]),
        ("paper", vec!["--set", "model.preset=paper"]),
        (
            "batch_topk",
            vec![
                "--set",
                "model.architecture=batch_topk",
                "--set",
                "model.k=3",
            ],
        ),
        ("gated", vec!["--set", "model.architecture=gated"]),
        ("jumprelu", vec!["--set", "model.architecture=jumprelu"]),
    ] {
        let run = w.trained(name, &set);
        let text = w.exported(name, &["--checkpoint", "30", "--out", name]);
        assert!(text.contains("model of step 30 (held-out FVU 0."), "{text}");
        for file in ["sae.safetensors", "cfg.json", "BLAKE3SUMS"] {
            let theirs = std::fs::read(run.join("model").join(file)).unwrap();
            assert_eq!(
                std::fs::read(w.path(name).join(file)).unwrap(),
                theirs,
                "{name} {file}"
            );
        }
    }
}

#[test]
fn the_best_is_the_one_with_the_least_held_out_fvu() {
    let w = Workspace::new();
    let run = w.trained("small", &["--set", "training.keep_checkpoints=9"]);
    assert_eq!(checkpoints(&run), [10, 20, 30]);
    let fvu = recorded(&run, "held_out", "fvu");
    let best = (0..3).min_by(|a, b| fvu[*a].total_cmp(&fvu[*b])).unwrap();
    let text = w.exported("small", &["--out", "best"]);
    assert!(
        text.contains(&format!("model of step {}0", best + 1)),
        "{text}"
    );
    w.exported("small", &["--out", "first", "--checkpoint", "10"]);
    let first = std::fs::read(w.path("first/sae.safetensors")).unwrap();
    assert_ne!(first, std::fs::read(run.join(WEIGHTS)).unwrap());
}

#[test]
fn a_run_in_progress_is_not_disturbed() {
    let w = Workspace::new();
    let long = [
        "--set",
        "training.steps=400",
        "--set",
        "training.checkpoint_every=1",
    ];
    let whole = w.trained("whole", &long);
    let running = w.start(&[&long[..], &["--set", "run=cut"]].concat());
    let cut = w.path("runs/cut");
    wait_for_steps(&cut, 5);
    while checkpoints(&cut).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let mut exported = 0;
    while !cut.join("model").exists() && exported < 20 {
        let out = format!("model-{exported}");
        let output = w.export("cut", &["--checkpoint", "newest", "--out", &out]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}");
        exported += 1;
    }
    assert!(exported > 0);
    let (code, message) = ended(running);
    assert_eq!(code, Some(0), "{message}");
    crate::same_model(&whole, &cut);
}

#[test]
fn what_cannot_be_exported_is_named() {
    let w = Workspace::new();
    let refused = |run: &str, arguments: &[&str], expected: &str| {
        let output = w.export(run, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!w.path("m").exists());
    };
    refused("none", &["--out", "m"], "not a run directory");
    w.trained("small", &[]);
    refused(
        "small",
        &["--out", "m", "--checkpoint", "7"],
        "of steps 30, 20",
    );
    refused(
        "small",
        &["--out", "m", "--checkpoint", "last"],
        "best, newest or the number",
    );
    refused("small", &[], "--out");
    std::fs::create_dir(w.path("there")).unwrap();
    refused(
        "small",
        &["--out", "there"],
        "it exists; name a new directory",
    );
    std::fs::remove_dir_all(w.path("runs/small/checkpoint")).unwrap();
    refused("small", &["--out", "m"], "there are no checkpoints");
}
