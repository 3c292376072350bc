//! Saved models read back as they were written, and every fault of a file has its own message.

use std::error::Error;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use sae_model::architectures::Attention;
use sae_model::saved::{self, CONFIG_FILE, WEIGHTS_FILE};
use sae_model::{Architecture, Mode, Preset, Sae, SaeConfig};
use sae_run::sealed;

use crate::values;

fn config(preset: Preset) -> SaeConfig {
    SaeConfig::new(Attention::from(preset), 6, 10)
}

fn fresh(preset: Preset) -> Sae {
    Sae::init(&config(preset), 7, &[0.5; 6], &Device::flex())
}

#[test]
fn models_read_back_as_themselves_and_bytes_repeat() {
    for preset in [Preset::Paper, Preset::Released, Preset::Default] {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sae = fresh(preset);
        saved::save(&sae, 7, a.path()).unwrap();
        let again = saved::load(a.path(), &Device::flex()).unwrap();
        assert_eq!(again.config(), sae.config());
        assert_eq!(values(again.w_dec()), values(sae.w_dec()));
        assert_eq!(again.b_dec().is_some(), preset == Preset::Default);
        saved::save(&again, 7, b.path()).unwrap();
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert_eq!(read(a.path()), read(b.path()), "{file}");
        }
    }
}

/// `tests/v2` has models in format version 2, and their results from numpy in float64.
#[test]
fn models_of_version_2_still_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/v2");
    let text = std::fs::read_to_string(dir.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        let rows = value.as_array().unwrap().iter();
        let numbers = rows.flat_map(|row| row.as_array().unwrap());
        numbers.map(|number| number.as_f64().unwrap()).collect()
    };
    let x: Vec<f32> = numbers(&expected["x"]).iter().map(|v| *v as f32).collect();
    let x = TensorData::new(x, [3, 4]);
    let models = expected["models"].as_object().unwrap();
    assert_eq!(models.len(), 10);
    for (name, expected) in models {
        let sae = saved::load(&dir.join(name), &Device::flex()).unwrap();
        let preset = sae.config().architecture.switches().remove("preset");
        match name.as_str() {
            "paper" | "released" => assert_eq!(preset, Some(name.as_str().into())),
            _ => assert_eq!(sae.config().architecture.name(), name),
        }
        let x = Tensor::from_data(x.clone(), &Device::flex());
        let forward = sae.forward(x, &Mode::Inference);
        let latents = forward.encoded.latents.on_host();
        for (found, expected) in [
            (latents.to_dense(&Device::flex()), &expected["latents"]),
            (forward.x_hat, &expected["x_hat"]),
        ] {
            for (found, expected) in values(found).into_iter().zip(numbers(expected)) {
                assert!(
                    (f64::from(found) - expected).abs() < 1e-5,
                    "{name}: {found} {expected}"
                );
            }
        }
        // saved again, it is the same model
        let again = tempfile::tempdir().unwrap();
        saved::save(&sae, 0, again.path()).unwrap();
        let now = saved::load(again.path(), &Device::flex()).unwrap();
        assert_eq!(now.config(), sae.config());
    }
}

#[test]
fn initial_values_do_not_depend_on_the_device() {
    for (name, device) in crate::devices() {
        let config = config(Preset::Paper);
        let sae = Sae::init(&config, 7, &[0.5; 6], &device);
        let expected = fresh(Preset::Paper);
        assert_eq!(values(sae.w_dec()), values(expected.w_dec()), "{name}");
        let projection = |name| values(sae.parameters.matrix(name).unwrap());
        assert_ne!(projection("W_Q"), projection("W_K"));
    }
}

fn message_after(damage: impl Fn(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    saved::save(&fresh(Preset::Default), 0, dir.path()).unwrap();
    damage(dir.path());
    chain(&saved::load(dir.path(), &Device::flex()).unwrap_err())
}

/// An error and its causes, as the binaries print them.
fn chain(error: &dyn Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", chain(cause)));
    error.to_string() + &cause.unwrap_or_default()
}

fn edit(dir: &Path, from: &str, to: &str) {
    let path = dir.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn each_damage_has_its_message() {
    let cases: [(Damage, &str); 9] = [
        (
            &|dir| std::fs::remove_file(dir.join(CONFIG_FILE)).unwrap(),
            "No such file",
        ),
        (
            &|dir| std::fs::write(dir.join(CONFIG_FILE), "{").unwrap(),
            "not a valid cfg.json",
        ),
        (
            &|dir| edit(dir, "\"format_version\": 3", "\"format_version\": 9"),
            "version 9; this build reads",
        ),
        (
            &|dir| edit(dir, "\"n_latents\": 10", "\"n_latents\": 0"),
            "n_latents = 0",
        ),
        (
            &|dir| edit(dir, "\"n_latents\": 10", "\"n_latents\": 11"),
            "\"W_dec\" is F32 [10, 6]; expected F32 [11, 6]",
        ),
        (
            // zero in float32
            &|dir| edit(dir, "\"input_scale\": 1.0", "\"input_scale\": 1e-60"),
            "input_scale",
        ),
        (
            &|dir| edit(dir, "\"pre_bias\": true", "\"pre_bias\": false"),
            "\"b_dec\" is not part of the model",
        ),
        (
            &|dir| edit(dir, "\"encoder_bias\": false", "\"encoder_bias\": true"),
            "\"b_enc\" is missing",
        ),
        (
            &|dir| std::fs::write(dir.join(WEIGHTS_FILE), [0; 20]).unwrap(),
            "not a valid safetensors file",
        ),
    ];
    for (damage, expected) in cases {
        let sums = |dir: &Path| dir.join(sealed::SUMS_FILE);
        let with_sums = message_after(damage);
        assert!(with_sums.contains("BLAKE3"), "{with_sums}");
        let message = message_after(|dir| {
            std::fs::remove_file(sums(dir)).unwrap();
            damage(dir);
        });
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn saving_over_a_directory_with_other_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    saved::save(&fresh(Preset::Default), 0, &model).unwrap();
    saved::save(&fresh(Preset::Paper), 0, &model).unwrap(); // over another model
    std::fs::write(model.join("thesis.tex"), "x").unwrap();
    let error = saved::save(&fresh(Preset::Default), 0, &model).unwrap_err();
    assert!(chain(&error).contains("thesis.tex"), "{error}");
    assert!(model.join("thesis.tex").exists() && model.join(WEIGHTS_FILE).exists());
    assert!(!dir.path().join("model.tmp").exists());
}

#[test]
fn every_truncation_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    saved::save(&fresh(Preset::Released), 0, dir.path()).unwrap();
    let path = dir.path().join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(
            saved::load(dir.path(), &Device::flex()).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }
}
