//! Latents that training leaves out (`Training::keep`): not selected, whatever their score would be.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use sae_model::{Architecture, Preset, Sae, SparseValue, Training};

use crate::{devices, pattern_rows, values};

const WIDTH: usize = 6;
const LATENTS: usize = 40;
const ROWS: usize = 7;

fn x(device: &Device) -> Tensor<2> {
    pattern_rows([ROWS, WIDTH], device)
}

/// Attention with and without a bias, as codes and dense, and every baseline.
fn models(device: &Device) -> Vec<(String, Sae)> {
    let mut all = Vec::new();
    for architecture in Architecture::ALL {
        for (value, bias) in [SparseValue::Probability, SparseValue::Score]
            .into_iter()
            .flat_map(|value| [(value, false), (value, true)])
        {
            let mut config = architecture.config(Preset::Default, WIDTH, LATENTS);
            config.k = config.k.map(|_| 5);
            config.encoder_bias |= bias;
            if architecture.is_sparsemax() {
                config.value = value;
            }
            let mut sae = Sae::init(&config, 3, &[0.0; WIDTH], device);
            sae.encoder_bias = sae.encoder_bias.map(|bias| bias.map(|b| b * 0.0 + 5.0));
            all.push((format!("{architecture:?} {value:?}, bias: {bias}"), sae));
        }
    }
    all
}

#[test]
fn masked_latents_are_not_selected() {
    for (device_name, device) in devices() {
        for (name, sae) in models(&device) {
            for kept in [LATENTS, 1, 0] {
                let keep: Vec<f32> = (0..LATENTS)
                    .map(|j| f32::from(u8::from(j % 3 == 0 && j < 3 * kept)))
                    .collect();
                let training = Training {
                    keep: Arc::new(keep.clone()),
                };
                let r = sae.reconstruct_training(x(&device), &training);
                let active = values(r.encoded.activations.firing_frequency());
                for (j, (active, keep)) in active.iter().zip(&keep).enumerate() {
                    assert!(
                        *active == 0.0 || *keep == 1.0,
                        "{device_name} {name}: latent {j} fires"
                    );
                }
                let any = active.iter().any(|f| *f > 0.0);
                assert!(any || kept < LATENTS, "{device_name} {name}: nothing fires");
                assert!(
                    values(r.x_hat).iter().all(|v| v.is_finite()),
                    "{device_name} {name}"
                );
            }
        }
    }
}

#[test]
fn masked_latents_have_no_gradient() {
    let device = Device::flex().autodiff();
    let keep: Vec<f32> = (0..LATENTS)
        .map(|j| f32::from(u8::from(j % 2 == 0)))
        .collect();
    let training = Training {
        keep: Arc::new(keep),
    };
    for (name, sae) in models(&device) {
        let r = sae.reconstruct_training(x(&device), &training);
        let grads = r.x_hat.square().sum().backward();
        for dictionary in [Some(sae.concepts), sae.encoder].into_iter().flatten() {
            let gradient = values(dictionary.val().grad(&grads).expect("a gradient"));
            let odd = gradient.chunks(WIDTH).skip(1).step_by(2).flatten();
            assert!(odd.into_iter().all(|g| *g == 0.0), "{name}");
            assert!(gradient.iter().any(|g| *g != 0.0), "{name}");
        }
    }
}

#[test]
fn masked_latents_explain_nothing() {
    let device = Device::flex();
    let mut config = Architecture::TopK.config(Preset::Default, WIDTH, LATENTS);
    config.k = Some(5);
    let sae = Sae::init(&config, 3, &[0.0; WIDTH], &device);
    let explained = |keep: Vec<f32>, dead: &[u32]| {
        let training = Training {
            keep: Arc::new(keep),
        };
        let r = sae.reconstruct_training(x(&device), &training);
        let auxiliary = sae.auxiliary(&x(&device), &r.x_hat, &r.encoded, dead, 3);
        auxiliary.map(|(_, explained)| values(explained))
    };
    let mut keep = vec![1.0; LATENTS];
    (keep[4], keep[9]) = (0.0, 0.0);
    assert!(explained(keep.clone(), &[4, 9]).is_none());
    let (with, without) = (
        explained(keep.clone(), &[4, 8, 9, 30]),
        explained(keep, &[8, 30]),
    );
    assert!(with.is_some());
    assert_eq!(with, without);
}
