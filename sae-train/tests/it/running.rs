//! Everything around training: terminals that go away, lines, notes, threads, memory.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::{SOURCE, WIDTH, Workspace, checkpoints, ended, recorded, same_model, wait_for_steps};

/// Long enough to be interrupted in the middle, without checkpoints of its own.
const LONG: [&str; 6] = [
    "--set",
    "training.steps=400",
    "--set",
    "training.checkpoint_every=1000",
    "--set",
    "training.log_every=1",
];

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

#[test]
fn a_reader_that_goes_away_leaves_a_checkpoint() {
    let w = Workspace::new();
    let whole = w.trained("whole", &LONG);
    let cut = with(&LONG, &["--set", "run=cut", "--resume"]);
    let mut running = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .args(&cut)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // like `| head -n 20`
    let lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert_eq!(lines.take(20).count(), 20);
    let (code, message) = ended(running);
    assert_eq!(code, Some(141), "{message}");
    assert!(message.contains("continue with --resume"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    let run = w.path("runs/cut");
    let steps = recorded(&run, "train", "step").len();
    assert_eq!(checkpoints(&run), [steps], "{message}");
    assert!(!run.join("model").exists());
    same_model(&whole, &w.trained("cut", &with(&LONG, &["--resume"])));
}

#[test]
fn a_terminal_that_goes_away_leaves_a_checkpoint() {
    let w = Workspace::new();
    let hang_up = |id: u32| {
        let sent = Command::new("kill")
            .args(["-s", "HUP", &id.to_string()])
            .status();
        assert!(sent.unwrap().success());
    };
    // the tests themselves may run under `nohup`, which would be inherited
    let running = Command::new("env")
        .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_sae-train")])
        .arg(w.path("small.toml"))
        .args(LONG)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&w.path("runs/small"), 20);
    hang_up(running.id());
    let (code, message) = ended(running);
    assert_eq!(code, Some(129), "{message}");
    assert!(message.contains("stopped by SIGHUP"), "{message}");
    assert_eq!(checkpoints(&w.path("runs/small")).len(), 1);
    // under `nohup`, SIGHUP is ignored
    let arguments = with(&LONG, &["--set", "run=nohup"]);
    let running = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&w.path("runs/nohup"), 20);
    hang_up(running.id());
    let (code, message) = ended(running);
    assert_eq!(code, Some(0), "{message}");
    assert!(w.path("runs/nohup/model").is_dir());
}

/// Runs in a pseudo-terminal; returns the exit code and the output, or `None` without `script` (util-linux).
fn on_a_terminal(w: &Workspace, arguments: &[&str]) -> Option<(Option<i32>, String)> {
    let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
    let (program, config) = (env!("CARGO_BIN_EXE_sae-train"), w.path("small.toml"));
    let command = format!(
        "stty rows 40 cols 150; '{program}' '{}' {}",
        config.display(),
        quoted.join(" ")
    );
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        use std::io::Write;
        // not eprintln!: the test harness would swallow it
        let _ = writeln!(std::io::stderr(), "SKIPPED a test: there is no `script`");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((output.status.code(), text))
}

/// Writes training and held-out rows that each cause a note.
fn with_notes(w: &Workspace) {
    let mut rows = SOURCE.rows(1200);
    rows.chunks_exact_mut(WIDTH).for_each(|row| row[5] = 0.25);
    let (train, held_out) = rows.split_at_mut(1000 * WIDTH);
    held_out
        .chunks_exact_mut(WIDTH)
        .for_each(|row| row[7] = 0.5);
    w.write_rows("train.safetensors", train, WIDTH);
    w.write_rows("heldout.safetensors", held_out, WIDTH);
}

/// Enter and leave the alternate screen, which the dashboard uses.
const ALTERNATE_SCREEN: [&str; 2] = ["\x1b[?1049h", "\x1b[?1049l"];

