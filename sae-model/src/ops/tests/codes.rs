//! Compares sparse codes with plain loops in f64: values and every gradient, for every selection rule.
//!
//! Queries and dictionaries lie on a coarse grid, so that scores are exact in f32, ties are real ties, and both sides
//! must select the same latents.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;

use super::{devices, noise, tensor, values};
use crate::ops::{self, EncodeOptions, Selection, SparseValue};

/// A problem: `z = q E^T + bias`, minus infinity where the mask is 0, `y = a D`, loss = `sum(y * upstream)`.
#[derive(Clone, Debug)]
struct Problem {
    rows: usize,
    latents: usize,
    width: usize,
    queries: Vec<f32>,
    encoder: Vec<f32>,
    decoder: Vec<f32>,
    upstream: Vec<f32>,
    bias: Vec<f32>,
    mask: Vec<f32>,
    thresholds: Vec<f32>,
}

/// The results, dense and in f64.
#[derive(Debug)]
struct Answer {
    activations: Vec<f64>,
    output: Vec<f64>,
    d_queries: Vec<f64>,
    d_encoder: Vec<f64>,
    d_decoder: Vec<f64>,
    d_bias: Vec<f64>,
    d_thresholds: Vec<f64>,
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `a b` (`[n, k] [k, m]`).
fn product(a: &[f64], b: &[f64], n: usize, k: usize, m: usize) -> Vec<f64> {
    let at = |i: usize| (0..k).map(|l| a[i / m * k + l] * b[l * m + i % m]).sum();
    (0..n * m).map(at).collect()
}

fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| a[i % rows * columns + i / rows])
        .collect()
}

/// The positions of the `k` largest positive scores, by descending score, then by ascending position.
fn largest(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] > 0.0).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(k);
    order
}

/// tau by sorting (Martins & Astudillo 2016, algorithm 1).
fn tau(scores: &[f64]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut tau) = (0.0, f64::NAN);
    for (i, z) in sorted.iter().enumerate() {
        sum += z;
        let candidate = (sum - 1.0) / (i + 1) as f64;
        if *z > candidate {
            tau = candidate;
        }
    }
    tau
}

