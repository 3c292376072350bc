//! Masked latents (`Mode::Training`) are not selected, whatever their score.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use sae_model::loss::{Coefficients, Step};
use sae_model::{AnyArchitecture, Architecture, Mode, Sae, SaeConfig, architectures::TopK};

use crate::{devices, pattern_rows, values, with};

const WIDTH: usize = 6;
const LATENTS: usize = 40;
const ROWS: usize = 7;

fn x(device: &Device) -> Tensor<2> {
    pattern_rows([ROWS, WIDTH], device)
}

/// Every architecture with each kind of value, with and without an encoder bias.
fn models(device: &Device) -> Vec<(String, Sae)> {
    let mut all = Vec::new();
    for architecture in AnyArchitecture::all() {
        for (value, bias) in ["probability", "score"]
            .into_iter()
            .flat_map(|value| [(value, false), (value, true)])
        {
            let architecture = with(&with(&architecture, "k", 5), "value", value);
            let name = format!("{architecture:?}, bias: {bias}");
            let mut config = SaeConfig::new(architecture, WIDTH, LATENTS);
            config.encoder_bias |= bias;
            let mut sae = Sae::init(&config, 3, &[0.0; WIDTH], device);
            for bias in ["b_enc", "b_gate"] {
                if sae.parameters.vector(bias).is_some() {
                    let high = Tensor::full([LATENTS], 5.0, device);
                    sae.parameters.set_vector(bias, high);
                }
            }
            all.push((name, sae));
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
                let mode = Mode::Training {
                    mask: Arc::new(keep.clone()),
                };
                let r = sae.forward(x(&device), &mode);
                let active = values(r.encoded.latents.firing_frequency());
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
    let mode = Mode::Training {
        mask: Arc::new(keep),
    };
    for (name, sae) in models(&device) {
        let r = sae.forward(x(&device), &mode);
        let grads = r.x_hat.square().sum().backward();
        for dictionary in ["W_dec", "W_enc"] {
            let Some(dictionary) = sae.parameters.matrix(dictionary) else {
                continue;
            };
            let gradient = values(dictionary.grad(&grads).expect("a gradient"));
            let odd = gradient.chunks(WIDTH).skip(1).step_by(2).flatten();
            assert!(odd.into_iter().all(|g| *g == 0.0), "{name}");
            assert!(gradient.iter().any(|g| *g != 0.0), "{name}");
        }
    }
}

#[test]
fn masked_latents_explain_nothing() {
    let device = Device::flex();
    let topk = TopK {
        k: 5,
        ..TopK::default()
    };
    let sae = Sae::init(
        &SaeConfig::new(topk, WIDTH, LATENTS),
        3,
        &[0.0; WIDTH],
        &device,
    );
    let coefficients = Coefficients::default()
        .with("aux_coefficient", 1.0)
        .with("aux_k", 3.0);
    let explained = |keep: Vec<f32>, dead: &[u32]| {
        let mask = Arc::new(keep);
        let mode = Mode::Training { mask: mask.clone() };
        let (x, dead) = (x(&device), || dead.to_vec());
        let forward = sae.forward(x.clone(), &mode);
        let distance = |_, explained: Tensor<2>| explained.sum();
        let step = Step::new(
            (&sae, &x, &forward),
            (&mask, &|| 0),
            &coefficients,
            &dead,
            &distance,
        );
        let terms = sae.config().architecture.losses(&step);
        terms.into_iter().next().map(|term| values(term.value))
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
