//! `--resume` with more steps than before.

use std::path::{Path, PathBuf};

use crate::{WEIGHTS, Workspace, checkpoints, ended, recorded, same_model, wait_for_steps};

/// No learning rate is named, so that it follows the number of steps.
fn without_lr(w: &Workspace) {
    let config = w.path("small.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("lr = 3e-3\n", "")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A copy of a run under another name.
fn copied(w: &Workspace, run: &str, to: &str) -> PathBuf {
    let target = w.path("runs").join(to);
    copy(&w.path("runs").join(run), &target);
    target
}

fn provenance(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(run.join("provenance.json")).unwrap()).unwrap()
}

const RAISED: [&str; 5] = [
    "--resume",
    "--set",
    "training.steps=200",
    "--set",
    "training.checkpoint_every=7",
];

#[test]
fn a_finished_run_goes_on_to_more_steps() {
    let w = Workspace::new();
    without_lr(&w);
    let short = ["--set", "training.steps=65"]; // no multiple of validate_every
    let run = w.trained("short", &short);
    let [a, b, cut] = ["a", "b", "cut"].map(|to| copied(&w, "short", to));
    let output = w.train(&[&RAISED[..], &["--set", "run=a"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("raised from 65 to 200 steps after step 65"),
        "{text}"
    );
    assert!(text.contains("continuing after step 65"), "{text}");
    let raise = &provenance(&a)["raised"][0];
    assert_eq!(
        (&raise["at"], &raise["from"], &raise["to"]),
        (&65.into(), &65.into(), &200.into())
    );
    // each step once; those before are as they were, the learning rate is that of a run of 200 steps from there on
    let steps: Vec<f64> = (1..=200).map(f64::from).collect();
    assert_eq!(recorded(&a, "train", "step"), steps);
    let before = recorded(&run, "train", "lr");
    let whole = w.trained("whole", &RAISED[1..]);
    let lr = recorded(&a, "train", "lr");
    assert_eq!(lr[..65], before[..]);
    assert_eq!(lr[65..], recorded(&whole, "train", "lr")[65..]);
    assert_ne!(lr[64], recorded(&whole, "train", "lr")[64]);
    // it is not the run that would have had so many steps from the start
    assert!(std::fs::read(a.join(WEIGHTS)).unwrap() != std::fs::read(whole.join(WEIGHTS)).unwrap());
    it_repeats(&w, &a, [&b, &cut]);
}

/// `a` was raised; `b` and `cut` are copies of it from before.
fn it_repeats(w: &Workspace, a: &Path, [b, cut]: [&Path; 2]) {
    // raised again at the same checkpoint: the same bytes
    same_model(a, &w.trained("b", &RAISED));
    assert_eq!(recorded(a, "train", "loss"), recorded(b, "train", "loss"));
    // and so, interrupted
    for steps in [70, 110] {
        let mut running = w.start(&[&RAISED[..], &["--set", "run=cut"]].concat());
        wait_for_steps(cut, steps);
        running.kill().unwrap();
        running.wait().unwrap();
    }
    same_model(a, &w.trained("cut", &RAISED));
    assert_eq!(recorded(a, "train", "loss"), recorded(cut, "train", "loss"));
    assert_eq!(
        recorded(a, "held_out", "fvu"),
        recorded(cut, "held_out", "fvu")
    );
    assert_eq!(provenance(cut)["raised"].as_array().unwrap().len(), 1);
    // a second time
    let more = ["--resume", "--set", "training.steps=220"];
    same_model(&w.trained("a", &more), &w.trained("cut", &more));
    assert_eq!(provenance(a)["raised"].as_array().unwrap().len(), 2);
    // and not back
    let output = w.train(&[&RAISED[..], &["--set", "run=a"]].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(
        message.contains("training.steps: 220 -> 200") && message.contains("may be raised"),
        "{message}"
    );
}

#[test]
fn a_stopped_run_goes_on_to_more_steps() {
    let w = Workspace::new();
    let long = ["--set", "training.steps=1500", "--set", "run=a"];
    let running = w.start(&long);
    let a = w.path("runs/a");
    wait_for_steps(&a, 33);
    let sent = std::process::Command::new("kill")
        .args(["-s", "INT", &running.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let (code, message) = ended(running);
    assert_eq!(code, Some(130), "{message}");
    let at = *checkpoints(&a).last().unwrap();
    copied(&w, "a", "b");
    let steps = format!("training.steps={}", 1500 + at);
    let raised = [
        "--resume",
        "--set",
        &steps,
        "--set",
        "training.on_collapse=go_on",
    ];
    // the process dies between the two files that record it
    let config = std::fs::read(a.join("config.toml")).unwrap();
    let mut running = w.start(&[&raised[..], &["--set", "run=a"]].concat());
    wait_for_steps(&a, at + 5);
    running.kill().unwrap();
    running.wait().unwrap();
    for step in checkpoints(&a).into_iter().filter(|step| *step > at) {
        crate::forget(&a, step);
    }
    std::fs::write(a.join("config.toml"), config).unwrap();
    let ended = |run: &str| w.trained(run, &raised);
    same_model(&ended("a"), &ended("b"));
    let raises = provenance(&a)["raised"].clone();
    assert_eq!(raises.as_array().unwrap().len(), 1, "{raises}");
    assert_eq!(raises[0]["at"], at);
}

#[test]
fn what_cannot_be_raised_is_named() {
    let w = Workspace::new();
    let run = w.trained("small", &[]);
    let message = |arguments: &[&str], expected: i32| {
        let output = w.train(&[&RAISED[..], arguments].concat());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    };
    // no other key changes with it
    let text = message(&["--set", "seed=1"], 3);
    assert!(
        text.contains("seed: 0 -> 1") && !text.contains("training.steps: "),
        "{text}"
    );
    assert_eq!(provenance(&run).get("raised"), None);
    // a finished run without a checkpoint does not begin again
    let model = std::fs::read(run.join(WEIGHTS)).unwrap();
    let checkpoint = run.join("checkpoint");
    std::fs::rename(&checkpoint, w.path("aside")).unwrap();
    let text = message(&[], 9);
    assert!(
        text.contains("has no checkpoint to go on from to 200") && text.contains("--from "),
        "{text}"
    );
    assert_eq!(std::fs::read(run.join(WEIGHTS)).unwrap(), model);
    // one that was not finished does, and is the run of that many steps
    std::fs::remove_dir_all(run.join("model")).unwrap();
    same_model(
        &w.trained("whole", &RAISED[1..]),
        &w.trained("small", &RAISED),
    );
    assert_eq!(provenance(&run).get("raised"), None);
}

#[test]
fn checkpoints_from_before_are_kept_but_not_continued() {
    let w = Workspace::new();
    // the learning rate is so large that the best checkpoint is an early one
    let fast = [
        "--set",
        "training.lr=0.3",
        "--set",
        "training.on_collapse=go_on",
    ];
    let run = w.trained("fast", &fast);
    let fvu = recorded(&run, "held_out", "fvu");
    let more = ["--resume", "--set", "training.steps=60"];
    w.trained("fast", &[&fast[..], &more].concat());
    let all = recorded(&run, "held_out", "fvu");
    assert_eq!(all[..3], fvu[..]);
    let best = (0..all.len())
        .rev()
        .min_by(|a, b| all[*a].total_cmp(&all[*b]))
        .unwrap();
    let kept = checkpoints(&run);
    assert!(
        kept.contains(&(10 * (best + 1))) || best < 1,
        "{kept:?} {all:?}"
    );
    // damaged ones after it: the run does not go back behind the raise
    for step in kept.iter().filter(|step| **step >= 30) {
        std::fs::write(
            run.join(format!("checkpoint/step-{step:08}/model.bpk")),
            "x",
        )
        .unwrap();
    }
    let output = w.train(&[&fast[..], &more, &["--set", "run=fast"]].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{message}");
}
