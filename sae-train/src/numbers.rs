//! The numbers of one batch. They are computed on the device and come to the host together, when the first of them is asked for: a
//! step waits for the device once.

use std::sync::{Arc, OnceLock};

use burn::tensor::{ExecutionError, Tensor};
use burn::train::ItemLazy;
use sae_model::loss::Term;
use sae_model::stats;

use crate::collapse::Seen;

/// The numbers of one batch on the device, each `[1]`, and without gradient.
pub(crate) struct OnDevice {
    /// The loss that training minimises, the sum of the terms below; in a validation the first alone.
    pub(crate) loss: Tensor<1>,
    /// The reconstruction loss.
    pub(crate) reconstruction_loss: Tensor<1>,
    /// `sum ||x - x_hat||^2`. In training rows beyond [`Settings::row_limit`](crate::learner::Settings) count as rows at it.
    pub(crate) squared_error: Tensor<1>,
    /// Mean number of active latents.
    pub(crate) l0: Tensor<1>,
    /// Latents that have not fired within the window, before this batch.
    pub(crate) dead: Tensor<1>,
    /// Sum of the squares of all gradients; zero in a validation.
    pub(crate) squared_gradients: Tensor<1>,
    /// The terms that the architecture adds in training.
    pub(crate) terms: Vec<Term>,
}

/// A number that every batch has, by its place among all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Loss,
    ReconstructionLoss,
    SquaredError,
    L0,
    Dead,
    SquaredGradients,
}

/// Number of those.
const COMMON: usize = Number::SquaredGradients as usize + 1;

/// The numbers of one batch.
#[derive(Clone, Debug)]
pub(crate) struct StepOutput {
    /// Those that every batch has, then the terms of the loss; none if they are on the host.
    on_device: Option<Tensor<1>>,
    terms: Vec<&'static str>,
    host: Arc<OnceLock<Vec<f32>>>,
    /// `B sigma^2`: the squared error with the mean of the data in place of x_hat.
    of_mean: f64,
    /// Rows B of the batch.
    pub(crate) rows: usize,
}

impl StepOutput {
    /// The numbers of a batch of `rows` rows, of data of this variance.
    pub(crate) fn new(numbers: OnDevice, variance: f64, rows: usize) -> Self {
        let terms = numbers.terms.iter().map(|term| term.name).collect();
        let mut all = vec![
            numbers.loss,
            numbers.reconstruction_loss,
            numbers.squared_error,
            numbers.l0,
            numbers.dead,
            numbers.squared_gradients,
        ];
        debug_assert_eq!(all.len(), COMMON);
        all.extend(numbers.terms.into_iter().map(|term| term.value));
        Self {
            on_device: Some(Tensor::cat(all, 0)),
            terms,
            host: Arc::default(),
            of_mean: rows as f64 * variance,
            rows,
        }
    }

    /// The numbers of a batch of `parts` parts of so many rows each, of data of this variance: the means of the parts' numbers, and
    /// the sum of the squares of all gradients.
    pub(crate) fn of_parts(
        mut means: Vec<f32>,
        terms: Vec<&'static str>,
        squared_gradients: f32,
        (parts, rows, variance): (usize, usize, f64),
    ) -> Self {
        means[Number::SquaredError as usize] *= parts as f32; // a sum
        means[Number::SquaredGradients as usize] = squared_gradients;
        let rows = parts * rows;
        Self {
            on_device: None,
            terms,
            host: Arc::new(means.into()),
            of_mean: rows as f64 * variance,
            rows,
        }
    }

    /// The names of the loss's terms.
    pub(crate) fn terms(&self) -> &[&'static str] {
        &self.terms
    }

    /// All numbers, as [`StepOutput::of_parts`] takes them.
    pub(crate) fn into_numbers(self) -> Vec<f32> {
        self.on_host().to_vec()
    }

    fn on_host(&self) -> &[f32] {
        self.host.get_or_init(|| {
            let numbers = self
                .on_device
                .clone()
                .expect("on the device or on the host");
            numbers.into_data().iter().collect()
        })
    }

    /// One of the numbers that every batch has.
    pub(crate) fn number(&self, number: Number) -> f64 {
        f64::from(self.on_host()[number as usize])
    }

    /// A term of the loss, if the architecture adds one of this name.
    pub(crate) fn term(&self, name: &str) -> Option<f64> {
        let place = self.terms.iter().position(|term| *term == name)?;
        Some(f64::from(self.on_host()[COMMON + place]))
    }

    /// FVU of the batch, by the variance of the whole data: averaged over the held-out rows it is their FVU.
    pub(crate) fn fvu(&self) -> f64 {
        stats::fvu(self.number(Number::SquaredError), self.of_mean)
    }

    /// Whether the loss and every gradient is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        let [loss, gradients] = [Number::Loss, Number::SquaredGradients].map(|of| self.number(of));
        ((loss + gradients) as f32).is_finite()
    }

    /// The numbers that would show a collapse.
    pub(crate) fn seen(&self) -> Seen {
        Seen {
            l0: self.number(Number::L0),
            fvu: self.fvu(),
            dead: self.number(Number::Dead),
        }
    }

    /// For a message: `the loss is NaN`.
    pub(crate) fn what_is_not_finite(&self) -> String {
        match self.number(Number::Loss) as f32 {
            loss if loss.is_finite() => {
                format!("the loss is {loss}, but a gradient is NaN or infinite")
            }
            loss => format!("the loss is {loss}"),
        }
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}
