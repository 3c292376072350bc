//! Models that are written and read again, foreign files against their formulas by plain loops, and damaged files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use half::{bf16, f16};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_data::ActivationData;
use sae_model::architectures::{Attention, BatchTopK, Gated, TopK};
use sae_model::{AnyArchitecture, Architecture, Preset, Sae, SaeConfig};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::approximate::{self, Form};
use super::certificate::{self, forward, supports};
use super::error::{ForeignError, Misfit};
use super::folded::{Folded, Rule};
use super::plain::relative;
use super::saelens::SaeLens;
use super::{import, saelens, sparsify};

const D: usize = 12;
const M: usize = 30;
const ROWS: usize = 300;

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn rows() -> Vec<f32> {
    random(ROWS * D, 99).iter().map(|v| 2.0 * v + 0.1).collect()
}

/// A model whose every parameter is random; thresholds are positive.
fn model(config: &SaeConfig) -> Sae {
    let mut seed = 0;
    let value = |parameter: &sae_model::parameters::Parameter, dims: &[usize]| {
        seed += 1;
        let mut values = random(dims.iter().product(), seed);
        match parameter.name {
            "threshold" => values.iter_mut().for_each(|v| *v = v.abs() + 0.2),
            "W_Q" | "W_K" | "W_V" => values.iter_mut().for_each(|v| *v *= 0.5),
            _ => {}
        }
        Ok::<_, std::convert::Infallible>(values)
    };
    let Ok(sae) = Sae::with_values(config, &Device::flex(), value);
    sae
}

/// Every architecture, plain and with all that can be folded in, as far as SAELens can hold it.
fn configs() -> Vec<SaeConfig> {
    let mut configs = Vec::new();
    for architecture in AnyArchitecture::all() {
        let k = Map::from_iter([("k".to_string(), Value::from(5))]);
        let architecture = architecture.with(k).unwrap_or(architecture);
        let plain = SaeConfig::new(architecture, D, M);
        let mut folded = plain.clone();
        folded.scale = 1.7;
        folded.input_scale = 0.6;
        folded.query_projection = true;
        folded.key_projection = true;
        folded.value_projection = true;
        folded.encoder_bias = true;
        folded.pre_bias = true;
        let mut bare = plain.clone();
        bare.key_projection = true;
        bare.encoder_bias = false;
        bare.pre_bias = false;
        configs.extend([plain, folded, bare]);
    }
    for preset in [Preset::Paper, Preset::Released] {
        configs.push(SaeConfig::new(Attention::from(preset), D, M));
    }
    configs
}

fn written(dir: &Path, files: Vec<(&'static str, Vec<u8>)>) {
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Fails unless both make the same of the rows, and use the same latents.
fn assert_same(a: &Sae, b: &Sae, about: &str) {
    let x = rows();
    let ((x_hat, codes), (y_hat, others)) = (forward(a, &x), forward(b, &x));
    assert!(supports(&codes) == supports(&others), "supports of {about}");
    let active: usize = supports(&codes).iter().map(Vec::len).sum();
    assert!(active > ROWS / 4, "{active} active latents of {about}");
    let y_hat: Vec<f64> = y_hat.iter().map(|v| f64::from(*v)).collect();
    assert_near(&x_hat, &y_hat, 1e-6, about);
}

/// Fails unless `sae` makes the same of the rows as the formula.
fn assert_formula(sae: &Sae, about: &str, formula: impl Fn(&[f64]) -> Vec<f64>) {
    let x: Vec<f64> = rows().iter().map(|v| f64::from(*v)).collect();
    let expected: Vec<f64> = x.chunks_exact(D).flat_map(formula).collect();
    // rounding in float32 alone: the selection subtracts large scores from each other
    assert_near(&forward(sae, &rows()).0, &expected, 5e-6, about);
}

/// Fails unless all rows together differ by less than `most` of their length, and none by much more than the others.
fn assert_near(x_hat: &[f32], expected: &[f64], most: f64, about: &str) {
    let difference = relative(x_hat, expected);
    assert!(difference < most, "{difference} of {about}");
    for (a, b) in x_hat.chunks_exact(D).zip(expected.chunks_exact(D)) {
        let difference = relative(a, b);
        assert!(difference < 5e-5, "{difference} of a row of {about}");
    }
}

#[test]
fn every_architecture_comes_back_from_saelens_as_it_was() {
    for config in configs() {
        let (sae, about) = (model(&config), format!("{config:?}"));
        let folded = Folded::of(&sae, saelens::NAME).unwrap();
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), saelens::files(&folded, Map::new()).unwrap());
        let (foreign, metadata) = SaeLens::read(dir.path()).unwrap();
        assert_eq!(metadata["sae_lens_version"], saelens::VERSION);
        assert_formula(&sae, &about, |x| foreign.reconstructed(x));
        let back = foreign.fold().to_sae(&Device::flex()).unwrap();
        assert_same(&sae, &back, &about);
        // what was imported is written again as it was
        let again = Folded::of(&back, saelens::NAME).unwrap();
        if !matches!(folded.rule, Rule::Sparsemax(_)) {
            assert!(again == folded, "{about}");
        }
    }
}

