//! Trains on rows in memory and evaluates the model on others.
//!
//! ```sh
//! cargo run -p sae-train --example train_in_memory
//! ```

use std::error::Error;

use sae_data::ActivationData;
use sae_data::synthetic::Synthetic;
use sae_eval::Evaluation;
use sae_model::architectures::Attention;
use sae_train::Trainer;

fn main() -> Result<(), Box<dyn Error>> {
    // Sums of 4 of 48 concepts in 32 dimensions.
    let source = Synthetic {
        width: 32,
        concepts: 48,
        active: 4,
        noise: 0.01,
        seed: 1,
    };
    let rows = source.rows(5000);
    let (train, held_out) = rows.split_at(4000 * 32);
    let train = ActivationData::from_rows(train.to_vec(), 32);
    let held_out = ActivationData::from_rows(held_out.to_vec(), 32);

    let trainer = Trainer::new(Attention::default(), 128, 200, 256).set("seed", 7);
    let sae = trainer.fit(&train)?;

    let evaluation = Evaluation::of(&sae, &held_out)?;
    for name in ["fvu", "l0_mean", "dead_latents"] {
        println!("{name} {:.4}", evaluation.get(name).unwrap_or(f64::NAN));
    }
    Ok(())
}
