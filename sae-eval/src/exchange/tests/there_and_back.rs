//! Models that are written and read again: what comes back, and what a format cannot hold.

use burn::tensor::Device;
use sae_model::SaeConfig;
use sae_model::architectures::{Attention, Gated, TopK};
use serde_json::Map;

use super::{D, M, assert_formula, assert_same, configs, model, written};
use crate::exchange::error::Misfit;
use crate::exchange::folded::{Folded, Rule};
use crate::exchange::saelens::SaeLens;
use crate::exchange::{import, saelens, sparsify};

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
