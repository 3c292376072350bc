//! Runs that start from a saved model.

use std::path::Path;

use burn::tensor::Device;
use sae_data::{ActivationData, Options};
use sae_model::saved;
use sae_train::Trainer;

use crate::{WEIGHTS, WIDTH, Workspace, recorded, same_model, wait_for_steps};

/// A learning rate of zero.
const STILL: [&str; 2] = ["--set", "training.lr=0.0"];

fn bytes(run: &Path, name: &str) -> Vec<u8> {
    std::fs::read(run.join(name)).unwrap()
}

/// The exit code and the message of a run that cannot start.
fn refused(w: &Workspace, arguments: &[&str]) -> (Option<i32>, String) {
    let output = w.train(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(message.lines().count(), 1, "{message}");
    (output.status.code(), message)
}

/// The message of a run from `model` that cannot start.
fn refused_from(w: &Workspace, model: &Path, more: &[&str]) -> String {
    let from = ["--from", model.to_str().unwrap(), "--set", "run=second"];
    let (code, message) = refused(w, &[&from[..], more].concat());
    assert_eq!(code, Some(2), "{message}");
    assert!(!w.path("runs/second").exists());
    message
}

#[test]
fn with_a_learning_rate_of_zero_the_model_stays_as_it_is() {
    let w = Workspace::new();
    for (name, set) in [
        ("default", vec![]),
        ("paper", vec!["model.preset=paper"]),
        ("relu", vec!["model.architecture=relu"]),
        ("topk", vec!["model.architecture=topk", "model.k=3"]),
        ("gated", vec!["model.architecture=gated"]),
        ("jumprelu", vec!["model.architecture=jumprelu"]),
        ("mlp_sparsemax", vec!["model.architecture=mlp_sparsemax"]),
    ] {
        let set: Vec<&str> = set.into_iter().flat_map(|set| ["--set", set]).collect();
        let first = w.trained(name, &set);
        // the config names neither the architecture nor its switches
        let from = ["--from", first.to_str().unwrap()];
        let still = w.trained(&format!("{name}-still"), &[&from[..], &STILL].concat());
        for file in [WEIGHTS, "model/cfg.json"] {
            assert!(bytes(&still, file) == bytes(&first, file), "{name}: {file}");
        }
        let fvu = recorded(&still, "held_out", "fvu");
        assert_eq!(
            fvu.first(),
            recorded(&first, "held_out", "fvu").last(),
            "{name}"
        );
    }
}

#[test]
fn switches_come_from_the_model_and_not_from_the_data() {
    let w = Workspace::new();
    let set = [
        "--set",
        "model.scale=1.3",
        "--set",
        "model.norm_exponent=1.5",
        "--set",
        "model.pre_bias=true",
    ];
    let first = w.trained("first", &set);
    let made_of = saved::load_config(&first.join("model")).unwrap().model;
    // data of another scale, for which other switches would be chosen
    let rows = crate::SOURCE.rows(1200);
    let wide: Vec<f32> = rows.iter().map(|x| 7.0 * x).collect();
    w.write_rows("train.safetensors", &wide[..1000 * WIDTH], WIDTH);
    w.write_rows("heldout.safetensors", &wide[1000 * WIDTH..], WIDTH);
    let model = first.join("model");
    let output = w.train(&["--from", model.to_str().unwrap(), "--set", "run=second"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let second = w.path("runs/second");
    let now = saved::load_config(&second.join("model")).unwrap().model;
    assert_eq!(now, made_of);
    assert_ne!(bytes(&second, WEIGHTS), bytes(&first, WEIGHTS));
    let provenance: serde_json::Value =
        serde_json::from_slice(&bytes(&second, "provenance.json")).unwrap();
    let sum = sae_run::sealed::checksum(&first.join(WEIGHTS)).unwrap();
    assert_eq!(provenance["from"]["blake3"], sum);
    assert!(
        text.contains(&sum) && text.contains("first/model"),
        "{text}"
    );
    // what it started from is kept
    assert_eq!(
        bytes(&second, "start/sae.safetensors"),
        bytes(&first, WEIGHTS)
    );
    let text = String::from_utf8(bytes(&second, "config.toml")).unwrap();
    assert!(
        text.contains("scale = 1.3") && text.contains("norm_exponent = 1.5"),
        "{text}"
    );
}

#[test]
fn it_goes_on_without_the_model_as_if_nothing_had_happened() {
    let w = Workspace::new();
    let first = w.trained("first", &[]);
    let from = ["--from", first.to_str().unwrap()];
    let long = [
        "--set",
        "training.steps=200",
        "--set",
        "training.checkpoint_every=7",
    ];
    let whole = w.trained("whole", &[&from[..], &long].concat());
    let mut running = w.start(&[&from[..], &long, &["--set", "run=cut"]].concat());
    wait_for_steps(&w.path("runs/cut"), 30);
    running.kill().unwrap();
    running.wait().unwrap();
    let elsewhere = w.path("moved");
    std::fs::rename(&first, &elsewhere).unwrap();
    let cut = w.trained("cut", &[&long[..], &["--resume"]].concat());
    same_model(&whole, &cut);
    assert_eq!(
        recorded(&whole, "train", "loss"),
        recorded(&cut, "train", "loss")
    );
    // before its first checkpoint it begins again, from the same model
    std::fs::remove_dir_all(cut.join("checkpoint")).unwrap();
    std::fs::remove_dir_all(cut.join("model")).unwrap();
    same_model(
        &whole,
        &w.trained("cut", &[&long[..], &["--resume"]].concat()),
    );
    // the same command as at the start, and the model at its new place
    same_model(
        &whole,
        &w.trained("cut", &[&from[..], &long, &["--resume"]].concat()),
    );
    let moved = ["--from", elsewhere.to_str().unwrap()];
    same_model(
        &whole,
        &w.trained("cut", &[&moved[..], &long, &["--resume"]].concat()),
    );
    another_model_is_refused(&w, &long, &moved);
}

/// The run `cut` was started from the model `first`, which lies at `moved` now.
fn another_model_is_refused(w: &Workspace, long: &[&str], moved: &[&str]) {
    // another model, or one where there was none
    let other = w.trained("other", &["--set", "seed=1"]);
    let other = [
        "--from",
        other.to_str().unwrap(),
        "--resume",
        "--set",
        "run=cut",
    ];
    let (code, message) = refused(w, &[&other[..], long].concat());
    assert_eq!(code, Some(3), "{message}");
    assert!(
        message.contains("moved") || message.contains("first/model"),
        "{message}"
    );
    assert!(message.contains("other/model"), "{message}");
    let (code, message) = refused(
        w,
        &[
            moved,
            &["--resume", "--set", "run=other", "--set", "seed=1"],
        ]
        .concat(),
    );
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("--from: (absent) -> "), "{message}");
}

#[test]
fn what_does_not_agree_is_named_before_anything_is_written() {
    let w = Workspace::new();
    let first = w.trained("first", &["--set", "model.scale=1.3"]);
    let with = |more: &[&str]| refused_from(&w, &first, more);
    for (set, theirs) in [
        ("model.scale=0.5", "has 1.3"),
        ("model.n_latents=65", "has 64"),
        ("model.architecture=topk", "has \"attention\""),
        ("model.preset=paper", "has \"default\""),
        ("model.query_projection=true", "has false"),
        ("model.init_concepts=kaiming", "has \"unit\""),
        ("model.k=3", "no use for this key"),
        ("training.lr=-1.0", "learning rate"),
    ] {
        let message = with(&["--set", set]);
        assert!(message.contains(theirs), "{message}");
        let key = set.split_once('=').unwrap().0;
        assert!(message.contains(key), "{message}");
        assert!(
            !theirs.starts_with("has") || message.contains("first/model"),
            "{message}"
        );
    }
    what_has_no_model_is_named(&w, &first);
}

fn what_has_no_model_is_named(w: &Workspace, first: &Path) {
    let from = ["--from", first.to_str().unwrap()];
    let with = |more: &[&str]| refused_from(w, first, more);
    // what is the same may be said
    w.trained(
        "same",
        &[
            from[0],
            from[1],
            "--set",
            "model.scale=1.3",
            "--set",
            "model.preset=default",
        ],
    );
    w.write_rows("wide.safetensors", &[0.5; 100 * 8], 8);
    let wide = format!(
        "data.train={:?}",
        w.path("wide.safetensors").display().to_string()
    );
    let message = with(&["--set", &wide, "--set", "data.held_out={ fraction = 0.5 }"]);
    assert!(
        message.contains("width 8") && message.contains("takes width 24"),
        "{message}"
    );
    // no model
    for (path, expected) in [
        ("none", "no such directory"),
        ("runs", "no saved model"),
        (
            "runs/first/checkpoint/step-00000030",
            "this is a checkpoint",
        ),
    ] {
        let path = w.path(path);
        let (code, message) = refused(
            w,
            &["--from", path.to_str().unwrap(), "--set", "run=second"],
        );
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let zero = refused(w, &["--set", "run=second", STILL[0], STILL[1]]);
    assert!(zero.1.contains("training.lr = 0"), "{}", zero.1);
    // a damaged one
    std::fs::write(first.join("model/cfg.json"), "{}").unwrap();
    assert!(with(&[]).contains("changed or damaged"));
    std::fs::remove_dir_all(first.join("model")).unwrap();
    assert!(with(&[]).contains("has no trained model yet"));
}

#[test]
fn a_trainer_starts_from_a_model_as_a_run_does() {
    let w = Workspace::new();
    let first = w.trained("first", &[]);
    let sae = saved::load(&first.join("model"), &Device::flex()).unwrap();
    let data = ActivationData::open(&w.path("train.safetensors"), &Options::default()).unwrap();
    let trainer = |lr: f64| {
        Trainer::starting_from(&sae, 30, 50)
            .set("training.lr", lr)
            .set("training.warmup_steps", 5)
    };
    let same = |ours: &sae_model::Sae, theirs: &sae_model::Sae| {
        let values = |sae: &sae_model::Sae| sae.parameters.to_data();
        assert_eq!(ours.config(), theirs.config());
        for ((name, ours), (_, theirs)) in values(ours).into_iter().zip(values(theirs)) {
            assert_eq!(ours, theirs, "{name}");
        }
    };
    same(&trainer(0.0).fit(&data).unwrap(), &sae);
    let second = w.trained("second", &["--from", first.to_str().unwrap()]);
    let second = saved::load(&second.join("model"), &Device::flex()).unwrap();
    same(&trainer(3e-3).fit(&data).unwrap(), &second);
    let wrong = trainer(1.0).set("model.scale", 9.0).fit(&data).unwrap_err();
    assert!(wrong.to_string().starts_with("model.scale = 9"), "{wrong}");
}
