//! The values that the packages returned for a fixed reconstruction: `golden/toolkits.json`, written by
//! tools/metric_conformance.py.

use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/toolkits.json")).unwrap()
}

fn array(golden: &Value, name: &str) -> Rows {
    serde_json::from_value(golden[name].clone()).unwrap()
}

/// The arrays of a case, changed as tools/metric_conformance.py changes them.
fn arrays(golden: &Value, case: &str) -> [Rows; 3] {
    let [mut x, mut x_hat, mut a] = ["x", "x_hat", "activations"].map(|name| array(golden, name));
    if case == "row 7 of x is zero" {
        x[7].fill(0.0);
    }
    if case.starts_with("constant x") {
        for rows in [&mut x, &mut x_hat, &mut a] {
            let first = rows[0].clone();
            rows.fill(first);
        }
    }
    if case == "constant x, exact" {
        x_hat.clone_from(&x);
    }
    [x, x_hat, a]
}

/// The value of ours that a package's value is compared with. SAELens' explained variance and dictionary_learning's
/// alive latents are those of all batches together; anything else they average over batches (here of equal size).
fn ours(metric: (&str, &str), [x, x_hat, a]: &[Rows; 3], batch: usize) -> Option<f64> {
    let value = |x: &[Vec<f64>], x_hat: &[Vec<f64>], a: &[Vec<f64>]| {
        let metrics = stats_of(&x.to_vec(), &x_hat.to_vec(), &a.to_vec(), batch);
        of(&metrics, metric.0, metric.1).value
    };
    if ["explained_variance", "frac_alive"].contains(&metric.1) {
        return value(x, x_hat, a);
    }
    let batches = x
        .chunks(batch)
        .zip(x_hat.chunks(batch))
        .zip(a.chunks(batch));
    let values: Option<Vec<f64>> = batches.map(|((x, x_hat), a)| value(x, x_hat, a)).collect();
    values.map(|values| mean(values.into_iter()))
}

#[test]
fn the_packages_return_our_values() {
    // The packages add up to 40 x 6 float32 terms of one sign: each sum is off by at most 240 x 2^-24 of itself, and
    // 1 - ratio keeps the error of the ratio.
    const TOLERANCE: f64 = 240.0 / (1 << 24) as f64;
    let golden = golden();
    let (mut compared, mut largest) = (0, 0f64);
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let arrays = arrays(&golden, name);
        let batch = case["batch"].as_u64().unwrap() as usize;
        for (owner, metrics) in case["values"].as_object().unwrap() {
            for (metric, theirs) in metrics.as_object().unwrap() {
                compared += 1;
                let ours = ours((owner, metric), &arrays, batch);
                assert_eq!(
                    ours.is_some(),
                    theirs.is_number(),
                    "{name}: {owner} {metric}: {ours:?}, {theirs}"
                );
                if let (Some(ours), Some(theirs)) = (ours, theirs.as_f64()) {
                    let off = (ours - theirs).abs() / theirs.abs().max(1.0);
                    largest = largest.max(off);
                    assert!(
                        off < TOLERANCE,
                        "{name}: {owner} {metric} returns {theirs}, ours is {ours}"
                    );
                }
            }
        }
    }
    println!("{compared} values, largest difference {largest:.1e}");
    assert!(compared > 100, "{compared} values compared");
}

#[test]
fn a_mean_over_batches_is_another_number() {
    let golden = golden();
    let case = |i: usize, owner: &str, name: &str| {
        golden["cases"][i]["values"][owner][name].as_f64().unwrap()
    };
    let moved = |owner: &str, name: &str| (case(0, owner, name) - case(1, owner, name)).abs();
    assert!(moved("SAELens", "explained_variance_legacy") > 1e-3);
    assert!(moved("dictionary_learning", "frac_variance_explained") > 1e-3);
    assert!(moved("SAELens", "explained_variance") < 1e-6);
    // ours is the whole set's, however it is cut
    let arrays = arrays(&golden, "one batch");
    let [x, x_hat, a] = &arrays;
    let whole = case(0, "dictionary_learning", "frac_variance_explained");
    let metrics = stats_of(x, x_hat, a, 10);
    let ours = of(&metrics, "dictionary_learning", "frac_variance_explained").value;
    assert!((ours.unwrap() - whole).abs() < 1e-5);
}
