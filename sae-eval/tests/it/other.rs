//! Evaluation on rows that are not the run's own.

use std::path::Path;

use sae_data::synthetic::Synthetic;
use sae_model::Preset;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::{Run, WIDTH, label, read_json};

/// Rows like those of the run, but others.
fn rows(count: usize, seed: u64) -> Vec<f32> {
    let source = Synthetic {
        width: WIDTH,
        concepts: 20,
        active: 3,
        noise: 0.05,
        seed,
    };
    source.rows(count)
}

/// Evaluates `run` on other rows and returns the report.
fn report_on(run: &Run, data: &str, more: &[&str]) -> Value {
    let (data, output) = (run.path(data), run.path("elsewhere"));
    let arguments = ["--data", text(&data), "--output", text(&output)];
    let done = run.eval(&[&arguments[..], more].concat());
    let message = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{message}");
    assert!(output.join("report.md").is_file());
    assert!(
        !run.path("reports").exists(),
        "the run's own report is left alone"
    );
    read_json(&output.join("report.json"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn other_rows_are_measured_as_held_out_rows_are() {
    let run = Run::new(Preset::Default);
    run.write_rows("train.safetensors", &rows(1200, 2), true);
    run.write_rows("other.safetensors", &rows(150, 3), true);
    let found = report_on(&run, "other.safetensors", &["--no-untrained"]);
    assert_eq!(found["other_data"], true);
    assert_eq!(found["held_out"]["rows"], 150);
    let note = found["notes"][0].as_str().expect("a note");
    assert!(note.contains("not the run's own held-out rows"), "{note}");
    let markdown = std::fs::read_to_string(run.path("elsewhere/report.md")).unwrap();
    assert!(markdown.contains("; 150 rows of "), "{markdown}");
    // the same rows as held-out rows
    std::fs::rename(
        run.path("other.safetensors"),
        run.path("heldout.safetensors"),
    )
    .unwrap();
    let expected = run.report(&["--no-untrained"]);
    assert!(expected.get("other_data").is_none());
    for section in [
        "reconstruction",
        "sparsity",
        "toolkits",
        "top_n",
        "criteria",
        "l0_histogram",
    ] {
        assert!(!expected[section].is_null(), "{section}");
        assert_eq!(found[section], expected[section], "{section}");
    }
}

#[test]
fn sections_about_classes_say_what_they_lack() {
    let run = Run::new(Preset::Default);
    let other = rows(150, 3);
    run.write_rows("other.safetensors", &other, false);
    let found = report_on(&run, "other.safetensors", &[]);
    for section in ["top_n", "criteria"] {
        assert!(found[section].is_null());
        let reason = found[&format!("{section}_missing")]
            .as_str()
            .unwrap()
            .to_string();
        assert!(
            reason.contains("other.safetensors has no labels"),
            "{reason}"
        );
    }
    // labels in a file of their own are those of the other rows
    let labels: Vec<u8> = other.chunks(WIDTH).map(|row| label(row) as u8).collect();
    let view = TensorView::new(Dtype::U8, vec![labels.len()], &labels).unwrap();
    let file = safetensors::serialize([("labels", view)], None).unwrap();
    std::fs::write(run.path("labels.safetensors"), file).unwrap();
    let labels = run.path("labels.safetensors");
    let labels = ["--labels", text(&labels)];
    let labelled = report_on(&run, "other.safetensors", &labels);
    assert_eq!(labelled["top_n"]["original_over_rows"], 1.0);
    // the numbers need no training data, the sections about classes do
    std::fs::remove_file(run.path("train.safetensors")).unwrap();
    let alone = report_on(&run, "other.safetensors", &labels);
    assert_eq!(alone["reconstruction"], found["reconstruction"]);
    assert_eq!(alone["toolkits"], found["toolkits"]);
    assert!(alone.get("train").is_none(), "nothing recorded it");
    for missing in ["top_n_missing", "criteria_missing"] {
        let reason = alone[missing].as_str().unwrap();
        assert!(
            reason.contains("train.safetensors") && reason.contains("no such file"),
            "{reason}"
        );
    }
}

#[test]
fn training_data_that_has_changed_is_not_ranked_on() {
    let run = Run::new(Preset::Default);
    let print = |name: &str| {
        let data = sae_data::ActivationData::open(&run.path(name), &Default::default()).unwrap();
        data.fingerprint().unwrap()
    };
    let provenance = serde_json::json!({
        "train": print("train.safetensors"),
        "held_out": print("heldout.safetensors"),
    });
    std::fs::write(run.path("provenance.json"), provenance.to_string()).unwrap();
    run.write_rows("other.safetensors", &rows(150, 3), true);
    run.write_rows("train.safetensors", &rows(400, 4), true);
    let found = report_on(&run, "other.safetensors", &[]);
    let reason = found["top_n_missing"].as_str().expect("a reason");
    assert!(reason.contains("data.train is not the data"), "{reason}");
    assert_eq!(found["train"], provenance["train"]);
}

#[test]
fn rows_of_the_training_data_are_named_as_such() {
    let run = Run::new(Preset::Default);
    let found = report_on(&run, "train.safetensors", &["--no-untrained"]);
    let notes = found["notes"].to_string();
    assert!(
        notes.contains("shares files with the data that the run was trained on"),
        "{notes}"
    );
    assert_eq!(found["held_out"]["rows"], 400);
}

#[test]
fn rows_beyond_the_limit_of_the_run_are_counted() {
    let run = Run::new(Preset::Default);
    run.write_config("max_norm = 50.0");
    let other = [rows(150, 3), vec![500.0; WIDTH]].concat();
    run.write_rows("other.safetensors", &other, true);
    let found = report_on(&run, "other.safetensors", &["--no-untrained"]);
    assert_eq!(found["held_out"]["left_out"], 1);
    assert_eq!(found["all_rows"]["left_out"], 1);
    run.write_rows("huge.safetensors", &[500.0; 3 * WIDTH], true);
    let (data, output) = (run.path("huge.safetensors"), run.path("out"));
    let message = run.refused(&["--data", text(&data), "--output", text(&output)]);
    assert!(
        message.contains("3 of its 3 rows have a norm above 50"),
        "{message}"
    );
}

#[test]
fn wrong_data_is_refused_in_one_line() {
    let run = Run::new(Preset::Default);
    let (rows, none) = (
        run.path("heldout.safetensors"),
        run.path("none.safetensors"),
    );
    let (output, file) = (run.path("out"), run.path("names.json"));
    let head = run.path("other_head.safetensors");
    let width = run.path("wide.safetensors");
    let view = [0u8; 4 * 5 * 8];
    let view = TensorView::new(Dtype::F32, vec![5, 8], &view).unwrap();
    std::fs::write(&width, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    std::fs::copy(&width, &head).unwrap();
    let output = ["--output", text(&output)];
    for (arguments, expected) in [
        (vec!["--data", text(&none)], "--data = "),
        (vec!["--data", text(&none)], "no such file"),
        (vec!["--data", text(&width)], "have width 8, the model of"),
        (
            vec!["--data", text(&rows), "--tensor", "y"],
            "there is no tensor \"y\"",
        ),
        (
            vec!["--data", text(&rows), "--class-embeddings", text(&head)],
            "data.class_embeddings",
        ),
        (
            vec!["--data", text(&rows), "--labels", text(&none)],
            "none.safetensors",
        ),
    ] {
        let message = run.refused(&[&arguments[..], &output].concat());
        assert!(message.contains(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!run.path("out").exists());
    }
    let message = run.refused(&["--data", text(&rows), "--output", text(&file)]);
    assert!(
        message.contains("names.json: this is not a directory"),
        "{message}"
    );
    let message = run.refused(&["--data", text(&rows)]);
    assert!(message.contains("--output"), "{message}");
    let both = ["--data", text(&rows), "--held-out", text(&rows)];
    assert!(
        run.refused(&[&both[..], &output].concat())
            .contains("cannot be used with")
    );
}

#[test]
fn a_report_that_cannot_be_written_is_printed_anyway() {
    let run = Run::new(Preset::Default);
    let output = run.path("names.json").join("below-a-file");
    let done = run.eval(&["--no-untrained", "--output", text(&output)]);
    assert_eq!(done.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(printed.contains("| fvu |"), "{printed}");
}
