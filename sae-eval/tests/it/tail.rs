//! The rest of a model: the section of the report, and what is wrong with data and tails.

use std::path::{Path, PathBuf};
use std::process::Output;

use sae_model::architectures::Attention;
use sae_model::{Preset, saved};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::trained::{LATENTS, Trained, data_set};

/// Width of the tails in tests/data/tails.
const WIDTH: usize = 16;
const TOKENS: usize = 7;

/// A run on documents of seven tokens each.
struct Spliced {
    dir: tempfile::TempDir,
}

/// What a data set has beside activations and documents.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    /// Tokens and positions.
    Tokens,
    /// Labels 0, 1 and 2.
    Labels,
    /// Tokens and positions, but no row of position 0.
    NoFirst,
}

impl Spliced {
    fn new(has: Has) -> Self {
        let run = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        run.write("train", 60, has);
        run.write("heldout", 12, has);
        let rows = |name: &str| format!("{:?}", run.path(name));
        run.config(&format!(
            "train = {}\nheld_out = {}\n",
            rows("train"),
            rows("heldout")
        ));
        let data = sae_data::ActivationData::open(&run.path("train"), &Default::default()).unwrap();
        let attention = Attention::from(Preset::Default);
        let trainer = sae_train::Trainer::new(attention, LATENTS, 40, 128).set("seed", 1);
        let sae = trainer.fit(&data).unwrap();
        saved::save(&sae, 1, &run.dir.path().join("model")).unwrap();
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.safetensors"))
    }

    fn config(&self, data: &str) {
        std::fs::write(
            self.dir.path().join("config.toml"),
            format!("[data]\n{data}"),
        )
        .unwrap();
    }

