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
    unit_rows: false,
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

/// Rows and width of a matrix whose rows keep length one.
const ROWS: usize = 5;
const WIDTH: usize = 150;

/// Makes the rows one long.
fn rows_to_one(values: &mut [f64]) {
    for row in values.chunks_exact_mut(WIDTH) {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
}

/// Twenty steps that keep the rows at length one, in float64.
fn reference_on_rows() -> Vec<f64> {
    let n = ROWS * WIDTH;
    let mut theta: Vec<f64> = (0..n).map(|i| f64::from(start(i % 41))).collect();
    rows_to_one(&mut theta);
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for t in 1..=20 {
        let mut grad: Vec<f64> = (0..n).map(|i| f64::from(gradient(t, i))).collect();
        for (grad, row) in grad.chunks_exact_mut(WIDTH).zip(theta.chunks_exact(WIDTH)) {
            let along: f64 = grad.iter().zip(row).map(|(g, p)| g * p).sum();
            grad.iter_mut().zip(row).for_each(|(g, p)| *g -= along * p);
        }
        for i in 0..n {
            let g = grad[i];
            m[i] = ADAM.beta_1 * m[i] + (1.0 - ADAM.beta_1) * g;
            v[i] = ADAM.beta_2 * v[i] + (1.0 - ADAM.beta_2) * g * g;
            let m_hat = m[i] / (1.0 - ADAM.beta_1.powf(f64::from(t as u32)));
            let v_hat: f64 = v[i] / (1.0 - ADAM.beta_2.powf(f64::from(t as u32)));
            theta[i] -= 0.1 * lr(t) * m_hat / (v_hat.sqrt() + ADAM.epsilon);
        }
        rows_to_one(&mut theta);
    }
    theta
}

#[test]
fn rows_keep_length_one_on_every_device() {
    let expected = reference_on_rows();
    let adam = Adam {
        unit_rows: true,
        ..ADAM
    };
    for (name, device) in devices() {
        let matrix = |numbers: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(numbers, [ROWS, WIDTH]), &device)
        };
        let mut begin: Vec<f64> = (0..ROWS * WIDTH)
            .map(|i| f64::from(start(i % 41)))
            .collect();
        rows_to_one(&mut begin);
        let mut theta = matrix(begin.iter().map(|v| *v as f32).collect());
        let mut state = None;
        for step in 1..=20 {
            let grad = matrix((0..ROWS * WIDTH).map(|i| gradient(step, i)).collect());
            (theta, state) = adam.step(0.1 * lr(step), theta, grad, state);
        }
        let after: Vec<f32> = theta.clone().into_data().iter().collect();
        for (i, (a, e)) in after.iter().zip(&expected).enumerate() {
            // gradients of 1e4 meet numbers of 0.1: rounding of what lies along a row is some 1e-3 of the small gradients
            assert!(
                (f64::from(*a) - e).abs() < 2e-3,
                "{name}, number {i}: {a} is not {e}"
            );
        }
        for row in after.chunks(WIDTH) {
            let length: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!((length - 1.0).abs() < 1e-5, "{name}: {length}");
        }
        let grad = matrix(vec![1.0; ROWS * WIDTH]);
        let (same, _) = adam.step(0.0, theta.clone(), grad, None);
        let same: Vec<f32> = same.into_data().iter().collect();
        assert_eq!(same, after, "{name}: a learning rate of zero");
    }
}
