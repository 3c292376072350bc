//! How a GPU looks for the scores that may be selected.

#[cfg(feature = "cube")]
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// The numbers of the product that looks for candidates on a GPU. Their scores are computed again in float32 before anything is
/// selected, and the search leaves the margin that its rounding needs, so this changes the speed and no code. A processor always
/// uses float32, and so does a GPU without tensor cores for these numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32, by the units' own arithmetic.
    #[default]
    F32,
    /// Factors of 11 bits and sums of float32, by tensor cores.
    Tf32,
    /// Factors of 8 bits and sums of float32, by tensor cores.
    Bf16,
}

#[cfg(feature = "cube")]
const ALL: [Precision; 3] = [Precision::F32, Precision::Tf32, Precision::Bf16];

#[cfg(feature = "cube")]
static OF_PROCESS: AtomicU8 = AtomicU8::new(0);

/// Uses this precision in the whole process from now on.
pub fn set_precision(precision: Precision) {
    #[cfg(feature = "cube")]
    OF_PROCESS.store(precision as u8, Ordering::Relaxed);
    let _ = precision; // a build without GPUs
}

/// The precision of the process.
#[cfg(feature = "cube")]
pub(super) fn precision() -> Precision {
    ALL[OF_PROCESS.load(Ordering::Relaxed) as usize]
}

impl Precision {
    /// How far a factor may be from the number that it stands for, as a part of it: TF32 may be cut off and not rounded.
    #[cfg(feature = "cube")]
    fn rounding(self) -> f64 {
        match self {
            Self::F32 => 0.0,
            Self::Tf32 => 2f64.powi(-10),
            Self::Bf16 => 2f64.powi(-8),
        }
    }

    /// The part of the margin that is `||q|| ||c||`, for width d (derived in `cube/product.rs`); one per cent more, for the norms'
    /// own rounding. Tensor cores may cut off where they add: two bits more.
    #[cfg(feature = "cube")]
    pub(super) fn margin(self, width: usize) -> f32 {
        let u = self.rounding();
        let sums = match self {
            Self::F32 => 2.0 * 2f64.powi(-24),
            Self::Tf32 | Self::Bf16 => 5.0 * 2f64.powi(-24),
        };
        (1.01 * (2.0 * u + u * u + (width as f64 + 4.0) * sums)) as f32
    }
}
