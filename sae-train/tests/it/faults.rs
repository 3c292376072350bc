//! Faults: each ends the run with a message and an exit code of its own, and loses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{
    SOURCE, WIDTH, Workspace, as_npy, checkpoints, ended, forget, recorded, same_model,
    wait_for_steps,
};

/// Runs with `arguments`; expects this exit code and these parts of the message. Returns the message.
fn fails(w: &Workspace, arguments: &[&str], code: i32, expected: &[&str]) -> String {
    let output = w.train(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
    for part in expected {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    let errors = message
        .lines()
        .filter(|line| line.starts_with("error: ") || line.contains("ERROR"));
    assert_eq!(errors.count(), 1, "one message: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Returns `None` without the right to mount.
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&path).unwrap();
        let options = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(path));
        }
        use std::io::Write;
        // not eprintln!: the test harness would swallow it
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED a test: no right to mount a file system"
        );
        None
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_the_run_and_costs_nothing() {
    let w = Workspace::new();
    let whole = w.trained("whole", &[]);
    let mut kept = Vec::new();
    for size in ["4k", "8k", "12k", "16k", "20k", "50k", "110k", "170k"] {
        let Some(disk) = Tmpfs::mount(w.path(size), size) else {
            return;
        };
        let runs = format!("runs_dir={:?}", disk.0.display().to_string());
        let many = ["--set", "run=whole", "--set", "training.keep_checkpoints=9"];
        let arguments = [&["--set", &runs], &many[..]].concat();
        let expected = ["cannot write", "make room on the disk", "No space left"];
        fails(&w, &arguments, 7, &expected);
        let run = disk.0.join("whole");
        kept.push(checkpoints(&run));
        let names = fs::read_dir(run.join("checkpoint"))
            .into_iter()
            .flatten()
            .flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let half: Vec<String> = names.filter(|name| name.ends_with(".tmp")).collect();
        assert!(
            half.is_empty(),
            "what could not be written does not fill the disk: {half:?} at {size}"
        );
        disk.remount("size=10m");
        w.trained("whole", &[&arguments[..], &["--resume"]].concat());
        same_model(&whole, &run);
        let loss = |run: &Path| recorded(run, "train", "loss");
        assert_eq!(loss(&whole), loss(&run));
    }
    // the disks were full before the config was written, at the first checkpoint, and at later ones
    assert!(kept[5].is_empty() && !kept[7].is_empty(), "{kept:?}");
}

#[test]
fn a_read_only_directory_is_named() {
    let w = Workspace::new();
    let Some(disk) = Tmpfs::mount(w.path("disk"), "10m") else {
        return;
    };
    let runs = format!("runs_dir={:?}", disk.0.display().to_string());
    let run = w.trained("one", &[]);
    fs::create_dir(disk.0.join("one")).unwrap();
    for file in ["config.toml", "provenance.json"] {
        fs::copy(run.join(file), disk.0.join("one").join(file)).unwrap();
    }
    disk.remount("ro");
    let expected = [
        "cannot write",
        "make the run directory writable",
        "Read-only file system",
    ];
    fails(&w, &["--set", &runs], 8, &expected);
    fails(
        &w,
        &["--set", &runs, "--set", "run=one", "--resume"],
        8,
        &expected,
    );
}

