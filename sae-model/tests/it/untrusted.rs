//! Saved models from elsewhere: no number in them is trusted.

use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use sae_model::Sae;
use sae_model::architectures::TopK;
use sae_model::saved::{self, CONFIG_FILE, SavedModelError, WEIGHTS_FILE};
use sae_run::sealed;
use serde_json::{Value, json};

use crate::fuzz::{RAW, WIDTH, config, join, load, split};

/// Damages a saved model and returns the error of `load`.
fn refusal(damage: impl Fn(&Path)) -> SavedModelError {
    let dir = tempfile::tempdir().unwrap();
    let config = config(TopK::default());
    let sae = Sae::init(&config, 7, &[0.5; WIDTH], &Device::flex());
    saved::save(&sae, 7, dir.path()).unwrap();
    // checksums would report any damage first
    std::fs::remove_file(dir.path().join(sealed::SUMS_FILE)).unwrap();
    damage(dir.path());
    load(dir.path()).unwrap_err()
}

/// The corpus has models made by hand and models that once made `load` panic.
#[test]
fn models_that_claim_what_is_not_there_are_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/refused");
    for entry in std::fs::read_dir(corpus).unwrap() {
        let dir = entry.unwrap().path();
        let began = Instant::now();
        let result = load(&dir);
        assert!(result.is_err(), "{}", dir.display());
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{}",
            dir.display()
        );
    }
}

#[test]
fn no_number_of_a_config_is_believed() {
    for (key, values) in [
        (
            "n_latents",
            &[
                "0",
                "-1",
                "7",
                "1152921504606846976",
                "18446744073709551615",
                "1e999",
                "NaN",
                "1.5",
            ][..],
        ),
        ("d_in", &["0", "-1", "5", "4611686018427387904"]),
        (
            "architecture/k",
            &["0", "-1", "7", "18446744073709551615", "null"],
        ),
        ("architecture/stranger", &["1"]),
        ("scale", &["0", "-1", "1e999", "NaN", "\"1\"", "null"]),
        ("input_scale", &["0", "-1", "1e999"]),
        ("norm_exponent", &["5", "-1e308", "NaN"]),
        (
            "architecture",
            &["\"sparse\"", "0", "null", "{}", "{\"name\": \"sparse\"}"],
        ),
        ("stranger", &["1", "[[[[]]]]"]),
    ] {
        for value in values {
            let error = refusal(|dir| {
                let path = dir.join(CONFIG_FILE);
                let mut json: Value =
                    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                match key.split_once('/') {
                    Some((outer, key)) => json["model"][outer][key] = RAW.into(),
                    None => json["model"][key] = RAW.into(),
                }
                let text = json.to_string().replace(&format!("\"{RAW}\""), value);
                std::fs::write(path, text).unwrap();
            });
            // if the numbers agree with one another, only the weights show the fault
            let expected = match error {
                SavedModelError::Json { .. } | SavedModelError::Config { .. } => true,
                SavedModelError::WrongTensor { .. } => matches!(key, "n_latents" | "d_in"),
                _ => false,
            };
            assert!(expected, "{key} = {value}: {error:?}");
        }
    }
}

#[test]
fn no_header_of_tensors_is_believed() {
    let place = |shape: Value, offsets: Value| json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
    for (what, concepts) in [
        (
            "beyond the file",
            place(json!([6, 4]), json!([1_u64 << 60, (1_u64 << 60) + 96])),
        ),
        ("backwards", place(json!([6, 4]), json!([96, 0]))),
        (
            "a product that overflows",
            place(json!([1_u64 << 62, 4]), json!([0, 0])),
        ),
        (
            "a shape that is too large",
            place(json!([6, 400]), json!([0, 96])),
        ),
        ("over others", place(json!([6, 4]), json!([24, 120]))),
        (
            "of another type",
            json!({"dtype": "BF16", "shape": [6, 8], "data_offsets": [0, 96]}),
        ),
    ] {
        let error = refusal(|dir| {
            let path = dir.join(WEIGHTS_FILE);
            let bytes = std::fs::read(&path).unwrap();
            let (mut header, tensors) = split(&bytes);
            header["W_dec"] = concepts.clone();
            std::fs::write(&path, join(&header.to_string(), tensors)).unwrap();
        });
        let expected = matches!(
            error,
            SavedModelError::Safetensors { .. } | SavedModelError::WrongTensor { .. }
        );
        assert!(expected, "{what}: {error:?}");
    }
}

#[test]
fn weights_must_be_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refusal(|dir| {
            let path = dir.join(WEIGHTS_FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            let (header, tensors) = split(&bytes);
            let start = bytes.len() - tensors.len();
            let offset = header["W_enc"]["data_offsets"][0].as_u64().unwrap() as usize;
            let at = start + offset + 4 * 9;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            std::fs::write(path, bytes).unwrap();
        });
        let message = error.to_string();
        let expected = format!("tensor \"W_enc\" has {value} at position 9");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn directories_in_the_place_of_files_are_errors() {
    for file in [CONFIG_FILE, WEIGHTS_FILE] {
        let error = refusal(|dir| {
            std::fs::remove_file(dir.join(file)).unwrap();
            std::fs::create_dir(dir.join(file)).unwrap();
        });
        assert!(matches!(error, SavedModelError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains(file), "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = load(file.path()).unwrap_err();
    assert!(matches!(error, SavedModelError::Io { .. }), "{error:?}");
}
