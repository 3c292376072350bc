//! Encodes a file of activations with a saved model and prints the strongest latents of its first rows.
//!
//! ```sh
//! cargo run -p sae-eval --example encode -- runs/quickstart/model data/wordnet_minilm/heldout.safetensors
//! ```

use std::error::Error;
use std::path::Path;

use sae_data::{ActivationData, Options};
use sae_model::burn::tensor::{Device, Tensor, TensorData};
use sae_model::saved;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data] = arguments.as_slice() else {
        return Err("two arguments: a saved model, and a file of activations".into());
    };
    let device = Device::flex();
    let sae = saved::load(Path::new(model), &device)?;
    let data = ActivationData::open(Path::new(data), &Options::default())?;
    let rows = data.rows().min(5);
    let x = TensorData::new(data.read(0..rows)?, [rows, data.width()]);
    let codes = sae.encode(Tensor::from_data(x, &device)).latents.on_host();
    let (latents, values) = (codes.pattern.indices(), codes.host_values());
    for row in 0..rows {
        let mut entries: Vec<usize> = codes.pattern.row(row).collect();
        entries.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        let strongest = entries.iter().take(5);
        let strongest: Vec<String> = strongest
            .map(|entry| format!("{} {:.2}", latents[*entry], values[*entry]))
            .collect();
        println!(
            "row {row}: {} latents; {}",
            entries.len(),
            strongest.join(", ")
        );
    }
    Ok(())
}
