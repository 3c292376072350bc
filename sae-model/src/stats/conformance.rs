//! Other toolkits' metrics against their formulas written out, against sums by hand, and (in `packages`) against
//! what the packages themselves return.
#![allow(clippy::unwrap_used)] // a test may

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

mod packages;

type Rows = Vec<Vec<f64>>;

/// Dense rows as the statistics take them: every entry of a code is there, also those that are zero.
fn stats_of(x: &Rows, x_hat: &Rows, a: &Rows, batch: usize) -> Vec<ToolkitMetric> {
    let mut moments = MomentStats::default();
    moments.add(&flat(x), x[0].len());
    let mut stats = ToolkitStats::new(x[0].len(), a[0].len(), Some(moments.mean()));
    for ((x, x_hat), a) in x
        .chunks(batch)
        .zip(x_hat.chunks(batch))
        .zip(a.chunks(batch))
    {
        let latents: Vec<u32> = a.iter().flat_map(|row| 0..row.len() as u32).collect();
        let lengths = a.iter().map(Vec::len);
        stats.add((&flat(x), &flat(x_hat)), (&latents, &flat(a)), lengths);
    }
    stats.metrics()
}

fn flat(rows: &[Vec<f64>]) -> Vec<f32> {
    rows.iter().flatten().map(|v| *v as f32).collect()
}

fn of<'a>(metrics: &'a [ToolkitMetric], owner: &str, name: &str) -> &'a ToolkitMetric {
    let found = metrics
        .iter()
        .find(|m| m.owner.split(' ').next() == Some(owner) && m.name == name);
    found.unwrap_or_else(|| panic!("{owner} has no {name}"))
}