impl Problem {
    /// Values on a grid of 1/4, so that scores are exact; `seed` determines them.
    fn on_grid(rows: usize, latents: usize, width: usize, seed: u64, spread: i32) -> Self {
        let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let mut grid = |n: usize, spread: i32| -> Vec<f32> {
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) as i64 % (2 * i64::from(spread) + 1) - i64::from(spread)) as f32
                    / 4.0
            };
            (0..n).map(|_| next()).collect()
        };
        let mask = grid(latents, 3)
            .iter()
            .map(|v| f32::from(*v > -0.7))
            .collect();
        Self {
            rows,
            latents,
            width,
            queries: grid(rows * width, spread),
            encoder: grid(latents * width, spread),
            decoder: grid(latents * width, 4),
            upstream: grid(rows * width, 4),
            bias: grid(latents, 2),
            mask,
            thresholds: grid(latents, 3).iter().map(|v| v.abs() + 0.125).collect(),
        }
    }

    fn naive(&self, selection: Selection) -> Answer {
        let (b, m, d) = (self.rows, self.latents, self.width);
        let (q, e) = (wide(&self.queries), wide(&self.encoder));
        let mut z = product(&q, &transposed(&e, m, d), b, d, m);
        for (i, z) in z.iter_mut().enumerate() {
            *z += f64::from(self.bias[i % m]);
            if self.mask[i % m] == 0.0 {
                *z = f64::NEG_INFINITY;
            }
        }
        let (a, taken) = self.select(&z, selection);
        let (dec, up) = (wide(&self.decoder), wide(&self.upstream));
        let da = product(&up, &transposed(&dec, m, d), b, d, m);
        let mut dz = vec![0.0; b * m];
        let mut d_thresholds = vec![0.0; m];
        for row in 0..b {
            let support: Vec<usize> = (0..m).filter(|j| taken[row * m + j]).collect();
            let mean = match selection {
                Selection::Sparsemax(SparseValue::Probability) => {
                    support.iter().map(|j| da[row * m + j]).sum::<f64>() / support.len() as f64
                }
                _ => 0.0,
            };
            for j in support {
                dz[row * m + j] = da[row * m + j] - mean;
            }
            if let Selection::JumpRelu { bandwidth } = selection {
                for j in 0..m {
                    let (theta, width) = (f64::from(self.thresholds[j]), f64::from(bandwidth));
                    if (z[row * m + j] - theta).abs() < width / 2.0 {
                        d_thresholds[j] -= da[row * m + j] * theta / width;
                    }
                }
            }
        }
        let d_bias = (0..m)
            .map(|j| (0..b).map(|row| dz[row * m + j]).sum())
            .collect();
        Answer {
            output: product(&a, &dec, b, m, d),
            d_queries: product(&dz, &e, b, m, d),
            d_encoder: product(&transposed(&dz, b, m), &q, m, b, d),
            d_decoder: product(&transposed(&a, b, m), &up, m, b, d),
            d_bias,
            d_thresholds,
            activations: a,
        }
    }

    /// Returns the activations, and whether each latent is selected.
    fn select(&self, z: &[f64], selection: Selection) -> (Vec<f64>, Vec<bool>) {
        let m = self.latents;
        let mut taken = vec![false; z.len()];
        let mut shift = vec![0.0; z.len()];
        if let Selection::BatchTopK(k) = selection {
            largest(z, k * self.rows)
                .into_iter()
                .for_each(|i| taken[i] = true);
        }
        for (row, z) in z.chunks(m).enumerate() {
            let mut take = |j: usize| taken[row * m + j] = true;
            match selection {
                Selection::Sparsemax(value) => {
                    let tau = tau(z);
                    (0..m).filter(|j| z[*j] > tau).for_each(&mut take);
                    if value == SparseValue::Probability {
                        shift[row * m..][..m].fill(tau);
                    }
                }
                Selection::Threshold(t) => {
                    (0..m).filter(|j| z[*j] > f64::from(t)).for_each(&mut take);
                }
                Selection::TopK(k) => largest(z, k).into_iter().for_each(&mut take),
                Selection::BatchTopK(_) => {}
                Selection::JumpRelu { .. } => {
                    let above = |j: &usize| z[*j] > f64::from(self.thresholds[*j]);
                    (0..m).filter(above).for_each(&mut take);
                }
            }
        }
        let value = |i: usize| if taken[i] { z[i] - shift[i] } else { 0.0 };
        ((0..z.len()).map(value).collect(), taken)
    }

    /// Runs the operations on a device and compares everything with the naive answer.
    fn check(&self, selection: Selection, name: &str, device: &Device) {
        let expected = self.naive(selection);
        let device = device.clone().autodiff();
        let matrix = |values: &[f32]| tensor(values, self.width, &device).require_grad();
        let vector = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::<1>::from_data(data, &device).require_grad()
        };
        let (q, e, dec) = (
            matrix(&self.queries),
            matrix(&self.encoder),
            matrix(&self.decoder),
        );
        let (bias, thresholds) = (vector(&self.bias), vector(&self.thresholds));
        let options = EncodeOptions {
            bias: Some(bias.clone()),
            thresholds: Some(thresholds.clone()),
            mask: Arc::new(self.mask.clone()),
        };
        let codes = ops::encode(q.clone(), e.clone(), options, selection);
        let y = ops::decode(&codes, dec.clone());
        let grads = (y.clone() * tensor(&self.upstream, self.width, &device))
            .sum()
            .backward();
        let close = |what: &str, actual: Vec<f32>, expected: &[f64]| {
            let scale = expected.iter().fold(1.0f64, |s, v| s.max(v.abs()));
            assert_eq!(actual.len(), expected.len());
            for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
                let error = (f64::from(*a) - e).abs();
                assert!(
                    error <= 2e-6 * scale,
                    "{name} {selection:?} {what}[{i}]: {a} is not {e}"
                );
            }
        };
        close(
            "a",
            values(codes.to_dense(&Device::flex())),
            &expected.activations,
        );
        close("y", values(y), &expected.output);
        let grad = |t: &Tensor<2>| values(t.grad(&grads).expect("a gradient"));
        close("dq", grad(&q), &expected.d_queries);
        close("dE", grad(&e), &expected.d_encoder);
        close("dD", grad(&dec), &expected.d_decoder);
        close(
            "dbias",
            bias.grad(&grads)
                .expect("a gradient")
                .into_data()
                .iter()
                .collect(),
            &expected.d_bias,
        );
        if matches!(selection, Selection::JumpRelu { .. }) {
            let grad = thresholds.grad(&grads).expect("a gradient");
            close(
                "dtheta",
                grad.into_data().iter().collect(),
                &expected.d_thresholds,
            );
        }
    }

    /// Checks that the fused operation agrees with encode and decode, gradients included.
    fn check_attend(&self, value: SparseValue) {
        let device = Device::flex().autodiff();
        let matrix = |values: &[f32]| tensor(values, self.width, &device).require_grad();
        let (q, c) = (matrix(&self.queries), matrix(&self.encoder));
        let mask = Arc::new(self.mask.clone());
        let upstream = tensor(&self.upstream, self.width, &device);
        let options = EncodeOptions {
            mask: mask.clone(),
            ..EncodeOptions::default()
        };
        let codes = ops::encode(q.clone(), c.clone(), options, Selection::Sparsemax(value));
        let y = ops::decode(&codes, c.clone());
        let expected = (y.clone() * upstream.clone()).sum().backward();
        let (q2, c2) = (matrix(&self.queries), matrix(&self.encoder));
        let (y2, latents) = ops::attend(q2.clone(), c2.clone(), mask, value);
        let codes2 = latents.on_host();
        let actual = (y2.clone() * upstream).sum().backward();
        assert_eq!(values(y), values(y2));
        assert_eq!(codes.pattern.indices(), codes2.pattern.indices());
        for (a, b) in [(&q, &q2), (&c, &c2)] {
            let a = values(a.grad(&expected).expect("a gradient"));
            let b = values(b.grad(&actual).expect("a gradient"));
            let scale = a.iter().fold(1.0f32, |s, v| s.max(v.abs()));
            for (a, b) in a.iter().zip(&b) {
                assert!((a - b).abs() <= 1e-6 * scale, "{value:?}: {b} is not {a}");
            }
        }
    }
}

