//! Files of SAELens against their formulas by plain loops.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use sae_model::architectures::BatchTopK;
use sae_model::{AnyArchitecture, Architecture, Sae};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::{D, M, assert_formula, assert_same, random, rows, written};
use crate::exchange::certificate::{forward, supports};
use crate::exchange::saelens::SaeLens;
use crate::exchange::{import, saelens};

/// A dictionary as SAELens writes it, of these keys and tensors beside the usual ones.
pub(super) struct Foreign {
    pub(super) cfg: Value,
    pub(super) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub(super) more: Vec<(&'static str, Vec<u8>)>,
}

pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Foreign {
    pub(super) fn new(architecture: &str, keys: Value) -> Self {
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

    pub(super) fn with(mut self, name: &str, shape: &[usize], scale: f32) -> Self {
        let seed = name.bytes().map(u64::from).sum();
        let values = random(shape.iter().product(), seed);
        let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
        let tensor = (Dtype::F32, shape.to_vec(), bytes_of(&values));
        self.tensors.insert(name.into(), tensor);
        self
    }

    pub(super) fn write(&self, dir: &Path) {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        fs::write(dir.join(saelens::WEIGHTS_FILE), file).unwrap();
        fs::write(dir.join(saelens::CFG_FILE), self.cfg.to_string()).unwrap();
        written(dir, self.more.clone());
    }

    /// The message of a refusal.
    pub(super) fn refused(&self) -> String {
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

pub(super) fn scaler(factor: f64) -> (&'static str, Vec<u8>) {
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
