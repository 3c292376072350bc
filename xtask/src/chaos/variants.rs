//! The runs of chaos: small enough to be killed often, with checkpoints so frequent that kills hit them.

use std::path::Path;

use anyhow::{Context, Result};

/// Rows and width of the data.
const ROWS: usize = 3000;
const WIDTH: usize = 48;

/// A kind of run.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    /// Lines of `[model]`.
    model: &'static str,
    /// Lines of `[training]`.
    training: &'static str,
}

/// One variant per kind of state: counters, an auxiliary loss, thresholds, a penalty that warms up.
pub(super) const VARIANTS: [Variant; 5] = [
    Variant {
        name: "attention",
        model: "",
        training: "",
    },
    Variant {
        name: "released",
        model: "preset = 'released'",
        training: "",
    },
    Variant {
        name: "topk",
        model: "architecture = 'topk'\nk = 6",
        training: "dead_window = 20",
    },
    Variant {
        name: "batch_topk",
        model: "architecture = 'batch_topk'\nk = 6",
        training: "",
    },
    Variant {
        name: "jumprelu",
        model: "architecture = 'jumprelu'",
        training: "checkpoint_every = 1",
    },
];

impl Variant {
    pub(super) fn config(&self, data: &Path) -> String {
        let every = if self.training.contains("checkpoint_every") {
            ""
        } else {
            "checkpoint_every = 4"
        };
        format!(
            "[data]\ntrain = {:?}\nheld_out = {{ fraction = 0.1 }}\n[model]\nn_latents = 384\n{}\n\
             [training]\nsteps = 240\nbatch_size = 128\nwarmup_steps = 20\nvalidate_every = 30\nkeep_checkpoints = 3\n\
             {every}\n{}\n",
            data.display().to_string(),
            self.model,
            self.training
        )
    }
}

/// Writes the data as `.npy`: each row is a sum of three of sixty concepts, with noise.
pub(super) fn write_data(path: &Path) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut number = || rng.f32() - 0.5;
    let concepts: Vec<[f32; WIDTH]> = (0..60).map(|_| std::array::from_fn(|_| number())).collect();
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({ROWS}, {WIDTH}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    for row in 0..ROWS {
        let of = [row % 60, row * 7 % 60, row * 13 / 5 % 60].map(|concept| &concepts[concept]);
        for column in 0..WIDTH {
            let value = of.iter().map(|concept| concept[column]).sum::<f32>() + 0.02 * number();
            bytes.extend(value.to_le_bytes());
        }
    }
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
