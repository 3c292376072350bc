//! sparsify (EleutherAI, 1.3): `cfg.json` and `sae.safetensors`.
//!
//! `cfg.json` is one object: `d_in`, `activation`, `expansion_factor`, `normalize_decoder`, `num_latents` (0: d_in times the
//! expansion factor), `k`, `multi_topk`, `skip_connection`, `transcode`. Tensors, row-major:
//!
//! ```text
//! encoder.weight [M, d], encoder.bias [M], W_dec [M, d], b_dec [d]
//! a     = the k largest of max((x - b_dec) encoder.weight^T + encoder.bias, 0)
//! x_hat = a W_dec + b_dec
//! ```
//!
//! `normalize_decoder` and `multi_topk` change training alone. `groupmax`, the skip connection and transcoders have no model
//! here.

use std::path::Path;

use serde_json::json;

use super::cfg::Cfg;
use super::error::{ForeignError, Misfit};
use super::folded::{Folded, Rule};
use super::plain;
use super::saelens::CFG_FILE;
use super::tensors::{self, Tensors};

/// Name of the format in messages.
pub(super) const NAME: &str = "sparsify";
/// Name of the file of weights.
pub(super) const WEIGHTS_FILE: &str = "sae.safetensors";

/// k of a model that fits.
///
/// # Errors
/// [`Misfit::Selection`] if it is not TopK.
pub(super) fn k(folded: &Folded) -> Result<usize, Misfit> {
    match &folded.rule {
        Rule::TopK { k } => Ok(*k),
        other => Err(Misfit::Selection {
            architecture: other.name().into(),
            format: NAME,
        }),
    }
}

/// The files of a model: names and contents.
pub(super) fn files(folded: &Folded) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let (d, m) = (folded.d_in, folded.n_latents);
    let k = k(folded)?;
    let cfg = json!({
        "activation": "topk",
        "expansion_factor": (m / d).max(1),
        "normalize_decoder": false,
        "num_latents": m,
        "k": k,
        "multi_topk": false,
        "skip_connection": false,
        "transcode": false,
        "d_in": d,
    });
    let mut text = serde_json::to_vec_pretty(&cfg)?;
    text.push(b'\n');
    let tensors = tensors::file_of(&[
        ("encoder.weight", vec![m, d], &folded.w_enc),
        ("encoder.bias", vec![m], &folded.b_enc),
        ("W_dec", vec![m, d], &folded.w_dec),
        ("b_dec", vec![d], &folded.b_dec),
    ])?;
    Ok(vec![(CFG_FILE, text), (WEIGHTS_FILE, tensors)])
}

/// Whether a `cfg.json` is one of sparsify.
pub(super) fn recognises(cfg: &Cfg) -> bool {
    cfg.has("d_in") && cfg.has("k") && (cfg.has("num_latents") || cfg.has("expansion_factor"))
}

/// Reads the dictionary in `dir`.
pub(super) fn read(dir: &Path, cfg: &Cfg) -> Result<Folded, ForeignError> {
    check(cfg)?;
    let d = cfg.count("d_in")?;
    let m = match cfg.get("num_latents").and_then(serde_json::Value::as_u64) {
        None | Some(0) => cfg.count("expansion_factor")?.saturating_mul(d),
        Some(_) => cfg.count("num_latents")?,
    };
    let k = cfg.count("k")?;
    if k > m {
        return Err(cfg.wrong(
            "k",
            format!("{k} is more than the {m} latents that there are"),
        ));
    }
    let path = dir.join(WEIGHTS_FILE);
    let bytes = tensors::bytes(&path)?;
    let mut tensors = Tensors::new(&bytes, &path)?;
    let folded = Folded {
        d_in: d,
        n_latents: m,
        w_enc: tensors.take("encoder.weight", &[m, d])?,
        b_enc: tensors.take("encoder.bias", &[m])?,
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_dec: tensors.take("b_dec", &[d])?,
        rule: Rule::TopK { k },
    };
    tensors.finish()?;
    Ok(folded)
}

/// x_hat of a row, by plain loops in f64, for a test of the model that was made.
pub(super) fn reconstructed(folded: &Folded, x: &[f64]) -> Vec<f64> {
    let k = k(folded).unwrap_or(0); // what was read has one
    let x0: Vec<f64> = x
        .iter()
        .zip(&folded.b_dec)
        .map(|(x, b)| x - f64::from(*b))
        .collect();
    let rows = folded.w_enc.chunks_exact(x.len()).zip(&folded.b_enc);
    let z: Vec<f64> = rows
        .map(|(w, b)| (plain::dot(w, &x0) + f64::from(*b)).max(0.0))
        .collect();
    let mut x_hat: Vec<f64> = folded.b_dec.iter().map(|b| f64::from(*b)).collect();
    for j in plain::largest(&z, k) {
        plain::add(&mut x_hat, &folded.w_dec[j * x.len()..][..x.len()], z[j]);
    }
    x_hat
}

/// Fails if the dictionary is more than TopK.
fn check(cfg: &Cfg) -> Result<(), ForeignError> {
    match cfg.text("activation", "topk")?.as_str() {
        "topk" => {}
        other => {
            return Err(cfg.refused("activation", other, "of sparsify's, models here have topk"));
        }
    }
    for (key, why) in [
        (
            "transcode",
            "it predicts other activations than those that it reads; a model here rebuilds its input",
        ),
        (
            "skip_connection",
            "it adds a linear map of the input to the reconstruction; a model here has none",
        ),
        (
            "signed",
            "it keeps negative latents, and TopK here keeps positive ones",
        ),
    ] {
        if cfg.flag(key, false)? {
            return Err(cfg.refused(key, "true", why));
        }
    }
    Ok(())
}
