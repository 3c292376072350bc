//! Adam (Kingma & Ba 2015, arXiv 1412.6980) in one pass over memory.
//!
//! Burn's Adam consists of tensor operations; each of them reads all `M d` numbers and writes a copy. With a dictionary
//! of 100 MB, this takes longer than the model itself. On a GPU, where they cost little, this Adam uses the same
//! operations.

use burn::backend::Dispatch;
use burn::optim::{AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

use super::backend::SaeOps;

/// Adam:
///
/// ```text
/// m <- beta_1 m + (1 - beta_1) g ;  v <- beta_2 v + (1 - beta_2) g^2
/// p <- p - lr * m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t)) + epsilon)
/// ```
///
/// With unit rows, of a matrix whose rows have length one: `g <- g - (g . p) p` per row before it, because what lies along a row would
/// change its length alone (Bricken et al. 2023, appendix), and `p <- p / ||p||` after it; with a learning rate of zero neither.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Whether the rows of matrices keep length one.
    pub unit_rows: bool,
}

impl Optimizer for Adam {
    /// The state of Burn's Adam, with the same numbers and the same checkpoints.
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (time, moment_1, moment_2) = match state {
            Some(state) => (state.time + 1, state.moment_1, state.moment_2),
            None => (1, grad.zeros_like(), grad.zeros_like()),
        };
        let corrected = |beta: f64| 1.0 - beta.powi(time as i32);
        let step = AdamStep {
            beta_1: self.beta_1 as f32,
            beta_2: self.beta_2 as f32,
            epsilon: self.epsilon as f32,
            lr: (lr / corrected(self.beta_1)) as f32,
            correction_2: (1.0 / corrected(self.beta_2)) as f32,
            // without a step, rows of a saved model stay as they are: one up to rounding
            unit_rows: self.unit_rows && D == 2 && lr > 0.0,
        };
        let new = Dispatch::adam(
            tensor.into_dispatch(),
            grad.into_dispatch(),
            moment_1.into_dispatch(),
            moment_2.into_dispatch(),
            step,
        );
        let moment_1 = Tensor::from_dispatch(new.moment_1);
        let moment_2 = Tensor::from_dispatch(new.moment_2);
        (
            Tensor::from_dispatch(new.param),
            Some(AdaptiveMomentumState::new(time, moment_1, moment_2)),
        )
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        if state.moment_1.device() == *device {
            return state; // remains the only handle on the moments
        }
        state.to_device(device)
    }
}

/// The constants of one step of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AdamStep {
    pub(crate) beta_1: f32,
    pub(crate) beta_2: f32,
    pub(crate) epsilon: f32,
    /// `lr / (1 - beta_1^t)`.
    pub(crate) lr: f32,
    /// `1 / (1 - beta_2^t)`.
    pub(crate) correction_2: f32,
    /// Whether the rows of the parameter, a matrix, keep length one.
    pub(crate) unit_rows: bool,
}
