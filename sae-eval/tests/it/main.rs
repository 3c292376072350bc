//! `sae-eval` from the outside: the real binary on a run directory made by hand, its numbers against sums
//! written out here.
#![allow(clippy::unwrap_used)] // a test may

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use sae_data::synthetic::Synthetic;
use sae_model::{Preset, Sae, saved};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

const WIDTH: usize = 12;
const CLASSES: usize = 4;

struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    /// An untrained model on synthetic data whose labels are the largest of the first four columns.
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
        let sae = Sae::init(&preset.config(WIDTH, 30), 5, &mean, &Device::flex());
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

/// The largest of the first columns.
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
    // the same from the model's own output, written out
    let file =
        sae_data::ActivationData::open(&run.path("heldout.safetensors"), &Default::default())
            .unwrap();
    let x: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
    let sae = saved::load(&run.path("model"), &Device::flex()).unwrap();
    let data = burn::tensor::TensorData::new(x.clone(), [100, WIDTH]);
    let r = sae.reconstruct(burn::tensor::Tensor::from_data(data, &Device::flex()));
    let x_hat: Vec<f32> = r.x_hat.into_data().iter().collect();
    let codes = r.encoded.activations.into_codes();
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
    assert_eq!(report["schema_version"], 5);
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
    // 30 is all of this dictionary
    assert_eq!(rows[2]["on"], rows[3]["on"]);
    assert_eq!(rows[2]["off"], rows[3]["off"]);
    // nothing on: every row is given the same class, so one class of four is right
    assert_eq!(rows[3]["off"], 0.25);
    // an untrained model before training is itself; only the pre-bias of this one is not the data's mean
    assert_eq!(top_n["untrained"].as_array().unwrap().len(), 4);
    assert!(run.report(&["--no-untrained"])["top_n"]["untrained"].is_null());
}

