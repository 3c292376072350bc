//! What the tests of exchange share: random models and rows, and when two make the same of them.

mod approximations;
mod foreign;
mod refused;
mod there_and_back;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_model::architectures::Attention;
use sae_model::{AnyArchitecture, Preset, Sae, SaeConfig};
use serde_json::{Map, Value};

use super::certificate::{forward, supports};
use super::plain::relative;

const D: usize = 12;
const M: usize = 30;
const ROWS: usize = 300;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn rows() -> Vec<f32> {
    random(ROWS * D, 99).iter().map(|v| 2.0 * v + 0.1).collect()
}

/// A model whose every parameter is random; thresholds are positive.
fn model(config: &SaeConfig) -> Sae {
    let mut seed = 0;
    let value = |parameter: &sae_model::parameters::Parameter, dims: &[usize]| {
        seed += 1;
        let mut values = random(dims.iter().product(), seed);
        match parameter.name {
            "threshold" => values.iter_mut().for_each(|v| *v = v.abs() + 0.2),
            "W_Q" | "W_K" | "W_V" => values.iter_mut().for_each(|v| *v *= 0.5),
            _ => {}
        }
        Ok::<_, std::convert::Infallible>(values)
    };
    let Ok(sae) = Sae::with_values(config, &Device::flex(), value);
    sae
}

/// Every architecture, plain and with all that can be folded in, as far as SAELens can hold it.
fn configs() -> Vec<SaeConfig> {
    let mut configs = Vec::new();
    for architecture in AnyArchitecture::all() {
        let k = Map::from_iter([("k".to_string(), Value::from(5))]);
        let architecture = architecture.with(k).unwrap_or(architecture);
        let plain = SaeConfig::new(architecture, D, M);
        let mut folded = plain.clone();
        folded.scale = 1.7;
        folded.input_scale = 0.6;
        folded.query_projection = true;
        folded.key_projection = true;
        folded.value_projection = true;
        folded.encoder_bias = true;
        folded.pre_bias = true;
        let mut bare = plain.clone();
        bare.key_projection = true;
        bare.encoder_bias = false;
        bare.pre_bias = false;
        configs.extend([plain, folded, bare]);
    }
    for preset in [Preset::Paper, Preset::Released] {
        configs.push(SaeConfig::new(Attention::from(preset), D, M));
    }
    configs
}

fn written(dir: &Path, files: Vec<(&'static str, Vec<u8>)>) {
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Fails unless both make the same of the rows, and use the same latents.
fn assert_same(a: &Sae, b: &Sae, about: &str) {
    let x = rows();
    let ((x_hat, codes), (y_hat, others)) = (forward(a, &x), forward(b, &x));
    assert!(supports(&codes) == supports(&others), "supports of {about}");
    let active: usize = supports(&codes).iter().map(Vec::len).sum();
    assert!(active > ROWS / 4, "{active} active latents of {about}");
    let y_hat: Vec<f64> = y_hat.iter().map(|v| f64::from(*v)).collect();
    assert_near(&x_hat, &y_hat, 1e-6, about);
}

/// Fails unless `sae` makes the same of the rows as the formula.
fn assert_formula(sae: &Sae, about: &str, formula: impl Fn(&[f64]) -> Vec<f64>) {
    let x: Vec<f64> = rows().iter().map(|v| f64::from(*v)).collect();
    let expected: Vec<f64> = x.chunks_exact(D).flat_map(formula).collect();
    // rounding in float32 alone: the selection subtracts large scores from each other
    assert_near(&forward(sae, &rows()).0, &expected, 5e-6, about);
}

/// Fails unless all rows together differ by less than `most` of their length, and none by much more than the others.
fn assert_near(x_hat: &[f32], expected: &[f64], most: f64, about: &str) {
    let difference = relative(x_hat, expected);
    assert!(difference < most, "{difference} of {about}");
    for (a, b) in x_hat.chunks_exact(D).zip(expected.chunks_exact(D)) {
        let difference = relative(a, b);
        assert!(difference < 5e-5, "{difference} of a row of {about}");
    }
}
