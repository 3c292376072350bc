//! The rules that choose the active latents and their values from the scores.

use super::SparseValue;

/// The rule that computes latent activations `a` from scores `z`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Selection {
    /// `S = { j : sparsemax(z)_j > 0 }`; `a` is the attention weight or the score on S.
    Sparsemax(SparseValue),
    /// `a = z 1[z > t]`: ReLU for `t = 0`; BatchTopK's rule at inference.
    Threshold(f32),
    /// The k largest positive scores of each row (Gao et al. 2024, arXiv 2406.04093, with their ReLU). Of equal scores,
    /// the one with the lower index wins.
    TopK(usize),
    /// The `k B` largest positive scores of a batch of B rows (Bussmann et al. 2024, arXiv 2412.06410). Of equal
    /// scores, the one in the lower row wins, then the one with the lower index.
    BatchTopK(usize),
    /// `a_j = z_j 1[z_j > theta_j]` with one threshold per latent (Rajamanoharan et al. 2024, arXiv 2407.14435).
    /// Backward, with the rectangle kernel of width `bandwidth`:
    /// `dz = da 1[z > theta]`, `dtheta = -sum_rows da theta / bandwidth 1[|z - theta| < bandwidth / 2]`.
    JumpRelu {
        /// Width epsilon of the rectangle.
        bandwidth: f32,
    },
}

impl Selection {
    /// Whether it looks at each score by itself.
    pub(crate) fn is_by_score(self) -> bool {
        matches!(self, Self::Threshold(_) | Self::JumpRelu { .. })
    }
}