#[test]
fn topk_comes_back_from_sparsify_as_it_was() {
    let mut config = SaeConfig::new(
        TopK {
            k: 5,
            refinement: 0,
        },
        D,
        M,
    );
    config.input_scale = 0.6;
    config.value_projection = true;
    let sae = model(&config);
    let folded = Folded::of(&sae, sparsify::NAME).unwrap();
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), sparsify::files(&folded).unwrap());
    let found = import::found(dir.path()).unwrap();
    assert_same(&sae, &found.sae, "sparsify");
    assert_formula(&sae, "sparsify", |x| sparsify::reconstructed(&folded, x));
}

#[test]
fn what_a_format_cannot_hold_is_named() {
    let misfit = |config: &SaeConfig| Folded::of(&model(config), "F").unwrap_err();
    let refined = SaeConfig::new(
        TopK {
            k: 5,
            refinement: 3,
        },
        D,
        M,
    );
    let expected = Misfit::Refined {
        steps: 3,
        format: "F",
    };
    assert_eq!(misfit(&refined), expected);
    let mut normed = SaeConfig::new(Gated {}, D, M);
    normed.norm_exponent = 1.0;
    assert!(misfit(&normed).to_string().contains("norm_exponent = 1)"));
    let mut ranged = SaeConfig::new(Gated {}, D, M);
    ranged.norm_range = Some(4.0);
    assert!(misfit(&ranged).to_string().contains("or norm_range"));
    let sae = model(&SaeConfig::new(Attention::default(), D, M));
    let folded = Folded::of(&sae, "F").unwrap();
    let error = sparsify::files(&folded).unwrap_err().to_string();
    assert!(error.contains("no selection like sparsemax"), "{error}");
}