/// Values that are exact in float32.
fn random(rows: usize, width: usize, rng: &mut ChaCha8Rng) -> Rows {
    let value = |rng: &mut ChaCha8Rng| f64::from(rng.random_range(-1.0f32..2.0));
    (0..rows)
        .map(|_| (0..width).map(|_| value(rng)).collect())
        .collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len() as f64
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn less(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn mean_row(rows: &Rows) -> Vec<f64> {
    (0..rows[0].len())
        .map(|j| mean(rows.iter().map(|row| row[j])))
        .collect()
}

/// Sum over columns of the unbiased variance, as `torch.var(rows, dim=0).sum()`.
fn variance(rows: &Rows) -> f64 {
    let centre = mean_row(rows);
    let squares: f64 = rows
        .iter()
        .map(|row| norm(&less(row, &centre)).powi(2))
        .sum();
    squares / (rows.len() - 1) as f64
}

/// Every metric by its owner's formula, with as many passes as that takes.
fn by_formula(x: &Rows, x_hat: &Rows, a: &Rows) -> Vec<(&'static str, &'static str, f64)> {
    let pairs = || x.iter().zip(x_hat);
    let e: Rows = pairs().map(|(x, y)| less(x, y)).collect();
    let centre = mean_row(x);
    let distance = |x: &Vec<f64>| norm(&less(x, &centre)).powi(2);
    let squared = |rows: &Rows| mean(rows.iter().map(|row| dot(row, row)));
    let cosine = mean(pairs().map(|(x, y)| dot(x, y) / (norm(x) * norm(y))));
    let l0 = mean(
        a.iter()
            .map(|a| a.iter().filter(|a| **a != 0.0).count() as f64),
    );
    let positive = mean(
        a.iter()
            .map(|a| a.iter().filter(|a| **a > 0.0).count() as f64),
    );
    let l1 = |a: &Vec<f64>| a.iter().map(|a| a.abs()).sum::<f64>();
    let ratio = mean(pairs().map(|(x, y)| norm(y) / norm(x)));
    let bias = squared(x_hat) / mean(pairs().map(|(x, y)| dot(x, y)));
    let fvu = squared(&e) / mean(x.iter().map(distance));
    let elementwise = pairs().flat_map(|(x, y)| {
        let length = norm(x);
        less(x, y).into_iter().map(move |e| e * e / length)
    });
    let latents = a[0].len();
    let share = |is: &dyn Fn(Vec<f64>) -> bool| {
        let column = |j: usize| a.iter().map(|row| row[j]).collect();
        (0..latents).filter(|j| is(column(*j))).count() as f64 / latents as f64
    };
    let legacy = mean(x.iter().zip(&e).map(|(x, e)| 1.0 - dot(e, e) / distance(x)));
    let frequency = |a: Vec<f64>| mean(a.into_iter().map(|a| f64::from(a.abs() > 0.0)));
    vec![
        ("SAELens", "mse", squared(&e)),
        ("SAELens", "explained_variance", 1.0 - fvu),
        ("SAELens", "explained_variance_legacy", legacy),
        ("SAELens", "cossim", cosine),
        ("SAELens", "l0", l0),
        ("SAELens", "l1", mean(a.iter().map(l1))),
        ("SAELens", "l2_ratio", ratio),
        ("SAELens", "relative_reconstruction_bias", bias),
        (
            "dictionary_learning",
            "l2_loss",
            mean(e.iter().map(|e| norm(e))),
        ),
        (
            "dictionary_learning",
            "frac_variance_explained",
            1.0 - variance(&e) / variance(x),
        ),
        ("dictionary_learning", "cossim", cosine),
        ("dictionary_learning", "l0", l0),
        ("dictionary_learning", "l1_loss", mean(a.iter().map(l1))),
        ("dictionary_learning", "l2_ratio", ratio),
        ("dictionary_learning", "relative_reconstruction_bias", bias),
        (
            "dictionary_learning",
            "frac_alive",
            share(&|a| a.iter().sum::<f64>() != 0.0),
        ),
        ("sparsify", "fvu", fvu),
        (
            "openai/sparse_autoencoder",
            "normalized_mean_squared_error",
            mean(x.iter().zip(&e).map(|(x, e)| dot(e, e) / dot(x, x))),
        ),
        ("openai/sparse_autoencoder", "normalized_mse", fvu),
        (
            "openai/sparse_autoencoder",
            "normalized_L1_loss",
            mean(x.iter().zip(a).map(|(x, a)| l1(a) / norm(x))),
        ),
        (
            "openai/sparse_autoencoder",
            "dead (stats_last_nonzero)",
            share(&|a| a.iter().all(|a| *a <= 1e-3)),
        ),
        (
            "Sparsemax-SAE",
            "metrics/explained_variance",
            1.0 - squared(&e) / squared(x),
        ),
        ("Sparsemax-SAE", "losses/mse_loss", 10.0 * mean(elementwise)),
        ("Sparsemax-SAE", "metrics/l0", positive),
        (
            "Sparsemax-SAE",
            "sparsity/dead_features",
            share(&|a| frequency(a) < 1e-6),
        ),
    ]
}

#[test]
fn every_metric_is_its_owners_formula() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (rows, width, latents) in [(2, 1, 3), (7, 4, 5), (50, 6, 40)] {
        let (x, x_hat) = (random(rows, width, &mut rng), random(rows, width, &mut rng));
        let mut a = random(rows, latents, &mut rng);
        for row in &mut a {
            row.iter_mut()
                .for_each(|a| *a = if *a < 0.7 && *a > -0.7 { 0.0 } else { *a });
            row[0] = 0.0;
            row[1] = row[1].abs() / 4096.0;
        }
        let metrics = stats_of(&x, &x_hat, &a, rows);
        let expected = by_formula(&x, &x_hat, &a);
        assert_eq!(metrics.len(), expected.len());
        for (owner, name, value) in expected {
            // both are f64; what differs is the order of at most 300 terms
            let actual = of(&metrics, owner, name).value.unwrap();
            assert!(
                (actual - value).abs() < 1e-11 * value.abs().max(1.0),
                "{owner} {name}: {actual} is not {value}"
            );
        }
    }
}

#[test]
fn toolkits_by_hand() {
    // rows (3,4) (0,1), e = (0,1) (-2,0): mean(x) = (1.5, 2.5), each row's distance to it 4.5; mean(e) = (-1, 0.5)
    let x = vec![vec![3.0, 4.0], vec![0.0, 1.0]];
    let x_hat = vec![vec![3.0, 3.0], vec![2.0, 1.0]];
    let a = vec![vec![2.0, -1.0, 0.0, 0.0], vec![-2.0, 3.0, 0.0005, 0.0]];
    let m = stats_of(&x, &x_hat, &a, 1);
    let close = |owner: &str, name: &str, expected: f64| {
        let actual = of(&m, owner, name).value.unwrap();
        assert!(
            (actual - expected).abs() < 1e-9,
            "{owner} {name}: {actual} is not {expected}"
        );
    };
    close("SAELens", "mse", 2.5);
    close("SAELens", "explained_variance", 1.0 - 5.0 / 9.0);
    close(
        "SAELens",
        "explained_variance_legacy",
        1.0 - (1.0 + 4.0) / 4.5 / 2.0,
    );
    close(
        "SAELens",
        "relative_reconstruction_bias",
        (18.0 + 5.0) / (21.0 + 1.0),
    );
    close("dictionary_learning", "l2_loss", 1.5);
    // residual variance (1 + 0.25) on either side of the mean, input variance 4.5
    close(
        "dictionary_learning",
        "frac_variance_explained",
        1.0 - 2.5 / 9.0,
    );
    close(
        "dictionary_learning",
        "l2_ratio",
        (18f64.sqrt() / 5.0 + 5f64.sqrt()) / 2.0,
    );
    // latent 0 adds up to zero, latent 3 never fires
    close("dictionary_learning", "frac_alive", 0.5);
    close("sparsify", "fvu", 5.0 / 9.0);
    close(
        "openai/sparse_autoencoder",
        "normalized_mean_squared_error",
        (1.0 / 25.0 + 4.0) / 2.0,
    );
    close(
        "openai/sparse_autoencoder",
        "dead (stats_last_nonzero)",
        0.5,
    );
    close(
        "Sparsemax-SAE",
        "metrics/explained_variance",
        1.0 - 5.0 / 26.0,
    );
    close(
        "Sparsemax-SAE",
        "losses/mse_loss",
        10.0 * (1.0 / 5.0 + 4.0) / 4.0,
    );
    close("Sparsemax-SAE", "metrics/l0", 1.5);
    close("Sparsemax-SAE", "sparsity/dead_features", 0.25);
}

#[test]
fn batches_do_not_change_a_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let [x, x_hat, a] = [6, 6, 9].map(|width| random(30, width, &mut rng));
    let whole = stats_of(&x, &x_hat, &a, 30);
    for batch in [1, 7, 29] {
        assert_eq!(stats_of(&x, &x_hat, &a, batch), whole);
    }
}

