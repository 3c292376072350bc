//! The data of a report: the run's own, wherever it lies now, and data that was added later.

use sae_data::ActivationData;
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

#[test]
fn rows_beyond_the_limit_are_in_a_section_of_their_own() {
    let run = Run::new(Preset::Default);
    let rows = ActivationData::open(&run.path("heldout.safetensors"), &Default::default())
        .unwrap()
        .read(0..100)
        .unwrap();
    let without = run.report(&[]);
    let huge = [&rows[..5 * WIDTH], &[500.0; WIDTH], &rows[5 * WIDTH..]].concat();
    run.write_rows("heldout.safetensors", &huge, true);
    // a run older than the limit uses all rows
    let old = run.report(&[]);
    assert!(old["all_rows"].is_null());
    assert_eq!(old["held_out"]["rows"], 101);
    run.write_config("max_norm = \"10x median\"");
    let report = run.report(&[]);
    for section in ["reconstruction", "sparsity"] {
        let numbers = |report: &serde_json::Value| -> Vec<f64> {
            let metrics = report[section].as_array().unwrap().iter();
            metrics.map(|m| m["value"].as_f64().unwrap()).collect()
        };
        for (a, b) in numbers(&report).iter().zip(numbers(&without)) {
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} is not {b}");
        }
    }
    let section = &report["all_rows"];
    assert_eq!(section["left_out"], 1);
    assert_eq!(report["held_out"]["left_out"], 1);
    let of_all = |report: &serde_json::Value, section: &str, name: &str| -> f64 {
        let metrics = match section {
            "all_rows" => &report["all_rows"]["metrics"],
            section => &report[section],
        };
        let metrics = metrics.as_array().unwrap();
        let metric = metrics.iter().find(|m| m["name"] == name).unwrap();
        metric["value"].as_f64().unwrap()
    };
    for (name, theirs) in [
        ("fvu_all_rows", "fvu"),
        (
            "variance_share_top_0.1_percent",
            "variance_share_top_0.1_percent",
        ),
    ] {
        let (a, b) = (
            of_all(&report, "all_rows", name),
            of_all(&old, "reconstruction", theirs),
        );
        assert!((a - b).abs() < 1e-9 * b, "{name}: {a} is not {b}");
    }
    let share = of_all(&report, "all_rows", "variance_share_top_0.1_percent");
    assert!(share > 0.9 && share < 1.0, "{share}");
    let markdown = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
    assert!(markdown.contains("1 held-out rows have a norm above"));
}
