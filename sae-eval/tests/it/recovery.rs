//! Recovery of known concepts.

use burn::tensor::{Device, Tensor, TensorData};
use sae_data::synthetic::Synthetic;
use sae_model::architectures::Attention;
use sae_model::{Preset, Sae, SaeConfig, saved};

use super::{Run, WIDTH, metric};

const CONCEPTS: usize = 20;

/// The generator of [`Run::new`]'s data, which knows the true concepts.
fn synthetic() -> Synthetic {
    Synthetic {
        width: WIDTH,
        concepts: CONCEPTS,
        active: 3,
        noise: 0.05,
        seed: 1,
    }
}

/// A run whose dictionary starts with these rows, and whose config names the true concepts.
fn run(known: &[f32], more: &str) -> Run {
    let run = Run::new(Preset::Default);
    run.write_rows("concepts.safetensors", &synthetic().dictionary(), false);
    let concepts = format!("true_concepts = {:?}\n", run.path("concepts.safetensors"));
    run.write_config(&(concepts + more));
    let mean = vec![0.1; WIDTH];
    let mut sae = Sae::init(
        &SaeConfig::new(Attention::default(), WIDTH, 30),
        5,
        &mean,
        &Device::flex(),
    );
    let mut rows: Vec<f32> = sae.w_dec().into_data().iter().collect();
    rows[..known.len()].copy_from_slice(known);
    let rows = Tensor::from_data(TensorData::new(rows, [30, WIDTH]), &Device::flex());
    sae.parameters.set_matrix("W_dec", rows);
    std::fs::remove_dir_all(run.path("model")).expect("removed");
    saved::save(&sae, 5, &run.path("model")).expect("saved");
    run
}

#[test]
fn a_dictionary_that_holds_the_truth_has_recovered_it() {
    // the true concepts in reverse order and with other norms
    let dictionary = synthetic().dictionary();
    let known: Vec<f32> = dictionary
        .chunks(WIDTH)
        .rev()
        .flatten()
        .map(|v| 3.0 * v)
        .collect();
    let report = run(&known, "").report(&[]);
    for name in ["mmcs", "mcc", "recovered"] {
        let value = recovered(&report, name);
        assert!((value - 1.0).abs() < 1e-5, "{name} {value}");
    }
    let dead = metric(&report, "sparsity", "dead_latents");
    let expected = 2.0 * CONCEPTS as f64 / (CONCEPTS as f64 + 30.0 - dead);
    assert!((recovered(&report, "recovery_f1") - expected).abs() < 1e-12);
    let matches = report["recovery"]["matches"].as_array().expect("matches");
    for (concept, found) in matches.iter().enumerate() {
        assert_eq!(found["latent"], CONCEPTS - 1 - concept);
    }
}

#[test]
fn a_half_of_the_truth_is_half_of_it() {
    let dictionary = synthetic().dictionary();
    let report = run(&dictionary[..CONCEPTS / 2 * WIDTH], "").report(&[]);
    let found = recovered(&report, "recovered");
    assert!((0.5..0.7).contains(&found), "{found}"); // 20 random directions of width 12 seldom have a cosine of 0.9
    assert!(recovered(&report, "mcc") < recovered(&report, "mmcs"));
}

fn recovered(report: &serde_json::Value, name: &str) -> f64 {
    let metrics = report["recovery"]["metrics"].as_array().expect("recovery");
    let metric = metrics.iter().find(|metric| metric["name"] == name);
    metric
        .and_then(|metric| metric["value"].as_f64())
        .expect("the metric")
}

/// The true strengths are the latents' own activations, so latents fire exactly where their concepts are.
#[test]
fn latents_that_fire_where_their_concepts_are_detect_them() {
    let dictionary = synthetic().dictionary();
    let more = |run: &Run| format!("true_codes = {:?}\n", run.path("codes.npy"));
    let known = run(&dictionary, "");
    known.write_config(&format!(
        "true_concepts = {:?}\n{}",
        known.path("concepts.safetensors"),
        more(&known)
    ));
    let held_out =
        sae_data::ActivationData::open(&known.path("heldout.safetensors"), &Default::default())
            .unwrap();
    let x = TensorData::new(held_out.read(0..100).unwrap(), [100, WIDTH]);
    let sae = saved::load(&known.path("model"), &Device::flex()).unwrap();
    let encoded = sae.encode(Tensor::from_data(x, &Device::flex()));
    let dense: Vec<f32> = encoded
        .latents
        .on_host()
        .to_dense(&Device::flex())
        .into_data()
        .iter()
        .collect();
    let codes: Vec<f32> = dense
        .chunks(30)
        .flat_map(|row| &row[..CONCEPTS])
        .copied()
        .collect();
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': (100, {CONCEPTS}), }}");
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    let padded = format!("{header:<117}\n");
    npy.extend((padded.len() as u16).to_le_bytes());
    npy.extend(padded.bytes());
    npy.extend(codes.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(known.path("codes.npy"), npy).expect("written");
    let report = known.report(&[]);
    assert_eq!(recovered(&report, "firing_f1"), 1.0);
    std::fs::remove_file(known.path("codes.npy")).expect("removed");
    std::fs::remove_dir_all(known.path("reports")).expect("removed");
    assert!(known.refused(&[]).contains("data.true_codes"));
}
