//! The loss that training minimises: the reconstruction loss, and the terms that an architecture adds.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::ops::{self, SparseCodes, row_norms};
use crate::sae::{Forward, Sae};

/// The reconstruction losses of the presets. Sparsity needs no term of its own: sparsemax brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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
            let sum = ops::sum(squared.clone().inner());
            return (ops::sum(squared / row_norms(x)) / elements * 10.0, sum);
        }
        let sum = ops::squared_error(x_hat, x);
        let error = sum.clone().inner();
        match self {
            Self::Fvu => (sum / (rows as f64 * variance), error),
            _ => (sum / elements, error),
        }
    }
}

/// A number that terms of the loss read: a key of `[training]`.
#[derive(Clone, Copy)]
pub struct Coefficient {
    /// Its key.
    pub name: &'static str,
    /// Its meaning.
    pub meaning: &'static str,
    /// Its usual value in a run.
    pub default: fn(&RunSize) -> f64,
    /// The message about a value that is wrong.
    pub check: fn(f64, &RunSize) -> Option<&'static str>,
    /// Whether it is a whole number.
    pub is_count: bool,
}

/// The size of a run, on which coefficients depend.
#[derive(Clone, Copy, Debug)]
pub struct RunSize {
    /// Optimizer steps.
    pub steps: usize,
    /// Number of latents M.
    pub n_latents: usize,
}

impl Coefficient {
    /// A weight: to be completed with name, meaning and default.
    pub const WEIGHT: Self = Self {
        name: "",
        meaning: "",
        default: |_| 0.0,
        check: |value, _| {
            let fine = value.is_finite() && value >= 0.0;
            (!fine).then_some("must be zero or a positive number")
        },
        is_count: false,
    };
    /// A whole number: to be completed in the same way.
    pub const COUNT: Self = Self {
        is_count: true,
        ..Self::WEIGHT
    };
}

/// The coefficients of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coefficients(BTreeMap<&'static str, f64>);

impl Coefficients {
    /// With one more.
    pub fn with(mut self, name: &'static str, value: f64) -> Self {
        self.0.insert(name, value);
        self
    }

    /// The value of this name, where the run has one.
    pub fn find(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The value of this name; 0 where the run has none.
    pub fn get(&self, name: &str) -> f64 {
        self.find(name).unwrap_or(0.0)
    }
}

/// A term of the loss, with its weight in it.
#[derive(Clone, Debug)]
pub struct Term {
    /// Its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Its value `[1]`.
    pub value: Tensor<1>,
}

/// A training batch behind its forward pass: what [`losses`](crate::Architecture::losses) see.
pub struct Step<'a> {
    /// The model.
    pub sae: &'a Sae,
    /// Activations `[B, d]`.
    pub x: &'a Tensor<2>,
    /// Their encoding and reconstruction.
    pub forward: &'a Forward,
    /// The [mask](crate::Mode::Training) of the batch.
    pub mask: &'a [f32],
    /// The run's coefficients.
    pub coefficients: &'a Coefficients,
    /// See [`Step::steps_done`].
    pub(crate) steps_done: &'a dyn Fn() -> usize,
    /// See [`Step::dead`].
    pub(crate) dead: &'a dyn Fn() -> Vec<u32>,
    /// See [`Step::distance`].
    pub(crate) distance: &'a dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>,
}

impl<'a> Step<'a> {
    /// From its parts: `dead` are the latents that have not fired for long, `distance` the reconstruction loss.
    pub fn new(
        (sae, x, forward): (&'a Sae, &'a Tensor<2>, &'a Forward),
        (mask, steps_done): (&'a [f32], &'a dyn Fn() -> usize),
        coefficients: &'a Coefficients,
        dead: &'a dyn Fn() -> Vec<u32>,
        distance: &'a dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>,
    ) -> Self {
        Self {
            sae,
            x,
            forward,
            mask,
            steps_done,
            coefficients,
            dead,
            distance,
        }
    }

    /// Batches before this one. A GPU is waited for.
    pub fn steps_done(&self) -> usize {
        (self.steps_done)()
    }

    /// Latents that have not fired for long. A GPU is waited for.
    pub fn dead(&self) -> Vec<u32> {
        (self.dead)()
    }

    /// The run's reconstruction loss between two `[B, d]`, `[1]`.
    pub fn distance(&self, target: Tensor<2>, reconstruction: Tensor<2>) -> Tensor<1> {
        (self.distance)(target, reconstruction)
    }

    /// The latents.
    pub fn codes(&self) -> &'a SparseCodes {
        &self.forward.encoded.latents
    }

    /// A coefficient that rises linearly from zero over the run's `sparsity_warmup_steps`.
    pub fn risen(&self, name: &str) -> f64 {
        let warmup = self.coefficients.get("sparsity_warmup_steps").max(1.0);
        let risen = (self.steps_done() + 1) as f64 / warmup;
        self.coefficients.get(name) * risen.min(1.0)
    }
}

/// The factors that scale rows beyond a limit so that none rules a step: `min(1, limit / ||x||)`, `[B, d] -> [B, 1]`.
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
