//! An architecture of your own: selection, switches, a term of the loss and a recipe, in one type. It trains, evaluates, is
//! saved and loaded like the built-in ones, and configs can name it.
//!
//! ```sh
//! cargo run -p sae-train --example custom_architecture
//! ```

use std::error::Error;
use std::sync::Arc;

use sae_data::ActivationData;
use sae_data::synthetic::Synthetic;
use sae_eval::Evaluation;
use sae_model::architectures::{self, ENCODER, ENCODER_BIAS, SPARSITY, switches_of};
use sae_model::burn::tensor::Device;
use sae_model::loss::{Coefficient, Step, Term};
use sae_model::ops::Selection;
use sae_model::parameters::Parameter;
use sae_model::{AnyArchitecture, Architecture, Scores, Selected, saved};
use sae_train::Trainer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `a = z 1[z > threshold]` with one threshold for all latents, and a penalty on `sum a^2`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HardThreshold {
    threshold: f32,
}

impl Default for HardThreshold {
    fn default() -> Self {
        Self { threshold: 1.0 }
    }
}

const WEIGHT: Coefficient = Coefficient {
    name: "energy_coefficient",
    meaning: "weight of the mean of a^2",
    default: |_| 0.01,
    ..Coefficient::WEIGHT
};

impl Architecture for HardThreshold {
    fn name(&self) -> &'static str {
        "hard_threshold"
    }

    fn source(&self) -> &'static str {
        "this example"
    }

    fn switches(&self) -> Map<String, Value> {
        switches_of(self)
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[ENCODER, ENCODER_BIAS]
    }

    fn coefficients(&self) -> &'static [Coefficient] {
        &[WEIGHT]
    }

    fn select(&self, scores: &Scores<'_>) -> Selected {
        scores.select(Selection::Threshold(self.threshold))
    }

    fn terms(&self) -> &'static [&'static str] {
        &[SPARSITY]
    }

    fn losses(&self, step: &Step<'_>) -> Vec<Term> {
        let codes = step.codes();
        let energy = codes.values.clone().square().sum();
        let energy = step.sae.across().sum(energy) / codes.pattern.rows() as f64; // other processes may have latents, too
        vec![Term {
            name: SPARSITY,
            value: energy * step.coefficients.get(WEIGHT.name),
        }]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    architectures::register::<HardThreshold>();
    let source = Synthetic {
        width: 32,
        concepts: 48,
        active: 4,
        noise: 0.01,
        seed: 1,
    };
    let data = ActivationData::from_rows(source.rows(4000), 32);

    let own = HardThreshold { threshold: 1.5 };
    let own = AnyArchitecture::Custom(Arc::new(own));
    let sae = Trainer::new(own, 128, 200, 256).fit(&data)?;

    // Saved and loaded, it is the same model.
    let dir = std::env::temp_dir().join(format!("hard-threshold-{}", std::process::id()));
    saved::save(&sae, 0, &dir)?;
    let again = saved::load(&dir, &Device::flex())?;
    std::fs::remove_dir_all(&dir)?;
    let (before, after) = (Evaluation::of(&sae, &data)?, Evaluation::of(&again, &data)?);
    assert_eq!(before, after);
    let fvu = after.get("fvu").ok_or("FVU is defined for these rows")?;
    println!("{:?}: FVU {fvu:.4}", again.config().architecture);
    assert!(fvu < 1.0, "it has learned something");
    Ok(())
}
