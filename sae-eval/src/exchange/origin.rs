//! Where the rows of a run come from: what SAELens calls metadata. It is known where our exporter or SAELens made the data,
//! or where the model was imported with it; options say the rest.

use std::path::Path;

use clap::Args;
use sae_run::{RunDir, read_text};
use serde_json::{Map, Value};

use super::import::IMPORT_FILE;

/// Longer than any of these files.
const MAX_BYTES: u64 = 64 << 20;
/// Beside the shards of SAELens' activation cache.
const CACHE_FILE: &str = "cache_activations_runner_cfg.json";
/// Keys of the metadata that are taken over.
const KEYS: [&str; 6] = [
    "model_name",
    "hook_name",
    "hf_hook_name",
    "context_size",
    "prepend_bos",
    "dataset_path",
];

/// What is known of the language model whose activations the rows are, where the data does not say it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct OriginArguments {
    /// Name of the language model in TransformerLens or on Hugging Face, for example gpt2.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Place in the model, for example blocks.8.hook_resid_pre.
    #[arg(long, value_name = "NAME")]
    hook_name: Option<String>,
    /// Tokens of a text that the model sees together.
    #[arg(long, value_name = "N")]
    context_size: Option<u32>,
    /// Whether texts begin with the model's first token.
    #[arg(long, value_name = "BOOL")]
    prepend_bos: Option<bool>,
    /// Data set that the texts are from.
    #[arg(long, value_name = "NAME")]
    dataset_path: Option<String>,
}

impl OriginArguments {
    /// The metadata of the run or model at `path`: options first, then what is beside its data.
    pub(super) fn metadata(&self, path: &Path) -> Map<String, Value> {
        let mut found = imported(path).or_else(|| of_data(path)).unwrap_or_default();
        for (key, value) in [
            ("model_name", self.model_name.clone().map(Value::from)),
            ("hook_name", self.hook_name.clone().map(Value::from)),
            ("context_size", self.context_size.map(Value::from)),
            ("prepend_bos", self.prepend_bos.map(Value::from)),
            ("dataset_path", self.dataset_path.clone().map(Value::from)),
        ] {
            if let Some(value) = value {
                found.insert(key.into(), value);
            }
        }
        for key in ["model_name", "hook_name", "context_size"] {
            found.entry(key).or_insert(Value::Null);
        }
        found
    }
}

/// The metadata that a model was imported with.
fn imported(path: &Path) -> Option<Map<String, Value>> {
    let import = object(&path.join(IMPORT_FILE))?;
    Some(known(import.get("metadata")?.as_object()?))
}

/// The metadata of the data that a run was trained on.
fn of_data(path: &Path) -> Option<Map<String, Value>> {
    let config: toml::Table = RunDir::new(path).read_config().ok()?.parse().ok()?;
    let data = Path::new(config.get("data")?.get("train")?.as_str()?);
    match object(&data.join(CACHE_FILE)) {
        Some(cache) => Some(known(&cache)),
        None => Some(of_index(object(&data.join("index.json"))?.get("metadata")?)),
    }
}

/// The metadata in the index of our shards (`tools/export_activations.py`).
fn of_index(metadata: &Value) -> Map<String, Value> {
    let text = |key: &str| metadata.get(key)?.as_str();
    let mut found = Map::new();
    for (key, value) in [
        ("model_name", text("model").map(Value::from)),
        (
            "context_size",
            text("context").and_then(|n| Some(n.parse::<u64>().ok()?.into())),
        ),
        ("dataset_path", text("source").map(Value::from)),
        // the exporter's hooks are names of modules, as Hugging Face has them
        (
            "hf_hook_name",
            text("place").and_then(|place| place.strip_prefix("hook ").map(Value::from)),
        ),
        ("hook_name", hook_of(metadata)),
    ] {
        if let Some(value) = value {
            found.insert(key.into(), value);
        }
    }
    found
}

/// The name that TransformerLens has for the hidden states of a layer of a language model, token by token: what block N reads.
fn hook_of(metadata: &Value) -> Option<Value> {
    let is = |key: &str, value: &str| metadata.get(key).is_some_and(|own| own == value);
    let place = metadata.get("place")?.as_str()?;
    let layer: usize = place.strip_prefix("layer ")?.parse().ok()?;
    let rows_are_states = is("modality", "text") && is("tokens", "all") && is("normalize", "false");
    rows_are_states.then(|| format!("blocks.{layer}.hook_resid_pre").into())
}

fn known(of: &Map<String, Value>) -> Map<String, Value> {
    let known = KEYS.iter().filter_map(|key| Some((*key, of.get(*key)?)));
    known
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_string(), value.clone()))
        .collect()
}

fn object(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_str(&read_text(path, MAX_BYTES).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// The metadata of a run whose data has this file beside it.
    fn metadata(name: &str, content: &Value, arguments: &OriginArguments) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join(name), content.to_string()).unwrap();
        let config = format!("[data]\ntrain = {:?}\n", data.display().to_string());
        RunDir::new(dir.path()).write_config(&config).unwrap();
        arguments.metadata(dir.path()).into()
    }

    #[test]
    fn the_index_of_our_shards_says_which_model_it_was() {
        let index = |more: Value| {
            let mut metadata = json!({
                "model": "gpt2", "modality": "text", "place": "layer 8", "tokens": "all", "normalize": "false",
                "context": "128", "source": "texts.jsonl",
            });
            let more = more.as_object().unwrap().clone();
            metadata.as_object_mut().unwrap().extend(more);
            json!({ "metadata": metadata })
        };
        let of = |more: Value| metadata("index.json", &index(more), &Default::default());
        assert_eq!(
            of(json!({})),
            json!({"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128,
                "dataset_path": "texts.jsonl"})
        );
        assert!(of(json!({"tokens": "mean"}))["hook_name"].is_null());
        assert!(of(json!({"place": "layer -1"}))["hook_name"].is_null());
        let hook = of(json!({"place": "hook transformer.h.8"}));
        assert_eq!(hook["hf_hook_name"], "transformer.h.8");
        assert!(hook["hook_name"].is_null());
        let arguments = OriginArguments {
            hook_name: Some("blocks.9.hook_resid_pre".into()),
            prepend_bos: Some(false),
            ..OriginArguments::default()
        };
        let asked = metadata("index.json", &index(json!({})), &arguments);
        assert_eq!(asked["hook_name"], "blocks.9.hook_resid_pre");
        assert_eq!(asked["prepend_bos"], false);
        assert_eq!(asked["model_name"], "gpt2");
    }

    #[test]
    fn the_activation_cache_of_saelens_says_it_too() {
        let cache = json!({"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 256,
            "prepend_bos": true, "lr": 3, "dataset_path": null});
        let found = metadata(CACHE_FILE, &cache, &Default::default());
        assert_eq!(
            found,
            json!({"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 256, "prepend_bos": true})
        );
        let nothing = metadata("other.json", &cache, &Default::default());
        assert_eq!(
            nothing,
            json!({"model_name": null, "hook_name": null, "context_size": null})
        );
    }
}
