//! Foreign formulas by plain loops in f64, and the test of what was folded: whether our model makes the same of random rows.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sae_model::{Sae, SparseValue};

use super::certificate::forward;
use super::folded::Sparsemax;

/// Rows of the test.
const ROWS: usize = 16;
/// Standard deviations of their numbers, in turn: the unit of the dictionary's rows is not known.
const SCALES: [f64; 4] = [0.1, 1.0, 10.0, 100.0];

/// How far the reconstructions of `sae` are from the formula's on random rows around `centre`: the median over rows of
/// `||difference|| / ||x_hat||`. (A row may have two scores that float32 does not tell apart, and then selects another latent.)
pub(super) fn difference(sae: &Sae, centre: &[f32], formula: impl Fn(&[f64]) -> Vec<f64>) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut normal = || -> f64 { StandardNormal.sample(&mut rng) };
    let rows: Vec<f32> = (0..ROWS)
        .flat_map(|row| {
            let scale = SCALES[row % SCALES.len()];
            let row: Vec<f32> = centre
                .iter()
                .map(|c| c + (scale * normal()) as f32)
                .collect();
            row
        })
        .collect();
    let (x_hat, _) = forward(sae, &rows);
    let both = rows
        .chunks_exact(centre.len())
        .zip(x_hat.chunks_exact(centre.len()));
    let mut differences: Vec<f64> = both
        .map(|(x, x_hat)| {
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            relative(x_hat, &formula(&x))
        })
        .collect();
    differences.sort_by(f64::total_cmp);
    differences[ROWS / 2]
}

/// `||a - b|| / ||b||`
pub(super) fn relative(a: &[f32], b: &[f64]) -> f64 {
    let distance: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - b).powi(2))
        .sum();
    let length: f64 = b.iter().map(|b| b * b).sum();
    (distance / length.max(f64::MIN_POSITIVE)).sqrt()
}

pub(super) fn dot(w: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

/// `out += a row`
pub(super) fn add(out: &mut [f64], row: &[f32], a: f64) {
    if a != 0.0 {
        out.iter_mut()
            .zip(row)
            .for_each(|(out, v)| *out += a * f64::from(*v));
    }
}

/// The places of the k largest; of equal ones the first.
pub(super) fn largest(z: &[f64], k: usize) -> std::collections::HashSet<usize> {
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].total_cmp(&z[*a]).then(a.cmp(b)));
    order.into_iter().take(k).collect()
}

/// Latents of sparse attention, as W_dec is multiplied by them. `read` is `x0 W_enc`.
pub(super) fn sparse_attention(
    rule: &Sparsemax,
    x0: &[f64],
    (read, bias): (&[f64], &[f32]),
    w_dec: &[f32],
) -> Vec<f64> {
    let n = norm_factor(rule, x0);
    let z: Vec<f64> = read
        .iter()
        .zip(bias)
        .map(|(z, b)| z / n + f64::from(*b))
        .collect();
    let tau = sparsemax_threshold(&z);
    let value = |z: f64| match rule.value {
        SparseValue::Score => z / rule.scale,
        _ => z - tau,
    };
    let a: Vec<f64> = z
        .iter()
        .map(|z| if *z > tau { value(*z) } else { 0.0 })
        .collect();
    let scaled = rule.act_scale.iter().map(|scale| f64::from(*scale));
    let u: Vec<f64> = x0.iter().map(|v| v / n).collect();
    let refined = refined(rule, a, u, w_dec).into_iter().zip(scaled);
    refined.map(|(a, scale)| n * a * scale).collect()
}

/// `n = s (||x0|| / s)^p`, and p = 1 beyond R.
fn norm_factor(rule: &Sparsemax, x0: &[f64]) -> f64 {
    let (s, p) = (rule.input_scale, rule.norm_exponent);
    let ratio = x0.iter().map(|v| v * v).sum::<f64>().sqrt() / s;
    let range = rule.norm_range.unwrap_or(f64::INFINITY);
    let near = ratio.clamp(1.0 / range, range);
    s * near.powf(p) * (ratio / near)
}

/// tau of `sum_j max(z_j - tau, 0) = 1`.
fn sparsemax_threshold(z: &[f64]) -> f64 {
    let mut sorted = z.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut tau) = (0.0, f64::NEG_INFINITY);
    for (count, z) in (1..).zip(sorted) {
        sum += z;
        if 1.0 + f64::from(count) * z > sum {
            tau = (sum - 1.0) / f64::from(count);
        }
    }
    tau
}

/// The latents after the rule's steps of refinement.
fn refined(rule: &Sparsemax, mut a: Vec<f64>, u: Vec<f64>, w_dec: &[f32]) -> Vec<f64> {
    let d = u.len();
    let row = |j: usize| &w_dec[j * d..][..d];
    let support: Vec<usize> = (0..a.len()).filter(|j| a[*j] != 0.0).collect();
    let scale = |j: usize| f64::from(rule.act_scale[j]);
    let mut residual = u;
    support
        .iter()
        .for_each(|j| add(&mut residual, row(*j), -a[*j] * scale(*j)));
    for _ in 0..rule.refinement {
        let slope = support
            .iter()
            .map(|j| (*j, dot(row(*j), &residual) * scale(*j)));
        let slope: Vec<(usize, f64)> = slope.collect();
        let mut moved = vec![0.0; d];
        slope
            .iter()
            .for_each(|(j, g)| add(&mut moved, row(*j), g * scale(*j)));
        let along: f64 = moved.iter().zip(&residual).map(|(m, r)| m * r).sum();
        let square: f64 = moved.iter().map(|m| m * m).sum();
        let step = along / square.max(1e-24);
        slope.iter().for_each(|(j, g)| a[*j] += step * g);
        residual
            .iter_mut()
            .zip(&moved)
            .for_each(|(r, m)| *r -= step * m);
    }
    a
}