fn selections(k: usize) -> [Selection; 7] {
    [
        Selection::Sparsemax(SparseValue::Probability),
        Selection::Sparsemax(SparseValue::Score),
        Selection::Threshold(0.0),
        Selection::Threshold(0.3),
        Selection::TopK(k),
        Selection::BatchTopK(k),
        Selection::JumpRelu { bandwidth: 1.2 },
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn values_and_gradients(
        rows in 1usize..6,
        latents in 1usize..90,
        width in 1usize..23,
        seed in any::<u64>(),
        spread in 1i32..5,
        k in 1usize..9,
    ) {
        let problem = Problem::on_grid(rows, latents, width, seed, spread);
        for selection in selections(k.min(latents)) {
            problem.check(selection, "cpu", &Device::flex());
        }
        problem.check_attend(SparseValue::Score);
        problem.check_attend(SparseValue::Probability);
    }
}

#[test]
fn every_device_many_panels_and_nothing_but_ties() {
    for (name, device) in devices() {
        for problem in [
            Problem::on_grid(3, 1300, 17, 1, 2),
            Problem::on_grid(1, 1, 1, 2, 4),
            Problem::on_grid(70, 40, 3, 3, 1),
            Problem::on_grid(2, 5000, 3, 5, 4),
            Problem {
                encoder: vec![0.25; 600 * 2],
                ..Problem::on_grid(4, 600, 2, 4, 1)
            },
        ] {
            for selection in selections(3.min(problem.latents)) {
                problem.check(selection, &name.to_string(), &device);
            }
        }
    }
}

#[test]
fn a_poisoned_row_stays_alone() {
    for selection in selections(2) {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut problem = Problem::on_grid(3, 50, 4, 9, 2);
            problem.queries[4..8].fill(bad);
            for (name, device) in devices() {
                let q = tensor(&problem.queries, 4, &device);
                let e = tensor(&problem.encoder, 4, &device);
                let data = TensorData::new(problem.thresholds.clone(), [50]);
                let options = EncodeOptions {
                    thresholds: Some(Tensor::from_data(data, &device)),
                    ..EncodeOptions::default()
                };
                let y = values(ops::decode(
                    &ops::encode(q, e.clone(), options, selection),
                    e,
                ));
                assert!(
                    y[4..8].iter().any(|v| !v.is_finite()),
                    "{name} {selection:?} {bad}: {y:?}"
                );
                // BatchTopK compares rows with each other, but the other rows stay finite.
                assert!(
                    y[..4].iter().chain(&y[8..]).all(|v| v.is_finite()),
                    "{name} {selection:?}: {y:?}"
                );
            }
        }
    }
}

