//! A dictionary in SAELens' files, of version 6 and before. What it has that our models do not is named.

use std::path::Path;

use sae_model::SparseValue;
use serde_json::{Map, Value};

use super::{CFG_FILE, Class, SaeLens, WEIGHTS_FILE};
use crate::exchange::cfg::Cfg;
use crate::exchange::error::ForeignError;
use crate::exchange::folded::Sparsemax;
use crate::exchange::tensors::{self, Tensors, transposed};

/// Beside a checkpoint of SAELens: the factor that its activations are multiplied by.
const SCALER_FILE: &str = "activation_scaler.json";
/// The newest major version that is read.
const MAJOR: u64 = 6;

impl SaeLens {
    /// Reads the dictionary in `dir`, and what is known of it.
    pub(in crate::exchange) fn read(
        dir: &Path,
    ) -> Result<(Self, Map<String, Value>), ForeignError> {
        let cfg = Cfg::read(&dir.join(CFG_FILE))?;
        let legacy = is_legacy(&cfg)?;
        let architecture = architecture(&cfg, legacy)?;
        check_shape_of_rows(&cfg, legacy)?;
        let factor = factor(&cfg, dir)?;
        let path = dir.join(WEIGHTS_FILE);
        let bytes = tensors::bytes(&path)?;
        let mut tensors = Tensors::new(&bytes, &path)?;
        let (d, m) = (cfg.count("d_in")?, cfg.count("d_sae")?);
        let w_enc = tensors.take("W_enc", &[d, m])?;
        let bias = if architecture == "gated" {
            "b_gate"
        } else {
            "b_enc"
        };
        let class = class(&cfg, &architecture, &mut tensors, m)?;
        let rescales = matches!(class, Class::TopK { .. } | Class::BatchTopK { .. })
            && cfg.flag("rescale_acts_by_decoder_norm", is_training(&architecture))?;
        let own = Self {
            d_in: d,
            n_latents: m,
            w_enc: transposed(&w_enc, d, m),
            b_enc: tensors.take(bias, &[m])?,
            w_dec: tensors.take("W_dec", &[m, d])?,
            b_dec: tensors.take("b_dec", &[d])?,
            class,
            subtracts: cfg.flag("apply_b_dec_to_input", true)?,
            factor,
            rescales,
        };
        own.check_sparsemax(&cfg)?;
        check_scaling(&cfg, &mut tensors)?;
        tensors.finish()?;
        let metadata = match legacy {
            true => legacy_metadata(&cfg),
            false => cfg.object("metadata").keys().clone(),
        };
        Ok((own, metadata))
    }

    /// Fails if sparsemax would see other rows than `x - b_dec`: what it selects depends on their norm.
    fn check_sparsemax(&self, cfg: &Cfg) -> Result<(), ForeignError> {
        match self.class {
            Class::Sparsemax(_) if !self.subtracts => Err(cfg.refused(
                "apply_b_dec_to_input",
                "false",
                "sparsemax divides by the norm of x - b_dec, and would see another row",
            )),
            _ => Ok(()),
        }
    }
}

/// Whether the file is older than version 6.
fn is_legacy(cfg: &Cfg) -> Result<bool, ForeignError> {
    const KEY: &str = "sae_lens_version";
    let metadata = cfg.object("metadata");
    let (of, key) = match cfg.has(KEY) {
        true => (cfg, KEY.to_string()),
        false => (&metadata, format!("metadata.{KEY}")),
    };
    let version = of.text(KEY, "")?;
    if version.is_empty() {
        return Ok(true);
    }
    let major = version
        .split('.')
        .next()
        .and_then(|n| n.parse::<u64>().ok());
    match major {
        Some(major) if major > MAJOR => {
            let why =
                "this program reads files of SAELens 6 and before; save it with such a version";
            Err(cfg.refused(&key, &version, why))
        }
        Some(major) => Ok(major < MAJOR),
        None => Err(cfg.wrong(&key, format!("\"{version}\" is not a version"))),
    }
}

