//! The steps on rows and the sums: every device against plain loops in f64, and against itself.

use burn::tensor::{Device, Tensor, TensorData};

use super::{devices, noise, tensor, values};
use crate::device::DeviceName;
use crate::ops::{self, Norm};

const NORMS: [Norm; 5] = [
    norm(0.0, 1.5, f32::INFINITY),
    norm(1.0, 1.5, f32::INFINITY),
    norm(2.0, 1.5, f32::INFINITY),
    norm(2.0, 1.5, 1.25), // some rows beyond it on each side
    norm(0.0, 1.5, 1.25),
];

const fn norm(exponent: f32, scale: f32, range: f32) -> Norm {
    Norm {
        exponent,
        scale,
        range,
    }
}

/// Rows of width d: x and y, upstream gradients of u and x_hat, and a bias.
struct Problem {
    rows: usize,
    d: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    of_u: Vec<f32>,
    of_x_hat: Vec<f32>,
    bias: Vec<f32>,
    norm: Norm,
}

/// u, n, x_hat, dy and db.
type Answer = [Vec<f64>; 5];

impl Problem {
    fn new([rows, d]: [usize; 2], norm: Norm, has_bias: bool) -> Self {
        let mut x = noise(rows * d, 1);
        for (i, row) in x.chunks_exact_mut(d).enumerate() {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            let wanted = 0.6 + 0.1 * (i % 30) as f32;
            row.iter_mut().for_each(|v| *v *= wanted / length);
        }
        Self {
            rows,
            d,
            x,
            y: noise(rows * d, 2),
            of_u: noise(rows * d, 3),
            of_x_hat: noise(rows * d, 4),
            bias: noise(d * usize::from(has_bias), 5)
                .iter()
                .map(|b| 0.05 * b)
                .collect(),
            norm,
        }
    }

    /// By plain loops; the gradients by how n depends on the length.
    fn naive(&self) -> Answer {
        let (s, p) = (f64::from(self.norm.scale), f64::from(self.norm.exponent));
        let range = f64::from(self.norm.range);
        let d = self.d;
        let [mut u, mut n, mut x_hat, mut dy] = [(); 4].map(|()| Vec::new());
        let mut db = vec![0.0; self.bias.len()];
        for i in 0..self.rows {
            let of = |values: &[f32]| -> Vec<f64> {
                let row = values[i * d..][..d].iter();
                row.map(|v| f64::from(*v)).collect()
            };
            let (mut x0, y, gu, gx) =
                (of(&self.x), of(&self.y), of(&self.of_u), of(&self.of_x_hat));
            for (x, b) in x0.iter_mut().zip(&self.bias) {
                *x -= f64::from(*b);
            }
            let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let squared = dot(&x0, &x0);
            let r = squared.sqrt() / s;
            let near = r.clamp(1.0 / range, range);
            let n_i = s * near.powf(p) * (r / near);
            let p_i = if near == r { p } else { 1.0 };
            let row: Vec<f64> = x0.iter().map(|x| x / n_i).collect();
            // dn / dx0 = p n x0 / ||x0||^2; it reaches the loss through u = x0 / n and through x_hat = b + 0.5 n y
            let through_n = 0.5 * dot(&y, &gx) - dot(&x0, &gu) / (n_i * n_i);
            for (k, db) in db.iter_mut().enumerate() {
                let dx0 = gu[k] / n_i + through_n * p_i * n_i * x0[k] / squared;
                *db += gx[k] - dx0;
            }
            for (k, b) in y.iter().enumerate() {
                x_hat.push(self.bias.get(k).map_or(0.0, |b| f64::from(*b)) + 0.5 * n_i * b);
            }
            dy.extend(gx.iter().map(|g| 0.5 * n_i * g));
            u.extend(row);
            n.push(n_i);
        }
        [u, n, x_hat, dy, db]
    }

