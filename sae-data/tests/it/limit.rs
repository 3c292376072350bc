//! Rows of huge norm: the right ones are left out, and nothing else changes.

use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use sae_data::config::{HeldOut, Split};
use sae_data::{
    ActivationData, ActivationLoader, DataConfig, MaxNorm, Options, Streaming, Summary,
};

use crate::{config, f32_bytes, write};

const ROWS: usize = 5000;
const WIDTH: usize = 4;
/// Rows of a hundred times the usual norm.
const HUGE: [usize; 7] = [0, 1, 777, 2048, 2049, 4100, 4999];

/// Rows whose first value is their number plus 5000, whose labels are their numbers modulo 251, in documents of ten.
fn with_huge_rows(dir: &Path) -> PathBuf {
    let row = |i: usize| {
        let times = if HUGE.contains(&i) { 100.0 } else { 1.0 };
        [(5000 + i) as f32 * times, 1.0, 2.0, -3.0]
    };
    let values: Vec<f32> = (0..ROWS).flat_map(row).collect();
    let labels: Vec<u8> = (0..ROWS).map(|i| (i % 251) as u8).collect();
    let documents: Vec<u8> = (0..ROWS as i64)
        .flat_map(|i| (i / 10).to_le_bytes())
        .collect();
    let path = dir.join("huge.safetensors");
    write(
        &path,
        &[
            ("x", Dtype::F32, vec![ROWS, WIDTH], f32_bytes(&values)),
            ("labels", Dtype::U8, vec![ROWS], labels),
            ("doc", Dtype::I64, vec![ROWS], documents),
        ],
    );
    path
}

fn numbers(values: &[f32]) -> Vec<usize> {
    let firsts = values.iter().step_by(WIDTH);
    firsts.map(|v| *v as usize - 5000).collect()
}

fn split(config: &DataConfig) -> (Split, MaxNorm) {
    config
        .within_max_norm(config.open().unwrap(), |_| {})
        .unwrap()
}

/// Ten times the median norm of the training rows, of which there are 4,000: the mean of the two in the middle.
fn expected_limit() -> f64 {
    let norm = |i: usize| ((5000 + i) as f64).hypot(14f64.sqrt());
    let times = |i: &usize| if HUGE.contains(i) { 100.0 } else { 1.0 };
    let training = (0..ROWS).filter(|i| !(2000..3000).contains(i));
    let mut norms: Vec<f64> = training.map(|i| times(&i) * norm(i)).collect();
    norms.sort_by(f64::total_cmp);
    10.0 * (norms[1999] + norms[2000]) / 2.0
}

#[test]
fn huge_rows_are_left_out_of_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let config = DataConfig {
        held_out: HeldOut::Rows { rows: [2000, 3000] },
        ..config(&with_huge_rows(dir.path()))
    };
    let (Split { train, held_out }, limit) = split(&config);
    let expected = expected_limit();
    assert!((limit.number().unwrap() / expected - 1.0).abs() < 1e-12);
    for (side, inside) in [(&held_out, true), (&train, false)] {
        let rows: Vec<usize> = (0..ROWS)
            .filter(|i| (2000..3000).contains(i) == inside && !HUGE.contains(i))
            .collect();
        let found = side.read(0..side.rows()).unwrap();
        assert_eq!(numbers(&found), rows);
        assert_eq!(side.rows_in_source(0..side.rows()), rows);
        let labels = side.labels(0..side.rows()).unwrap().unwrap();
        assert_eq!(labels, rows.iter().map(|i| i % 251).collect::<Vec<_>>());
        let left_out = side.left_out().unwrap();
        let beyond: Vec<usize> = HUGE
            .into_iter()
            .filter(|i| (2000..3000).contains(i) == inside)
            .collect();
        assert_eq!(left_out.rows_in_source(0..left_out.rows()), beyond);
        assert_eq!(side.rows_left_out(), beyond.len());
        assert_eq!(side.fingerprint().unwrap().left_out, Some(beyond.len()));
    }
    // a resolved limit leaves out the same
    let resolved = DataConfig {
        max_norm: limit,
        ..config.clone()
    };
    let again = split(&resolved).0;
    for (a, b) in [(&train, &again.train), (&held_out, &again.held_out)] {
        assert_eq!(a.fingerprint().unwrap(), b.fingerprint().unwrap());
    }
    let none = DataConfig {
        max_norm: MaxNorm::None,
        ..config.clone()
    };
    let (all, limit) = split(&none);
    assert_eq!(
        (all.train.rows(), all.train.rows_left_out(), limit),
        (4000, 0, MaxNorm::None)
    );
    let difference = all
        .train
        .fingerprint()
        .unwrap()
        .difference(&train.fingerprint().unwrap());
    assert_eq!(
        difference.unwrap(),
        "0 rows were left out for their norm, now 5 are"
    );
}

