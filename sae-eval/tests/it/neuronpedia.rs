//! `sae-eval neuronpedia`: its files hold the rows of the report's cards with the model's activations, within the limits of
//! Neuronpedia, and `tools/send_neuronpedia.py` sends them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::trained::{LATENTS, Trained};

const IDS: [&str; 4] = [
    "--model-id",
    "all-minilm-l6-v2",
    "--source",
    "4-dynamic-sae",
];

fn upload(run: &Path, out: &Path, more: &[&str]) -> Output {
    let (run, out) = (run.to_str().unwrap(), out.to_str().unwrap());
    let arguments = [&["neuronpedia", run, out], more].concat();
    Trained::eval(&arguments)
}

/// All features of a directory, which must be within the limits.
fn features(dir: &Path) -> Vec<Value> {
    let index: Value = super::read_json(&dir.join("index.json"));
    let mut all = Vec::new();
    for entry in index["files"].as_array().unwrap() {
        let body = super::read_json(&dir.join(entry["file"].as_str().unwrap()));
        let mut keys: Vec<&String> = body.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["features", "modelId", "source"]);
        assert_eq!(body["modelId"], "all-minilm-l6-v2");
        assert_eq!(body["source"], "4-dynamic-sae");
        let features = body["features"].as_array().unwrap();
        assert!((1..=128).contains(&features.len()));
        assert_eq!(entry["features"], features.len());
        all.extend(features.iter().cloned());
    }
    all
}

