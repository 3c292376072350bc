//! The records of a run, and the checks of its data: validations, terms of the loss, labels, classes, paths.

use std::process::Command;

use sae_data::ActivationData;
use sae_model::{Mode, saved};

use crate::{WIDTH, Workspace, recorded, same_model};

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

/// FVU of a run's model on these rows, in f64, `sum ||x - x_hat||^2 / sum ||x - mean(x)||^2`.
fn fvu_of(run: &std::path::Path, rows: &[f32]) -> f64 {
    use burn::tensor::{Device, Tensor, TensorData};
    let device = Device::flex();
    let sae = saved::load(&run.join("model"), &device).unwrap();
    let data = TensorData::new(rows.to_vec(), [rows.len() / WIDTH, WIDTH]);
    let x_hat = sae
        .forward(Tensor::from_data(data, &device), &Mode::Inference)
        .x_hat;
    let x_hat: Vec<f32> = x_hat.into_data().iter().collect();
    let n = (rows.len() / WIDTH) as f64;
    let mean: Vec<f64> = (0..WIDTH)
        .map(|j| {
            rows.iter()
                .skip(j)
                .step_by(WIDTH)
                .map(|x| f64::from(*x))
                .sum::<f64>()
                / n
        })
        .collect();
    let square = |x: f64| x * x;
    let pairs = rows.iter().zip(&x_hat);
    let error: f64 = pairs
        .map(|(x, y)| square(f64::from(*x) - f64::from(*y)))
        .sum();
    let total = rows
        .iter()
        .enumerate()
        .map(|(i, x)| square(f64::from(*x) - mean[i % WIDTH]));
    error / total.sum::<f64>()
}

#[test]
fn a_validation_looks_at_a_fixed_sample_and_the_end_at_everything() {
    let w = Workspace::new();
    let set = [
        "--set",
        "training.validate_rows=60",
        "--set",
        "data.check_rows=20",
    ];
    let output = w.train(&set);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("held out (60 of 200 rows) at step 10: reconstruction_loss"),
        "{text}"
    );
    assert!(
        text.contains("held out (all 200 rows) at step 30: reconstruction_loss"),
        "{text}"
    );
    let run = w.path("runs/small");
    let held_out =
        ActivationData::open(&w.path("heldout.safetensors"), &Default::default()).unwrap();
    let sample = held_out.spread(60);
    let of_sample = fvu_of(&run, &sample.read(0..60).unwrap());
    let of_all = fvu_of(&run, &held_out.read(0..200).unwrap());
    assert!(
        (of_sample / of_all - 1.0).abs() > 1e-3,
        "{of_sample} {of_all}"
    );
    let fvu = recorded(&run, "held_out", "fvu");
    assert_eq!(fvu.len(), 3);
    assert!(
        (fvu[2] / of_sample - 1.0).abs() < 1e-5,
        "{} {of_sample}",
        fvu[2]
    );
    let all = recorded(&run, "held_out_all", "fvu");
    assert_eq!(
        (all.len(), recorded(&run, "held_out_all", "rows")),
        (1, vec![200.0])
    );
    assert!((all[0] / of_all - 1.0).abs() < 1e-5, "{} {of_all}", all[0]);
    assert_eq!(recorded(&run, "held_out_all", "step"), [30.0]);
    // after a resume, the last records are there again, once
    std::fs::remove_dir_all(run.join("checkpoint/step-00000030")).unwrap();
    w.trained("small", &with(&set, &["--resume"]));
    assert_eq!(recorded(&run, "held_out_all", "fvu"), all);
    assert_eq!(recorded(&run, "held_out", "fvu"), fvu);
    // if validations use all rows, there is no second record
    let run = w.trained("all", &["--set", "training.validate_rows=0"]);
    assert!(recorded(&run, "held_out_all", "fvu").is_empty());
    let last = recorded(&run, "held_out", "fvu")[2];
    assert!((last / fvu_of(&run, &held_out.read(0..200).unwrap()) - 1.0).abs() < 1e-5);
}

