//! `sae-eval compare` on runs made by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Run, WIDTH, metric, read_json};
use burn::tensor::Device;
use sae_model::architectures::{Attention, TopK};
use sae_model::{AnyArchitecture, Preset, Sae, SaeConfig, saved};
use serde_json::Value;

/// A run with a report, of a model that starts from `seed`.
fn run(seed: u64, architecture: impl Into<AnyArchitecture>) -> Run {
    let run = Run::new(Preset::Default);
    let config = SaeConfig::new(architecture, WIDTH, 30);
    let sae = Sae::init(&config, seed, &[0.1; WIDTH], &Device::flex());
    saved::save(&sae, seed, &run.path("model")).unwrap();
    set(&run, &format!("seed = {seed}\nrun = \"of {seed}\"\n"));
    run.report(&["--no-untrained"]);
    run
}

/// Puts keys at the top of a run's config.
fn set(run: &Run, keys: &str) {
    let path = run.path("config.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{keys}{config}")).unwrap();
}

fn compare(runs: &[&Path], output: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sae-eval"))
        .arg("compare")
        .args(runs)
        .arg("--output")
        .arg(output)
        .output()
        .unwrap()
}

/// The comparison, and what was said on standard error.
fn compared(runs: &[&Run]) -> (Value, String) {
    let output = tempfile::tempdir().unwrap();
    let dirs: Vec<PathBuf> = runs.iter().map(|run| run.dir.path().into()).collect();
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    let done = compare(&dirs, output.path());
    let said = String::from_utf8_lossy(&done.stderr).to_string();
    assert!(done.status.success(), "{said}");
    let page = std::fs::read_to_string(output.path().join("compare.html")).unwrap();
    assert_eq!(page.matches("<script>").count(), 1, "its own");
    (read_json(&output.path().join("compare.json")), said)
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().unwrap()
}

