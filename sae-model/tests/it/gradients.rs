//! Gradients of the parts that the golden values leave out (pre-bias, a scale, a unit norm with W_Q), against
//! central differences.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_model::config::ProjectionInit;
use sae_model::loss::Loss;
use sae_model::{Preset, Sae, SaeConfig, SparseValue};

use crate::values;

const WIDTH: usize = 6;
const ROWS: usize = 4;

/// The kind of value, the exponent of the norm, and the range in which it holds.
type Kind = (SparseValue, f64, Option<f64>);

fn config((value, norm_exponent, norm_range): Kind) -> SaeConfig {
    let mut config = Preset::Default.config(WIDTH, 20);
    config.value = value;
    config.norm_exponent = norm_exponent;
    config.norm_range = norm_range;
    config.refinement = 0; // carries no gradient
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

/// Loss in float64, and which latents are active.
fn loss(sae: &Sae) -> (f64, Vec<bool>) {
    let x = batch(&Device::flex());
    let r = sae.reconstruct(x.clone());
    let squares = values(x)
        .into_iter()
        .zip(values(r.x_hat))
        .map(|(x, y)| f64::from(y - x).powi(2));
    let codes = r.encoded.activations.into_codes();
    let active = values(codes.to_dense(&Device::flex()))
        .into_iter()
        .map(|a| a != 0.0);
    (
        squares.sum::<f64>() / (ROWS * WIDTH) as f64,
        active.collect(),
    )
}

/// Moves a parameter by `step` along a direction.
fn moved<const D: usize>(
    parameter: &Param<Tensor<D>>,
    direction: &Tensor<D>,
    step: f64,
) -> Param<Tensor<D>> {
    Param::from_tensor(parameter.val() + direction.clone() * step)
}

/// Compares the gradient of one parameter with the slope of the loss along a direction.
fn check<const D: usize>(
    kind: Kind,
    name: &str,
    get: impl Fn(&Sae) -> Param<Tensor<D>>,
    set: impl Fn(&mut Sae, Param<Tensor<D>>),
) {
    // Shorter ones show the rounding of x_hat: its part of the slope doubles where the step is halved.
    const STEP: f64 = 2e-3;
    let differentiable = model(kind, &Device::flex().autodiff());
    let x = batch(&Device::flex().autodiff());
    let x_hat = differentiable.reconstruct(x.clone()).x_hat;
    let grads = Loss::Mse.forward(x, x_hat, 1.0).backward();
    let gradient = get(&differentiable).val().grad(&grads).expect("a gradient");
    let shape = gradient.dims();
    let direction = noise(shape.iter().product(), 5);
    let direction = Tensor::<D>::from_data(TensorData::new(direction, shape), &Device::flex());
    let expected: f64 = (gradient * direction.clone()).sum().into_scalar();

    let sae = model(kind, &Device::flex());
    let at = |step: f64| {
        let mut sae = sae.clone();
        let parameter = moved(&get(&sae), &direction, step);
        set(&mut sae, parameter);
        loss(&sae)
    };
    let ((above, active_above), (below, active_below)) = (at(STEP), at(-STEP));
    assert_eq!(
        active_above, active_below,
        "{name}: the support must stay for the slope to mean anything"
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
    let some = |parameter: &Option<Param<Tensor<2>>>| {
        parameter.clone().expect("all projections are there")
    };
    use SparseValue::{Probability, Score};
    for kind in [
        (Probability, 1.0, None),
        (Score, 1.0, None),
        (Probability, 0.0, None),
        (Score, 2.0, None),
        (Score, 2.0, Some(4.0)),
        (Score, 2.0, Some(1.3)), // some rows lie beyond it
        (Probability, 0.0, Some(1.3)),
    ] {
        check(
            kind,
            "concepts",
            |s| s.concepts.clone(),
            |s, p| s.concepts = p,
        );
        check(kind, "w_q", |s| some(&s.w_q), |s, p| s.w_q = Some(p));
        check(kind, "w_k", |s| some(&s.w_k), |s, p| s.w_k = Some(p));
        check(kind, "w_v", |s| some(&s.w_v), |s, p| s.w_v = Some(p));
        check(
            kind,
            "pre_bias",
            |s| s.pre_bias.clone().expect("a pre-bias"),
            |s, p| s.pre_bias = Some(p),
        );
    }
}

#[test]
fn a_row_that_equals_the_pre_bias_comes_back_and_has_a_gradient() {
    let device = Device::flex().autodiff();
    let sae = model((SparseValue::Score, 1.0, None), &device);
    let x = Tensor::<2>::from_data(TensorData::new(noise(WIDTH, 2), [1, WIDTH]), &device);
    let x_hat = sae.reconstruct(x.clone()).x_hat;
    assert_eq!(values(x_hat.clone()), values(x.clone()));
    let grads = Loss::Mse.forward(x, x_hat, 1.0).backward();
    let bias = sae.pre_bias.expect("a pre-bias");
    assert!(
        values(bias.val().grad(&grads).expect("a gradient"))
            .iter()
            .all(|g| g.is_finite())
    );
}
