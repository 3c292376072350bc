//! Compares refined codes (`refinement.rs`) with the equations in float64.

use burn::tensor::{Device, Tensor};
use sae_model::{AnyArchitecture, Architecture, Mode, Sae, SaeConfig};

use crate::{devices, pattern_rows, values, with};

const WIDTH: usize = 6;
const LATENTS: usize = 40;
const ROWS: usize = 9;

fn rows(device: &Device) -> Tensor<2> {
    pattern_rows([ROWS, WIDTH], device)
}

fn config(architecture: &AnyArchitecture, steps: usize) -> SaeConfig {
    let architecture = with(&with(architecture, "k", 5), "refinement", steps);
    let mut config = SaeConfig::new(architecture, WIDTH, LATENTS);
    config.scale = 0.5; // several latents per row
    config
}

/// The architectures that can refine.
fn that_refine() -> Vec<AnyArchitecture> {
    let mut all = AnyArchitecture::all();
    all.retain(|architecture| architecture.switches().contains_key("refinement"));
    assert!(all.len() >= 4);
    all
}

/// A matrix in float64.
struct Matrix(Vec<Vec<f64>>);

impl Matrix {
    fn of(tensor: Tensor<2>) -> Self {
        let [_, columns] = tensor.dims();
        let values = values(tensor);
        let row = |row: &[f32]| row.iter().map(|v| f64::from(*v)).collect();
        Self(values.chunks_exact(columns).map(row).collect())
    }

    /// `row M`.
    fn times(&self, row: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.0[0].len()];
        for (factor, row) in row.iter().zip(&self.0) {
            for (sum, v) in sum.iter_mut().zip(row) {
                *sum += factor * v;
            }
        }
        sum
    }

    /// `row M^T`.
    fn dots(&self, row: &[f64]) -> Vec<f64> {
        self.0.iter().map(|other| dot(row, other)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// One step on one row: `a + (|g|^2 / |g V|^2) g` with `g = (u - a V) V^T` on the support of a.
fn step(a: &[f64], u: &[f64], values: &Matrix) -> Vec<f64> {
    let explained = values.times(a);
    let residual: Vec<f64> = u.iter().zip(&explained).map(|(u, y)| u - y).collect();
    let mut slope = values.dots(&residual);
    for (slope, a) in slope.iter_mut().zip(a) {
        if *a == 0.0 {
            *slope = 0.0;
        }
    }
    let moved = values.times(&slope);
    let length = dot(&slope, &slope) / dot(&moved, &moved).max(1e-24);
    a.iter().zip(&slope).map(|(a, g)| a + length * g).collect()
}

#[test]
fn the_steps_are_those_of_steepest_descent() {
    for (name, device) in devices() {
        for architecture in that_refine() {
            let model = |steps| Sae::init(&config(&architecture, steps), 3, &[0.1; WIDTH], &device);
            let dense = |sae: &Sae| {
                let encoded = sae.encode(rows(&device));
                let codes = encoded.latents.on_host();
                (Matrix::of(codes.to_dense(&Device::flex())), encoded.input.u)
            };
            let plain = model(0);
            let concepts = Matrix::of(plain.w_dec()); // projections start at the identity
            let (mut expected, u) = dense(&plain);
            let u = Matrix::of(u);
            for steps in 1..=3 {
                for (a, u) in expected.0.iter_mut().zip(&u.0) {
                    *a = step(a, u, &concepts);
                }
                let (refined, _) = dense(&model(steps));
                for (a, e) in refined.0.iter().flatten().zip(expected.0.iter().flatten()) {
                    assert!(
                        (a - e).abs() < 1e-4,
                        "{name} {architecture:?} after {steps}: {a} is not {e}"
                    );
                    assert_eq!(*a == 0.0, *e == 0.0, "nothing new is selected");
                }
            }
        }
    }
}

#[test]
fn the_error_of_no_row_rises_and_training_does_not_refine() {
    for (name, device) in devices() {
        for architecture in that_refine() {
            let errors = |steps, training| {
                let sae = Sae::init(&config(&architecture, steps), 5, &[0.0; WIDTH], &device);
                let x = rows(&device);
                let mode = match training {
                    true => Mode::training(),
                    false => Mode::Inference,
                };
                let r = sae.forward(x.clone(), &mode);
                values((r.x_hat - x).square().sum_dim(1))
            };
            let mut last = errors(0, false);
            let unrefined = errors(0, true);
            assert_eq!(errors(2, true), unrefined, "{name} {architecture:?}");
            for steps in [1, 2, 5] {
                let next = errors(steps, false);
                for (next, last) in next.iter().zip(&last) {
                    assert!(*next <= last * 1.0001 + 1e-6, "{name}: {next} > {last}");
                }
                assert!(next.iter().sum::<f32>() < last.iter().sum::<f32>());
                last = next;
            }
        }
    }
}

#[test]
fn too_many_steps_are_a_mistake() {
    for architecture in that_refine() {
        assert!(config(&architecture, 100).validate().is_ok());
        assert!(config(&architecture, 101).validate().is_err());
    }
}
