//! `sae-eval export` and `sae-eval import`, through the binary: what comes back, what it is measured to be, and wrong input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::Device;
use sae_model::architectures::{Attention, BatchTopK, JumpRelu, TopK};
use sae_model::{AnyArchitecture, Preset, Sae, SaeConfig, saved};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::encode::{failed, succeeded};
use crate::{Run, WIDTH, metric, read_json};

const LATENTS: usize = 30;

fn sae_eval(arguments: &[&str], paths: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sae-eval"))
        .args(arguments)
        .args(paths)
        .output()
        .unwrap()
}

/// A run on 400 training and 100 held-out rows, whose model has this architecture.
fn run_of(architecture: impl Into<AnyArchitecture>) -> Run {
    let run = Run::new(Preset::Default);
    let config = SaeConfig::new(architecture, WIDTH, LATENTS);
    let sae = Sae::init(&config, 3, &[0.1; WIDTH], &Device::flex());
    fs::remove_dir_all(run.path("model")).unwrap();
    saved::save(&sae, 3, &run.path("model")).unwrap();
    run
}

impl Run {
    fn exported(&self, to: &str, dir: &str, more: &[&str]) -> String {
        let options = [&["export", "--to", to], more].concat();
        succeeded(&sae_eval(
            &options,
            &[self.dir.path().into(), self.path(dir)],
        ))
    }

    /// The message of an export that fails, and leaves nothing.
    fn not_exported(&self, to: &str, more: &[&str]) -> String {
        let before = names(self.dir.path());
        let options = [&["export", "--to", to], more].concat();
        let output = sae_eval(&options, &[self.dir.path().into(), self.path("out")]);
        assert_eq!(names(self.dir.path()), before);
        failed(2, &output)
    }

    fn imported(&self, dir: &str, run: &str, data: bool) -> String {
        let [train, held_out] = ["train.safetensors", "heldout.safetensors"]
            .map(|name| self.path(name).display().to_string());
        let options = match data {
            true => vec!["import", "--train", &train, "--held-out", &held_out],
            false => vec!["import"],
        };
        succeeded(&sae_eval(&options, &[self.path(dir), self.path(run)]))
    }

