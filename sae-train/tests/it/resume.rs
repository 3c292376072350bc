//! Exact resume: whatever interrupts a run, `--resume` finishes it as if nothing had happened.

use std::path::Path;
use std::process::Command;

use crate::{
    TURNING_AT_FULL_RATE, Workspace, checkpoints, ended, forget, recorded, same_model,
    wait_for_steps,
};

/// Long enough to be interrupted in the middle, with checkpoints at odd steps.
const LONG: [&str; 4] = [
    "--set",
    "training.steps=400",
    "--set",
    "training.checkpoint_every=7",
];

/// Fails unless two runs have the same model, records and config.
fn assert_same(whole: &Path, resumed: &Path) {
    same_model(whole, resumed);
    for (split, keys) in [
        ("train", &["step", "loss", "l0", "lr"][..]),
        ("held_out", &["step", "fvu"]),
    ] {
        for key in keys {
            assert_eq!(
                recorded(whole, split, key),
                recorded(resumed, split, key),
                "{key}"
            );
        }
    }
    let seconds = recorded(resumed, "train", "seconds");
    assert!(seconds.is_sorted(), "time goes on where it was");
}

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

/// Kills a run several times, lets it finish, and compares it with an uninterrupted one.
fn killed_on(device: &str) {
    let w = Workspace::new();
    for preset in ["default", "released"] {
        let preset = format!("model.preset={preset}");
        let more = [
            "--set",
            "training.steps=150",
            "--device",
            device,
            "--set",
            &preset,
        ];
        let long = with(&LONG, &more);
        let whole = w.trained("whole", &long);
        for steps in [1, 20, 33, 90] {
            let mut running = w.start(&with(&long, &["--set", "run=cut", "--resume"]));
            wait_for_steps(&w.path("runs/cut"), steps);
            running.kill().unwrap(); // SIGKILL
            running.wait().unwrap();
        }
        let cut = w.trained("cut", &with(&long, &["--resume"]));
        assert_same(&whole, &cut);
        std::fs::remove_dir_all(w.path("runs")).unwrap();
    }
}

#[test]
fn a_killed_run_ends_as_the_uninterrupted_one() {
    killed_on("cpu");
}

#[test]
#[cfg(feature = "ndarray")]
fn a_killed_run_ends_as_the_uninterrupted_one_on_ndarray() {
    killed_on("ndarray");
}

#[test]
#[cfg(feature = "wgpu")]
fn a_killed_run_ends_as_the_uninterrupted_one_on_wgpu() {
    if crate::has_wgpu() {
        killed_on("wgpu");
    }
}

#[test]
fn signals_leave_a_checkpoint_of_the_step_they_came_in() {
    let w = Workspace::new();
    let whole = w.trained("whole", &LONG);
    let cut = w.path("runs/cut");
    let rare = with(
        &LONG,
        &[
            "--set",
            "training.checkpoint_every=1000",
            "--set",
            "run=cut",
        ],
    );
    for (signal, code, steps) in [("INT", 130, 25), ("TERM", 143, 61)] {
        let running = w.start(&with(&rare, &["--resume"]));
        wait_for_steps(&cut, steps);
        let id = running.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", signal, &id])
            .status()
            .unwrap();
        assert!(sent.success());
        let (ended_with, message) = ended(running);
        assert_eq!(ended_with, Some(code), "{message}");
        assert!(message.contains("continue with --resume"), "{message}");
        let at = *checkpoints(&cut).last().unwrap();
        assert_eq!(recorded(&cut, "train", "step").len(), at, "{message}");
        assert!(at >= steps, "{at}");
    }
    assert_same(&whole, &w.trained("cut", &with(&rare, &["--resume"])));
}

#[test]
fn checkpoints_are_written_by_the_clock_too() {
    let w = Workspace::new();
    let clock = [
        "--set",
        "training.checkpoint_every=1000",
        "--set",
        "training.checkpoint_minutes=1e-9",
        "--set",
        "training.keep_checkpoints=100",
    ];
    let run = w.trained("clock", &clock);
    assert_eq!(checkpoints(&run), (1..=30).collect::<Vec<_>>());
    // a run can continue from any of them
    let whole = w.trained("whole", &[]);
    for last in [1, 10, 19] {
        for step in last + 1..=30 {
            forget(&run, step);
        }
        std::fs::remove_dir_all(run.join("model")).unwrap();
        let run = w.trained("clock", &with(&clock, &["--resume"]));
        assert_same(&whole, &run);
    }
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let w = Workspace::new();
    // lr so large that the held-out FVU rises again
    let fast = [
        "--set",
        "training.lr=0.3",
        "--set",
        "training.steps=80",
        "--set",
        "training.on_collapse=go_on",
        "--set",
        "model.scale=1",
        "--set",
        "model.pre_bias=true",
    ];
    let run = w.trained("best", &[&fast[..], &TURNING_AT_FULL_RATE].concat());
    let fvu = recorded(&run, "held_out", "fvu");
    let best = (0..fvu.len())
        .rev()
        .min_by(|a, b| fvu[*a].total_cmp(&fvu[*b]))
        .unwrap();
    let mut expected = vec![10 * (best + 1), 70, 80];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(checkpoints(&run), expected, "{fvu:?}");
    assert!(
        expected.len() == 3,
        "the best should not be among the newest: {fvu:?}"
    );
}

#[test]
fn a_run_that_has_not_begun_is_begun() {
    let w = Workspace::new();
    let whole = w.trained("whole", &[]);
    assert_same(&whole, &w.trained("absent", &["--resume"]));
    // the process died before it wrote the config
    let early = w.path("runs/early");
    std::fs::create_dir(&early).unwrap();
    std::fs::write(early.join("lock"), "process 1").unwrap();
    std::fs::write(early.join("config.toml.tmp"), "see").unwrap();
    assert_same(&whole, &w.trained("early", &["--resume"]));
    // a directory of something else is refused
    std::fs::create_dir(w.path("runs/theirs")).unwrap();
    std::fs::write(w.path("runs/theirs/notes.txt"), "x").unwrap();
    let output = w.train(&["--set", "run=theirs", "--resume"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("holds no run, but \"notes.txt\""),
        "{message}"
    );
}

#[test]
fn a_run_may_move() {
    let w = Workspace::new();
    let whole = w.trained("whole", &[]);
    let run = w.trained("here", &[]);
    forget(&run, 30);
    std::fs::remove_dir_all(run.join("model")).unwrap();
    std::fs::create_dir(w.path("elsewhere")).unwrap();
    std::fs::rename(&run, w.path("elsewhere/there")).unwrap();
    let runs = format!("runs_dir={:?}", w.path("elsewhere").display().to_string());
    w.trained("there", &["--resume", "--set", &runs]);
    assert_same(&whole, &w.path("elsewhere/there"));
}