#[test]
fn a_dashboard_hides_no_note() {
    let w = Workspace::new();
    with_notes(&w);
    let Some((code, text)) = on_a_terminal(&w, &[]) else {
        return;
    };
    assert_eq!(code, Some(0), "{text}");
    let (before, rest) = text.split_once(ALTERNATE_SCREEN[0]).expect("a dashboard");
    let (_, after) = rest.rsplit_once(ALTERNATE_SCREEN[1]).expect("its end");
    let notes = [
        "note: 1 of 24 columns have one value",
        "note (held-out rows): 2 of 24 columns have one value",
    ];
    for note in notes {
        assert!(before.contains(note), "before: {before}");
        assert!(after.contains(note), "after: {after}");
    }
    assert!(after.contains("trained 30 steps"), "{after}");
    // a warning that came before the dashboard
    std::fs::write(w.path("runs/small/checkpoint/step-00000030/model.bpk"), "x").unwrap();
    let (code, text) = on_a_terminal(&w, &["--resume"]).unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the checkpoint before it is used"), "{text}");
}

#[test]
fn plain_lines_can_be_had_on_a_terminal() {
    let w = Workspace::new();
    let Some((code, text)) = on_a_terminal(&w, &["--plain"]) else {
        return;
    };
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains(ALTERNATE_SCREEN[0]), "{text}");
    assert!(text.contains("step 10/30  loss "), "{text}");
}

#[test]
fn lines_and_notes_without_a_terminal() {
    let w = Workspace::new();
    with_notes(&w);
    let set = [
        "--set",
        "model.architecture=batch_topk",
        "--set",
        "model.k=3",
        "--set",
        "training.warmup_steps=30",
    ];
    let output = w.train(&set);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in [
        "note: 1 of 24 columns",
        "note (held-out rows): 2 of 24 columns",
        "note: the warm-up of 30 steps is not shorter than the run of 30",
        "has seen 30",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let log = std::fs::read_to_string(w.path("runs/small/train.log")).unwrap();
    assert!(log.contains("the warm-up of 30 steps"), "{log}");
    // resuming a finished run prints it again
    let output = w.train(&with(&set, &["--resume"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("the warm-up of 30 steps"), "{text}");
    // a run that has collapsed
    let set = [
        "--set",
        "run=none",
        "--set",
        "model.architecture=relu",
        "--set",
        "training.sparsity_coefficient=100",
        "--set",
        "training.steps=400",
        "--set",
        "training.on_collapse=go_on",
    ];
    let text = String::from_utf8_lossy(&w.train(&set).stdout).into_owned();
    let note = text
        .lines()
        .find(|line| line.starts_with("note: the model has collapsed: L0 is "));
    assert!(
        note.is_some_and(|note| note.contains(", below 2, 63 of 64 latents are dead")),
        "{text}"
    );
}

#[test]
fn threads_are_those_that_were_asked_for() {
    let w = Workspace::new();
    let recorded = |run: &std::path::Path| -> serde_json::Value {
        let text = std::fs::read(run.join("provenance.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let one = recorded(&w.trained("one", &["--threads", "1"]));
    let three = recorded(&w.trained("three", &["--threads", "3"]));
    assert_eq!([&one["threads"], &three["threads"]], [1, 3]);
    same_model(&w.path("runs/one"), &w.path("runs/three"));
    let by_variable = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .args(["--set", "run=five"])
        .env("RAYON_NUM_THREADS", "5")
        .output();
    assert!(by_variable.unwrap().status.success());
    assert_eq!(recorded(&w.path("runs/five"))["threads"], 5);
    let output = w.train(&["--threads", "0"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_was_built_is_recorded_wherever_it_is_started() {
    let w = Workspace::new();
    let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .current_dir("/")
        .env("PATH", "")
        .output();
    assert!(output.unwrap().status.success());
    let text = std::fs::read(w.path("runs/small/provenance.json")).unwrap();
    let provenance: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(provenance["burn"], "0.22.1");
    let checkout = concat!(env!("CARGO_MANIFEST_DIR"), "/../.git");
    let revision = &provenance["git_revision"];
    if std::path::Path::new(checkout).exists() {
        let text = revision.as_str().expect("a commit");
        let commit = text.strip_suffix('+').unwrap_or(text);
        assert!(
            commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()),
            "{text}"
        );
    } else {
        assert!(revision.is_null());
    }
}
