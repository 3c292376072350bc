//! The rules that choose, from the scores of a row, the latents that are active and their values.

use super::SparseValue;

/// How latent activations `a` come from scores `z`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Selection {
    /// `S = { j : sparsemax(z)_j > 0 }`; `a` is the attention weight or the score on S.
    Sparsemax(SparseValue),
    /// `a = z 1[z > t]`: ReLU for `t = 0`; BatchTopK's rule at inference.
    Threshold(f32),
    /// The k largest scores of each row, as far as they are positive (Gao et al. 2024, arXiv 2406.04093, with
    /// their ReLU). Of equal scores, the one of the lower index counts as larger.
    TopK(usize),
    /// The `k B` largest scores of a batch of B rows, as far as they are positive (Bussmann et al. 2024,
    /// arXiv 2412.06410). Of equal scores, the one of the lower row, then the lower index, counts as larger.
    BatchTopK(usize),
    /// `a_j = z_j 1[z_j > theta_j]` with a threshold a latent (Rajamanoharan et al. 2024, arXiv 2407.14435).
    /// Backward, with the rectangle kernel of width `bandwidth`:
    /// `dz = da 1[z > theta]`, `dtheta = -sum_rows da theta / bandwidth 1[|z - theta| < bandwidth / 2]`.
    JumpRelu {
        /// Width epsilon of the rectangle.
        bandwidth: f32,
    },
}