#[test]
fn data_that_vanishes_while_training_leaves_a_checkpoint() {
    let w = Workspace::new();
    as_npy(&w.path("parts"), &SOURCE.rows(12_000));
    let train = format!("data.train={:?}", w.path("parts").display().to_string());
    let set = [
        "--set",
        &train,
        "--set",
        "data.window_mb=1",
        "--set",
        "training.steps=2000",
    ];
    let whole = w.trained("whole", &set);
    let arguments = [&set[..], &["--set", "run=cut"]].concat();
    let running = w.start(&arguments);
    let cut = w.path("runs/cut");
    wait_for_steps(&cut, 15);
    let (part, away) = (w.path("parts/part-1.npy"), w.path("away.npy"));
    fs::rename(&part, &away).unwrap();
    let (code, message) = ended(running);
    assert_eq!(code, Some(5), "{message}");
    for expected in [
        "part-1.npy",
        "it is missing",
        "with a checkpoint",
        "continue with --resume",
    ] {
        assert!(message.contains(expected), "{message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    let steps = recorded(&cut, "train", "step");
    assert_eq!(checkpoints(&cut).last().copied(), Some(steps.len()));
    let resume = [&arguments[..], &["--resume"]].concat();
    fails(&w, &resume, 4, &["is not the data"]);
    fs::rename(&away, &part).unwrap();
    w.trained("cut", &resume);
    same_model(&whole, &cut);
}

#[test]
fn a_run_without_its_data_says_so() {
    let w = Workspace::new();
    let run = w.trained("one", &[]);
    forget(&run, 30);
    fs::rename(w.path("train.safetensors"), w.path("away")).unwrap();
    fails(
        &w,
        &["--set", "run=one", "--resume"],
        5,
        &["data.train", "no such file"],
    );
    assert_eq!(checkpoints(&run), [20], "nothing is lost");
}

#[test]
fn two_processes_do_not_work_on_one_run() {
    let w = Workspace::new();
    let mut first = w.start(&["--set", "training.steps=100000"]);
    wait_for_steps(&w.path("runs/small"), 1);
    let id = format!("process {}", first.id());
    let again = ["--set", "training.steps=100000", "--resume"];
    fails(&w, &again, 6, &["in use by", &id]);
    assert!(first.try_wait().unwrap().is_none(), "the first goes on");
    first.kill().unwrap();
    first.wait().unwrap();
    // the lock ended with the process
    let mut second = w.start(&again);
    wait_for_steps(&w.path("runs/small"), 15);
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let w = Workspace::new();
    let whole = w.trained("whole", &[]);
    let run = w.trained("hurt", &[]);
    fs::remove_dir_all(run.join("model")).unwrap();
    let path = run.join("checkpoint/step-00000030/optimizer.bpk");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = w.train(&["--set", "run=hurt", "--resume"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let log = fs::read_to_string(run.join("train.log")).unwrap();
    for text in [said, log] {
        assert!(
            text.contains("step-00000030/optimizer.bpk") && text.contains("BLAKE3"),
            "{text}"
        );
        assert!(text.contains("the checkpoint before it is used"), "{text}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("continuing after step 20"));
    same_model(&whole, &run);
    assert!(run.join("checkpoint/damaged-step-00000030-0").is_dir());
    // damage all of them
    for step in [20, 30] {
        fs::write(
            run.join(format!("checkpoint/step-{step:08}/model.bpk")),
            "x",
        )
        .unwrap();
    }
    let expected = [
        "no checkpoint can be used",
        "step-00000020",
        "step-00000030",
    ];
    fails(&w, &["--set", "run=hurt", "--resume"], 9, &expected);
    assert_eq!(checkpoints(&run), [20, 30], "nothing is moved");
}

/// Data with a NaN in row 9777, which a check of a few rows does not see.
pub(crate) fn with_a_hidden_nan(w: &Workspace) -> String {
    let mut rows = SOURCE.rows(12_000);
    rows[9777 * WIDTH + 3] = f32::NAN;
    w.write_rows("nan.safetensors", &rows, WIDTH);
    format!(
        "data.train={:?}",
        w.path("nan.safetensors").display().to_string()
    )
}

#[test]
fn nan_stops_the_run_before_it_reaches_a_checkpoint() {
    let w = Workspace::new();
    let train = with_a_hidden_nan(&w);
    let set = [
        "--set",
        &train,
        "--set",
        "data.check_rows=11",
        "--set",
        "training.batch_size=1000",
        "--set",
        "training.checkpoint_every=1",
    ];
    let message = fails(
        &w,
        &set,
        10,
        &[
            "the loss is NaN",
            "rows 9777 of",
            "training.on_nonfinite=skip",
        ],
    );
    let run = w.path("runs/small");
    let step: usize = message
        .split_once("step ")
        .unwrap()
        .1
        .split_once(':')
        .unwrap()
        .0
        .parse()
        .unwrap();
    assert!(
        (1..=12).contains(&step),
        "a pass has twelve steps: {message}"
    );
    assert_eq!(recorded(&run, "train", "step").len(), step - 1);
    assert_eq!(
        checkpoints(&run).last().copied(),
        (step > 1).then_some(step - 1)
    );
    assert!(!run.join("model").exists());
    // skipping such steps
    let skip = [&set[..], &["--set", "training.on_nonfinite=skip"]].concat();
    let resumed = w.trained(
        "small",
        &[&skip[..], &["--set", "run=small", "--resume"]].concat(),
    );
    let whole = w.trained("whole", &skip);
    same_model(&whole, &resumed);
    let sae = sae_model::saved::load(&whole.join("model"), &burn::tensor::Device::flex()).unwrap();
    assert!(sae.w_dec().into_data().iter::<f32>().all(f32::is_finite));
    let lines = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let nulls = lines
        .lines()
        .filter(|line| line.contains("\"loss\":null"))
        .count();
    assert!(
        (2..=3).contains(&nulls),
        "thirty steps, twelve a pass: {nulls} with row 9777"
    );
}

#[test]
fn numbers_that_explode_are_not_passed_over_for_ever() {
    let w = Workspace::new();
    let wild = [
        "--set",
        "training.lr=1e38",
        "--set",
        "training.warmup_steps=0",
    ];
    fails(&w, &wild, 10, &["step", "lower training.lr"]);
    assert_eq!(checkpoints(&w.path("runs/small")), [0; 0]);
    let skip = [
        &wild[..],
        &["--set", "training.on_nonfinite=skip", "--set", "run=skip"],
    ]
    .concat();
    fails(&w, &skip, 10, &["lower training.lr"]);
    assert!(!w.path("runs/skip/model").exists());
}
