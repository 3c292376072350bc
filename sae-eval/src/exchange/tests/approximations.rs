//! The nearest TopK and JumpReLU of a model, and what the certificate says of them.

use burn::tensor::Device;
use sae_data::ActivationData;
use sae_model::architectures::{Attention, Gated, TopK};
use sae_model::{Preset, Sae, SaeConfig};
use serde_json::{Map, Value};

use super::{D, M, ROWS, assert_same, model, rows};
use crate::exchange::approximate::{self, Form};
use crate::exchange::certificate::{self, forward, supports};
use crate::exchange::folded::Folded;

#[test]
fn gates_are_thresholds() {
    let mut config = SaeConfig::new(Gated {}, D, M);
    config.input_scale = 0.6;
    let sae = model(&config);
    let nothing = "no rows".to_string();
    let nearest = approximate::nearest(&sae, Form::Jumprelu, "F", Err(&nothing));
    let (folded, how) = nearest.unwrap();
    assert_eq!(how, "its own JumpReLU, without refinement");
    assert_same(&sae, &folded.to_sae(&Device::flex()).unwrap(), "gates");
    let error = approximate::nearest(&sae, Form::Topk, "F", Err(&nothing)).unwrap_err();
    assert!(error.to_string().contains("no rows"));
}

#[test]
fn approximations_have_the_models_l0() {
    let data = ActivationData::from_rows(rows(), D);
    for mut config in [
        SaeConfig::new(Attention::default(), D, M),
        SaeConfig::new(Attention::from(Preset::Paper), D, M),
        SaeConfig::new(Attention::from(Preset::Released), D, M),
        SaeConfig::new(Gated {}, D, M),
    ] {
        config.refine_nothing();
        let sae = model(&config);
        let l0 = mean_l0(&sae);
        for form in [Form::Topk, Form::Jumprelu] {
            let (folded, how) = approximate::nearest(&sae, form, "F", Ok(&data)).unwrap();
            let near = folded.to_sae(&Device::flex()).unwrap();
            let about = format!("{how}, L0 {l0} and {}", mean_l0(&near));
            match form {
                Form::Topk => assert!(mean_l0(&near) <= l0.round().max(1.0), "{about}"),
                Form::Jumprelu => assert!((mean_l0(&near) - l0).abs() < 0.02, "{about}"),
            }
            // it is written as it is
            assert!(Folded::of(&near, "F").unwrap() == folded, "{about}");
            let measured = certificate::measure(&sae, &near, &data, how).unwrap();
            let json = serde_json::to_value(&measured.certificate).unwrap();
            assert!((json["l0"]["model"].as_f64().unwrap() - l0).abs() < 1e-9);
            assert!(
                json["support"]["mean_jaccard"].as_f64().unwrap() > 0.2,
                "{about}: {json}"
            );
        }
    }
}

trait RefineNothing {
    fn refine_nothing(&mut self);
}

impl RefineNothing for SaeConfig {
    fn refine_nothing(&mut self) {
        let none = Map::from_iter([("refinement".to_string(), Value::from(0))]);
        if let Ok(architecture) = self.architecture.with(none) {
            self.architecture = architecture;
        }
    }
}

fn mean_l0(sae: &Sae) -> f64 {
    let active = supports(&forward(sae, &rows()).1);
    active.iter().map(Vec::len).sum::<usize>() as f64 / ROWS as f64
}

#[test]
fn refinement_is_dropped_and_the_certificate_says_what_it_was_worth() {
    let sae = model(&SaeConfig::new(
        TopK {
            k: 5,
            refinement: 4,
        },
        D,
        M,
    ));
    let nothing = "no rows".to_string();
    let (folded, how) = approximate::nearest(&sae, Form::Topk, "F", Err(&nothing)).unwrap();
    assert_eq!(how, "its own TopK, without refinement");
    let near = folded.to_sae(&Device::flex()).unwrap();
    let data = ActivationData::from_rows(rows(), D);
    let measured = certificate::measure(&sae, &near, &data, how).unwrap();
    let json = serde_json::to_value(&measured.certificate).unwrap();
    assert_eq!(json["support"]["equal_rows"], 1.0);
    assert_eq!(json["firing_frequency"]["largest_change"], 0.0);
    assert!(json["fvu"]["written"].as_f64() > json["fvu"]["model"].as_f64());
    // by hand: the largest distance of the two reconstructions
    let ((a, _), (b, _)) = (forward(&sae, &rows()), forward(&near, &rows()));
    let distance = |(a, b): (&[f32], &[f32])| -> f64 {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let largest = a
        .chunks_exact(D)
        .zip(b.chunks_exact(D))
        .map(distance)
        .fold(0.0, f64::max);
    let found = json["x_hat"]["largest"].as_f64().unwrap();
    assert!(
        (found - largest).abs() < 1e-6 * largest,
        "{found} {largest}"
    );
}