    /// The message of an import that fails, and leaves nothing.
    fn not_imported(&self, dir: &str) -> String {
        let before = names(self.dir.path());
        let output = sae_eval(&["import"], &[self.path(dir), self.path("none")]);
        assert_eq!(names(self.dir.path()), before);
        failed(2, &output)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The report of the run `name`.
fn report(run: &Run, name: &str, more: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_sae-eval"))
        .arg(run.path(name))
        .args(["--no-html", "--no-untrained"])
        .args(more)
        .output()
        .unwrap();
    succeeded(&output);
    read_json(&run.path(name).join("reports/report.json"))
}

#[test]
fn a_model_goes_to_saelens_and_back_and_its_report_stays() {
    let run = Run::new(Preset::Default);
    let printed = run.exported(
        "saelens",
        "dictionary",
        &["--model-name", "gpt2", "--context-size", "64"],
    );
    assert!(printed.contains("exact"), "{printed}");
    assert!(
        printed.contains("100.00 % of the rows use the same latents"),
        "{printed}"
    );
    let files = [
        "certificate.json",
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    ];
    assert_eq!(names(&run.path("dictionary")), files);
    let cfg = read_json(&run.path("dictionary/cfg.json"));
    assert_eq!(cfg["architecture"], "sparsemax");
    assert_eq!(cfg["metadata"]["model_name"], "gpt2");
    assert_eq!(cfg["metadata"]["context_size"], 64);
    assert!(cfg["metadata"]["hook_name"].is_null());
    run.imported("dictionary", "back", true);
    assert_eq!(
        names(&run.path("back")),
        ["config.toml", "import.json", "model", "provenance.json"]
    );
    let import = read_json(&run.path("back/import.json"));
    let weights = fs::read(run.path("dictionary/sae_weights.safetensors")).unwrap();
    assert_eq!(
        import["weights_blake3"],
        blake3::hash(&weights).to_hex().as_str()
    );
    let [own, back] = [report(&run, ".", &[]), report(&run, "back", &[])];
    for (section, name) in [
        ("reconstruction", "fvu"),
        ("sparsity", "l0_mean"),
        ("sparsity", "dead_latents"),
    ] {
        let [a, b] = [&own, &back].map(|report| metric(report, section, name));
        assert!((a - b).abs() <= 1e-6 * a.abs(), "{name}: {a}, {b}");
    }
    let compared = sae_eval(&["compare"], &[run.dir.path().into(), run.path("back")]);
    succeeded(&compared);
    // it is exported again with what was known of it
    let again = sae_eval(
        &["export", "--to", "saelens"],
        &[run.path("back"), run.path("again")],
    );
    succeeded(&again);
    let cfg = read_json(&run.path("again/cfg.json"));
    assert_eq!(cfg["metadata"]["model_name"], "gpt2");
}

#[test]
fn frequencies_are_those_of_the_held_out_rows() {
    let run = run_of(TopK {
        k: 4,
        refinement: 0,
    });
    run.exported("saelens", "dictionary", &[]);
    let bytes = fs::read(run.path("dictionary/sparsity.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let logarithms = tensors.tensor("sparsity").unwrap();
    let logarithms = logarithms.data().as_chunks::<4>().0.iter();
    let found: Vec<f32> = logarithms.map(|word| f32::from_le_bytes(*word)).collect();
    assert_eq!(found.len(), LATENTS);
    let held_out = run.path("heldout.safetensors");
    let rows = sae_data::ActivationData::open(&held_out, &Default::default()).unwrap();
    let sae = saved::load(&run.path("model"), &Device::flex()).unwrap();
    let mut fired = vec![0.0; LATENTS];
    for x in rows.blocks(1) {
        let x = burn::tensor::TensorData::new(x.unwrap(), [1, WIDTH]);
        let x = burn::tensor::Tensor::from_data(x, &Device::flex());
        let codes = sae.encode(x).latents.on_host();
        for (latent, value) in codes.pattern.indices().iter().zip(codes.host_values()) {
            fired[*latent as usize] += f64::from(u8::from(value != 0.0)) / 100.0;
        }
    }
    for (found, frequency) in found.iter().zip(fired) {
        let expected = if frequency == 0.0 {
            -10.0
        } else {
            frequency.log10()
        };
        assert!(
            (f64::from(*found) - expected).abs() < 1e-5,
            "{found} {expected}"
        );
    }
}

#[test]
fn an_approximation_is_measured() {
    let run = Run::new(Preset::Default);
    let message = run.not_exported("sparsify", &[]);
    assert!(message.contains("--approximate topk"), "{message}");
    for (to, form) in [
        ("sparsify", "topk"),
        ("saelens", "topk"),
        ("saelens", "jumprelu"),
    ] {
        let dir = format!("{to}-{form}");
        let printed = run.exported(to, &dir, &["--approximate", form]);
        assert!(printed.contains("400 training rows"), "{printed}");
        let certificate = read_json(&run.path(&dir).join("certificate.json"));
        assert_eq!(certificate["format"], "dynamic-sae.certificate");
        assert_eq!(certificate["rows"], 100);
        // the numbers are those of the two reports
        let back = format!("{dir}-run");
        run.imported(&dir, &back, true);
        let [own, written] = [report(&run, ".", &[]), report(&run, &back, &[])];
        for (key, report) in [("model", &own), ("written", &written)] {
            for (section, name, of) in [
                ("reconstruction", "fvu", "fvu"),
                ("sparsity", "l0_mean", "l0"),
            ] {
                let (a, b) = (
                    metric(report, section, name),
                    certificate[of][key].as_f64().unwrap(),
                );
                assert!((a - b).abs() < 1e-6 * a, "{form} {of} {key}: {a}, {b}");
            }
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_with_the_remedy() {
    let refined = run_of(TopK {
        k: 4,
        refinement: 2,
    });
    let message = refined.not_exported("saelens", &[]);
    assert!(
        message.contains("refines the latents by 2 steps") && message.contains("--approximate"),
        "{message}"
    );
    let printed = refined.exported("saelens", "out", &["--approximate", "topk"]);
    assert!(
        printed.contains("its own TopK, without refinement"),
        "{printed}"
    );
    let message = refined.not_exported("saelens", &["--approximate", "topk"]);
    assert!(
        message.contains("it is not empty; name a new directory"),
        "{message}"
    );
    let message = run_of(JumpRelu::default()).not_exported("sparsify", &[]);
    assert!(message.contains("no selection like JumpReLU"), "{message}");
    let message =
        Run::new(Preset::Default).not_exported("sparsify", &["--approximate", "jumprelu"]);
    assert!(message.contains("no selection like JumpReLU"), "{message}");
}

#[test]
fn without_rows_a_model_is_exported_and_what_is_missing_is_said() {
    let run = run_of(BatchTopK {
        k: 4,
        refinement: 0,
    });
    let output = sae_eval(
        &["export", "--to", "sparsify"],
        &[run.path("model"), run.path("a")],
    );
    let printed = succeeded(&output); // no threshold was measured: each row keeps its k largest
    assert!(
        printed.contains("not written: certificate.json") && printed.contains("without a run"),
        "{printed}"
    );
    assert_eq!(names(&run.path("a")), ["cfg.json", "sae.safetensors"]);
    fs::remove_file(run.path("heldout.safetensors")).unwrap();
    let printed = run.exported("saelens", "b", &[]);
    assert!(printed.contains("heldout.safetensors"), "{printed}");
    assert_eq!(
        names(&run.path("b")),
        ["cfg.json", "sae_weights.safetensors"]
    );
    let message = run.not_exported("saelens", &["--approximate", "jumprelu"]);
    assert!(message.contains("measured on held-out rows"), "{message}");
}

#[test]
fn an_imported_model_without_data_is_evaluated_on_other_rows_and_encodes() {
    let run = run_of(TopK {
        k: 4,
        refinement: 0,
    });
    run.exported("sparsify", "dictionary", &[]);
    let printed = run.imported("dictionary", "back", false);
    assert!(printed.contains("it has no data of its own"), "{printed}");
    let refused = Command::new(env!("CARGO_BIN_EXE_sae-eval"))
        .arg(run.path("back"))
        .output();
    let message = failed(2, &refused.unwrap());
    assert!(message.contains("--data PATH --output DIR"), "{message}");
    let rows = run.path("heldout.safetensors").display().to_string();
    let output = run.path("back/reports").display().to_string();
    let back = report(&run, "back", &["--data", &rows, "--output", &output]);
    let own = report(&run, ".", &[]);
    let [a, b] = [&own, &back].map(|report| metric(report, "reconstruction", "fvu"));
    assert!((a - b).abs() < 1e-6 * a, "{a} {b}");
    succeeded(&sae_eval(
        &["encode"],
        &[run.path("back"), rows.into(), run.path("codes")],
    ));
    let config: toml::Table = fs::read_to_string(run.path("back/config.toml"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(config["model"]["architecture"].as_str(), Some("topk"));
    assert_eq!(config["model"]["k"].as_integer(), Some(4));
    assert!(config.get("data").is_none());
}

#[test]
fn a_saved_model_of_ours_becomes_a_run() {
    let run = run_of(Attention::default());
    run.imported("model", "copy", true);
    for file in ["cfg.json", "sae.safetensors", "BLAKE3SUMS"] {
        let [own, copy] = ["model", "copy/model"].map(|dir| fs::read(run.path(dir).join(file)));
        assert_eq!(own.unwrap(), copy.unwrap(), "{file}");
    }
    report(&run, "copy", &[]);
}

#[test]
fn wrong_dictionaries_are_refused_in_one_line_and_nothing_is_written() {
    let run = run_of(TopK {
        k: 4,
        refinement: 0,
    });
    run.exported("saelens", "dictionary", &[]);
    let weights = run.path("dictionary/sae_weights.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    let message = run.not_imported("dictionary");
    assert!(
        message.contains("sae_weights.safetensors: not a whole safetensors file"),
        "{message}"
    );
    let mut long = whole.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes()); // a header that says it is longer than the file
    fs::write(&weights, &long).unwrap();
    assert!(
        run.not_imported("dictionary")
            .contains("not a whole safetensors file")
    );
    fs::write(&weights, b"\x80\x02}q\x00.").unwrap();
    let message = run.not_imported("dictionary");
    assert!(
        message.contains("a pickle") && message.contains("python -m dynamic_sae import"),
        "{message}"
    );
    fs::write(&weights, &whole).unwrap();
    fs::write(run.path("dictionary/cfg.json"), "[".repeat(100_000)).unwrap();
    assert!(
        run.not_imported("dictionary")
            .contains("cfg.json: not a JSON object")
    );
    fs::create_dir(run.path("other")).unwrap();
    assert!(run.not_imported("other").contains("it is empty"));
    fs::write(run.path("other/ae.pt"), "").unwrap();
    fs::write(run.path("other/config.json"), "{}").unwrap();
    let message = run.not_imported("other");
    assert!(
        message.contains("ae.pt: a pickle") && message.contains("python -m dynamic_sae import"),
        "{message}"
    );
    assert!(run.not_imported("nowhere").contains("nowhere"));
    fs::create_dir(run.path("full")).unwrap();
    fs::write(run.path("full/file"), "").unwrap();
    let output = sae_eval(&["import"], &[run.path("model"), run.path("full")]);
    assert!(failed(2, &output).contains("it is not empty"));
    let output = sae_eval(&["import"], &[run.path("model"), run.path("names.json")]);
    assert!(failed(2, &output).contains("not a directory"));
}

#[test]
fn rows_of_another_width_are_refused() {
    let run = run_of(TopK {
        k: 4,
        refinement: 0,
    });
    let rows = sae_data::synthetic::Synthetic {
        width: WIDTH + 1,
        concepts: 5,
        active: 2,
        noise: 0.1,
        seed: 0,
    };
    let bytes: Vec<u8> = rows.rows(50).iter().flat_map(|v| v.to_le_bytes()).collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![50, WIDTH + 1], &bytes);
    let file = safetensors::serialize([("x", view.unwrap())], None).unwrap();
    fs::write(run.path("wide.safetensors"), file).unwrap();
    let wide = run.path("wide.safetensors").display().to_string();
    let paths = [run.path("model"), run.path("none")];
    let message = failed(2, &sae_eval(&["import", "--train", &wide], &paths));
    assert!(
        message.contains("have width 13, the dictionary takes width 12"),
        "{message}"
    );
    assert!(!run.path("none").exists());
}