    /// Documents whose class shows in their first numbers.
    fn write(&self, name: &str, documents: usize, has: Has) {
        let first = usize::from(has == Has::NoFirst);
        let rows = documents * (TOKENS - first);
        let mut values = Vec::new();
        let (mut doc, mut tokens, mut positions, mut labels) = (vec![], vec![], vec![], vec![]);
        let mut state = 7u64 + documents as u64;
        for document in 0..documents {
            for position in first..TOKENS {
                for column in 0..WIDTH {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let noise = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
                    values.push(noise + if column == document % 3 { 1.0 } else { 0.0 });
                }
                doc.push(document as i64);
                tokens.push(((document * 5 + position * 3) % 60) as i32);
                positions.push(position as i32);
                labels.push((document % 3) as i64);
            }
        }
        let bytes = |numbers: &[i32]| {
            numbers
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let long = |numbers: &[i64]| {
            numbers
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let values: Vec<u8> = values.iter().flat_map(|x: &f32| x.to_le_bytes()).collect();
        let mut parts = vec![
            ("activations", Dtype::F32, vec![rows, WIDTH], values),
            ("doc", Dtype::I64, vec![rows], long(&doc)),
        ];
        match has {
            Has::Labels => parts.push(("labels", Dtype::I64, vec![rows], long(&labels))),
            Has::Tokens | Has::NoFirst => {
                parts.push(("tokens", Dtype::I32, vec![rows], bytes(&tokens)));
                parts.push(("positions", Dtype::I32, vec![rows], bytes(&positions)));
            }
        }
        let views = parts.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let file = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(self.path(name), file).unwrap();
    }

    fn eval(&self, more: &[&str]) -> Output {
        let run = self.dir.path().display().to_string();
        Trained::eval(&[&[run.as_str()], more].concat())
    }

    fn report(&self) -> Value {
        let path = self.dir.path().join("reports/report.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// The section of the report that is made with these options.
    fn tail(&self, name: &str, more: &[&str]) -> Value {
        let tail = tail(name);
        let output = self.eval(&[&["--tail", tail.as_str()], more].concat());
        assert!(output.status.success(), "{}", errors(&output));
        self.report()["tail"].clone()
    }
}

fn tail(name: &str) -> String {
    data_set("tails")
        .join(format!("{name}.onnx"))
        .display()
        .to_string()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The value of a metric.
fn value(section: &Value, name: &str) -> f64 {
    let metrics = section["metrics"].as_array().unwrap();
    let found = metrics
        .iter()
        .find(|metric| metric["name"] == name)
        .unwrap();
    found["value"].as_f64().unwrap()
}

#[test]
fn a_language_model_loses_something_and_a_resumed_evaluation_says_the_same() {
    let run = Spliced::new(Has::Tokens);
    let section = run.tail("llama", &[]);
    assert_eq!(section["documents"], 12);
    assert_eq!(section["replaced"], 12 * 6, "all but position 0");
    // Of 7 tokens, positions 1 to 5 have a next one: 1; 2 and 3; 4 and 5.
    let positions = section["by_position"].as_array().unwrap();
    let counts: Vec<u64> = positions
        .iter()
        .map(|one| one["predictions"].as_u64().unwrap())
        .collect();
    assert_eq!(counts, [12, 24, 24]);
    let [clean, sae, zero] = ["ce_clean", "ce_sae", "ce_zero"].map(|name| value(&section, name));
    let recovered = (zero - sae) / (zero - clean);
    assert!((value(&section, "loss_recovered") - recovered).abs() < 1e-9);
    assert!(
        value(&section, "kl_sae") > 0.0 && value(&section, "kl_sae") < value(&section, "kl_zero")
    );
    let kept = ["kept_first_1", "kept_first_5", "kept_first_10"].map(|name| value(&section, name));
    assert!(kept[0] <= kept[1] && kept[1] <= kept[2] && kept[2] <= 1.0);

    // An evaluation that was stopped: whole lines are believed and not computed again, a line that was cut is.
    let kept = run.dir.path().join("reports/tail.jsonl");
    let text = std::fs::read_to_string(&kept).unwrap();
    assert_eq!(
        text.lines().count(),
        13,
        "a line about the evaluation, and one per document"
    );
    std::fs::write(&kept, &text[..text.len() / 2]).unwrap();
    assert_eq!(run.tail("llama", &[]), section);
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), text);
    let changed = text.replacen("\"predictions\":1,", "\"predictions\":1001,", 1);
    std::fs::write(&kept, changed).unwrap();
    assert_ne!(run.tail("llama", &[]), section, "it was read");
    // Other settings: nothing of it is used.
    let less = run.tail("llama", &["--tail-documents", "8"]);
    assert_eq!(less["documents"], 8);
    assert_eq!(run.tail("llama", &[]), section);
}

#[test]
fn the_config_names_a_tail_as_well_as_the_options() {
    let run = Spliced::new(Has::Tokens);
    let section = run.tail("gpt2", &["--tail-max-norm", "3.0"]);
    assert_eq!(section["max_norm"], 3.0);
    let data = format!(
        "train = {:?}\nheld_out = {:?}\n",
        run.path("train"),
        run.path("heldout")
    );
    run.config(&format!(
        "{data}[eval.tail]\nfile = {:?}\nmax_norm = 3.0\n",
        tail("gpt2")
    ));
    assert!(run.eval(&[]).status.success());
    assert_eq!(run.report()["tail"], section);
    // A limit below the largest norms: some rows stay. (Documents of which all rows stay count as they are.)
    let section = run.tail("gpt2", &["--tail-max-norm", "1.4"]);
    let (stay, replaced) = (&section["beyond_max_norm"], &section["replaced"]);
    assert!(stay.as_u64() > Some(0), "{stay}");
    assert_eq!(stay.as_u64().unwrap() + replaced.as_u64().unwrap(), 72);
    assert!(value(&section, "ce_sae").is_finite());
    // Everything beyond the limit: nothing is replaced.
    let output = run.eval(&["--tail-max-norm", "1e-9"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("no row"), "{}", errors(&output));
}

#[test]
fn a_classifier_answers_for_documents() {
    let run = Spliced::new(Has::Labels);
    let section = run.tail("bert_classifier", &["--top-n", "1,96"]);
    let classes = &section["classes"];
    assert_eq!(section["replaced"], 12 * TOKENS, "all tokens");
    let rows = classes["top_n"].as_array().unwrap();
    let ns: Vec<&str> = rows.iter().map(|row| row["n"].as_str().unwrap()).collect();
    assert_eq!(ns, ["1", "96", "all"]);
    assert_eq!(
        rows[1]["on"], rows[2]["on"],
        "the first 96 of 96 latents are all of them"
    );
    assert_eq!(rows[1]["off"], rows[2]["off"]);
    let per_class = classes["per_class"].as_array().unwrap();
    assert_eq!(per_class.len(), 3);
    let of_first: f64 = per_class
        .iter()
        .map(|class| class["on"][0].as_f64().unwrap())
        .sum();
    assert!((rows[0]["on"].as_f64().unwrap() - of_first / 3.0).abs() < 1e-12);
    let markdown = std::fs::read_to_string(run.dir.path().join("reports/report.md")).unwrap();
    assert!(markdown.contains("## Through the rest of the model"));

    let head = data_set("tails").join("bert_encoder.onnx");
    let output = run.eval(&["--tail", &head.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        errors(&output).contains("--tail-class-embeddings"),
        "{}",
        errors(&output)
    );
    // Class embeddings of the width that the tail gives: the held-out rows themselves will do.
    let embeddings = run.path("heldout").display().to_string();
    let section = run.tail("bert_encoder", &["--tail-class-embeddings", &embeddings]);
    assert_eq!(section["kind"], "encoder");
    // Other embeddings: no answer of before is used.
    let embeddings = run.path("train").display().to_string();
    let with_others = || run.tail("bert_encoder", &["--tail-class-embeddings", &embeddings]);
    let kept = run.dir.path().join("reports/tail.jsonl");
    let first_line = || {
        let text = std::fs::read_to_string(&kept).unwrap();
        text.lines().next().unwrap().to_string()
    };
    let before = first_line();
    let section = with_others();
    assert_ne!(first_line(), before);
    std::fs::remove_file(&kept).unwrap();
    assert_eq!(with_others(), section);
}

#[test]
fn what_does_not_fit_is_one_message_and_no_report() {
    let tokens = Spliced::new(Has::Tokens);
    let labels = Spliced::new(Has::Labels);
    let no_first = Spliced::new(Has::NoFirst);
    let wrong = |name: &str| tail(&format!("wrong/{name}"));
    for (run, file, words) in [
        (&labels, tail("llama"), "which tokens"),
        (&tokens, tail("bert_classifier"), "no labels"),
        (&tokens, tail("clip_classifier"), "goes on from width 32"),
        (&no_first, tail("llama"), "from position 0 on"),
        (&tokens, wrong("unknown_operator"), "may use"),
        (&tokens, wrong("float16"), "FLOAT16"),
        (&tokens, wrong("outer_product"), "more than"),
        (&tokens, wrong("truncated"), "damaged"),
        (&tokens, "nowhere.onnx".into(), "nowhere.onnx"),
    ] {
        let output = run.eval(&["--tail", &file]);
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(2), "{file}: {said}");
        assert!(said.contains(words), "{file}: {said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(
            !Path::new(&run.dir.path().join("reports")).exists(),
            "{file}"
        );
    }
}
