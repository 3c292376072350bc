//! Compares the gradients of parts that the golden values do not cover (pre-bias, scale, norms with W_Q) with central
//! differences.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_model::architectures::Attention;
use sae_model::config::ProjectionInit;
use sae_model::loss::Loss;
use sae_model::{Mode, Sae, SaeConfig, SparseValue};

use crate::values;

const WIDTH: usize = 6;
const ROWS: usize = 4;

/// The kind of value, the exponent of the norm, and the range in which the exponent applies.
type Kind = (SparseValue, f64, Option<f64>);

fn config((value, norm_exponent, norm_range): Kind) -> SaeConfig {
    let attention = Attention {
        value,
        refinement: 0, // carries no gradient
        ..Attention::default()
    };
    let mut config = SaeConfig::new(attention, WIDTH, 20);
    config.norm_exponent = norm_exponent;
    config.norm_range = norm_range;
    config.input_scale = 0.7;
    config.scale = 1.3;
    config.query_projection = true;
    config.key_projection = true;
    config.init.projections = ProjectionInit::Kaiming;
    config
}

/// Reproducible values in [-1, 1).
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn batch(device: &Device) -> Tensor<2> {
    Tensor::from_data(
        TensorData::new(noise(ROWS * WIDTH, 1), [ROWS, WIDTH]),
        device,
    )
}

fn model(kind: Kind, device: &Device) -> Sae {
    Sae::init(&config(kind), 3, &noise(WIDTH, 2), device)
}

/// The loss in float64, and whether each latent is active.
fn loss(sae: &Sae) -> (f64, Vec<bool>) {
    let x = batch(&Device::flex());
    let r = sae.forward(x.clone(), &Mode::Inference);
    let squares = values(x)
        .into_iter()
        .zip(values(r.x_hat))
        .map(|(x, y)| f64::from(y - x).powi(2));
    let codes = r.encoded.latents.on_host();
    let active = values(codes.to_dense(&Device::flex()))
        .into_iter()
        .map(|a| a != 0.0);
    (
        squares.sum::<f64>() / (ROWS * WIDTH) as f64,
        active.collect(),
    )
}

/// Compares the gradient of one parameter with the slope of the loss along a direction.
fn check<const D: usize>(
    kind: Kind,
    name: &str,
    get: impl Fn(&Sae) -> Tensor<D>,
    set: impl Fn(&mut Sae, Tensor<D>),
) {
    // Shorter steps show the rounding of x_hat: its part of the slope doubles when the step is halved.
    const STEP: f64 = 2e-3;
    let differentiable = model(kind, &Device::flex().autodiff());
    let x = batch(&Device::flex().autodiff());
    let x_hat = differentiable.forward(x.clone(), &Mode::Inference).x_hat;
    let grads = Loss::Mse.forward(x, x_hat, 1.0).backward();
    let gradient = get(&differentiable).grad(&grads).expect("a gradient");
    let shape = gradient.dims();
    let direction = noise(shape.iter().product(), 5);
    let direction = Tensor::<D>::from_data(TensorData::new(direction, shape), &Device::flex());
    let expected: f64 = (gradient * direction.clone()).sum().into_scalar();

    let sae = model(kind, &Device::flex());
    let at = |step: f64| {
        let mut sae = sae.clone();
        let parameter = get(&sae) + direction.clone() * step;
        set(&mut sae, parameter);
        loss(&sae)
    };
    let ((above, active_above), (below, active_below)) = (at(STEP), at(-STEP));
    assert_eq!(
        active_above, active_below,
        "{name}: the support must not change, or the slope means nothing"
    );
    let slope = (above - below) / (2.0 * STEP);
    let tolerance = 2e-3 * expected.abs().max(0.05);
    assert!(
        (slope - expected).abs() < tolerance,
        "{kind:?} {name}: slope {slope}, gradient {expected}"
    );
}

#[test]
fn every_parameter_against_central_differences() {
    use SparseValue::{Probability, Score};
    for kind in [
        (Probability, 1.0, None),
        (Score, 1.0, None),
        (Probability, 0.0, None),
        (Score, 2.0, None),
        (Score, 2.0, Some(4.0)),
        (Score, 2.0, Some(1.3)), // some rows lie outside the range
        (Probability, 0.0, Some(1.3)),
    ] {
        for name in ["W_dec", "W_Q", "W_K", "W_V"] {
            check(
                kind,
                name,
                |s| s.parameters.matrix(name).expect("a matrix"),
                |s, value| s.parameters.set_matrix(name, value),
            );
        }
        check(
            kind,
            "b_dec",
            |s| s.b_dec().expect("a pre-bias"),
            |s, value| s.parameters.set_vector("b_dec", value),
        );
    }
}

#[test]
fn a_row_that_equals_the_pre_bias_comes_back_and_has_a_gradient() {
    let device = Device::flex().autodiff();
    let sae = model((SparseValue::Score, 1.0, None), &device);
    let x = Tensor::<2>::from_data(TensorData::new(noise(WIDTH, 2), [1, WIDTH]), &device);
    let x_hat = sae.forward(x.clone(), &Mode::Inference).x_hat;
    assert_eq!(values(x_hat.clone()), values(x.clone()));
    let grads = Loss::Mse.forward(x, x_hat, 1.0).backward();
    let bias = sae.b_dec().expect("a pre-bias");
    assert!(
        values(bias.grad(&grads).expect("a gradient"))
            .iter()
            .all(|g| g.is_finite())
    );
}
