//! Version 2 of the format: one flat object of switches for all architectures, and other names of tensors.

use serde::de::Error;
use serde_json::{Map, Value};

use super::{Reader, SavedConfig, SavedModelError};
use crate::architectures::{AnyArchitecture, Architecture};
use crate::config::SaeConfig;

pub(super) const VERSION: u32 = 2;

/// Logarithms of the thresholds of `jumprelu`, which were the trained parameter once.
const LOG_THRESHOLDS: &str = "log_thresholds";

/// Switches that belonged to some architectures and stood among those of all.
const OWN: [&str; 4] = ["value", "refinement", "k", "bandwidth"];

/// A config of version 2.
pub(super) fn config(bytes: &[u8]) -> serde_json::Result<SavedConfig> {
    let mut saved: Value = serde_json::from_slice(bytes)?;
    let model = saved.get_mut("model").and_then(Value::as_object_mut);
    let model = model.ok_or_else(|| serde_json::Error::missing_field("model"))?;
    let architecture = architecture(model)?;
    model.insert("architecture".into(), serde_json::to_value(architecture)?);
    serde_json::from_value(saved)
}

/// Takes the architecture and its switches out of a model.
fn architecture(model: &mut Map<String, Value>) -> serde_json::Result<AnyArchitecture> {
    let name = model.remove("architecture").unwrap_or("attention".into());
    let name = name.as_str().unwrap_or_default();
    let usual = AnyArchitecture::named(name)
        .ok_or_else(|| Error::custom(format!("there is no architecture \"{name}\"")))?;
    let mut found: Map<String, Value> = OWN
        .into_iter()
        .filter_map(|key| Some((key.to_string(), model.remove(key)?)))
        .collect();
    found.entry("refinement").or_insert(0.into()); // it was left out where it was 0
    let mut own = Map::new();
    for key in usual.switches().keys().filter(|key| *key != "preset") {
        let value = found.remove(key);
        let value =
            value.ok_or_else(|| serde_json::Error::custom(format!("missing field `{key}`")))?;
        own.insert(key.clone(), value);
    }
    if usual.switches().contains_key("preset") {
        own.insert("preset".into(), preset(model, &own).into());
    }
    usual.with(own)
}

/// The preset was not kept: it is the one that has this value and this start.
fn preset(model: &Map<String, Value>, own: &Map<String, Value>) -> &'static str {
    let start = model.get("init").and_then(|init| init.get("concepts"));
    match (start, own.get("value")) {
        (Some(start), Some(value)) if start == "kaiming" && value == "probability" => "paper",
        (Some(start), _) if start == "kaiming" => "released",
        _ => "default",
    }
}

/// The values of a parameter, under the name that it had.
pub(super) fn values(
    reader: &Reader,
    config: &SaeConfig,
    name: &str,
    dims: &[usize],
) -> Result<Vec<f32>, SavedModelError> {
    let old = match name {
        "W_dec" => "concepts",
        "W_enc" => "encoder",
        "W_Q" => "w_q",
        "W_K" => "w_k",
        "W_V" => "w_v",
        "b_dec" => "pre_bias",
        "b_enc" | "b_gate" => "encoder_bias",
        "r_mag" => "magnitude_scale",
        "b_mag" => "magnitude_bias",
        "threshold" if config.architecture.name() == "batch_topk" => "batch_threshold",
        "threshold" if reader.has(LOG_THRESHOLDS) => {
            let logarithms = reader.values(LOG_THRESHOLDS, dims)?;
            return Ok(logarithms.into_iter().map(f32::exp).collect());
        }
        "threshold" => "thresholds",
        other => other,
    };
    reader.values(old, dims)
}
