//! Refinement of the selected latents at inference: gradient steps move their values so that less of the input stays
//! unexplained.
//!
//! ```text
//! r = u - a V                        [B, d]   residual of the normalised input u; V = W_dec W_V
//! g = r V^T at the support of a      [B, M]   direction in which the squared error falls
//! a <- a + (|g|^2 / |g V|^2) g                per row, the step that minimises |r| along g
//! ```
//!
//! The score of a latent depends on the row alone, not on which other latents are selected, so overlapping concepts
//! explain the same part twice. Steepest descent with an exact step never raises a row's squared error and selects no
//! new latent. On the CPU, it reads only the support: `L0 d` numbers per row and product. Models that were trained with
//! refinement became worse or collapsed (docs/SCIENCE.md).
//!
//! Source: inference-time optimisation of the codes of a sparse autoencoder (Smith 2024, "Replacing SAE encoders with
//! inference-time optimisation"). There, a non-negative solver runs until it converges; here, the model's config sets
//! the number of steps.

use burn::tensor::Tensor;

use crate::architectures::Architecture;
use crate::ops::{self, SparseCodes, TINY};
use crate::sae::{Input, Sae};

impl Sae {
    /// Refines the `latents` of `input` by the number of steps in the config. Carries no gradient.
    pub(crate) fn refined(&self, latents: SparseCodes, input: &Input) -> SparseCodes {
        let mut a = latents;
        let mut residual = input.u.clone() - self.explained(&a); // [B, d]
        for _ in 0..self.config.architecture.refinement() {
            let slope = self.slope(&a, residual.clone());
            let moved = self.explained(&slope); // [B, d]
            let step = moved.clone().mul(residual.clone()).sum_dim(1)
                / moved.clone().square().sum_dim(1).clamp_min(TINY); // [B, 1]
            a = a.plus(slope, step.clone());
            residual = residual - moved * step;
        }
        a
    }

    /// `a V`, `[B, d]`.
    fn explained(&self, a: &SparseCodes) -> Tensor<2> {
        self.valued(self.combined(a))
    }

    /// `r V^T` at the support of a.
    fn slope(&self, a: &SparseCodes, residual: Tensor<2>) -> SparseCodes {
        let residual = match self.w_v() {
            Some(w_v) => ops::product(residual, w_v.transpose()),
            None => residual,
        };
        a.with_values(ops::dots(residual, self.w_dec(), &a.pattern))
    }
}

impl SparseCodes {
    /// `a + factors * b` with one factor per row, `[B, 1]`; a and b have the same support.
    fn plus(mut self, b: Self, factors: Tensor<2>) -> Self {
        self.values = self.values + b.values * ops::rows_at_entries(factors, &self.pattern);
        self
    }
}