#[test]
fn batches_do_not_change_the_report() {
    let run = Run::new(Preset::Paper);
    let mut reports = ["1", "100"].map(|rows| run.report(&["--batch-size", rows]));
    for report in &mut reports {
        report["seconds"] = Value::Null;
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
    assert!(text.contains("\"scale\": 1.0"), "{text}");
    std::fs::write(&path, text.replace("\"scale\": 1.0", "\"scale\": 1.5")).unwrap();
    let output = run.eval(&[]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        message.contains("cfg.json") && message.contains("changed or damaged"),
        "{message}"
    );
    assert!(!run.path("reports").exists());
}

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

/// Rows `[count, WIDTH]` that are `high` in column `row % CLASSES` (their class) and `low` in one more.
fn rows_of(count: usize, pair: impl Fn(usize) -> [usize; 2]) -> Vec<f32> {
    let mut rows = vec![0.0; count * WIDTH];
    for row in 0..count {
        let [high, low] = pair(row);
        rows[row * WIDTH + high] = 2.0;
        rows[row * WIDTH + low] = 1.0;
    }
    rows
}

/// Rows whose class is their number modulo the classes.
fn write_by_class(run: &Run, name: &str, rows: &[f32]) {
    let n = rows.len() / WIDTH;
    let labels: Vec<u8> = (0..n).map(|row| (row % CLASSES) as u8).collect();
    let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let tensors = [
        ("x", view(Dtype::F32, vec![n, WIDTH], bytes.as_slice())),
        ("labels", view(Dtype::U8, vec![n], labels.as_slice())),
    ];
    let file = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(run.path(name), file).unwrap();
}

/// A TopK model of `k = 2` whose latent j is column j.
fn columns_as_latents(run: &Run, input_scale: f64) {
    let mut config = sae_model::Architecture::TopK.config(Preset::Default, WIDTH, WIDTH);
    (config.k, config.input_scale) = (Some(2), input_scale);
    config.init.pre_bias = sae_model::config::PreBiasInit::Zero;
    let device = Device::flex();
    let mut sae = Sae::init(&config, 0, &[0.0; WIDTH], &device);
    let identity: Vec<f32> = (0..WIDTH * WIDTH)
        .map(|i| f32::from(u8::from(i / WIDTH == i % WIDTH)))
        .collect();
    let identity = || {
        let data = burn::tensor::TensorData::new(identity.clone(), [WIDTH, WIDTH]);
        burn::module::Param::from_tensor(burn::tensor::Tensor::from_data(data, &device))
    };
    (sae.concepts, sae.encoder) = (identity(), Some(identity()));
    saved::save(&sae, 0, &run.path("model")).expect("saved");
}

#[test]
fn latents_are_ranked_on_the_training_split_alone() {
    let run = Run::new(Preset::Default);
    columns_as_latents(&run, 1.0);
    // In training the second column of class c is 4 + c on its 2 rows, held out it is 8 + c or the class's own. By
    // training, ranks are c, 4 + c; had the 40 held-out rows of a class a say, latent 8 or so would take rank 2, and
    // with two latents on, "off" would lose more.
    let train = rows_of(2 * CLASSES, |row| [row % CLASSES, 4 + row % CLASSES]);
    let held_out = rows_of(40 * CLASSES, |row| [8 + row % CLASSES, row % CLASSES]);
    run.write_rows("train.safetensors", &train, true);
    write_by_class(&run, "heldout.safetensors", &held_out);
    // the head sees column 8 + c only
    let head: Vec<f32> = (0..CLASSES * WIDTH)
        .map(|i| f32::from(u8::from(8 + i / WIDTH == i % WIDTH)))
        .collect();
    run.write_rows("head.safetensors", &head, false);
    let report = run.report(&["--top-n", "1,2,3", "--no-untrained"]);
    let rows = report["top_n"]["trained"].as_array().unwrap();
    // Latent 8 + c, which alone is right, has no rank before 3 in any class by training: all on is right, the first
    // one, two or three say nothing (class 0 is answered: one class of four), and without them all is right still.
    for row in &rows[..2] {
        assert_eq!(
            (&row["on"], &row["off"]),
            (&0.25.into(), &1.0.into()),
            "{rows:?}"
        );
    }
    assert_eq!(rows[3]["on"], 1.0);
}

#[test]
fn rescaled_activations_do_not_change_top_n() {
    let run = Run::new(Preset::Default);
    // Latent 4 + c fires on every row of class c, weakly; latent c, which the head sees, on every other, strongly.
    let mut rows = rows_of(10 * CLASSES, |row| {
        let (class, even) = (row % CLASSES, row / CLASSES % 2 == 0);
        [if even { class } else { 8 + class }, 4 + class]
    });
    for row in rows.chunks_mut(WIDTH) {
        row[..CLASSES].iter_mut().for_each(|x| *x *= 4.0);
    }
    write_by_class(&run, "train.safetensors", &rows);
    write_by_class(&run, "heldout.safetensors", &rows);
    let top_n = |input_scale: f64, arguments: &[&str]| {
        columns_as_latents(&run, input_scale);
        run.report(&[arguments, &["--top-n", "1,2,3", "--no-untrained"]].concat())["top_n"].clone()
    };
    let (one, other) = (top_n(1.0, &[]), top_n(16.0, &[]));
    assert_eq!(one, other);
    assert_eq!(one["rank_by"], "firing");
    assert!(one["fire_threshold"].is_null());
    // by the paper's threshold the same two models, which reconstruct the same, are ranked otherwise
    let by_threshold = ["--rank-by", "threshold"];
    let (one, other) = (top_n(1.0, &by_threshold), top_n(16.0, &by_threshold));
    assert_ne!(one["trained"], other["trained"]);
    assert_eq!(one["rank_by"], "threshold");
    assert!((one["fire_threshold"].as_f64().unwrap() - 0.2).abs() < 1e-6);
}

#[test]
fn classes_without_training_rows_are_named_and_count_in_no_mean() {
    let run = Run::new(Preset::Default);
    let file = sae_data::ActivationData::open(&run.path("train.safetensors"), &Default::default())
        .unwrap();
    let rows: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
    let kept: Vec<f32> = rows
        .chunks(WIDTH)
        .filter(|row| label(row) != 2)
        .flatten()
        .copied()
        .collect();
    run.write_rows("train.safetensors", &kept, true);
    let report = run.report(&["--no-untrained"]);
    let top_n = &report["top_n"];
    assert_eq!(top_n["unranked"], serde_json::json!(["c"]));
    assert_eq!(top_n["per_class"][2]["train_rows"], 0);
    assert!(top_n["per_class"][2]["rows"].as_u64().unwrap() > 0);
    // nothing on: one class of the three that count, not of four
    let all = top_n["trained"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(all["off"], 1.0 / 3.0);
    // "all on" is the mean of what the table of classes says of those that count
    let of_class = |class: usize| top_n["per_class"][class]["reconstructed"].as_f64().unwrap();
    let mean = [0, 1, 3].map(of_class).iter().sum::<f64>() / 3.0;
    assert!((all["on"].as_f64().unwrap() - mean).abs() < 1e-12);
    let text = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
    assert!(
        text.contains("Without training rows, so not ranked and in no mean: c."),
        "{text}"
    );
}

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
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

/// A dictionary must not come from the GPU for every batch.
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
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let bytes: usize = log
            .lines()
            .filter(|line| line.contains("read from the device"))
            .filter_map(|line| line.split("bytes=").nth(1))
            .map(|rest| {
                rest.chars()
                    .take_while(char::is_ascii_digit)
                    .collect::<String>()
            })
            .map(|digits| digits.parse::<usize>().unwrap())
            .sum();
        // before and after training, one pass each over both splits: 100 batches in all
        let dictionary = 4 * latents * WIDTH;
        assert!(
            bytes <= 4 * dictionary,
            "{architecture}: {bytes} bytes of {dictionary}"
        );
    }
}