/// A dictionary as SAELens writes it, of these keys and tensors beside the usual ones.
struct Foreign {
    cfg: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    more: Vec<(&'static str, Vec<u8>)>,
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Foreign {
    fn new(architecture: &str, keys: Value) -> Self {
        let mut cfg = json!({
            "architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "device": "cuda",
            "apply_b_dec_to_input": true, "normalize_activations": "none", "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.20.0", "model_name": "gpt2"},
        });
        let object = cfg.as_object_mut().unwrap();
        object.extend(keys.as_object().unwrap().clone());
        let own = Self {
            cfg,
            tensors: BTreeMap::new(),
            more: Vec::new(),
        };
        let bias = if architecture == "gated" {
            "b_gate"
        } else {
            "b_enc"
        };
        own.with("W_enc", &[D, M], 1.0)
            .with("W_dec", &[M, D], 1.0)
            .with("b_dec", &[D], 0.3)
            .with(bias, &[M], 0.3)
    }

    fn with(mut self, name: &str, shape: &[usize], scale: f32) -> Self {
        let seed = name.bytes().map(u64::from).sum();
        let values = random(shape.iter().product(), seed);
        let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
        let tensor = (Dtype::F32, shape.to_vec(), bytes_of(&values));
        self.tensors.insert(name.into(), tensor);
        self
    }

    fn write(&self, dir: &Path) {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(dir.join(saelens::WEIGHTS_FILE), file).unwrap();
        fs::write(dir.join(saelens::CFG_FILE), self.cfg.to_string()).unwrap();
        written(dir, self.more.clone());
    }

    /// The message of a refusal.
    fn refused(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        let error = SaeLens::read(dir.path()).map(|_| ()).unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    }

    /// Our model, after it was compared with the formula.
    fn imported(&self, about: &str) -> Sae {
        let dir = tempfile::tempdir().unwrap();
        self.write(dir.path());
        let (foreign, _) = SaeLens::read(dir.path()).unwrap();
        let sae = import::found(dir.path()).unwrap().sae;
        assert_formula(&sae, about, |x| foreign.reconstructed(x));
        sae
    }
}

fn scaler(factor: f64) -> (&'static str, Vec<u8>) {
    let json = json!({"scaling_factor": factor, "has_whitening": false});
    ("activation_scaler.json", json.to_string().into_bytes())
}

#[test]
fn what_only_saelens_has_is_folded_in() {
    let topk = |keys: Value| {
        let mut all = json!({"k": 4});
        all.as_object_mut()
            .unwrap()
            .extend(keys.as_object().unwrap().clone());
        Foreign::new("topk", all)
    };
    let mut cases = vec![
        ("standard", Foreign::new("standard", json!({}))),
        (
            "without b_dec",
            Foreign::new("standard", json!({"apply_b_dec_to_input": false})),
        ),
        (
            "rescaled",
            topk(json!({"rescale_acts_by_decoder_norm": true})),
        ),
        ("not rescaled", topk(json!({}))),
        ("batchtopk", Foreign::new("batchtopk", json!({"k": 3.6}))),
        (
            "matryoshka",
            Foreign::new(
                "matryoshka_batchtopk",
                json!({"k": 4, "matryoshka_widths": [10, 20, M]}),
            ),
        ),
        (
            "negative thresholds",
            Foreign::new("jumprelu", json!({})).with("threshold", &[M], 0.5),
        ),
        (
            "logarithms",
            Foreign::new("jumprelu", json!({})).with("log_threshold", &[M], 2.0),
        ),
        (
            "gated without b_dec",
            Foreign::new("gated", json!({"apply_b_dec_to_input": false}))
                .with("r_mag", &[M], 1.0)
                .with("b_mag", &[M], 0.5),
        ),
    ];
    for (_, case) in &mut cases[4..6] {
        let threshold = 0.9f64.to_le_bytes().to_vec();
        case.tensors
            .insert("topk_threshold".into(), (Dtype::F64, Vec::new(), threshold));
    }
    for (about, mut case) in cases {
        let sae = case.imported(about);
        let codes = forward(&sae, &rows()).1;
        assert!(
            supports(&codes).iter().any(|row| !row.is_empty()),
            "{about}"
        );
        case.cfg["normalize_activations"] = "expected_average_only_in".into();
        assert!(case.refused().contains("activation_scaler.json"), "{about}");
        case.more.push(scaler(2.5));
        case.imported(&format!("{about}, scaled"));
    }
}

#[test]
fn training_classes_become_what_goes_on_training() {
    let mut case = Foreign::new(
        "matryoshka_batchtopk",
        json!({"k": 4, "matryoshka_widths": [6, 15, M]}),
    );
    case.tensors.insert(
        "topk_threshold".into(),
        (Dtype::F32, Vec::new(), bytes_of(&[0.5])),
    );
    let sae = case.imported("matryoshka");
    let architecture = &sae.config().architecture;
    assert_eq!(architecture.describe(), "matryoshka (k = 4)");
    assert_eq!(architecture.switches()["parts"], json!([0.2, 0.5]));
    case.cfg["architecture"] = "batchtopk".into();
    case.cfg
        .as_object_mut()
        .unwrap()
        .remove("matryoshka_widths");
    let sae = case.imported("batchtopk");
    assert_eq!(
        sae.config().architecture,
        AnyArchitecture::from(BatchTopK {
            k: 4,
            refinement: 0
        })
    );
    // never measured
    case.tensors.insert(
        "topk_threshold".into(),
        (Dtype::F32, Vec::new(), bytes_of(&[0.0])),
    );
    assert_eq!(
        case.imported("unmeasured").config().architecture.name(),
        "relu"
    );
}

#[test]
fn sparsemax_of_saelens_is_folded_in() {
    for (value, refinement, range) in [("score", 3, json!(1.5)), ("probability", 0, Value::Null)] {
        let keys = json!({
            "value": value, "scale": 1.3, "norm_exponent": 1.4, "norm_range": range, "input_scale": 2.0,
            "refinement": refinement,
        });
        let mut case = Foreign::new("sparsemax", keys).with("act_scale", &[M], 1.0);
        case.imported(value);
        case.cfg["normalize_activations"] = "expected_average_only_in".into();
        case.more.push(scaler(0.4));
        case.imported("scaled");
        case.cfg["apply_b_dec_to_input"] = false.into();
        assert!(case.refused().contains("apply_b_dec_to_input"));
    }
}

#[test]
fn files_from_before_version_6_are_read() {
    let mut case = Foreign::new("standard", json!({}));
    case.cfg = json!({"d_in": D, "d_sae": M, "hook_point": "blocks.3.hook_resid_pre", "model_name": "gpt2",
        "activation_fn_str": "relu", "normalize_activations": false});
    case.imported("version 3");
    case = case.with("scaling_factor", &[M], 0.0);
    let ones = bytes_of(&[1.0; M]);
    case.tensors.get_mut("scaling_factor").unwrap().2 = ones;
    case.imported("factors of one");
    let dir = tempfile::tempdir().unwrap();
    case.write(dir.path());
    let (_, metadata) = SaeLens::read(dir.path()).unwrap();
    assert_eq!(metadata["hook_name"], "blocks.3.hook_resid_pre");
    case.cfg["activation_fn_str"] = "topk".into();
    case.cfg["activation_fn_kwargs"] = json!({"k": 3});
    assert_eq!(
        case.imported("topk").config().architecture.describe(),
        "topk (k = 3)"
    );
    case.cfg["activation_fn_str"] = "tanh-relu".into();
    assert!(case.refused().contains("tanh-relu"));
    case.cfg["activation_fn_str"] = "relu".into();
    case.cfg["hook_point"] = "blocks.3.attn.hook_z".into();
    assert!(case.refused().contains("hook_z"));
}

#[test]
fn weights_of_other_types_are_converted() {
    let exact = Foreign::new("standard", json!({}));
    let sae = exact.imported("f32");
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut case = Foreign::new("standard", json!({}));
        for (own, _, bytes) in case.tensors.values_mut() {
            let words = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|word| f32::from_le_bytes(*word));
            *bytes = match dtype {
                Dtype::F16 => words.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::BF16 => words
                    .flat_map(|v| bf16::from_f32(v).to_le_bytes())
                    .collect(),
                _ => words.flat_map(|v| f64::from(v).to_le_bytes()).collect(),
            };
            *own = dtype;
        }
        let converted = case.imported("another type");
        if dtype == Dtype::F64 {
            assert_same(&sae, &converted, "f64");
        }
    }
    let mut case = Foreign::new("standard", json!({}));
    case.tensors.get_mut("b_dec").unwrap().0 = Dtype::I32;
    assert!(
        case.refused().contains("\"b_dec\" is I32"),
        "{}",
        case.refused()
    );
}

