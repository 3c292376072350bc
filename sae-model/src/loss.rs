//! What training minimises.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::ops;
use crate::sae::row_norms;

/// The reconstruction losses of the presets. Sparsity needs no term of its own: sparsemax brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// `mean((x_hat - x)^2)` over all elements: the paper.
    Mse,
    /// `mean over rows of ||x_hat - x||^2 / sigma^2`, with `sigma^2 = mean ||x - mean(x)||^2` of the
    /// training data: squared error over variance, which is about 1 for a model that knows only the mean.
    Fvu,
    /// `10 * mean((x_hat - x)^2 / ||x||)` over all elements, `||x||` per row: the released code.
    NormWeighted,
}

impl Loss {
    /// The loss of a batch: `x`, `x_hat` `[B, d]` -> `[1]`. `variance` is sigma^2 above.
    pub fn forward(self, x: Tensor<2>, x_hat: Tensor<2>, variance: f64) -> Tensor<1> {
        self.with_squared_error(x, x_hat, variance).0
    }

    /// The loss of a batch, and without gradient `sum ||x_hat - x||^2`, both `[1]`.
    pub fn with_squared_error(
        self,
        x: Tensor<2>,
        x_hat: Tensor<2>,
        variance: f64,
    ) -> (Tensor<1>, Tensor<1>) {
        let [rows, d] = x.dims();
        let elements = (rows * d) as f64;
        if self == Self::NormWeighted {
            let squared = (x_hat - x.clone()).square(); // [B, d]
            let sum = squared.clone().inner().sum();
            return ((squared / row_norms(x)).mean() * 10.0, sum);
        }
        let sum = ops::squared_error(x_hat, x);
        let error = sum.clone().inner();
        match self {
            Self::Fvu => (sum / (rows as f64 * variance), error),
            _ => (sum / elements, error),
        }
    }
}

/// What rows beyond a limit are scaled by so that none rules a step: `min(1, limit / ||x||)`, `[B, d] -> [B, 1]`.
///
/// A training loss looks at `factor * x` and `factor * x_hat`: a row of norm `r > limit` counts as one of norm `limit`
/// that is rebuilt equally well, so its squared error and its gradient are at most those of a row at the limit. A few
/// rows of a language model are some 200 times as long as the others (attention sinks); as they are, one of them weighs
/// as much as 40,000 rows. None on the CPU where no row lies beyond the limit.
pub fn row_factors(x: Tensor<2>, limit: f64) -> Option<Tensor<2>> {
    if limit.is_infinite() {
        return None;
    }
    let on_cpu = ops::is_cpu(&x.device());
    let factors = (row_norms(x.inner()).recip() * limit).clamp_max(1.0); // [B, 1]
    match on_cpu && factors.clone().min().into_scalar::<f32>() >= 1.0 {
        true => None,
        false => Some(factors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_long_row_counts_as_one_at_the_limit() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[3.0, 4.0], [300.0, 400.0]], &device);
        assert!(row_factors(x.clone(), 500.0).is_none());
        let factors = row_factors(x.clone(), 50.0).expect("the second row is longer");
        let x_hat = x.clone() * 0.9;
        let loss = Loss::Fvu.forward(x * factors.clone(), x_hat * factors, 1.0);
        let value: f32 = loss.into_scalar();
        assert!((value - (0.25 + 25.0) / 2.0).abs() < 1e-4, "{value}"); // 0.01 ||x||^2 each, the second at 50
    }

    #[test]
    fn hand_computed() {
        let device = Device::flex();
        let x = Tensor::<2>::from_data([[3.0, 4.0], [0.0, 1.0]], &device);
        let x_hat = Tensor::<2>::from_data([[3.0, 2.0], [1.0, 1.0]], &device);
        // squared errors: 0 4 / 1 0; row norms 5 and 1
        for (loss, expected) in [
            (Loss::Mse, 5.0 / 4.0),
            (Loss::Fvu, 5.0 / 2.0 / 10.0),
            (Loss::NormWeighted, 10.0 * (4.0 / 5.0 + 1.0) / 4.0),
        ] {
            let value: f32 = loss.forward(x.clone(), x_hat.clone(), 10.0).into_scalar();
            assert!(
                (value - expected).abs() < 1e-6,
                "{loss:?}: {value} is not {expected}"
            );
        }
    }
}
