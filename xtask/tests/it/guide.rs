//! `cargo xtask guide --verify` on synthetic rows, with the real trainer and the real evaluation.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::watch::program;

const CONFIG: &str = r#"
run = "tiny"
[data]
train = "train.npy"
held_out = { fraction = 0.2 }
max_norm = "none"
[model]
n_latents = 48
[training]
steps = 60
batch_size = 64
warmup_steps = 10
on_collapse = "go_on"
"#;
const WIDTH: usize = 16;

/// Rows that are sums of one to four of 24 directions, as float32.
fn rows(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let directions: Vec<f32> = (0..24 * WIDTH).map(|_| random() - 0.5).collect();
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {WIDTH}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(118u16.to_le_bytes());
    bytes.extend(format!("{head:117}\n").bytes());
    for _ in 0..count {
        let mut row = [0.0; WIDTH];
        for _ in 0..1 + (4.0 * random()) as usize {
            let at = (24.0 * random()) as usize * WIDTH;
            let strength = 0.5 + random();
            for (x, c) in row.iter_mut().zip(&directions[at..at + WIDTH]) {
                *x += strength * c;
            }
        }
        bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
    }
    bytes
}

/// A directory with the config, its data, and a cargo whose programs are built already.
fn workplace(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("tiny.toml"), CONFIG).unwrap();
    fs::write(root.join("train.npy"), rows(2000)).unwrap();
    program("sae-eval");
    let built = program("sae-train");
    let dir = built.parent().unwrap().display();
    let cargo = format!("#!/bin/sh\necho '{{\"executable\": \"{dir}/'$3'\"}}'\n");
    fs::write(root.join("cargo"), cargo).unwrap();
    fs::set_permissions(root.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    root
}

fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["guide", "tiny.toml", "--dir", "out"]);
    command.args(arguments).current_dir(root);
    command.env("CARGO", root.join("cargo"));
    command.stdin(Stdio::null());
    command
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    command(root, arguments).output().unwrap()
}

fn lines(root: &Path) -> Vec<Value> {
    let text = fs::read_to_string(root.join("out/runs.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join("out").join(name)).unwrap()
}

/// Holds guide.json to the report of the run of sparse attention; returns the k, and the number of runs.
fn checked(root: &Path) -> (u64, usize) {
    let runs = fs::read_dir(root.join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_attention = |path: &PathBuf| path.to_string_lossy().contains("-attention-heldout");
    let runs: Vec<PathBuf> = runs.filter(is_attention).collect();
    let report = fs::read_to_string(runs[0].join("reports/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let sparsity = report["sparsity"].as_array().unwrap();
    let mean = sparsity
        .iter()
        .find(|metric| metric["name"] == "l0_mean")
        .unwrap();
    let k = mean["value"].as_f64().unwrap().round() as u64;
    let guide: Value = serde_json::from_str(&read(root, "guide.json")).unwrap();
    assert_eq!(guide["recommendation"]["k"], k);
    assert!((2..=24).contains(&k), "{k}");
    assert_eq!(guide["steps"], 60);
    let groups = guide["groups"].as_array().unwrap();
    let of = |group: &Value| {
        (
            group["architecture"].as_str().unwrap().to_string(),
            group["k"].as_u64(),
        )
    };
    let groups: Vec<_> = groups.iter().map(of).collect();
    let ks = [k.div_ceil(2), k, 2 * k];
    let tried = ["topk", "batch_topk"].map(|name| ks.map(|k| (name.to_string(), Some(k))));
    let expected = [&[("attention".to_string(), None)], &tried.concat()[..]].concat();
    assert_eq!(groups, expected);
    (k, expected.len())
}

#[test]
fn a_k_is_found_and_verified_and_a_killed_command_goes_on() {
    let root = workplace("guide");
    let verify = ["--verify", "--jobs", "2"];
    let mut child = command(&root, &verify)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while lines(&root).len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(300), "no progress");
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap(); // SIGKILL: its trainers go on alone
    child.wait().unwrap();
    let before = lines(&root);

    let output = run(&root, &verify);
    assert!(output.status.success(), "{output:?}");
    let after = lines(&root);
    let kept = after.iter().filter(|line| before.contains(line)).count();
    assert_eq!(kept, before.len(), "finished runs are kept as they were");

    let (k, count) = checked(&root);
    assert_eq!(after.len(), count);
    let text = read(&root, "guide.md");
    assert!(text.contains(&format!("**k = {k}**")), "{text}");
    assert!(text.contains("a doubling takes away"), "{text}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.ends_with(&format!("{text}\n")), "{printed}");

    let again = run(&root, &verify);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(lines(&root), after, "nothing is run again");
    assert_eq!(read(&root, "guide.md"), text);
}

#[test]
fn what_cannot_be_run_is_named() {
    let root = workplace("guide-wrong");
    let said = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(run(&root, &["--steps", "0"])).contains("--steps"));
    let refused = said(run(
        &root,
        &["--set", "model.n_latents=48", "--set", "model.scale=-1"],
    ));
    assert!(refused.contains("attention, seed 0"), "{refused}");
    assert!(refused.contains("exit status: 2"), "{refused}");
    assert!(!root.join("out/guide.md").exists());
    let nowhere = said(run(&root, &["--set", "data.train=nowhere.npy"]));
    assert!(nowhere.contains("nowhere.npy"), "{nowhere}");
    fs::remove_file(root.join("tiny.toml")).unwrap();
    assert!(said(run(&root, &[])).contains("tiny.toml"));
}
