//! Wrong and damaged files: each has a message of its own, or is read as what it says.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use sae_model::SaeConfig;
use sae_model::architectures::TopK;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::foreign::Foreign;
use super::{D, M, model, written};
use crate::exchange::error::ForeignError;
use crate::exchange::folded::Folded;
use crate::exchange::{import, saelens, sparsify};

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
