//! Top-n classification: which rule orders the latents, and on which rows.

use burn::tensor::Device;
use sae_model::architectures::TopK;
use sae_model::{Preset, Sae, SaeConfig, saved};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{CLASSES, Run, WIDTH, label};

/// Rows `[count, WIDTH]` with 2 in one column and 1 in another; `pair` gives the two columns of a row.
fn rows_of(count: usize, pair: impl Fn(usize) -> [usize; 2]) -> Vec<f32> {
    let mut rows = vec![0.0; count * WIDTH];
    for row in 0..count {
        let [high, low] = pair(row);
        rows[row * WIDTH + high] = 2.0;
        rows[row * WIDTH + low] = 1.0;
    }
    rows
}

/// Writes rows with labels; the class of row i is `i % CLASSES`.
fn write_by_class(run: &Run, name: &str, rows: &[f32]) {
    let n = rows.len() / WIDTH;
    let labels: Vec<u8> = (0..n).map(|row| (row % CLASSES) as u8).collect();
    let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let tensors = [
        ("x", view(Dtype::F32, vec![n, WIDTH], bytes.as_slice())),
        ("labels", view(Dtype::U8, vec![n], labels.as_slice())),
    ];
    let file = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(run.path(name), file).unwrap();
}

/// Saves a TopK model with `k = 2` whose latent j is column j.
pub(crate) fn columns_as_latents(run: &Run, input_scale: f64) {
    let topk = TopK {
        k: 2,
        ..TopK::default()
    };
    let mut config = SaeConfig::new(topk, WIDTH, WIDTH);
    config.input_scale = input_scale;
    config.init.pre_bias = sae_model::config::PreBiasInit::Zero;
    let device = Device::flex();
    let mut sae = Sae::init(&config, 0, &[0.0; WIDTH], &device);
    let identity: Vec<f32> = (0..WIDTH * WIDTH)
        .map(|i| f32::from(u8::from(i / WIDTH == i % WIDTH)))
        .collect();
    let identity = || {
        let data = burn::tensor::TensorData::new(identity.clone(), [WIDTH, WIDTH]);
        burn::tensor::Tensor::from_data(data, &device)
    };
    sae.parameters.set_matrix("W_dec", identity());
    sae.parameters.set_matrix("W_enc", identity());
    saved::save(&sae, 0, &run.path("model")).expect("saved");
}

#[test]
fn latents_are_ranked_on_the_training_split_alone() {
    let run = Run::new(Preset::Default);
    columns_as_latents(&run, 1.0);
    // Class c fires latents c and 4 + c on its 2 training rows, 8 + c and c on its 40 held-out rows. If held-out rows
    // counted, 8 + c would be second for its class; on the training rows it never fires.
    let train = rows_of(2 * CLASSES, |row| [row % CLASSES, 4 + row % CLASSES]);
    let held_out = rows_of(40 * CLASSES, |row| [8 + row % CLASSES, row % CLASSES]);
    run.write_rows("train.safetensors", &train, true);
    write_by_class(&run, "heldout.safetensors", &held_out);
    // the head sees column 8 + c only
    let head: Vec<f32> = (0..CLASSES * WIDTH)
        .map(|i| f32::from(u8::from(8 + i / WIDTH == i % WIDTH)))
        .collect();
    run.write_rows("head.safetensors", &head, false);
    let report = run.report(&["--top-n", "1,2,3", "--no-untrained"]);
    let rows = report["top_n"]["trained"].as_array().unwrap();
    // The head sees only latent 8 + c. With the first latents on, rows carry nothing and get class 0, which is right
    // for one class of four; with them off, nothing is missing.
    for row in &rows[..2] {
        assert_eq!(
            (&row["on"], &row["off"]),
            (&0.25.into(), &1.0.into()),
            "{rows:?}"
        );
    }
    assert_eq!(rows[3]["on"], 1.0);
}

#[test]
fn rescaled_activations_do_not_change_top_n() {
    let run = Run::new(Preset::Default);
    // Latent 4 + c fires weakly on every row of class c; latent c, which the head sees, strongly on every other row.
    let mut rows = rows_of(10 * CLASSES, |row| {
        let (class, even) = (row % CLASSES, (row / CLASSES).is_multiple_of(2));
        [if even { class } else { 8 + class }, 4 + class]
    });
    for row in rows.chunks_mut(WIDTH) {
        row[..CLASSES].iter_mut().for_each(|x| *x *= 4.0);
    }
    write_by_class(&run, "train.safetensors", &rows);
    write_by_class(&run, "heldout.safetensors", &rows);
    let top_n = |input_scale: f64, arguments: &[&str]| {
        columns_as_latents(&run, input_scale);
        run.report(&[arguments, &["--top-n", "1,2,3", "--no-untrained"]].concat())["top_n"].clone()
    };
    let (one, other) = (top_n(1.0, &[]), top_n(16.0, &[]));
    assert_eq!(one, other);
    assert_eq!(one["rank_by"], "firing");
    assert!(one["fire_threshold"].is_null());
    // the paper's threshold ranks the latents of the same two models differently, although they reconstruct the same
    let by_threshold = ["--rank-by", "threshold"];
    let (one, other) = (top_n(1.0, &by_threshold), top_n(16.0, &by_threshold));
    assert_ne!(one["trained"], other["trained"]);
    assert_eq!(one["rank_by"], "threshold");
    assert!((one["fire_threshold"].as_f64().unwrap() - 0.2).abs() < 1e-6);
}

#[test]
fn classes_without_training_rows_are_named_and_count_in_no_mean() {
    let run = Run::new(Preset::Default);
    let file = sae_data::ActivationData::open(&run.path("train.safetensors"), &Default::default())
        .unwrap();
    let rows: Vec<f32> = file.blocks(1000).next().unwrap().unwrap();
    let kept: Vec<f32> = rows
        .chunks(WIDTH)
        .filter(|row| label(row) != 2)
        .flatten()
        .copied()
        .collect();
    run.write_rows("train.safetensors", &kept, true);
    let report = run.report(&["--no-untrained"]);
    let top_n = &report["top_n"];
    assert_eq!(top_n["unranked"], serde_json::json!(["c"]));
    assert_eq!(top_n["per_class"][2]["train_rows"], 0);
    assert!(top_n["per_class"][2]["rows"].as_u64().unwrap() > 0);
    // nothing on: right for one class of the three that count, not of four
    let all = top_n["trained"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(all["off"], 1.0 / 3.0);
    // "all on" is the mean over the classes in the table that count
    let of_class = |class: usize| top_n["per_class"][class]["reconstructed"].as_f64().unwrap();
    let mean = [0, 1, 3].map(of_class).iter().sum::<f64>() / 3.0;
    assert!((all["on"].as_f64().unwrap() - mean).abs() < 1e-12);
    let text = std::fs::read_to_string(run.path("reports/report.md")).unwrap();
    assert!(
        text.contains("Without training rows, so not ranked and in no mean: c."),
        "{text}"
    );
}