#[test]
fn each_term_of_the_loss_has_its_own_name() {
    let w = Workspace::new();
    for (architecture, terms) in [
        ("attention", &[][..]),
        ("relu", &["sparsity_loss"]),
        ("topk", &["auxiliary_loss"]),
        ("gated", &["sparsity_loss", "auxiliary_loss"]),
        ("matryoshka", &["nested_loss", "auxiliary_loss"]),
    ] {
        let set = format!("model.architecture={architecture}");
        let more = ["--set", &set, "--set", "training.dead_window=2"];
        let more = match architecture {
            "topk" | "matryoshka" => with(&more, &["--set", "model.k=2"]),
            _ => more.to_vec(),
        };
        let output = w.train(&with(&more, &["--set", &format!("run={architecture}")]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let run = w.path("runs").join(architecture);
        let loss = recorded(&run, "train", "loss");
        let mut sum = recorded(&run, "train", "reconstruction_loss");
        for term in terms {
            let values = recorded(&run, "train", term);
            assert!(values.iter().any(|v| *v > 0.0), "{architecture} {term}");
            sum.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        }
        for (loss, sum) in loss.iter().zip(&sum) {
            assert!(
                (loss - sum).abs() <= 1e-5 * loss,
                "{architecture}: {loss} {sum}"
            );
        }
        let lines = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        for term in ["sparsity_loss", "auxiliary_loss", "nested_loss"] {
            assert_eq!(
                lines.contains(term),
                terms.contains(&term),
                "{architecture} {term}"
            );
            assert_eq!(text.contains(term), terms.contains(&term), "{text}");
        }
        for line in lines.lines().filter(|line| line.contains("\"held_out\"")) {
            assert!(
                !line.contains("\"loss\"") && line.contains("\"reconstruction_loss\""),
                "{line}"
            );
        }
        assert!(text.contains("at step 30: reconstruction_loss "), "{text}");
    }
}

/// Writes a file of labels, one per row.
fn write_labels(w: &Workspace, name: &str, labels: &[i64]) {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    let bytes: Vec<u8> = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![labels.len()], &bytes).unwrap();
    let file = safetensors::serialize([("labels", view)], None).unwrap();
    std::fs::write(w.path(name), file).unwrap();
}

fn key(w: &Workspace, key: &str, file: &str) -> String {
    format!("{key}={:?}", w.path(file).display().to_string())
}

#[test]
fn labels_may_be_given_to_a_run_that_has_begun() {
    let w = Workspace::new();
    let whole = w.trained("whole", &[]);
    let run = w.trained("later", &[]);
    crate::forget(&run, 30);
    std::fs::remove_dir_all(run.join("model")).unwrap();
    write_labels(&w, "train_labels.safetensors", &[1; 1000]);
    write_labels(&w, "held_labels.safetensors", &[0; 200]);
    let train = key(&w, "data.labels", "train_labels.safetensors");
    let held_out = key(&w, "data.held_out_labels", "held_labels.safetensors");
    let labels = ["--set", &train, "--set", &held_out, "--resume"];
    same_model(&whole, &w.trained("later", &labels));
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("train_labels.safetensors"), "{config}");
}

#[test]
fn wrong_class_embeddings_are_found_before_training() {
    let w = Workspace::new();
    write_labels(&w, "train_labels.safetensors", &[1; 1000]);
    write_labels(&w, "held_labels.safetensors", &[2; 200]);
    w.write_rows("narrow.safetensors", &[0.5; 3 * 5], 5);
    w.write_rows("few.safetensors", &[0.5; 2 * WIDTH], WIDTH);
    let train = key(&w, "data.labels", "train_labels.safetensors");
    let held_out = key(&w, "data.held_out_labels", "held_labels.safetensors");
    for (file, expected) in [
        ("narrow.safetensors", "width 5"),
        ("few.safetensors", "has label 2"),
        ("none.safetensors", "no such file"),
    ] {
        let head = key(&w, "data.class_embeddings", file);
        let output = w.train(&["--set", &train, "--set", &held_out, "--set", &head]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("data.class_embeddings"), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!w.path("runs").exists(), "nothing is written");
    }
}

#[test]
fn a_run_can_be_read_from_anywhere() {
    let w = Workspace::new();
    let text = std::fs::read_to_string(w.path("small.toml")).unwrap();
    let here = format!("{}/", w.path("").display()).replace("//", "/");
    let relative = text.replace(&here, "");
    assert!(
        relative.contains("train = \"train.safetensors\""),
        "{relative}"
    );
    std::fs::write(w.path("small.toml"), relative).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg("small.toml")
        .current_dir(w.path(""))
        .output();
    assert!(output.unwrap().status.success());
    let config = std::fs::read_to_string(w.path("runs/small/config.toml")).unwrap();
    for (key, file) in [
        ("train", "train.safetensors"),
        ("held_out", "heldout.safetensors"),
        ("runs_dir", "runs"),
    ] {
        let line = format!("{key} = {:?}", w.path(file).display().to_string());
        assert!(config.contains(&line), "{config}");
    }
    // and the run continues from another directory
    let resolved = w.path("runs/small/config.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_sae-train"))
        .arg(&resolved)
        .arg("--resume")
        .current_dir("/")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
}
