//! Saved models: what is written reads back, and every way a file can be wrong has its own message.

use std::error::Error;
use std::path::Path;

use burn::tensor::Device;
use sae_model::saved::{self, CONFIG_FILE, WEIGHTS_FILE};
use sae_model::{Architecture, Preset, Sae};
use sae_run::sealed;

use crate::values;

fn fresh(preset: Preset) -> Sae {
    Sae::init(&preset.config(6, 10), 7, &[0.5; 6], &Device::flex())
}

#[test]
fn models_read_back_as_themselves_and_bytes_repeat() {
    for preset in [Preset::Paper, Preset::Released, Preset::Default] {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sae = fresh(preset);
        saved::save(&sae, 7, a.path()).unwrap();
        let again = saved::load(a.path(), &Device::flex()).unwrap();
        assert_eq!(again.config(), sae.config());
        assert_eq!(values(again.concepts.val()), values(sae.concepts.val()));
        assert_eq!(again.pre_bias.is_some(), preset == Preset::Default);
        saved::save(&again, 7, b.path()).unwrap();
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert_eq!(read(a.path()), read(b.path()), "{file}");
        }
    }
}

/// Renames a tensor in the header of a safetensors file, to a name that is as long or shorter.
fn rename(path: &Path, from: &str, to: &str) {
    let bytes = std::fs::read(path).unwrap();
    let (from, to) = (format!("{from:?}"), format!("{to:?}"));
    let at = bytes
        .windows(from.len())
        .position(|w| w == from.as_bytes())
        .unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut text = bytes[8..8 + header].to_vec();
    text.splice(at - 8..at - 8 + from.len(), to.bytes());
    let mut new = (text.len() as u64).to_le_bytes().to_vec();
    new.extend(text);
    new.extend(&bytes[8 + header..]);
    std::fs::write(path, new).unwrap();
}

#[test]
fn jumprelu_models_with_logarithms_of_thresholds_still_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = Architecture::JumpRelu.config(Preset::Default, 6, 10);
    let sae = Sae::init(&config, 7, &[0.5; 6], &Device::flex());
    saved::save(&sae, 7, dir.path()).unwrap();
    let weights = dir.path().join(WEIGHTS_FILE);
    std::fs::remove_file(dir.path().join(sealed::SUMS_FILE)).unwrap();
    rename(&weights, "thresholds", "log_thresholds");
    let old = saved::load(dir.path(), &Device::flex()).unwrap();
    let expected = values(sae.thresholds.unwrap().val());
    let exponentials: Vec<f32> = expected.iter().map(|theta| theta.exp()).collect();
    assert_eq!(values(old.thresholds.unwrap().val()), exponentials);
    // and no other architecture has them
    saved::save(&fresh(Preset::Default), 0, dir.path()).unwrap();
    std::fs::remove_file(dir.path().join(sealed::SUMS_FILE)).unwrap();
    rename(&weights, "pre_bias", "log_thresholds");
    let error = chain(&saved::load(dir.path(), &Device::flex()).unwrap_err());
    assert!(
        error.contains("pre_bias") || error.contains("log_thresholds"),
        "{error}"
    );
}

#[test]
fn initial_values_do_not_depend_on_the_device() {
    for (name, device) in crate::devices() {
        let config = Preset::Paper.config(6, 10);
        let sae = Sae::init(&config, 7, &[0.5; 6], &device);
        let expected = fresh(Preset::Paper);
        assert_eq!(
            values(sae.concepts.val()),
            values(expected.concepts.val()),
            "{name}"
        );
        assert_ne!(
            values(sae.w_q.unwrap().val()),
            values(sae.w_k.unwrap().val())
        );
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
            &|dir| edit(dir, "\"format_version\": 2", "\"format_version\": 9"),
            "version 9; this build reads",
        ),
        (
            &|dir| edit(dir, "\"n_latents\": 10", "\"n_latents\": 0"),
            "n_latents = 0",
        ),
        (
            &|dir| edit(dir, "\"n_latents\": 10", "\"n_latents\": 11"),
            "\"concepts\" is F32 [10, 6]; expected F32 [11, 6]",
        ),
        (
            // zero in float32
            &|dir| edit(dir, "\"input_scale\": 1.0", "\"input_scale\": 1e-60"),
            "input_scale",
        ),
        (
            &|dir| edit(dir, "\"pre_bias\": true", "\"pre_bias\": false"),
            "\"pre_bias\" is not part of the model",
        ),
        (
            &|dir| edit(dir, "\"encoder_bias\": false", "\"encoder_bias\": true"),
            "\"encoder_bias\" is missing",
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
