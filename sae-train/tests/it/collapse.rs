//! Runs that collapse end early, and at the same step however often they were interrupted.

use std::path::Path;

use crate::{TURNING_AT_FULL_RATE, Workspace, checkpoints, forget, recorded};

/// ReLU under a penalty that switches all latents off.
const DYING: [&str; 6] = [
    "--set",
    "model.architecture=relu",
    "--set",
    "training.sparsity_coefficient=100",
    "--set",
    "training.steps=2000",
];

fn ends(w: &Workspace, arguments: &[&str]) -> (Option<i32>, String) {
    let output = w.train(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!message.contains("panicked"), "{message}");
    (output.status.code(), message)
}

#[test]
fn a_collapsed_run_ends_long_before_its_last_step() {
    let w = Workspace::new();
    let (code, message) = ends(&w, &DYING);
    assert_eq!(code, Some(11), "{message}");
    // a fifth of the run is not judged, then the collapse must last a hundred steps
    for part in [
        "step 500 of 2000: the run has collapsed, for 100 steps now: L0 is ",
        "64 of 64 latents are dead",
        "checkpoints up to step 490 are kept",
        "lower training.lr (it is 0.003)",
        "--resume --set training.on_collapse=go_on",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    let run = w.path("runs/small");
    assert!(!run.join("model").exists());
    assert_eq!(checkpoints(&run).last(), Some(&490));
    assert_eq!(recorded(&run, "train", "step").len(), 500);
    // the count is in the checkpoint, so a resumed run ends at the same step
    let resume = [&DYING[..], &["--resume"]].concat();
    for lost in [None, Some(490)] {
        lost.into_iter().for_each(|step| forget(&run, step));
        let (code, message) = ends(&w, &resume);
        assert_eq!(code, Some(11), "{message}");
        assert!(message.contains("step 500 of 2000"), "{message}");
    }
    let go_on = [&resume[..], &["--set", "training.on_collapse=go_on"]].concat();
    let (code, message) = ends(&w, &go_on);
    assert_eq!(code, Some(0), "{message}");
    assert!(
        message.contains("it goes on (training.on_collapse)") || log(&run).contains("it goes on")
    );
    assert!(run.join("model").exists());
}

fn log(run: &Path) -> String {
    std::fs::read_to_string(run.join("train.log")).unwrap()
}

#[test]
fn a_run_that_diverges_ends_before_its_numbers_do() {
    let w = Workspace::new();
    let fast = ["--set", "training.lr=1", "--set", "training.steps=600"];
    let arguments = [&fast[..], &TURNING_AT_FULL_RATE].concat();
    let (code, message) = ends(&w, &arguments);
    assert_eq!(code, Some(11), "{message}");
    assert!(
        message.contains("the run has diverged, for 25 steps now: FVU is "),
        "{message}"
    );
    let (code, message) = ends(&w, &["--set", "run=well", "--set", "training.steps=600"]);
    assert_eq!(code, Some(0), "{message}");
}

#[test]
fn few_latents_that_were_asked_for_are_no_collapse() {
    let w = Workspace::new();
    for (run, set) in [
        ("k", ["model.architecture=topk", "model.k=1"]),
        ("m", ["model.architecture=attention", "model.n_latents=4"]),
        (
            "aim",
            ["model.architecture=jumprelu", "training.target_l0=1"],
        ),
        (
            "many",
            ["model.architecture=batch_topk", "model.n_latents=4096"],
        ),
    ] {
        let arguments = [
            "--set",
            set[0],
            "--set",
            set[1],
            "--set",
            "training.steps=600",
        ];
        w.trained(run, &arguments);
    }
}