    fn on(&self, device: &Device) -> Answer {
        let device = device.clone().autodiff();
        let matrix = |of: &[f32]| tensor(of, self.d, &device);
        let bias = (!self.bias.is_empty()).then(|| {
            let data = TensorData::new(self.bias.clone(), [self.d]);
            Tensor::<1>::from_data(data, &device).require_grad()
        });
        let y = matrix(&self.y).require_grad();
        let (u, n) = ops::normalize(matrix(&self.x), bias.clone(), self.norm);
        let rows = (u.clone(), n.clone());
        let x_hat = ops::restore(y.clone(), bias.clone(), rows, 0.5, self.norm);
        let of_x_hat = (x_hat.clone() * matrix(&self.of_x_hat)).sum();
        let of_u = (u.clone() * matrix(&self.of_u)).sum();
        let grads = (of_x_hat + of_u).backward();
        let dy = y.grad(&grads).expect("a gradient");
        let db = bias.map(|bias| bias.grad(&grads).expect("a gradient"));
        let db = db.map_or(Vec::new(), |db| values(db.reshape([1, self.d])));
        let of = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        [values(u), values(n), values(x_hat), values(dy), db].map(of)
    }
}

const SHAPES: [[usize; 2]; 4] = [[1, 1], [70, 33], [300, 129], [65, 700]];

#[test]
fn every_device_computes_the_formulas() {
    for (name, device) in devices() {
        for shape in SHAPES {
            for (norm, has_bias) in NORMS.iter().flat_map(|n| [(*n, true), (*n, false)]) {
                let problem = Problem::new(shape, norm, has_bias);
                let (ours, theirs) = (problem.naive(), problem.on(&device));
                for (part, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                    assert_eq!(a.len(), b.len(), "{name} {shape:?} {norm:?} {part}");
                    // f32 sums of up to 700 numbers; db is a sum over 300 rows of size about 1
                    let room = if part == 4 { 2e-4 } else { 2e-5 };
                    for (a, b) in a.iter().zip(b) {
                        assert!(
                            (a - b).abs() <= room * a.abs().max(1.0),
                            "{name} {shape:?} {norm:?} bias {has_bias}, part {part}: {b} is not {a}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_device_adds_up_in_one_order() {
    for (name, device) in devices() {
        for n in [1, 127, 8192, 8193, 3 * 8192 + 5, 1 << 20] {
            let (x, y) = (noise(n, 1), noise(n, 2));
            let [a, b] = [&x, &y].map(|of| tensor(of, n, &device));
            let sums = || {
                [
                    ops::sum(a.clone()),
                    ops::squared_norm(a.clone()),
                    ops::squared_error(a.clone(), b.clone()),
                ]
                .map(|sum| sum.into_scalar::<f32>())
            };
            let first = sums();
            let wide = |f: fn(f64, f64) -> f64| -> f64 {
                let pairs = x.iter().zip(&y);
                pairs.map(|(x, y)| f(f64::from(*x), f64::from(*y))).sum()
            };
            let naive = [
                wide(|x, _| x),
                wide(|x, _| x * x),
                wide(|x, y| (x - y) * (x - y)),
            ];
            for (sum, naive) in first.iter().zip(naive) {
                // rounding of the result, and of additions of numbers of size 1
                let relative = match name {
                    DeviceName::NdArray => 1e-4, // Burn adds them there one by one
                    _ => 1e-6,
                };
                let room = relative * naive.abs() + 1e-8 * n as f64;
                let distance = (f64::from(*sum) - naive).abs();
                assert!(distance <= room, "{name}, {n}: {sum} is not {naive}");
            }
            for _ in 0..10 {
                let again = sums();
                let bits = |of: [f32; 3]| of.map(f32::to_bits);
                assert_eq!(bits(again), bits(first), "{name}, {n}");
            }
        }
    }
}

#[test]
fn a_sum_hands_its_gradient_to_every_number() {
    for (name, device) in devices() {
        let x = tensor(&noise(12, 1), 4, &device.autodiff()).require_grad();
        let grads = (ops::sum(x.clone()) * 3.0).backward();
        let grad = x.grad(&grads).expect("a gradient");
        assert_eq!(values(grad), vec![3.0; 12], "{name}");
    }
}

#[test]
fn a_number_that_is_not_finite_shows_in_a_sum() {
    for (name, device) in devices() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = noise(20_000, 1);
            x[17_000] = bad;
            let sum: f32 = ops::squared_norm(tensor(&x, 100, &device)).into_scalar();
            assert!(!sum.is_finite(), "{name}: {sum}");
        }
    }
}
