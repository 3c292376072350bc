//! The runs of chaos: small enough to be killed often, with checkpoints so frequent that kills hit them.

use std::path::Path;

use anyhow::Result;

use crate::files::{At, npy_head};

/// Rows and width of the data.
const ROWS: usize = 3000;
const WIDTH: usize = 48;

/// A kind of run: its name, and its own settings.
pub(super) type Variant = (&'static str, &'static [&'static str]);

const TOPK: &str = "model.architecture=topk";
const BATCH_TOPK: &str = "model.architecture=batch_topk";
const JUMPRELU: &str = "model.architecture=jumprelu";

/// One variant per kind of state: counters, an auxiliary loss, thresholds, a penalty that warms up.
pub(super) const VARIANTS: [Variant; 5] = [
    ("attention", &["model.architecture=attention"]),
    ("released", &["model.preset=released"]),
    ("topk", &[TOPK, "model.k=6", "training.dead_window=20"]),
    ("batch_topk", &[BATCH_TOPK, "model.k=6"]),
    ("jumprelu", &[JUMPRELU, "training.checkpoint_every=1"]),
];

/// The config of all variants.
pub(super) fn config(data: &Path, device: &str) -> String {
    format!(
        "device = {device:?}\n[data]\ntrain = {:?}\nheld_out = {{ fraction = 0.1 }}\n[model]\nn_latents = 384\n\
         [training]\nsteps = 240\nbatch_size = 128\nwarmup_steps = 20\nvalidate_every = 30\nkeep_checkpoints = 3\n\
         checkpoint_every = 4\n",
        data.display().to_string(),
    )
}

/// Writes the data as `.npy`: each row is a sum of three of sixty concepts, with noise.
pub(super) fn write_data(path: &Path) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut number = || rng.f32() - 0.5;
    let concepts: Vec<[f32; WIDTH]> = (0..60).map(|_| std::array::from_fn(|_| number())).collect();
    let mut bytes = npy_head("<f4", ROWS, WIDTH);
    for row in 0..ROWS {
        let of = [row % 60, row * 7 % 60, row * 13 / 5 % 60].map(|concept| &concepts[concept]);
        for column in 0..WIDTH {
            let value = of.iter().map(|concept| concept[column]).sum::<f32>() + 0.02 * number();
            bytes.extend(value.to_le_bytes());
        }
    }
    std::fs::write(path, bytes).at(path)
}
