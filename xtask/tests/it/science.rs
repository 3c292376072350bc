//! `cargo xtask results --science`, killed and begun again, with a trainer and an evaluation that only take time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const PLAN: &str = r#"
revision = "1"
files = ["SCIENCE.md"]
choice_seed = 100
columns = ["fvu", "l0"]
[[compare]]
column = "fvu"
at_l0 = [24]
[data.small]
title = "Small"
[[grid]]
steps = 20
n_latents = 32
seeds = [0, 1]
[[method]]
name = "default"
label = "default preset"
runs = [["model.scale=20"], ["model.scale=30"]]
[[method]]
name = "topk"
label = "TopK"
set = ["model.architecture=topk"]
runs = [["model.k=16"], ["model.k=32"]]
lr = [1e-3, 2e-3]
"#;

/// Takes a while, one process per directory, and leaves what the real one leaves; says which run it has begun.
const TRAIN: &str = r#"#!/bin/sh
for word; do case "$word" in
runs_dir=*) runs=$(echo "${word#*=}" | tr -d '"') ;;
run=*) run=$(echo "${word#*=}" | tr -d '"') ;;
model.scale=*|model.k=*) l0=${word#*=} ;;
training.lr=*) lr=${word#*=} ;;
esac; done
[ "$lr" = 0.002 ] && [ -e "$runs/../fail" ] && { echo "error: the disk is full" >&2; exit 7; }
[ "$lr" = 0.001 ] && { echo "error: the loss is NaN" >&2; exit 10; }
mkdir -p "$runs/$run"
mkdir "$runs/$run/lock" 2>/dev/null || exit 6
echo "$run" >> "$runs/../started"
sleep 0.3
echo '{"seconds": 1.5}' > "$runs/$run/metrics.jsonl"
echo "$l0" > "$runs/$run/l0"
mkdir "$runs/$run/model"
rmdir "$runs/$run/lock"
"#;

const EVAL: &str = r#"#!/bin/sh
l0=$(cat "$1/l0") && mkdir -p "$1/reports" || exit 2
echo '{"model": {"n_latents": 32}, "reconstruction": [{"name": "fvu", "value": 0.'$l0'}],
"sparsity": [{"name": "l0_mean", "value": '$l0'}, {"name": "dead_fraction", "value": 0.25}]}' > "$1/reports/report.json"
"#;

const CARGO: &str = r#"#!/bin/sh
echo '{"executable": "'$(dirname "$0")'/'$3'"}'
"#;

/// A directory with the plan, its data and the programs.
fn workplace(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("data")).unwrap();
    for split in ["train", "validation", "heldout"] {
        fs::write(root.join(format!("data/{split}.npy")), split).unwrap();
    }
    fs::write(root.join("plan.toml"), PLAN).unwrap();
    fs::write(
        root.join("SCIENCE.md"),
        "before\n<!-- results: science -->\n<!-- end of results -->\nafter\n",
    )
    .unwrap();
    for (program, text) in [("cargo", CARGO), ("sae-train", TRAIN), ("sae-eval", EVAL)] {
        let path = root.join(program);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    root
}

fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["results", "--science", "--plan", "plan.toml", "--dir"])
        .arg(root.join("runs"))
        .args(arguments)
        .current_dir(root)
        .env("CARGO", root.join("cargo"))
        .stdin(Stdio::null());
    command
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    let output = command(root, arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

const AT_HAND: [&str; 4] = ["--data", "small=data", "--jobs", "2"];

/// The lines by key, without what depends on the clock.
fn lines(root: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(root.join("plan/runs.jsonl")).unwrap_or_default();
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line["wall_seconds"] = Value::Null;
        let key = line["key"].as_str().unwrap().to_string();
        assert!(lines.insert(key, line).is_none(), "two lines of one run");
    }
    lines
}

fn document(root: &Path) -> String {
    fs::read_to_string(root.join("SCIENCE.md")).unwrap()
}

/// Runs as the trainer has begun them.
fn started(root: &Path) -> Vec<String> {
    let text = fs::read_to_string(root.join("started")).unwrap_or_default();
    text.lines().map(String::from).collect()
}

