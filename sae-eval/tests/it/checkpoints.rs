//! Evaluation of checkpoints, made here as a run leaves them.

use burn::module::Module;
use burn::tensor::Device;
use sae_model::architectures::Attention;
use sae_model::{Preset, Sae, SaeConfig, saved};
use sae_run::checkpoints::{FORMAT, FORMAT_VERSION, MODEL_FILE, POSITION_FILE, name_of};
use sae_run::sealed;

use crate::{Run, WIDTH, read_json};

/// The module that is trained, as far as its record matters here.
#[derive(Module, Debug)]
struct Learner {
    sae: Sae,
}

/// Adds the checkpoint of `step` of a model that starts from `seed`.
fn save(run: &Run, step: usize, seed: u64, fvu: Option<f64>) -> Sae {
    let config = SaeConfig::new(Attention::from(Preset::Default), WIDTH, 30);
    let sae = Sae::init(&config, seed, &[0.1; WIDTH], &Device::flex());
    let target = run.path("checkpoint").join(name_of(step));
    let staging = sealed::staging(&target).unwrap();
    let position = serde_json::json!({
        "format": FORMAT, "format_version": FORMAT_VERSION, "run": "x", "step": step, "held_out_fvu": fvu,
    });
    std::fs::write(staging.join(POSITION_FILE), position.to_string()).unwrap();
    let made_of = saved::config_file(&config, seed);
    std::fs::write(staging.join(saved::CONFIG_FILE), made_of).unwrap();
    let record = Learner { sae: sae.clone() }.into_record();
    record.save(staging.join(MODEL_FILE)).unwrap();
    sealed::seal(&staging, &target).unwrap();
    sae
}

#[test]
fn a_checkpoint_is_evaluated_as_the_model_that_it_holds() {
    let run = Run::new(Preset::Default);
    std::fs::remove_dir_all(run.path("model")).unwrap(); // the run is in progress
    let message = run.refused(&[]);
    assert!(message.contains("--checkpoint newest"), "{message}");
    let message = run.refused(&["--checkpoint", "newest"]);
    assert!(message.contains("there are no checkpoints"), "{message}");
    assert!(
        run.refused(&["--checkpoint", "worst"])
            .contains("best, newest or the number")
    );
    run.write_config("[training]\nsteps = 30\nwarmup_steps = 2\n");
    let first = save(&run, 10, 7, Some(0.2));
    save(&run, 20, 8, Some(0.3));
    let evaluate = |which: &str| {
        let done = run.eval(&["--no-untrained", "--checkpoint", which]);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    evaluate("best");
    let best = read_json(&run.path("reports/step-00000010/report.json"));
    assert_eq!(best["checkpoint_step"], 10);
    let note = best["notes"][0].as_str().expect("a note");
    assert!(note.contains("checkpoint after step 10 of 30"), "{note}");
    evaluate("newest");
    let newest = read_json(&run.path("reports/step-00000020/report.json"));
    assert_ne!(newest["reconstruction"], best["reconstruction"]);
    assert!(!run.path("reports/report.json").exists());
    // as a model of its own
    saved::save(&first, 7, &run.path("model")).unwrap();
    let whole = run.report(&["--no-untrained"]);
    assert!(whole.get("checkpoint_step").is_none());
    for section in ["reconstruction", "sparsity", "toolkits", "top_n"] {
        assert_eq!(best[section], whole[section], "{section}");
    }
}

#[test]
fn a_checkpoint_that_is_not_of_a_model_is_refused() {
    let run = Run::new(Preset::Default);
    save(&run, 10, 7, None);
    let message = run.refused(&["--checkpoint", "best"]);
    assert!(message.contains("none is the best"), "{message}");
    let message = run.refused(&["--checkpoint", "11"]);
    assert!(
        message.contains("there is no checkpoint of step 11"),
        "{message}"
    );
    // right checksums, other content
    let target = run.path("checkpoint/step-00000010");
    let reseal = |name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        save(&run, 10, 7, None);
        let staging = sealed::staging(&target).unwrap();
        for entry in std::fs::read_dir(&target).unwrap().flatten() {
            if entry.file_name() != sealed::SUMS_FILE {
                std::fs::copy(entry.path(), staging.join(entry.file_name())).unwrap();
            }
        }
        let path = staging.join(name);
        std::fs::write(&path, change(std::fs::read(&path).unwrap())).unwrap();
        sealed::seal(&staging, &target).unwrap();
        run.refused(&["--checkpoint", "newest"])
    };
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let message = reseal(MODEL_FILE, &cut);
    assert!(message.contains("not a record of this model"), "{message}");
    let other = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        text.replace("\"n_latents\": 30", "\"n_latents\": 31")
            .into_bytes()
    };
    let message = reseal(saved::CONFIG_FILE, &other);
    assert!(
        message.contains("W_dec") && message.contains("[31, 12]"),
        "{message}"
    );
    std::fs::write(target.join(MODEL_FILE), "x").unwrap();
    let message = run.refused(&["--checkpoint", "newest"]);
    assert!(message.contains("changed or damaged"), "{message}");
}
