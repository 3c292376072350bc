//! Compares the dense kernels with the sort-based oracle, on every device that this build and machine have.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;

use super::{devices, tensor, values};
use crate::ops::{SparseValue, reference, sparse_attention};

/// Returns the weights and the gradient of `sum(weights * upstream)` with respect to the scores.
fn run(
    op: impl Fn(Tensor<2>, SparseValue) -> Tensor<2>,
    value: SparseValue,
    scores: &[f32],
    upstream: &[f32],
    width: usize,
    device: &Device,
) -> (Vec<f32>, Vec<f32>) {
    let device = device.clone().autodiff();
    let z = tensor(scores, width, &device).require_grad();
    let a = op(z.clone(), value);
    let grads = (a.clone() * tensor(upstream, width, &device))
        .sum()
        .backward();
    (
        values(a),
        values(z.grad(&grads).expect("scores have a gradient")),
    )
}

fn assert_close(name: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let close = (a - e).abs() <= tolerance * e.abs().max(1.0);
        assert!(
            close || (a.is_nan() && e.is_nan()),
            "{name}[{i}]: {a} is not {e}"
        );
    }
}

/// The oracle, in float64 on the CPU.
fn oracle(scores: Tensor<2>, value: SparseValue) -> Tensor<2> {
    let z = scores.cast(DType::F64);
    let primitive = z.clone().into_dispatch();
    let tau = reference::tau::<Dispatch>(primitive.clone());
    let p = Tensor::from_dispatch(reference::above::<Dispatch>(primitive, tau));
    let weights = match value {
        SparseValue::Probability => p,
        SparseValue::Score => z * p.sign().detach(),
    };
    weights.cast(DType::F32)
}

/// Checks that the kernels agree with the oracle on every device.
fn check(scores: &[f32], upstream: &[f32], width: usize) {
    for value in [SparseValue::Probability, SparseValue::Score] {
        let (a, dz) = run(oracle, value, scores, upstream, width, &Device::flex());
        for (name, device) in devices() {
            let (a2, dz2) = run(sparse_attention, value, scores, upstream, width, &device);
            assert_close(&format!("{name} {value:?} weights"), &a2, &a, 2e-6);
            assert_close(&format!("{name} {value:?} gradient"), &dz2, &dz, 2e-5);
        }
    }
}

/// Scores on a grid of 1/64, so that sums are exact in float32 and no entry lies at the threshold by rounding alone,
/// where the oracle and the kernels may rightly differ.
fn grid(width: usize, rows: usize) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let score = (-128i32..128).prop_map(|k| k as f32 / 64.0);
    let n = width * rows;
    (
        prop::collection::vec(score, n),
        prop::collection::vec(-2f32..2f32, n),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn narrow_rows((z, g) in (1usize..40, 1usize..5).prop_flat_map(|(w, r)| grid(w, r).prop_map(move |zg| (w, zg))).prop_map(|(w, (z, g))| {
        // tau is exact only if the support's size is a power of two; the slope moves other scores off the threshold
        let z: Vec<f32> = z.iter().enumerate().map(|(i, v)| v + (i % w) as f32 * 1e-3).collect();
        (( z, w), g)
    })) {
        check(&z.0, &g, z.1);
    }

    #[test]
    fn simplex_holds_at_any_width(width in 1usize..700, spread in 0.0f32..8.0, seed in any::<u32>()) {
        let z: Vec<f32> = (0..width)
            .map(|j| (((j as u32).wrapping_mul(2_654_435_761) ^ seed) % 1000) as f32 / 1000.0 * spread)
            .collect();
        for (name, device) in devices() {
            let p = values(sparse_attention(tensor(&z, width, &device), SparseValue::Probability));
            let sum: f64 = p.iter().map(|p| f64::from(*p)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5 * (1.0 + width as f64 / 64.0), "{name} width {width}: {sum}");
            prop_assert!(p.iter().all(|p| *p >= 0.0));
        }
    }
}

#[test]
fn odd_widths_ties_constants_and_large_scores() {
    let wide: Vec<f32> = (0..4099)
        .map(|j| ((j * 7919) % 4099) as f32 / 600.0)
        .collect();
    let hot: Vec<f32> = (0..257)
        .map(|j| 1e4 + ((j * 37) % 257) as f32 / 4.0)
        .collect();
    let upstream: Vec<f32> = (0..4099).map(|j| ((j % 17) as f32 - 8.0) / 4.0).collect();
    for row in [
        vec![0.5f32],
        vec![1.0, 1.0],
        vec![-3.0, 1.0],
        vec![2.0, 2.0, 2.0, 2.0],
        vec![1.0, 0.75, 0.75, 0.75, -1.0],
        vec![0.0; 64],
        wide,
        hot,
    ] {
        check(&row, &upstream[..row.len()], row.len());
    }
}

#[test]
fn non_finite_rows_stay_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut z = vec![0.5f32, 0.25, 0.0, 0.5, 0.25, 0.0, 0.5, 0.25, 0.0];
        z[4] = bad;
        for (name, device) in devices() {
            for value in [SparseValue::Probability, SparseValue::Score] {
                let (a, dz) = run(sparse_attention, value, &z, &[1.0; 9], 3, &device);
                for v in [&a, &dz] {
                    assert!(
                        v[3..6].iter().all(|v| v.is_nan()),
                        "{name} {value:?} {bad}: {v:?}"
                    );
                    assert!(
                        v[..3].iter().chain(&v[6..]).all(|v| v.is_finite()),
                        "{name}: {v:?}"
                    );
                    assert_eq!(v[..3], v[6..]);
                }
            }
        }
    }
}

#[test]
fn transposed_input_is_read_right() {
    for (name, device) in devices() {
        let z = tensor(&[1.0, 3.0, 0.8, 0.0, 0.1, 2.9], 2, &device).transpose();
        let p = values(sparse_attention(z, SparseValue::Probability));
        assert_close(
            &name.to_string(),
            &p,
            &[0.6, 0.4, 0.0, 0.55, 0.0, 0.45],
            1e-6,
        );
    }
}

#[test]
fn other_float_types_are_converted() {
    let z = tensor(&[1.0, 0.8, 0.1], 3, &Device::flex()).cast(DType::F64);
    let p = sparse_attention(z, SparseValue::Probability);
    assert_eq!(p.dtype(), DType::F64);
    let p: Vec<f64> = p.into_data().try_to_vec().unwrap();
    assert!((p[0] - 0.6).abs() < 1e-6 && p[2] == 0.0);
}
