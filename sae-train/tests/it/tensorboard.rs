//! `--tensorboard`: the records of `metrics.jsonl` as TensorBoard reads them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::{Workspace, recorded, same_model, wait_for_steps};

const LONG: [&str; 5] = [
    "--set",
    "training.steps=150",
    "--set",
    "training.checkpoint_every=7",
    "--tensorboard",
];

/// Steps and values, by split and tag.
type Scalars = BTreeMap<(String, String), Vec<(f64, f32)>>;

/// Scalars of a run as TensorBoard reads them. `None` without the package.
fn scalars(run: &Path) -> Option<Scalars> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/tensorboard_golden.py");
    let python = std::env::var_os("SAE_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python)
        .arg(script)
        .arg("read")
        .arg(run.join("tensorboard"))
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        failed => {
            use std::io::Write;
            let why = failed.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stderr).into_owned(),
            );
            let why = why.lines().last().unwrap_or_default();
            assert!(
                why.contains("No module named") || why.contains("os error 2"),
                "{why}"
            );
            // not eprintln!: the test harness would swallow it
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED what TensorBoard reads: SAE_PYTHON, or python3, has no tensorboard ({why})"
            );
            return None;
        }
    };
    let mut found = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let (split, tag, step, value): (String, String, f64, f64) =
            serde_json::from_str(line).unwrap();
        let of_tag: &mut Vec<_> = found.entry((split, tag)).or_default();
        of_tag.push((step, value as f32));
    }
    Some(found)
}

/// Fails unless TensorBoard reads every record of the run, each once.
fn assert_all_there(run: &Path) {
    let Some(found) = scalars(run) else { return };
    for (split, tag) in [
        ("train", "loss"),
        ("train", "lr"),
        ("train", "fvu"),
        ("train", "dead"),
        ("held_out", "fvu"),
        ("held_out", "l0"),
        ("held_out", "reconstruction_loss"),
    ] {
        let key = (split.to_string(), tag.to_string());
        let steps = recorded(run, split, "step").into_iter();
        let values = recorded(run, split, tag).into_iter();
        let expected: Vec<(f64, f32)> = steps.zip(values.map(|value| value as f32)).collect();
        assert_eq!(found[&key], expected, "{split} {tag}");
    }
}

/// The event files of a run without their clock.
fn files(run: &Path) -> Vec<usize> {
    let of = |split: &str| {
        let path = run
            .join("tensorboard")
            .join(split)
            .join("events.out.tfevents.sae-train");
        std::fs::read(path).unwrap().len()
    };
    vec![of("train"), of("held_out")]
}

#[test]
fn every_step_is_there_once_whatever_interrupted_the_run() {
    let w = Workspace::new();
    let whole = w.trained("whole", &LONG);
    assert_all_there(&whole);
    let cut = w.path("runs/cut");
    for steps in [20, 33, 90] {
        let mut running = w.start(&[&LONG[..], &["--set", "run=cut", "--resume"]].concat());
        wait_for_steps(&cut, steps);
        running.kill().unwrap();
        running.wait().unwrap();
    }
    // a run that has the files goes on writing them
    let cut = w.trained("cut", &[&LONG[..4], &["--resume"]].concat());
    same_model(&whole, &cut);
    assert_eq!(files(&cut), files(&whole));
    assert_all_there(&cut);
}

#[test]
fn they_may_be_asked_for_later_and_change_nothing() {
    let w = Workspace::new();
    let plain = w.trained("plain", &LONG[..4]);
    assert!(!plain.join("tensorboard").exists());
    let with = w.trained("with", &LONG);
    same_model(&plain, &with);
    w.trained("plain", &[&LONG[..], &["--resume"]].concat());
    assert_eq!(files(&plain), files(&with));
    assert_all_there(&plain);
    // all held-out rows, where validations look at fewer
    let sample = w.trained(
        "sample",
        &["--tensorboard", "--set", "training.validate_rows=50"],
    );
    if let Some(found) = scalars(&sample) {
        let all = &found[&("held_out_all".to_string(), "fvu".to_string())];
        let fvu = recorded(&sample, "held_out_all", "fvu");
        assert_eq!(all[..], [(30.0, fvu[0] as f32)]);
    }
}

#[test]
fn a_directory_that_cannot_be_written_ends_the_run_with_its_name() {
    let w = Workspace::new();
    let run = w.trained("small", &[]);
    std::fs::write(run.join("tensorboard"), "a file").unwrap();
    let output = w.train(&["--resume"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(8), "{message}");
    assert!(message.contains("tensorboard"), "{message}");
}
