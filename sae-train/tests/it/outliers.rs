//! Rows of huge norm: with the limit, a run is the same as without these rows; without the limit, they do not change
//! the scale.

use crate::{SOURCE, WEIGHTS, WIDTH, Workspace, forget, recorded, same_model};

/// The usual data with three rows scaled by a thousand, and the data without these rows.
fn workspaces() -> [Workspace; 2] {
    let huge = [5, 400, 999];
    let rows = SOURCE.rows(1200);
    let all: Vec<f32> = rows
        .chunks(WIDTH)
        .enumerate()
        .flat_map(|(i, row)| {
            let times = if huge.contains(&i) { 1000.0 } else { 1.0 };
            row.iter().map(move |x| x * times)
        })
        .collect();
    let without = |rows: &[f32]| -> Vec<f32> {
        let kept = rows.chunks(WIDTH).enumerate();
        kept.filter(|(i, _)| !huge.contains(i))
            .flat_map(|(_, row)| row.to_vec())
            .collect()
    };
    [all.clone(), without(&all)].map(|rows| {
        let w = Workspace::new();
        let (train, held_out) = rows.split_at(rows.len() - 200 * WIDTH);
        w.write_rows("train.safetensors", train, WIDTH);
        w.write_rows("heldout.safetensors", held_out, WIDTH);
        w
    })
}

fn weights(run: &std::path::Path) -> Vec<u8> {
    std::fs::read(run.join(WEIGHTS)).unwrap()
}

fn config(run: &std::path::Path) -> toml::Table {
    let text = std::fs::read_to_string(run.join("config.toml")).unwrap();
    text.parse().unwrap()
}

#[test]
fn rows_of_huge_norm_are_left_out_said_and_recorded() {
    let [with, without] = workspaces();
    let output = with.train(&["--set", "run=one"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("left out: 3 of 1000 training rows (0.300 %) and 0 of 200 held-out rows (0.000 %), of norms above ")
            && text.contains(", 10."),
        "{text}"
    );
    assert!(text.contains("997 training rows, 200 held out"), "{text}");
    let one = with.path("runs/one");
    let limit = config(&one)["data"]["max_norm"].as_float().unwrap();
    let provenance = std::fs::read_to_string(one.join("provenance.json")).unwrap();
    let provenance: serde_json::Value = serde_json::from_str(&provenance).unwrap();
    assert_eq!(provenance["train"]["left_out"], 3);
    // the same bytes as on the other rows alone, if these get the same limit
    let set = format!("data.max_norm={limit}");
    let other = without.trained("one", &["--set", &set]);
    assert!(weights(&one) == weights(&other), "other bytes");
    // and the same after an interruption
    forget(&one, 30);
    std::fs::remove_dir_all(one.join("model")).unwrap();
    let again = with.trained("one", &["--resume"]);
    same_model(&other, &again);
    // a different limit makes a different run
    let output = with.train(&[
        "--set",
        "run=one",
        "--resume",
        "--set",
        "data.max_norm=none",
    ]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("data.max_norm: "), "{message}");
}

#[test]
fn without_a_limit_huge_rows_set_no_scale() {
    let [with, without] = workspaces();
    let with = with.trained("all", &["--set", "data.max_norm=none"]);
    let without = without.trained("all", &["--set", "data.max_norm=none"]);
    let scale = |run| config(run)["model"]["input_scale"].as_float().unwrap();
    assert!((scale(&with) / scale(&without) - 1.0).abs() < 1e-12);
    assert_eq!(config(&with)["data"]["max_norm"].as_str(), Some("none"));
    // both runs record the same number of validations
    let fvu = |run: &std::path::Path| recorded(run, "held_out", "fvu");
    assert_eq!(fvu(&with).len(), fvu(&without).len());
}