fn numbers(values: &Value) -> Vec<f32> {
    let values = values.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn passages_are_those_of_the_cards_with_real_activations() {
    let run = Trained::on("tokens");
    let out = run.path().join("upload");
    let output = upload(run.path(), &out, &[&IDS[..], &["--tokens", "16"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (page, codes) = (run.page(), run.codes());
    let (cards, rows) = (page.list("cards"), page.list("rows"));
    let [documents, ids] = ["doc", "tokens"].map(|name| run.integers(name));
    let words = run.words();
    let features = features(&out);
    let live = cards.iter().filter(|card| card[3] != json!([])).count();
    assert_eq!(features.len(), live);
    for feature in &features {
        let latent = usize::try_from(feature["index"].as_u64().unwrap()).unwrap();
        let density = feature["density"].as_f64().unwrap();
        assert!(density > 0.0 && density <= 1.0);
        let strongest = cards[latent][3].as_array().unwrap();
        let activations = feature["activations"].as_array().unwrap();
        assert_eq!(strongest.len(), activations.len());
        for (example, activation) in strongest.iter().zip(activations) {
            let place = usize::try_from(example[0].as_u64().unwrap()).unwrap();
            let row = usize::try_from(rows[place][0].as_u64().unwrap()).unwrap();
            let inside = |r: &usize| documents.get(*r) == Some(&documents[row]);
            let window = (row.saturating_sub(10)..row + 6).filter(inside);
            let window: Vec<usize> = window.collect();
            let tokens: Vec<&String> = window.iter().map(|r| &words[ids[*r] as usize]).collect();
            assert_eq!(activation["tokens"], json!(tokens));
            let own = |r: &usize| codes[r * LATENTS + latent];
            let expected: Vec<f32> = window.iter().map(own).collect();
            assert_eq!(
                numbers(&activation["values"]),
                expected,
                "latent {latent}, row {row}"
            );
        }
    }
    assert!(text(&output.stdout).contains(&format!("{live} latents in 1 file")));
}

#[test]
fn a_choice_of_latents_and_lengths() {
    let run = Trained::on("tokens");
    let out = run.path().join("upload");
    let more = [
        "--latents",
        "0-40",
        "--tokens",
        "1",
        "--examples",
        "3",
        "--batch-size",
        "7",
    ];
    let output = upload(run.path(), &out, &[&IDS[..], &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let features = features(&out);
    assert!(!features.is_empty());
    for feature in features {
        assert!(feature["index"].as_u64().unwrap() <= 40);
        let activations = feature["activations"].as_array().unwrap();
        assert!((1..=3).contains(&activations.len()));
        let alone = |activation: &Value| activation["tokens"].as_array().unwrap().len() == 1;
        assert!(activations.iter().all(alone));
        let strengths: Vec<f32> = activations
            .iter()
            .map(|activation| numbers(&activation["values"])[0].abs())
            .collect();
        assert!(strengths.is_sorted_by(|a, b| a >= b), "{strengths:?}");
    }
}

#[test]
fn a_text_is_a_passage_of_one_token() {
    let run = super::Run::new(sae_model::Preset::Default);
    let line =
        |i: usize| json!({ "text": format!("text {i} \"</script>\u{0}") }).to_string() + "\n";
    let texts: String = (0..100).map(line).collect();
    std::fs::write(run.path("heldout.texts.jsonl"), texts).unwrap();
    let out = run.path("upload");
    let output = upload(run.dir.path(), &out, &IDS);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("the rows are whole texts"));
    let features = features(&out);
    let tokens = features[0]["activations"][0]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 1);
    let word = tokens[0].as_str().unwrap();
    assert!(word.starts_with("text ") && word.ends_with("\"</script>\u{fffd}"));
}

#[test]
fn what_neuronpedia_cannot_take_is_refused() {
    let refused = |run: &Path, more: &[&str], words: &str| {
        let out = run.join("upload");
        let output = upload(run, &out, more);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert!(!out.exists());
    };
    let patches = Trained::on("patches");
    refused(patches.path(), &IDS, "its rows are of images");
    let run = super::Run::new(sae_model::Preset::Default);
    let dir = run.dir.path();
    refused(dir, &IDS, "which token or text each row is");
    let ids = |model, source| ["--model-id", model, "--source", source];
    refused(dir, &ids("GPT2", "5-set"), "--model-id \"GPT2\"");
    refused(dir, &ids("gpt2", "set"), "such as 5-dynamic-sae");
    refused(dir, &ids("gpt2", "5-"), "such as 5-dynamic-sae");
    refused(dir, &ids("gpt2", "5-a b"), "--source \"5-a b\"");
    refused(dir, &[&IDS[..], &["--tokens", "1025"]].concat(), "1025");
    refused(
        dir,
        &[&IDS[..], &["--latents", "30"]].concat(),
        "there is no latent 30",
    );
    refused(dir, &IDS[..2], "--source");
}

#[test]
fn a_directory_that_cannot_be_written_is_another_fault() {
    let run = Trained::on("tokens");
    let file = run.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = upload(run.path(), &file.join("upload"), &IDS);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("features-00000.json: it cannot be written"));
}

#[test]
fn files_that_are_there_stay() {
    let run = Trained::on("tokens");
    let out = run.path().join("upload");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("features-00000.json"), "mine").unwrap();
    let output = upload(run.path(), &out, &IDS);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("not empty"));
    let kept = std::fs::read_to_string(out.join("features-00000.json")).unwrap();
    assert_eq!(kept, "mine");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The Python to use; only its standard library is needed.
fn python() -> Command {
    let python = std::env::var_os("SAE_PYTHON").unwrap_or_else(|| "python3".into());
    Command::new(python)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_script_finds_the_files_as_neuronpedia_wants_them() {
    let run = Trained::on("tokens");
    let out = run.path().join("upload");
    assert!(upload(run.path(), &out, &IDS).status.success());
    let script = repository().join("tools/send_neuronpedia.py");
    let Ok(output) = python().arg(script).arg(&out).arg("--dry-run").output() else {
        eprintln!("SKIPPED the script that sends files to Neuronpedia: there is no Python");
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let count = features(&out).len();
    let said = text(&output.stdout);
    assert!(
        said.contains(&format!("1 files with {count} features")),
        "{said}"
    );
}

/// Against a server on this machine; `sae-eval/tests/python/test_send_neuronpedia.py` has the cases.
#[test]
fn the_script_sends_every_file_once() {
    let tests = repository().join("sae-eval/tests/python/test_send_neuronpedia.py");
    let Ok(output) = python().arg(tests).output() else {
        eprintln!("SKIPPED the script that sends files to Neuronpedia: there is no Python");
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
}
