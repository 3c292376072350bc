//! Batches in parts, in one process: what a run comes to, and what is refused.

use std::process::Command;

use crate::{Workspace, forget, recorded, same_model};

#[test]
fn one_part_is_the_run_without_parts() {
    let w = Workspace::new();
    let plain = w.trained("plain", &[]);
    let one = w.trained("one", &["--set", "training.shards=1"]);
    same_model(&plain, &one);
    let config = |run: &std::path::Path| std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert_eq!(
        config(&plain).replace("plain", "one"),
        config(&one),
        "configs from before there were parts go on"
    );
}

#[test]
fn a_run_in_parts_learns_as_well_and_resumes_exactly() {
    let w = Workspace::new();
    let plain = w.trained("plain", &[]);
    let run = w.trained("parts", &["--set", "training.shards=5"]);
    let last = |run| *recorded(run, "held_out", "fvu").last().unwrap();
    let (a, b) = (last(&plain), last(&run));
    assert!((a - b).abs() < 0.1 * a, "{a} without parts, {b} with");

    let again = w.trained("again", &["--set", "training.shards=5"]);
    forget(&again, 30);
    std::fs::remove_dir_all(again.join("model")).unwrap();
    w.trained("again", &["--set", "training.shards=5", "--resume"]);
    same_model(&run, &again);
}

#[test]
fn the_number_of_parts_may_not_change() {
    let w = Workspace::new();
    let run = w.trained("run", &["--set", "training.shards=5"]);
    forget(&run, 30);
    let resume = ["--set", "run=run", "--set", "training.shards=2", "--resume"];
    let output = w.train(&resume);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("training.shards: 5 -> 2"), "{message}");
}

#[test]
fn what_cannot_be() {
    let w = Workspace::new();
    let refused = |arguments: &[&str], says: &[&str]| {
        let output = w.train(arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(says.iter().all(|part| message.contains(part)), "{message}");
        assert!(!w.path("runs").exists());
    };
    refused(
        &["--set", "training.shards=3"],
        &["training.shards = 3", "must divide training.batch_size, 50"],
    );
    refused(&["--set", "training.shards=0"], &["must be at least 1"]);
    refused(
        &["--set", "training.shards=50", "--set", "model.n_latents=20"],
        &["training.shards = 50", "at most model.n_latents, 20"],
    );
    refused(
        &["--set", "training.shards=2", "--sweep", "seed=0,1"],
        &[
            "run seed=0 of the sweep",
            "training.shards",
            "have no parts",
        ],
    );
    #[cfg(not(feature = "mpi"))]
    refused(
        &["--distributed"],
        &["built without MPI", "--features mpi", "libopenmpi-dev"],
    );
}

#[test]
fn processes_that_do_not_know_of_each_other_are_stopped() {
    let w = Workspace::new();
    let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(w.path("small.toml"))
        .env("OMPI_COMM_WORLD_SIZE", "4")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("4 processes") && message.contains("--distributed"),
        "{message}"
    );
}
