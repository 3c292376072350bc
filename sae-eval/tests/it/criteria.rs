//! The report's section "How well latents tell classes".

use serde_json::Value;

use super::{CLASSES, Run, WIDTH, label};
use sae_model::Preset;

fn metric<'a>(criteria: &'a Value, name: &str) -> &'a Value {
    let metrics = criteria["metrics"].as_array().expect("metrics");
    let found = metrics.iter().find(|metric| metric["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {criteria}"))
}

/// Synthetic training rows.
fn rows(count: usize) -> Vec<f32> {
    let source = sae_data::synthetic::Synthetic {
        width: WIDTH,
        concepts: 20,
        active: 3,
        noise: 0.05,
        seed: 2,
    };
    source.rows(count)
}

/// Writes 1,200 training rows, about a quarter of them per class: enough for all classes to be judged.
fn more_rows(run: &Run) {
    run.write_rows("train.safetensors", &rows(1200), true);
}

/// Removes the zero-shot head from the run's config.
fn without_head(run: &Run) {
    let config = std::fs::read_to_string(run.path("config.toml")).expect("a config");
    let bare: Vec<&str> = config
        .lines()
        .filter(|line| !line.starts_with("class_"))
        .collect();
    std::fs::write(run.path("config.toml"), bare.join("\n")).expect("written");
}

#[test]
fn every_metric_is_within_its_interval_and_repeats() {
    let run = Run::new(Preset::Default);
    more_rows(&run);
    let criteria = run.report(&["--batch-size", "7"])["criteria"].take();
    assert_eq!(
        criteria["per_class"].as_array().map(Vec::len),
        Some(CLASSES)
    );
    assert_eq!(criteria["train"]["rows"], 1200);
    for metric in criteria["metrics"].as_array().expect("metrics") {
        let [low, value, high] =
            ["low", "value", "high"].map(|key| metric[key].as_f64().expect("a number"));
        assert!(low <= value && value <= high, "{metric}");
        assert!((0.0..=1.0).contains(&value), "{metric}");
    }
    // Neither the choice of latents nor the draws depend on batches, threads, or the pass that saw the training rows.
    let again = run.report(&["--no-untrained", "--threads", "1"])["criteria"].take();
    assert_eq!(again, criteria);
    run.write_config("");
    without_head(&run);
    let headless = run.report(&[]);
    assert!(headless["top_n"].is_null());
    assert_eq!(headless["criteria"]["metrics"], criteria["metrics"]);
    assert_eq!(
        headless["criteria"]["per_class"][1]["class"], "1",
        "without names its number"
    );
}

/// A label is the largest of the first columns, so a probe of five columns must do better than chance.
#[test]
fn probes_of_the_activations_find_what_labels_are_made_of() {
    let run = Run::new(Preset::Default);
    more_rows(&run);
    let criteria = run.report(&[])["criteria"].take();
    let five = metric(&criteria, "activations_probe_5_balanced_accuracy");
    assert!(five["low"].as_f64() > Some(0.75), "{five}");
    let one = metric(&criteria, "activations_probe_1_balanced_accuracy");
    assert!(one["value"].as_f64() < five["value"].as_f64());
    let rows: Vec<f32> =
        sae_data::ActivationData::open(&run.path("heldout.safetensors"), &Default::default())
            .and_then(|data| data.read(0..100))
            .expect("rows");
    for (class, entry) in criteria["per_class"]
        .as_array()
        .expect("classes")
        .iter()
        .enumerate()
    {
        let of = rows.chunks(WIDTH).filter(|row| label(row) == class).count();
        assert_eq!(entry["rows"], of);
    }
}

#[test]
fn it_says_why_there_is_nothing() {
    let run = Run::new(Preset::Default);
    let rows = rows(300);
    run.write_rows("train.safetensors", &rows, true);
    let report = run.report(&[]);
    let reason = report["criteria_missing"].as_str().expect("a reason");
    assert!(reason.contains("100 sampled training rows"), "{reason}");
    assert!(report["criteria"].is_null());
    run.write_rows("train.safetensors", &rows, false);
    without_head(&run);
    assert_eq!(
        run.report(&[])["criteria_missing"],
        "the data has no labels"
    );
}
