//! A model of ours as SAELens' files.

use safetensors::SafeTensorError;
use serde_json::{Map, Value, json};

use super::{CFG_FILE, SPARSITY_FILE, VERSION, WEIGHTS_FILE};
use crate::exchange::folded::{Folded, Rule};
use crate::exchange::tensors::{self, transposed};

/// What SAELens adds to a frequency before it takes the logarithm.
const EPSILON: f64 = 1e-10;

/// The files of a model: names and contents. `metadata` goes into `cfg.json`.
pub(in crate::exchange) fn files(
    folded: &Folded,
    metadata: Map<String, Value>,
) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut cfg = Map::new();
    for (key, value) in [
        ("d_in", json!(folded.d_in)),
        ("d_sae", json!(folded.n_latents)),
        ("dtype", json!("float32")),
        ("device", json!("cpu")),
        ("apply_b_dec_to_input", json!(true)),
        ("normalize_activations", json!("none")),
        ("reshape_activations", json!("none")),
        ("metadata", with_version(metadata).into()),
    ] {
        cfg.insert(key.into(), value);
    }
    cfg.extend(class_keys(&folded.rule));
    let mut text = serde_json::to_vec_pretty(&cfg)?;
    text.push(b'\n');
    Ok(vec![(CFG_FILE, text), (WEIGHTS_FILE, weights(folded)?)])
}

/// The architecture, and the keys that only its class has.
fn class_keys(rule: &Rule) -> Map<String, Value> {
    let keys = match rule {
        Rule::Relu => json!({"architecture": "standard"}),
        Rule::TopK { k } => {
            json!({"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": false})
        }
        Rule::JumpRelu { .. } | Rule::BatchTopK { .. } => json!({"architecture": "jumprelu"}),
        Rule::Gated { .. } => json!({"architecture": "gated"}),
        Rule::Sparsemax(rule) => json!({
            "architecture": "sparsemax",
            "value": rule.value,
            "scale": rule.scale,
            "norm_exponent": rule.norm_exponent,
            "norm_range": rule.norm_range,
            "input_scale": rule.input_scale,
            "refinement": rule.refinement,
        }),
    };
    keys.as_object().cloned().unwrap_or_default()
}

/// The file of weights.
fn weights(folded: &Folded) -> Result<Vec<u8>, SafeTensorError> {
    let (d, m) = (folded.d_in, folded.n_latents);
    let w_enc = transposed(&folded.w_enc, m, d);
    let bias = match folded.rule {
        Rule::Gated { .. } => "b_gate",
        _ => "b_enc",
    };
    let mut tensors: Vec<(&str, Vec<usize>, &[f32])> = vec![
        ("W_enc", vec![d, m], &w_enc),
        ("W_dec", vec![m, d], &folded.w_dec),
        ("b_dec", vec![d], &folded.b_dec),
        (bias, vec![m], &folded.b_enc),
    ];
    let alike: Vec<f32>;
    let own: Vec<(&str, &[f32])> = match &folded.rule {
        Rule::Relu | Rule::TopK { .. } => Vec::new(),
        Rule::JumpRelu { threshold } => vec![("threshold", threshold)],
        Rule::BatchTopK { threshold, .. } => {
            alike = vec![*threshold; m];
            vec![("threshold", &alike)]
        }
        Rule::Gated { r_mag, b_mag } => vec![("r_mag", r_mag), ("b_mag", b_mag)],
        Rule::Sparsemax(rule) => vec![("act_scale", &rule.act_scale)],
    };
    tensors.extend(
        own.into_iter()
            .map(|(name, values)| (name, vec![m], values)),
    );
    tensors::file_of(&tensors)
}

/// The metadata with the version whose format this is. It must be there: SAELens takes files without it for older ones, and
/// drops what it knows of the model.
fn with_version(mut metadata: Map<String, Value>) -> Map<String, Value> {
    metadata.insert("sae_lens_version".into(), VERSION.into());
    metadata.insert("sae_lens_training_version".into(), Value::Null);
    metadata
}

/// The file of firing frequencies: `sparsity [M]`, their logarithms to the base 10; of a latent that never fires, -10.
pub(in crate::exchange) fn sparsity(
    frequencies: impl Iterator<Item = f64>,
) -> anyhow::Result<(&'static str, Vec<u8>)> {
    let logarithms: Vec<f32> = frequencies
        .map(|frequency| (frequency + EPSILON).log10() as f32)
        .collect();
    let tensor = ("sparsity", vec![logarithms.len()], logarithms.as_slice());
    Ok((SPARSITY_FILE, tensors::file_of(&[tensor])?))
}
