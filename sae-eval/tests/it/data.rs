//! Which data a report is about: the run's own, wherever it lies, and what was added later.

use sae_model::Preset;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{Run, WIDTH, label};

#[test]
fn another_split_of_the_same_file_is_refused() {
    let run = Run::new(Preset::Default);
    let config = |seed: u64| {
        let text = format!(
            "[data]\ntrain = {:?}\n[data.held_out]\nfraction = 0.2\nseed = {seed}\n",
            run.path("train.safetensors")
        );
        std::fs::write(run.path("config.toml"), text).unwrap();
    };
    let data = sae_data::ActivationData::open(&run.path("train.safetensors"), &Default::default())
        .unwrap();
    let (train, held_out) = data.split_fraction(0.2, 0).unwrap();
    let provenance = serde_json::json!({
        "train": train.fingerprint().unwrap(),
        "held_out": held_out.fingerprint().unwrap(),
    });
    std::fs::write(run.path("provenance.json"), provenance.to_string()).unwrap();
    config(1);
    let message = run.refused(&[]);
    assert!(
        message.contains("data.train is not the data that the run was trained with")
            && message.contains("rows")
            && message.lines().count() == 1,
        "{message}"
    );
    config(0);
    run.report(&[]);
}

#[test]
fn data_that_moved_and_labels_that_came_later_are_named_by_options() {
    let run = Run::new(Preset::Default);
    let whole = run.report(&[]);
    for (name, moved) in [
        ("train.safetensors", "a.safetensors"),
        ("heldout.safetensors", "b.safetensors"),
        ("head.safetensors", "c.safetensors"),
        ("names.json", "d.json"),
    ] {
        std::fs::rename(run.path(name), run.path(moved)).unwrap();
    }
    let text = format!(
        "[data]\ntrain = {:?}\nheld_out = {:?}\n",
        run.path("train.safetensors"),
        run.path("heldout.safetensors")
    );
    std::fs::write(run.path("config.toml"), text).unwrap();
    let path = |name: &str| run.path(name).display().to_string();
    let (a, b, c, d) = (
        path("a.safetensors"),
        path("b.safetensors"),
        path("c.safetensors"),
        path("d.json"),
    );
    let moved = ["--train", &a, "--held-out", &b];
    let head = ["--class-embeddings", &c, "--class-names", &d];
    let report = run.report(&[&moved[..], &head, &["--threads", "1"]].concat());
    assert_eq!(report["top_n"], whole["top_n"]);
    // labels in files of their own, for data that has none
    let mut labels = Vec::new();
    for name in ["a.safetensors", "b.safetensors"] {
        let file = sae_data::ActivationData::open(&run.path(name), &Default::default()).unwrap();
        let rows: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
        let bytes: Vec<u8> = rows.chunks(WIDTH).map(|row| label(row) as u8).collect();
        let view = TensorView::new(Dtype::U8, vec![bytes.len()], &bytes).unwrap();
        let labelled = format!("labels_{name}");
        std::fs::write(
            run.path(&labelled),
            safetensors::serialize([("labels", view)], None).unwrap(),
        )
        .unwrap();
        labels.push(path(&labelled));
        run.write_rows(name, &rows, false);
    }
    let labels = ["--labels", &labels[0], "--held-out-labels", &labels[1]];
    let report = run.report(&[&moved[..], &head, &labels].concat());
    assert_eq!(report["top_n"], whole["top_n"]);
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let run = Run::new(Preset::Default);
    assert!(run.refused(&["--fire-threshold", "0.1"]).contains(
        "--fire-threshold 0.1: ranking by firing has no threshold; add --rank-by threshold"
    ));
    let nan = ["--rank-by", "threshold", "--fire-threshold", "NaN"];
    assert!(run.refused(&nan).contains("must be a number"));
    let text = format!("[data]\ntrain = {:?}\n", run.path("train.safetensors"));
    std::fs::write(run.path("config.toml"), text).unwrap();
    assert!(
        run.refused(&["--held-out", "x.npy"])
            .contains("--held-out x.npy: this run held out a part of data.train")
    );
}