/// The architecture; of old files, also by their activation function.
fn architecture(cfg: &Cfg, legacy: bool) -> Result<String, ForeignError> {
    if !legacy {
        return match cfg.text("architecture", "")? {
            missing if missing.is_empty() => Err(cfg.wrong("architecture", "it is missing")),
            architecture => Ok(architecture),
        };
    }
    let key = match cfg.has("activation_fn_str") {
        true => "activation_fn_str",
        false => "activation_fn",
    };
    let architecture = cfg.text("architecture", "standard")?;
    match cfg.text(key, "relu")?.as_str() {
        "relu" => Ok(architecture),
        "topk" => Ok("topk".into()),
        other => Err(cfg.refused(key, other, "our models have ReLU and TopK")),
    }
}

/// Fails unless rows come as they are.
fn check_shape_of_rows(cfg: &Cfg, legacy: bool) -> Result<(), ForeignError> {
    const KEY: &str = "reshape_activations";
    let hook = [cfg.text("hook_name", "")?, cfg.text("hook_point", "")?];
    let usual = match legacy && hook.iter().any(|name| name.contains("hook_z")) {
        true => "hook_z",
        false => "none",
    };
    match cfg.text(KEY, usual)?.as_str() {
        "none" => Ok(()),
        other => Err(cfg.refused(
            KEY,
            other,
            "it flattens the heads of an attention layer before it encodes, and rows here are vectors already",
        )),
    }
}

/// The factor that activations are multiplied by.
fn factor(cfg: &Cfg, dir: &Path) -> Result<f64, ForeignError> {
    const KEY: &str = "normalize_activations";
    let kind = match cfg.get(KEY) {
        Some(Value::Bool(false)) => "none".into(), // before version 6
        Some(Value::Bool(true)) => "expected_average_only_in".into(),
        _ => cfg.text(KEY, "none")?,
    };
    let scaler = dir.join(SCALER_FILE);
    match kind.as_str() {
        "none" => Ok(1.0),
        "expected_average_only_in" if scaler.exists() => {
            let scaler = Cfg::read(&scaler)?;
            let factor = scaler.number("scaling_factor")?;
            match factor > 0.0 {
                true => Ok(factor),
                false => Err(scaler.wrong("scaling_factor", format!("{factor} is not above 0"))),
            }
        }
        "expected_average_only_in" => Err(cfg.refused(
            KEY,
            &kind,
            "activations are multiplied by a factor that is not in this directory; put activation_scaler.json of the \
             checkpoint here, or call fold_activation_norm_scaling_factor in SAELens and save it again",
        )),
        "layer_norm" | "constant_norm_rescale" => Err(cfg.refused(
            KEY,
            &kind,
            "each row is centred or scaled by itself before b_dec is subtracted, which no model here does",
        )),
        other => Err(cfg.refused(KEY, other, "save it from SAELens after training, which folds it in")),
    }
}

/// Whether a checkpoint of training, and not an inference class, has this name.
fn is_training(architecture: &str) -> bool {
    matches!(architecture, "batchtopk" | "matryoshka_batchtopk")
}

/// What only this class has.
fn class(
    cfg: &Cfg,
    architecture: &str,
    tensors: &mut Tensors,
    m: usize,
) -> Result<Class, ForeignError> {
    Ok(match architecture {
        "standard" => Class::Standard,
        "topk" => Class::TopK { k: top_k(cfg, m)? },
        "jumprelu" if tensors.has("log_threshold") => Class::JumpRelu {
            threshold: tensors
                .take("log_threshold", &[m])?
                .into_iter()
                .map(f32::exp)
                .collect(),
        },
        "jumprelu" => Class::JumpRelu {
            threshold: tensors.take("threshold", &[m])?,
        },
        "batchtopk" | "matryoshka_batchtopk" => Class::BatchTopK {
            k: (cfg.number("k")?.round().max(1.0) as usize).min(m),
            threshold: tensors.take("topk_threshold", &[])?[0],
            parts: parts(cfg, m)?,
        },
        "gated" => Class::Gated {
            r_mag: tensors.take("r_mag", &[m])?,
            b_mag: tensors.take("b_mag", &[m])?,
        },
        "sparsemax" => Class::Sparsemax(sparsemax(cfg, tensors, m)?),
        other => {
            let why = match other {
                other if other.contains("transcoder") => {
                    "it predicts other activations than those that it reads; a model here rebuilds its input"
                }
                "abstopk" => "it keeps negative latents, and TopK here keeps positive ones",
                "temporal" => {
                    "it reads several tokens at a time; a model here reads rows one by one"
                }
                "matching_pursuit" => "it encodes in steps; no model here selects like that",
                _ => {
                    "this program knows standard, topk, batchtopk, matryoshka_batchtopk, jumprelu, gated and sparsemax"
                }
            };
            return Err(cfg.refused("architecture", other, why));
        }
    })
}

