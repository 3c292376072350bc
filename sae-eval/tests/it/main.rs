//! Runs the `sae-eval` binary on a run directory made by hand, and compares its numbers with sums written out here.
#![allow(clippy::unwrap_used)] // tests may unwrap

mod checkpoints;
mod compare;
mod criteria;
mod data;
mod encode;
mod encode_formats;
mod encode_output;
mod exchange;
mod neuronpedia;
mod other;
mod page;
mod processes;
mod ranking;
mod recovery;
mod shown;
#[cfg(feature = "tail")]
mod tail;
mod trained;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use sae_data::synthetic::Synthetic;
use sae_model::architectures::Attention;
use sae_model::{Mode, Preset, Sae, SaeConfig, saved};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

const WIDTH: usize = 12;
const CLASSES: usize = 4;

struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    /// An untrained model on synthetic data; a row's label is the largest of its first four columns.
    fn new(preset: Preset) -> Self {
        let run = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        let source = Synthetic {
            width: WIDTH,
            concepts: 20,
            active: 3,
            noise: 0.05,
            seed: 1,
        };
        let rows = source.rows(500);
        run.write_rows("train.safetensors", &rows[..400 * WIDTH], true);
        run.write_rows("heldout.safetensors", &rows[400 * WIDTH..], true);
        let head: Vec<f32> = (0..CLASSES * WIDTH)
            .map(|i| if i / WIDTH == i % WIDTH { 2.0 } else { 0.0 })
            .collect();
        run.write_rows("head.safetensors", &head, false);
        std::fs::write(run.path("names.json"), r#"["a|b", "<script>", "c", "d"]"#)
            .expect("written");
        run.write_config("");
        let mean = vec![0.1; WIDTH];
        let sae = Sae::init(
            &SaeConfig::new(Attention::from(preset), WIDTH, 30),
            5,
            &mean,
            &Device::flex(),
        );
        saved::save(&sae, 5, &run.path("model")).expect("saved");
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, more: &str) {
        let config = format!(
            "[data]\ntrain = {:?}\nheld_out = {:?}\nclass_embeddings = {:?}\nclass_names = {:?}\n{more}",
            self.path("train.safetensors"),
            self.path("heldout.safetensors"),
            self.path("head.safetensors"),
            self.path("names.json"),
        );
        std::fs::write(self.path("config.toml"), config).expect("written");
    }

    fn write_rows(&self, name: &str, rows: &[f32], labelled: bool) {
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        let n = rows.len() / WIDTH;
        let labels: Vec<u8> = rows.chunks(WIDTH).map(|row| label(row) as u8).collect();
        let mut tensors = vec![(
            "x",
            TensorView::new(Dtype::F32, vec![n, WIDTH], &bytes).expect("a view"),
        )];
        if labelled {
            tensors.push((
                "labels",
                TensorView::new(Dtype::U8, vec![n], &labels).expect("a view"),
            ));
        }
        let file = safetensors::serialize(tensors, None).expect("serialized");
        std::fs::write(self.path(name), file).expect("written");
    }

    fn eval(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sae-eval"))
            .arg(self.dir.path())
            .args(arguments)
            .output()
            .expect("sae-eval runs")
    }

    fn report(&self, arguments: &[&str]) -> Value {
        let output = self.eval(arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        read_json(&self.path("reports/report.json"))
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.eval(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(!self.path("reports").exists());
        String::from_utf8_lossy(&output.stderr).to_string()
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a report")).expect("JSON")
}

/// The index of the largest of the first columns.
fn label(row: &[f32]) -> usize {
    let best = (0..CLASSES).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    best.expect("classes")
}

fn metric(report: &Value, section: &str, name: &str) -> f64 {
    let metrics = report[section].as_array().expect("a section");
    let metric = metrics
        .iter()
        .find(|m| m["name"] == name)
        .expect("the metric");
    assert!(!metric["formula"].as_str().expect("a formula").is_empty());
    metric["value"].as_f64().expect("a number")
}

#[test]
fn metrics_are_those_of_the_whole_held_out_set() {
    let run = Run::new(Preset::Default);
    let report = run.report(&["--batch-size", "7"]);
    // the same numbers, written out from the model's output
    let file =
        sae_data::ActivationData::open(&run.path("heldout.safetensors"), &Default::default())
            .unwrap();
    let x: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
    let sae = saved::load(&run.path("model"), &Device::flex()).unwrap();
    let data = burn::tensor::TensorData::new(x.clone(), [100, WIDTH]);
    let rows = burn::tensor::Tensor::from_data(data, &Device::flex());
    let r = sae.forward(rows, &Mode::Inference);
    let x_hat: Vec<f32> = r.x_hat.into_data().iter().collect();
    let codes = r.encoded.latents.on_host();
    let a: Vec<f32> = codes.to_dense(&Device::flex()).into_data().iter().collect();
    let error: f64 = x
        .iter()
        .zip(&x_hat)
        .map(|(x, y)| f64::from(x - y).powi(2))
        .sum();
    let mean: Vec<f64> = (0..WIDTH)
        .map(|j| {
            x.iter()
                .skip(j)
                .step_by(WIDTH)
                .map(|v| f64::from(*v))
                .sum::<f64>()
                / 100.0
        })
        .collect();
    let centred: f64 = x
        .iter()
        .enumerate()
        .map(|(i, v)| (f64::from(*v) - mean[i % WIDTH]).powi(2))
        .sum();
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} is not {b}");
    close(
        metric(&report, "reconstruction", "mse"),
        error / (100.0 * WIDTH as f64),
    );
    close(metric(&report, "reconstruction", "fvu"), error / centred);
    close(
        metric(&report, "sparsity", "l0_mean"),
        a.iter().filter(|a| **a != 0.0).count() as f64 / 100.0,
    );
    let dead = (0..30)
        .filter(|j| a.iter().skip(*j).step_by(30).all(|a| *a == 0.0))
        .count();
    close(metric(&report, "sparsity", "dead_latents"), dead as f64);
    let rows: u64 = report["l0_histogram"]["counts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(rows, 100);
    assert_eq!(report["schema"], "sae-eval-report");
    assert_eq!(report["schema_version"], 7);
}

#[test]
fn top_n_agrees_with_itself_at_its_ends() {
    let run = Run::new(Preset::Default);
    let report = run.report(&["--top-n", "1,5,30"]);
    let top_n = &report["top_n"];
    // the head reads the label off the activations
    assert_eq!(top_n["original_over_classes"], 1.0);
    let rows = top_n["trained"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["n"].as_str().unwrap()).collect();
    assert_eq!(names, ["1", "5", "30", "all"]);
    // 30 is the whole dictionary
    assert_eq!(rows[2]["on"], rows[3]["on"]);
    assert_eq!(rows[2]["off"], rows[3]["off"]);
    // nothing on: every row gets the same class, which is right for one class of four
    assert_eq!(rows[3]["off"], 0.25);
    // this model is untrained, too, but its pre-bias is not the data's mean, so the numbers may differ
    assert_eq!(top_n["untrained"].as_array().unwrap().len(), 4);
    assert!(run.report(&["--no-untrained"])["top_n"]["untrained"].is_null());
}

#[test]
fn batches_do_not_change_the_report() {
    let run = Run::new(Preset::Paper);
    let mut reports = ["1", "100"].map(|rows| run.report(&["--batch-size", rows]));
    for report in &mut reports {
        report["seconds"] = Value::Null;
        report["peak_memory_bytes"] = Value::Null;
        for section in ["reconstruction", "sparsity", "toolkits"] {
            // products of other sizes round differently
            for metric in report[section].as_array_mut().unwrap() {
                let value = metric["value"].as_f64().unwrap();
                metric["value"] = format!("{value:.5}").into();
            }
        }
    }
    assert_eq!(reports[0], reports[1]);
}

#[test]
fn markdown_escapes_names_from_files() {
    let run = Run::new(Preset::Released);
    run.report(&[]);
    let text = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
    assert!(
        text.contains(r"| a\|b |") && text.contains("| &lt;script> |"),
        "{text}"
    );
    assert!(!text.contains('<'));
}

#[test]
fn names_that_are_markup_change_no_line_of_the_report() {
    let run = Run::new(Preset::Default);
    let lines = |names: &[&str]| {
        let names = serde_json::to_string(names).unwrap();
        std::fs::write(run.path("names.json"), names).unwrap();
        run.report(&["--no-untrained"]);
        let text = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
        assert!(!text.contains(['<', '\u{1b}', '\u{202e}']), "{text}");
        assert!(text.lines().all(|line| line.len() < 5000));
        text.lines().count()
    };
    let long = "x".repeat(100_000);
    let plain = lines(&["a", "b", "c", "d"]);
    assert_eq!(
        lines(&["\n# a", "\u{1b}[2J\u{202e}", &long, "```\n|||"]),
        plain
    );
}

#[test]
fn other_data_than_the_run_was_trained_on_is_refused() {
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
    run.report(&[]);
    std::fs::remove_dir_all(run.path("reports")).unwrap();
    let path = run.path("heldout.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let message = run.refused(&[]);
    assert!(
        message.contains("data.held_out is not the data that the run was trained with"),
        "{message}"
    );
}

#[test]
fn without_labels_there_is_a_report_that_says_so() {
    let run = Run::new(Preset::Default);
    let file = sae_data::ActivationData::open(&run.path("train.safetensors"), &Default::default())
        .unwrap();
    let rows: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
    run.write_rows("train.safetensors", &rows, false);
    let report = run.report(&[]);
    assert!(report["top_n"].is_null());
    assert!(
        report["top_n_missing"]
            .as_str()
            .unwrap()
            .contains("has no labels")
    );
    assert!(metric(&report, "reconstruction", "fvu") > 0.0);
}

#[test]
fn wrong_runs_are_refused_with_a_reason() {
    let run = Run::new(Preset::Default);
    assert!(
        run.refused(&["--device", "abacus"])
            .contains("\"abacus\" is not a device")
    );
    std::fs::write(run.path("names.json"), r#"["only one"]"#).unwrap();
    assert!(run.refused(&[]).contains("1 names for 4 class embeddings"));
    std::fs::write(run.path("names.json"), "{").unwrap();
    assert!(run.refused(&[]).contains("names.json\": not a JSON list"));
    std::fs::write(run.path("names.json"), "[".repeat(100_000)).unwrap();
    assert!(run.refused(&[]).contains("names.json\": not a JSON list"));
    std::fs::write(run.path("names.json"), b"[\"\xff\"]").unwrap();
    assert!(run.refused(&[]).contains("names.json"));
    std::fs::write(run.path("names.json"), vec![b' '; (16 << 20) + 1]).unwrap();
    assert!(
        run.refused(&[])
            .contains("names.json\": longer than 16 MiB")
    );
    std::fs::remove_dir_all(run.path("model")).unwrap();
    assert!(run.refused(&[]).contains("has no trained model yet"));
    std::fs::remove_file(run.path("config.toml")).unwrap();
    assert!(run.refused(&[]).contains("not a run directory"));
}

#[test]
fn a_model_that_was_changed_is_named_and_not_judged() {
    let run = Run::new(Preset::Default);
    let path = run.path("model/cfg.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"scale\": 0.7"), "{text}");
    std::fs::write(&path, text.replace("\"scale\": 0.7", "\"scale\": 1.5")).unwrap();
    let output = run.eval(&[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        message.contains("cfg.json") && message.contains("changed or damaged"),
        "{message}"
    );
    assert!(!run.path("reports").exists());
}