#[test]
fn killed_in_the_middle_it_goes_on_and_ends_with_the_same() {
    let whole = workplace("whole");
    run(&whole, &AT_HAND);
    // 2 of the default preset and 2 of TopK for each of two seeds, two learning rates of which one diverges
    assert_eq!(lines(&whole).len(), 10);
    assert!(
        document(&whole).contains("10 of 10 runs of the plan are done"),
        "{}",
        document(&whole)
    );

    let killed = workplace("killed");
    let mut child = command(&killed, &AT_HAND)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while lines(&killed).len() < 4 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no progress");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap(); // SIGKILL: its trainers go on alone
    child.wait().unwrap();
    let finished = lines(&killed);
    assert!(finished.len() < 10);
    let mut torn = fs::read_to_string(killed.join("plan/runs.jsonl")).unwrap();
    torn += "{\"key\": \"half a li";
    fs::write(killed.join("plan/runs.jsonl"), torn).unwrap();

    // as if the kill had come between a run's line and the end of its directory
    let begun = started(&killed);
    let is_finished = |run: &&String| finished.keys().any(|key| run.ends_with(key.as_str()));
    let leftover = begun.iter().find(is_finished).unwrap();
    let leftover = killed.join("runs").join(leftover);
    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("kept_as_a_line"), "").unwrap();

    run(&killed, &AT_HAND);
    assert_eq!(lines(&killed), lines(&whole));
    assert_eq!(document(&killed), document(&whole));
    let begun = started(&killed);
    for key in finished.keys() {
        let times = begun
            .iter()
            .filter(|run| run.ends_with(key.as_str()))
            .count();
        assert!(times <= 1, "{key} was begun {times} times");
    }
    let left = || -> Vec<_> { fs::read_dir(killed.join("runs")).unwrap().collect() };
    if !left().is_empty() {
        // on a busy machine a trainer that outlived the kill may make its directory behind the end; the next start removes it
        thread::sleep(Duration::from_secs(3));
        run(&killed, &AT_HAND);
    }
    assert!(
        left().is_empty(),
        "directories of finished runs are removed: {:?}",
        left()
    );
}

#[test]
fn what_is_done_is_shown_without_data_kept_or_run_again_as_asked() {
    let root = workplace("options");
    let some = ["--only", "method=topk,seed=0", "--keep", "seed=0"];
    run(&root, &[&AT_HAND[..], &some].concat());
    assert_eq!(lines(&root).len(), 4, "two learning rates, two sparsities");
    assert_eq!(
        fs::read_dir(root.join("runs")).unwrap().count(),
        2,
        "the runs of the table are kept"
    );
    assert!(
        document(&root).contains("4 of 10 runs"),
        "{}",
        document(&root)
    );
    assert!(root.join("plan/fvu-small-20-32.svg").exists());

    fs::remove_dir_all(root.join("data")).unwrap();
    fs::remove_file(root.join("plan/fvu-small-20-32.svg")).unwrap();
    let before = (document(&root), started(&root));
    run(&root, &["--render"]);
    assert_eq!((document(&root), started(&root)), before);
    assert!(root.join("plan/fvu-small-20-32.svg").exists());

    fs::create_dir(root.join("data")).unwrap();
    for split in ["train", "validation", "heldout"] {
        fs::write(root.join(format!("data/{split}.npy")), split).unwrap();
    }
    run(
        &root,
        &[
            &AT_HAND[..],
            &["--only", "method=topk,split=heldout,seed=0", "--rerun"],
        ]
        .concat(),
    );
    assert_eq!(lines(&root).len(), 4);
    assert_eq!(started(&root).len(), before.1.len() + 2);
    run(&root, &[&AT_HAND[..], &["--budget-minutes", "0"]].concat());
    assert_eq!(lines(&root).len(), 4, "no time, no run");
}

#[test]
fn a_fault_that_is_not_the_runs_own_ends_the_command_and_is_not_kept() {
    let root = workplace("fault");
    fs::write(root.join("fail"), "").unwrap();
    let output = command(&root, &AT_HAND).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the disk is full"), "{said}");
    assert!(lines(&root).values().all(|line| line["lr"] != 0.002));
    fs::remove_file(root.join("fail")).unwrap();
    run(&root, &AT_HAND);
    assert_eq!(lines(&root).len(), 10);
    let failed = lines(&root)
        .into_values()
        .filter(|line| line["failed"].is_string());
    assert_eq!(failed.count(), 1, "the learning rate that diverged");
}