#[test]
fn each_wrong_dictionary_is_named() {
    type Damage = fn(&mut Foreign);
    let damage: [(Damage, &str); 20] = [
        (|f| drop(f.tensors.remove("W_dec")), "\"W_dec\" is missing"),
        (
            |f| f.tensors.get_mut("b_enc").unwrap().1 = vec![1, M],
            "\"b_enc\" is F32 [1, 30]",
        ),
        (
            |f| f.tensors.get_mut("b_enc").unwrap().2[..4].fill(0xff),
            "\"b_enc\" has NaN at position 0",
        ),
        (
            |f| {
                drop(
                    f.tensors
                        .insert("W_skip".into(), (Dtype::F32, vec![1], vec![0; 4])),
                )
            },
            "\"W_skip\" is not part",
        ),
        (|f| f.cfg["d_sae"] = 31.into(), "is F32 [12, 30]"),
        (
            |f| f.cfg["d_sae"] = 0.into(),
            "d_sae: 0 is not a whole number above 0",
        ),
        (|f| f.cfg["d_in"] = json!(1.5), "d_in: 1.5"),
        (
            |f| f.cfg["d_in"] = json!(u64::MAX),
            "d_in: 18446744073709551615",
        ),
        (|f| f.cfg["k"] = Value::Null, "k: it is missing"),
        (|f| f.cfg["k"] = 31.into(), "k: 31 is more than"),
        (
            |f| f.cfg["architecture"] = Value::Null,
            "architecture: it is missing",
        ),
        (
            |f| f.cfg["architecture"] = "transcoder".into(),
            "predicts other activations",
        ),
        (
            |f| f.cfg["architecture"] = "abstopk".into(),
            "negative latents",
        ),
        (
            |f| f.cfg["architecture"] = "temporal".into(),
            "several tokens",
        ),
        (
            |f| f.cfg["architecture"] = "new".into(),
            "\"new\" cannot be taken over",
        ),
        (
            |f| f.cfg["normalize_activations"] = "layer_norm".into(),
            "centred or scaled",
        ),
        (
            |f| f.cfg["normalize_activations"] = "covariance_whitening".into(),
            "after training",
        ),
        (|f| f.cfg["reshape_activations"] = "hook_z".into(), "heads"),
        (
            |f| f.cfg["metadata"]["sae_lens_version"] = "7.0.0".into(),
            "SAELens 6 and before",
        ),
        (
            |f| f.cfg["apply_b_dec_to_input"] = "yes".into(),
            "neither true nor false",
        ),
    ];
    for (damage, expected) in damage {
        let mut case = Foreign::new("topk", json!({"k": 4}));
        damage(&mut case);
        let message = case.refused();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn sparsify_that_is_more_than_topk_is_refused() {
    let sae = model(&SaeConfig::new(
        TopK {
            k: 5,
            refinement: 0,
        },
        D,
        M,
    ));
    let folded = Folded::of(&sae, sparsify::NAME).unwrap();
    for (key, value, expected) in [
        ("activation", json!("groupmax"), "groupmax"),
        ("transcode", json!(true), "predicts other activations"),
        ("skip_connection", json!(true), "linear map"),
        ("signed", json!(true), "negative latents"),
        ("k", json!(31), "k: 31"),
        ("num_latents", json!(29), "expected [29, 12]"),
        ("d_in", json!(13), "expected [30, 13]"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), sparsify::files(&folded).unwrap());
        let path = dir.path().join("cfg.json");
        let mut cfg: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        cfg[key] = value;
        fs::write(&path, cfg.to_string()).unwrap();
        let message = format!("{:#}", import::found(dir.path()).map(|_| ()).unwrap_err());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn pickles_are_never_opened() {
    let refused = |dir: &Path| match import::found(dir).map(|_| ()).unwrap_err().downcast_ref() {
        Some(ForeignError::Pickle { path, .. }) => path.clone(),
        other => panic!("{other:?}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let pickle = dir.path().join("ae.pt");
    fs::write(&pickle, b"PK\x03\x04").unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(refused(dir.path()), pickle);
    assert_eq!(refused(&pickle), pickle);
    for head in [b"PK\x03\x04aaaaaa", b"\x80\x02}q\x00(aaaa"] {
        let dir = tempfile::tempdir().unwrap();
        Foreign::new("standard", json!({})).write(dir.path());
        let path = dir.path().join(saelens::WEIGHTS_FILE);
        fs::write(&path, head).unwrap();
        assert_eq!(refused(dir.path()), path);
    }
}

#[test]
fn gates_are_thresholds() {
    let mut config = SaeConfig::new(Gated {}, D, M);
    config.input_scale = 0.6;
    let sae = model(&config);
    let nothing = "no rows".to_string();
    let nearest = approximate::nearest(&sae, Form::Jumprelu, "F", Err(&nothing));
    let (folded, how) = nearest.unwrap();
    assert_eq!(how, "its own JumpReLU, without refinement");
    assert_same(&sae, &folded.to_sae(&Device::flex()).unwrap(), "gates");
    let error = approximate::nearest(&sae, Form::Topk, "F", Err(&nothing)).unwrap_err();
    assert!(error.to_string().contains("no rows"));
}

#[test]
fn approximations_have_the_models_l0() {
    let data = ActivationData::from_rows(rows(), D);
    for mut config in [
        SaeConfig::new(Attention::default(), D, M),
        SaeConfig::new(Attention::from(Preset::Paper), D, M),
        SaeConfig::new(Attention::from(Preset::Released), D, M),
        SaeConfig::new(Gated {}, D, M),
    ] {
        config.refine_nothing();
        let sae = model(&config);
        let l0 = mean_l0(&sae);
        for form in [Form::Topk, Form::Jumprelu] {
            let (folded, how) = approximate::nearest(&sae, form, "F", Ok(&data)).unwrap();
            let near = folded.to_sae(&Device::flex()).unwrap();
            let about = format!("{how}, L0 {l0} and {}", mean_l0(&near));
            match form {
                Form::Topk => assert!(mean_l0(&near) <= l0.round().max(1.0), "{about}"),
                Form::Jumprelu => assert!((mean_l0(&near) - l0).abs() < 0.02, "{about}"),
            }
            // it is written as it is
            assert!(Folded::of(&near, "F").unwrap() == folded, "{about}");
            let measured = certificate::measure(&sae, &near, &data, how).unwrap();
            let json = serde_json::to_value(&measured.certificate).unwrap();
            assert!((json["l0"]["model"].as_f64().unwrap() - l0).abs() < 1e-9);
            assert!(
                json["support"]["mean_jaccard"].as_f64().unwrap() > 0.2,
                "{about}: {json}"
            );
        }
    }
}

trait RefineNothing {
    fn refine_nothing(&mut self);
}

impl RefineNothing for SaeConfig {
    fn refine_nothing(&mut self) {
        let none = Map::from_iter([("refinement".to_string(), Value::from(0))]);
        if let Ok(architecture) = self.architecture.with(none) {
            self.architecture = architecture;
        }
    }
}

fn mean_l0(sae: &Sae) -> f64 {
    let active = supports(&forward(sae, &rows()).1);
    active.iter().map(Vec::len).sum::<usize>() as f64 / ROWS as f64
}

#[test]
fn refinement_is_dropped_and_the_certificate_says_what_it_was_worth() {
    let sae = model(&SaeConfig::new(
        TopK {
            k: 5,
            refinement: 4,
        },
        D,
        M,
    ));
    let nothing = "no rows".to_string();
    let (folded, how) = approximate::nearest(&sae, Form::Topk, "F", Err(&nothing)).unwrap();
    assert_eq!(how, "its own TopK, without refinement");
    let near = folded.to_sae(&Device::flex()).unwrap();
    let data = ActivationData::from_rows(rows(), D);
    let measured = certificate::measure(&sae, &near, &data, how).unwrap();
    let json = serde_json::to_value(&measured.certificate).unwrap();
    assert_eq!(json["support"]["equal_rows"], 1.0);
    assert_eq!(json["firing_frequency"]["largest_change"], 0.0);
    assert!(json["fvu"]["written"].as_f64() > json["fvu"]["model"].as_f64());
    // by hand: the largest distance of the two reconstructions
    let ((a, _), (b, _)) = (forward(&sae, &rows()), forward(&near, &rows()));
    let distance = |(a, b): (&[f32], &[f32])| -> f64 {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let largest = a
        .chunks_exact(D)
        .zip(b.chunks_exact(D))
        .map(distance)
        .fold(0.0, f64::max);
    let found = json["x_hat"]["largest"].as_f64().unwrap();
    assert!(
        (found - largest).abs() < 1e-6 * largest,
        "{found} {largest}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_files_are_errors_or_dictionaries(file in 0..2usize, at in 0usize..20_000, bit in 0..8u8, cut in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        Foreign::new("topk", json!({"k": 4})).write(dir.path());
        let path = dir.path().join([saelens::CFG_FILE, saelens::WEIGHTS_FILE][file]);
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        match cut {
            true => bytes.truncate(at),
            false => bytes[at] ^= 1 << bit,
        }
        fs::write(&path, bytes).unwrap();
        let _ = import::found(dir.path());
    }
}