/// k of TopK; old files have it among the arguments of the activation function.
fn top_k(cfg: &Cfg, m: usize) -> Result<usize, ForeignError> {
    let old = cfg.object("activation_fn_kwargs");
    let of = if cfg.has("k") || !old.has("k") {
        cfg
    } else {
        &old
    };
    match of.count("k")? {
        k if k <= m => Ok(k),
        k => Err(of.wrong(
            "k",
            format!("{k} is more than the {m} latents that there are"),
        )),
    }
}

/// Sizes of the smaller dictionaries of Matryoshka, as parts of M; the last is the whole dictionary.
fn parts(cfg: &Cfg, m: usize) -> Result<Vec<f64>, ForeignError> {
    const KEY: &str = "matryoshka_widths";
    let widths = match cfg.get(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(widths)) => widths.iter().map(Value::as_u64),
        Some(other) => return Err(cfg.wrong(KEY, format!("{other} is not a list"))),
    };
    let parts: Option<Vec<f64>> = widths.map(|n| Some(n? as f64 / m as f64)).collect();
    let parts = parts.filter(|parts| parts.iter().all(|part| *part > 0.0 && *part <= 1.0));
    let parts = parts.ok_or_else(|| cfg.wrong(KEY, format!("numbers from 1 to {m} are needed")))?;
    Ok(parts.into_iter().filter(|part| *part < 1.0).collect())
}

fn sparsemax(cfg: &Cfg, tensors: &mut Tensors, m: usize) -> Result<Sparsemax, ForeignError> {
    let value = match cfg.text("value", "")?.as_str() {
        "score" => SparseValue::Score,
        "probability" => SparseValue::Probability,
        other => {
            return Err(cfg.wrong(
                "value",
                format!("\"{other}\" is neither score nor probability"),
            ));
        }
    };
    let steps = cfg.number("refinement")?;
    if steps < 0.0 || steps.fract() != 0.0 || steps > 1e6 {
        return Err(cfg.wrong("refinement", format!("{steps} is not a number of steps")));
    }
    Ok(Sparsemax {
        value,
        scale: cfg.number("scale")?,
        norm_exponent: cfg.number("norm_exponent")?,
        norm_range: cfg
            .has("norm_range")
            .then(|| cfg.number("norm_range"))
            .transpose()?,
        input_scale: cfg.number("input_scale")?,
        refinement: steps as usize,
        act_scale: tensors.take("act_scale", &[m])?,
    })
}

/// Takes the factors per latent that old files have, if they do nothing.
fn check_scaling(cfg: &Cfg, tensors: &mut Tensors) -> Result<(), ForeignError> {
    let m = cfg.count("d_sae")?;
    for name in ["scaling_factor", "finetuning_scaling_factor"] {
        if tensors.has(name) && tensors.take(name, &[m])?.iter().any(|v| *v != 1.0) {
            let why = "latents are multiplied by a factor after finetuning; fold it into W_dec and save it again";
            return Err(cfg.refused(name, "a tensor", why));
        }
    }
    Ok(())
}

/// The keys of an old file that say where its rows come from.
fn legacy_metadata(cfg: &Cfg) -> Map<String, Value> {
    const KNOWN: [&str; 6] = [
        "model_name",
        "hook_name",
        "hook_point",
        "context_size",
        "prepend_bos",
        "dataset_path",
    ];
    let known = KNOWN
        .iter()
        .filter_map(|key| Some((*key, cfg.get(key)?.clone())));
    known
        .map(|(key, value)| (key.replace("hook_point", "hook_name"), value))
        .collect()
}
