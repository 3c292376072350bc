//! Compares Adam with a float64 reference written from the paper (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).

use burn::module::{Module, Param};
use burn::optim::{GradientsParams, ModuleOptimizer, Optimizer, OptimizerRecord};
use burn::tensor::{Device, Tensor, TensorData};
use burn::train::checkpoint::Checkpoint;
use sae_model::ops::Adam;

use crate::{devices, values};

const STEPS: usize = 50;
/// Not a multiple of the vector length.
const N: usize = 37;
const ADAM: Adam = Adam {
    beta_1: 0.9,
    beta_2: 0.99,
    epsilon: 1e-3,
};

/// The learning rate rises and falls, so that a step with the rate of another step would be noticed.
fn lr(step: usize) -> f64 {
    0.03 * (1.0 + (step % 7) as f64)
}

/// Gradients from 1e-6, where epsilon dominates, to 1e4, and one zero.
fn gradient(step: usize, i: usize) -> f32 {
    let size = 10f32.powi((i % 11) as i32 - 6);
    let turn = ((step * 31 + i * 17) % 23) as f32 / 11.0 - 0.9;
    if i == 5 { 0.0 } else { size * turn }
}

fn start(i: usize) -> f32 {
    (i as f32 - 18.0) / 9.0
}

/// The parameters after each step, in float64.
fn reference() -> Vec<Vec<f64>> {
    let mut theta: Vec<f64> = (0..N).map(|i| f64::from(start(i))).collect();
    let (mut m, mut v) = (vec![0.0; N], vec![0.0; N]);
    let mut after = Vec::new();
    for t in 1..=STEPS {
        for i in 0..N {
            let g = f64::from(gradient(t, i));
            m[i] = ADAM.beta_1 * m[i] + (1.0 - ADAM.beta_1) * g;
            v[i] = ADAM.beta_2 * v[i] + (1.0 - ADAM.beta_2) * g * g;
            let m_hat = m[i] / (1.0 - ADAM.beta_1.powf(t as f64));
            let v_hat: f64 = v[i] / (1.0 - ADAM.beta_2.powf(t as f64));
            theta[i] -= lr(t) * m_hat / (v_hat.sqrt() + ADAM.epsilon);
        }
        after.push(theta.clone());
    }
    after
}

/// The rounding error allowed after fifty steps, each of at most about `lr / (1 - beta_1)`.
const TOLERANCE: f64 = 2e-5;

fn assert_close(actual: &[f32], expected: &[f64], what: &str) {
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(
            error < TOLERANCE * e.abs().max(1.0),
            "{what}, number {i}: {a} is not {e}"
        );
    }
}

fn tensor(numbers: impl Iterator<Item = f32>, device: &Device) -> Tensor<1> {
    let numbers: Vec<f32> = numbers.collect();
    let shape = [numbers.len()];
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

#[test]
fn fifty_steps_on_every_device() {
    let expected = reference();
    for (name, device) in devices() {
        let mut theta = tensor((0..N).map(start), &device);
        let mut state = None;
        for (step, expected) in (1..).zip(&expected) {
            let grad = tensor((0..N).map(|i| gradient(step, i)), &device);
            (theta, state) = ADAM.step(lr(step), theta, grad, state);
            assert_close(
                &values(theta.clone()),
                expected,
                &format!("{name} step {step}"),
            );
        }
    }
}

#[derive(Module, Debug)]
struct Line {
    theta: Param<Tensor<1>>,
}

/// As in the trainer, gradients come from autodiff, and the moments and the time pass through the bytes of checkpoints.
#[test]
fn fifty_steps_of_a_module_with_a_checkpoint_now_and_then() {
    let device = Device::flex().autodiff();
    let mut line = Line {
        theta: Param::from_tensor(tensor((0..N).map(start), &device).require_grad()),
    };
    let mut optimizer = ModuleOptimizer::from(ADAM);
    for (step, expected) in (1..).zip(&reference()) {
        let slope = tensor((0..N).map(|i| gradient(step, i)), &device);
        let grads = (line.theta.val() * slope).sum().backward();
        let grads = GradientsParams::from_grads(grads, &line);
        line = optimizer.step(lr(step), line, grads);
        assert_close(&values(line.theta.val()), expected, &format!("step {step}"));
        if step % 9 == 0 {
            let bytes = optimizer.to_record().checkpoint_into_bytes().unwrap();
            let record = OptimizerRecord::checkpoint_from_bytes(bytes).unwrap();
            optimizer = ModuleOptimizer::from(ADAM).load_record(record);
        }
    }
}