#[test]
fn the_first_latents_alone() {
    for (name, device) in devices() {
        let q = tensor(&[1.0, 0.0, 0.0, 1.0], 2, &device);
        let e = tensor(&[1.0, 0.0, 0.0, 2.0, 3.0, 4.0], 2, &device);
        let codes = ops::encode(q, e, EncodeOptions::default(), Selection::Threshold(0.0));
        for (size, expected) in [
            (1, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            (2, [1.0, 0.0, 0.0, 0.0, 2.0, 0.0]),
            (3, [1.0, 0.0, 3.0, 0.0, 2.0, 4.0]),
        ] {
            let first = values(codes.below(size).to_dense(&Device::flex()));
            assert_eq!(first, expected, "{name} {size}");
        }
    }
}

/// Codes and all gradients of `sum(y * upstream)`, as bits, on a device.
fn encoded(
    device: &Device,
    [rows, latents, width]: [usize; 3],
    selection: Selection,
) -> (Vec<u32>, Vec<u32>, [Vec<f32>; 3]) {
    let device = device.clone().autodiff();
    let matrix = |n, seed| tensor(&noise(n * width, seed), width, &device).require_grad();
    let vector = |seed| {
        let data = TensorData::new(noise(latents, seed), [latents]);
        Tensor::<1>::from_data(data, &device)
    };
    let (q, e, dec) = (matrix(rows, 1), matrix(latents, 2), matrix(latents, 3));
    let options = EncodeOptions {
        bias: Some(vector(4) * 0.1),
        thresholds: Some(vector(5).abs() + 2.0),
        mask: Arc::default(),
    };
    let codes = ops::encode(q.clone(), e.clone(), options, selection);
    let y = ops::decode(&codes, dec.clone());
    let upstream = tensor(&noise(rows * width, 6), width, &device);
    let grads = (y * upstream).sum().backward();
    let grad = |t: &Tensor<2>| values(t.grad(&grads).expect("a gradient"));
    let bits = codes.host_values().iter().map(|a| a.to_bits()).collect();
    let indices = codes.pattern.indices().to_vec();
    (indices, bits, [grad(&q), grad(&e), grad(&dec)])
}

/// Rows, latents and width: some not a multiple of a tile, one with a latent that fires in every row (more than are sorted in
/// shared memory), one with many rounds.
const SHAPES: [[usize; 3]; 4] = [[65, 2000, 33], [3, 20_000, 8], [1500, 70, 5], [1, 1, 1]];

#[test]
fn every_device_selects_what_the_cpu_does() {
    for (name, device) in devices() {
        for shape in SHAPES {
            for selection in selections(9.min(shape[1])) {
                let ours = encoded(&Device::flex(), shape, selection);
                let theirs = encoded(&device, shape, selection);
                let what = format!("{name} {shape:?} {selection:?}");
                assert_eq!(ours.0, theirs.0, "{what}");
                for (a, b) in ours.1.iter().zip(&theirs.1) {
                    let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
                    assert!(
                        (a - b).abs() <= 4e-6 * a.abs().max(1.0),
                        "{what}: {b} is not {a}"
                    );
                }
                for (a, b) in ours.2.iter().flatten().zip(theirs.2.iter().flatten()) {
                    assert!(
                        (a - b).abs() <= 2e-5 * a.abs().max(4.0),
                        "{what}: {b} is not {a}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_device_repeats_byte_for_byte() {
    let bits = |of: &[Vec<f32>; 3]| -> Vec<u32> {
        let all = of.iter().flatten();
        all.map(|value| value.to_bits()).collect()
    };
    for (name, device) in devices() {
        for shape in SHAPES {
            for selection in selections(9.min(shape[1])) {
                let [a, b] = [(); 2].map(|()| encoded(&device, shape, selection));
                let same = a.0 == b.0 && a.1 == b.1 && bits(&a.2) == bits(&b.2);
                assert!(same, "{name} {shape:?} {selection:?}");
            }
        }
    }
}

/// Our tiles and cubek's product, and factors rounded as tensor cores take them, select the same, bit for bit.
#[cfg(feature = "cube")]
#[test]
fn no_product_changes_a_code() {
    use ops::Precision;
    use ops::cube::{Screening, screen_by};
    for (name, device) in devices() {
        for shape in SHAPES {
            for selection in selections(9.min(shape[1])) {
                screen_by(Some(Screening::Tiles));
                let expected = encoded(&device, shape, selection);
                for other in [
                    Screening::Product(Precision::F32),
                    Screening::Rounded(Precision::Tf32),
                    Screening::Rounded(Precision::Bf16),
                ] {
                    screen_by(Some(other));
                    let actual = encoded(&device, shape, selection);
                    assert_eq!(expected, actual, "{name} {shape:?} {selection:?} {other:?}");
                }
                screen_by(None);
            }
        }
    }
}

/// Too little room is noticed, and more is taken.
#[cfg(feature = "cube")]
#[test]
fn room_for_candidates_changes_no_code() {
    for (name, device) in devices() {
        for selection in selections(9) {
            let expected = encoded(&device, SHAPES[0], selection);
            for room in [1, 2, 16, 4096] {
                ops::cube::start_with_room(room);
                let actual = encoded(&device, SHAPES[0], selection);
                assert_eq!(expected, actual, "{name} {selection:?}, room for {room}");
            }
        }
    }
}