#[test]
fn each_row_within_the_limit_comes_once_per_pass() {
    let dir = tempfile::tempdir().unwrap();
    let all = ActivationData::open(&with_huge_rows(dir.path()), &Options::default()).unwrap();
    let data = all.within(1e5, |_| {}).unwrap();
    let streaming = Streaming {
        window_mb: 1,
        block_rows: Some(100),
        workers: 2,
        seed: 3,
    };
    let (rows, batch) = (ROWS - HUGE.len(), 4993 / 7);
    assert_eq!((data.rows(), batch * 7), (rows, 4991));
    let expected: Vec<usize> = (0..ROWS).filter(|i| !HUGE.contains(i)).collect();
    let device = Device::flex();
    let loader = ActivationLoader::training(&data, 1, &streaming, 0..rows, rows, &device);
    let order: Vec<usize> = loader
        .iter()
        .flat_map(|batch| {
            let values: Vec<f32> = batch.unwrap().activations.into_data().iter().collect();
            numbers(&values)
        })
        .collect();
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_ne!(order, expected);
    assert_eq!(streaming.rows_of_batch(&data, 10, 3), order[30..40]);
    // from anywhere
    let later = ActivationLoader::training(&data, 10, &streaming, 200..210, 10, &device);
    let values: Vec<f32> = later
        .iter()
        .next()
        .unwrap()
        .unwrap()
        .activations
        .into_data()
        .iter()
        .collect();
    assert_eq!(numbers(&values), order[2000..2010]);
}

#[test]
fn typical_statistics_do_not_depend_on_huge_rows() {
    let dir = tempfile::tempdir().unwrap();
    let all = ActivationData::open(&with_huge_rows(dir.path()), &Options::default()).unwrap();
    let within = all.within(1e5, |_| {}).unwrap();
    let [of_all, of_within] = [&all, &within].map(|data| Summary::of(data, None, |_| {}).unwrap());
    assert_eq!(of_all.typical.mean, of_within.mean);
    assert!((of_all.typical.variance / of_within.variance - 1.0).abs() < 1e-12);
    assert_eq!((of_all.beyond.rows, of_within.beyond.rows), (HUGE.len(), 0));
    let numbers = || (0..ROWS).map(|i| (i, 5000.0 + i as f64));
    let values: Vec<f64> = numbers()
        .map(|(i, v)| if HUGE.contains(&i) { 100.0 * v } else { v })
        .collect();
    let mean = values.iter().sum::<f64>() / ROWS as f64;
    let total: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let huge: f64 = HUGE.iter().map(|i| (values[*i] - mean).powi(2)).sum();
    assert!((of_all.variance / (total / ROWS as f64) - 1.0).abs() < 1e-9);
    assert!((of_all.beyond.variance_share / (huge / total) - 1.0).abs() < 1e-9);
    let median = of_all.typical.median_norm;
    assert!((median / 7499.5 - 1.0).abs() < 0.006, "{median}");
    let warnings = of_all.warnings().join("\n");
    assert!(
        warnings.contains("7 rows of norm") && warnings.contains("data.max_norm"),
        "{warnings}"
    );
    assert!(!of_within.warnings().join("\n").contains("max_norm"));
}

#[test]
fn rows_that_are_not_finite_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![1.0f32; 40];
    (values[8], values[16], values[24]) = (f32::NAN, f32::INFINITY, 1e30);
    let path = dir.path().join("x.safetensors");
    write(&path, &[("x", Dtype::F32, vec![10, 4], f32_bytes(&values))]);
    let data = ActivationData::open(&path, &Options::default()).unwrap();
    let within = data.within(10.0, |_| {}).unwrap();
    assert_eq!(within.rows_in_source(0..9), [0, 1, 2, 3, 4, 5, 7, 8, 9]);
    let summary = Summary::of(&within, None, |_| {}).unwrap();
    assert_eq!(summary.non_finite.unwrap().0, 2);
}

#[test]
fn a_limit_that_leaves_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = DataConfig {
        max_norm: MaxNorm::Norm(10.0),
        ..config(&with_huge_rows(dir.path()))
    };
    let error = config
        .within_max_norm(config.open().unwrap(), |_| {})
        .unwrap_err()
        .to_string();
    for part in [
        "data.max_norm = 10: ",
        "have a norm above 10",
        "or \"none\"",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