#[test]
fn names_that_equal_ours_have_our_value() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let [x, x_hat, a] = [6, 6, 9].map(|width| random(30, width, &mut rng));
    let (mut ours, mut sparsity) = (ReconstructionStats::new(6), SparsityStats::new(9));
    ours.add(&flat(&x), &flat(&x_hat));
    let latents: Vec<u32> = (0..30).flat_map(|_| 0..9).collect();
    sparsity.add(&latents, &flat(&a), a.iter().map(Vec::len));
    let ours = [ours.metrics(), sparsity.metrics()].concat();
    let value = |name: &str| ours.iter().find(|m| m.name == name).unwrap().value.unwrap();
    for metric in stats_of(&x, &x_hat, &a, 30) {
        let Some(equals) = &metric.equals else {
            continue;
        };
        let expected = match equals.split(',').next().unwrap() {
            "d mse" => 6.0 * value("mse"),
            name => match name.strip_prefix("1 - ") {
                Some(name) => 1.0 - value(name),
                None => value(name),
            },
        };
        let actual = metric.value.unwrap();
        assert!(
            (actual - expected).abs() < 1e-12 * expected.abs().max(1.0),
            "{metric:?} is not {expected}"
        );
    }
}

#[test]
fn without_the_mean_there_is_no_legacy_variance() {
    let mut stats = ToolkitStats::new(1, 1, None);
    stats.add(
        (&[1.0, 2.0], &[1.0, 1.0]),
        (&[0, 0], &[1.0, 1.0]),
        [1, 1].into_iter(),
    );
    let metrics = stats.metrics();
    assert_eq!(
        of(&metrics, "SAELens", "explained_variance_legacy").value,
        None
    );
    assert!(
        of(&metrics, "SAELens", "explained_variance")
            .value
            .is_some()
    );
}
