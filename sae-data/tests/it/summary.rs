//! The checks before training, on data whose faults are known.

use ::safetensors::Dtype;
use sae_data::{ActivationData, Options, Summary};

use crate::{f32_bytes, write};

fn summary(rows: &[Vec<f32>], sample: Option<usize>) -> Summary {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write(
        &path,
        &[(
            "x",
            Dtype::F32,
            vec![rows.len(), rows[0].len()],
            f32_bytes(&rows.concat()),
        )],
    );
    let data = ActivationData::open(&path, &Options::default()).unwrap();
    Summary::of(&data, sample, |_| {}).unwrap()
}

#[test]
fn a_summary_computed_by_hand() {
    let rows = vec![
        vec![3.0, 4.0, 7.0],
        vec![-3.0, 4.0, 7.0],
        vec![3.0, 4.0, 7.0],
        vec![-3.0, -4.0, 7.0],
    ];
    let s = summary(&rows, None);
    assert_eq!((s.rows, &s.mean[..]), (4, &[0.0, 2.0, 7.0][..]));
    assert_eq!(s.variance, 9.0 + 12.0);
    assert_eq!(s.constant_columns, [2]);
    assert_eq!(
        (
            s.duplicates.compared,
            s.duplicates.repeated,
            s.duplicates.one_in
        ),
        (4, 1, 1)
    );
    let norm = 74f64.sqrt();
    assert!(
        [s.norms.0, s.norms.1, s.norms.2]
            .iter()
            .all(|n| (n - norm).abs() < 1e-12)
    );
    assert!((s.mean_over_sigma() - (53f64 / 21.0).sqrt()).abs() < 1e-12);
    assert_eq!(s.norm_histogram.values().sum::<u64>(), 4);
    let warnings = s.warnings().join("\n");
    assert!(warnings.contains("1 of 3 columns have one value in all rows (the first is column 2)"));
    assert!(
        warnings.contains("25.0 % of the rows are copies"),
        "{warnings}"
    );
}

#[test]
fn not_finite_values_are_counted_and_left_out() {
    let mut rows: Vec<Vec<f32>> = (0..5000).map(|i| vec![i as f32, 1.0 - i as f32]).collect();
    rows[4000] = vec![f32::NAN, f32::INFINITY];
    rows[2500][1] = f32::NEG_INFINITY;
    let s = summary(&rows, None);
    assert_eq!(s.non_finite, Some((3, 2500, 1, f32::NEG_INFINITY)));
    let expected = (0..5000)
        .filter(|i| ![2500, 4000].contains(i))
        .map(f64::from)
        .sum::<f64>()
        / 4998.0;
    assert!((f64::from(s.mean[0]) - expected).abs() < 1e-3);
}

#[test]
fn a_sample_is_spread_over_the_data() {
    // in a row of 100 blocks, the mean of every tenth is near that of all
    let rows: Vec<Vec<f32>> = (0..102_400).map(|i| vec![i as f32]).collect();
    let s = summary(&rows, Some(10_000));
    assert_eq!(s.rows, 10_240);
    assert!((s.mean[0] - 51_200.0).abs() < 6000.0, "{}", s.mean[0]);
}