#[test]
fn runs_that_differ_in_their_seed_are_one_recipe() {
    let runs = [
        run(1, Attention::from(Preset::Default)),
        run(2, Attention::from(Preset::Default)),
    ];
    let other = run(
        3,
        TopK {
            k: 3,
            refinement: 0,
        },
    );
    set(&other, "other = 1\n");
    let (comparison, said) = compared(&[&runs[0], &other, &runs[1]]);
    assert_eq!(said, "");
    let recipes = list(&comparison, "recipes");
    assert_eq!(recipes.len(), 2);
    assert_eq!(recipes[0]["runs"], serde_json::json!([0, 2]));
    let fvus = runs.each_ref().map(|run| {
        metric(
            &read_json(&run.path("reports/report.json")),
            "reconstruction",
            "fvu",
        )
    });
    let (mean, half) = ((fvus[0] + fvus[1]) / 2.0, (fvus[0] - fvus[1]) / 2.0);
    let spread = &recipes[0]["spreads"]["fvu"];
    assert!((spread["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!((spread["sd"].as_f64().unwrap() - half.abs() * 2f64.sqrt()).abs() < 1e-12);
    assert!(recipes[1]["spreads"]["fvu"]["sd"].is_null());
    let keys: Vec<&str> = list(&comparison, "differences")
        .iter()
        .map(|d| d["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["other"]);
    let stability = list(&comparison, "stability");
    assert_eq!(stability.len(), 1);
    assert_eq!(list(&stability[0], "pairs").len(), 1);
    assert_eq!(list(&comparison, "data_sets").len(), 1);
    assert!(!list(&comparison["data_sets"][0], "front").is_empty());
}

#[test]
fn a_model_recurs_in_itself() {
    let runs = [
        run(
            1,
            TopK {
                k: 3,
                refinement: 0,
            },
        ),
        run(
            1,
            TopK {
                k: 3,
                refinement: 0,
            },
        ),
    ];
    let (comparison, _) = compared(&[&runs[0], &runs[1]]);
    let stability = &comparison["stability"][0];
    let pair = &stability["pairs"][0];
    let alive = stability["alive"][0].as_u64().unwrap();
    assert!(alive > 10 && pair["pairs"] == alive, "{pair}");
    assert_eq!(
        (pair["recur"].as_f64(), pair["same"].as_f64()),
        (Some(1.0), Some(1.0))
    );
    assert!((pair["mean_cosine"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    assert!(stability["random"]["mean_cosine"].as_f64().unwrap() < 0.95);
}

#[test]
fn a_damaged_model_costs_the_stability_alone() {
    let runs = [1, 2].map(|seed| run(seed, Attention::from(Preset::Default)));
    let path = runs[1].path("model/sae.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (comparison, said) = compared(&[&runs[0], &runs[1]]);
    assert!(
        said.contains("no stability") && said.contains("it has been changed or damaged"),
        "{said}"
    );
    assert!(list(&comparison, "stability").is_empty());
    assert_eq!(comparison["recipes"][0]["spreads"]["fvu"]["runs"], 2);
}

#[test]
fn other_rows_have_a_front_of_their_own() {
    let runs = [
        run(1, Attention::from(Preset::Default)),
        run(2, Attention::from(Preset::Default)),
    ];
    let path = runs[1].path("heldout.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - WIDTH;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    runs[1].report(&["--no-untrained"]);
    let (comparison, _) = compared(&[&runs[0], &runs[1]]);
    assert_eq!(list(&comparison, "recipes").len(), 2);
    let sets = list(&comparison, "data_sets");
    assert_eq!(
        (&sets[0]["front"], &sets[1]["front"]),
        (&serde_json::json!([0]), &serde_json::json!([1]))
    );
    assert!(
        comparison["notes"][0]
            .as_str()
            .unwrap()
            .contains("different sets of rows")
    );
    assert!(list(&comparison, "stability").is_empty());
}

#[test]
fn classes_that_were_ranked_in_another_way_are_not_compared() {
    let runs = [
        run(1, Attention::from(Preset::Default)),
        run(2, Attention::from(Preset::Default)),
    ];
    runs[1].report(&["--no-untrained", "--rank-by", "threshold"]);
    let (comparison, _) = compared(&[&runs[0], &runs[1]]);
    let spread = &comparison["recipes"][0]["spreads"];
    assert_eq!(spread["top_n_on_10"]["runs"], 1);
    assert_eq!(spread["fvu"]["runs"], 2);
    assert!(
        comparison["notes"][0]
            .as_str()
            .unwrap()
            .contains("another way (ranked by threshold 0.2")
    );
}

#[test]
fn what_cannot_be_compared_is_said_and_left_out() {
    let runs = [1, 2, 3, 4].map(|seed| run(seed, Attention::from(Preset::Default)));
    let path = runs[2].path("reports/report.json");
    let report = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        report.replace("\"schema_version\": 7", "\"schema_version\": 6"),
    )
    .unwrap();
    std::fs::remove_dir_all(runs[3].path("model")).unwrap();
    let (comparison, said) = compared(&[&runs[0], &runs[1], &runs[2], &runs[3], &runs[0]]);
    assert_eq!(list(&comparison, "runs").len(), 2);
    assert_eq!(list(&comparison, "left_out").len(), 2);
    assert!(
        said.contains("has the schema sae-eval-report 6, this build reads sae-eval-report 7"),
        "{said}"
    );
    assert!(said.contains("no trained model yet"), "{said}");
    std::fs::remove_dir_all(runs[1].path("reports")).unwrap();
    let nothing = runs[0].path("heldout.safetensors");
    let done = compare(
        &[runs[0].dir.path(), runs[1].dir.path(), &nothing],
        &runs[0].path("out"),
    );
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2));
    assert!(
        said.contains("has no report; make one with sae-eval")
            && said.contains("not a run directory"),
        "{said}"
    );
    assert!(
        said.ends_with("error: a comparison needs two runs with reports, and there is one\n"),
        "{said}"
    );
    assert!(!runs[0].path("out").exists());
}

#[test]
fn the_comparison_goes_to_the_directory_that_the_runs_lie_in() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [
        run(1, Attention::from(Preset::Default)),
        run(2, Attention::from(Preset::Default)),
    ];
    for (run, name) in runs.iter().zip(["a", "b <i>"]) {
        let to = dir.path().join(name);
        for part in ["model", "reports"] {
            std::fs::create_dir_all(to.join(part)).unwrap();
            for entry in std::fs::read_dir(run.path(part)).unwrap().flatten() {
                std::fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
            }
        }
        std::fs::copy(run.path("config.toml"), to.join("config.toml")).unwrap();
    }
    let done = Command::new(env!("CARGO_BIN_EXE_sae-eval"))
        .arg("compare")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let comparison = read_json(&dir.path().join("compare.json"));
    assert_eq!(
        comparison["runs"][1]["page"],
        "b%20%3Ci%3E/reports/report.html"
    );
    let page = std::fs::read_to_string(dir.path().join("compare.html")).unwrap();
    assert!(page.contains("b &lt;i&gt;") && !page.contains("<i>"));
}
