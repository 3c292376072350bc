//! Evaluations that run at the same time, the notes of a report, and copies from a GPU.

use std::process::Command;

use sae_model::Preset;

#[cfg(feature = "wgpu")]
use crate::WIDTH;
use crate::ranking::columns_as_latents;
use crate::{Run, read_json};

#[test]
fn the_report_names_the_architecture_and_what_went_wrong() {
    let run = Run::new(Preset::Default);
    let more = |warmup: usize| {
        format!("[model]\npreset = \"default\"\n[training]\nsteps = 100\nwarmup_steps = {warmup}\n")
    };
    run.write_config(&more(10));
    let report = run.report(&["--no-untrained"]);
    assert_eq!(report["architecture"], "attention (default preset)");
    let quiet = report["notes"].as_array().unwrap().len();
    run.write_config(&more(150));
    let report = run.report(&["--no-untrained"]);
    let notes = report["notes"].as_array().unwrap();
    assert_eq!(notes.len(), quiet + 1, "{notes:?}");
    assert!(notes[0].as_str().unwrap().contains("warm-up of 150 steps"));
    let text = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
    assert!(text.contains("## Before you read on"), "{text}");
    columns_as_latents(&run, 1.0);
    assert_eq!(
        run.report(&["--no-untrained"])["architecture"],
        "topk (k = 2)"
    );
}

#[test]
fn several_evaluations_of_one_run_at_a_time_all_succeed() {
    let run = Run::new(Preset::Default);
    let start = |_: usize| {
        Command::new(env!("CARGO_BIN_EXE_sae-eval"))
            .arg(run.dir.path())
            .args(["--no-untrained", "--threads", "1"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    for _ in 0..3 {
        let processes: Vec<_> = (0..6).map(start).collect();
        for process in processes {
            let output = process.wait_with_output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{message}");
        }
        let report = read_json(&run.path("reports/report.json"));
        assert_eq!(report["top_n"]["trained"].as_array().unwrap().len(), 5);
        let names: Vec<_> = std::fs::read_dir(run.path("reports"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

/// A dictionary must not be copied from the GPU for every batch.
#[cfg(feature = "wgpu")]
#[test]
fn on_a_gpu_the_dictionary_is_copied_at_most_once() {
    use sae_model::device::DeviceName;
    if DeviceName::Wgpu(None).open().is_err() {
        eprintln!("skipped: no graphics adapter");
        return;
    }
    for architecture in ["attention", "topk"] {
        let run = Run::new(Preset::Default);
        if architecture == "topk" {
            columns_as_latents(&run, 1.0);
        }
        let latents = if architecture == "topk" { WIDTH } else { 30 };
        let output = Command::new(env!("CARGO_BIN_EXE_sae-eval"))
            .arg(run.dir.path())
            .args(["--device", "wgpu", "--batch-size", "10"])
            .env("RUST_LOG", "sae_model::host=trace")
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let reads = log
            .lines()
            .filter(|line| line.contains("read from the device"));
        let bytes = reads.map(|line| {
            let digits = line
                .split("bytes=")
                .nth(1)
                .expect("the bytes that were read");
            digits.trim().parse::<usize>().expect("a number")
        });
        // One pass over both splits with the trained and one with the untrained model: 100 batches in all. The codes of ten rows
        // are smaller than the dictionary.
        let dictionary = 4 * latents * WIDTH;
        let bytes: Vec<usize> = bytes.collect();
        assert!(!bytes.is_empty(), "no code was read");
        let large = bytes.iter().filter(|bytes| **bytes >= dictionary).count();
        assert!(large <= 4, "{architecture}: {bytes:?} of {dictionary}");
    }
}
