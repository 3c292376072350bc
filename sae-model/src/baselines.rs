//! What the baselines have of their own: selection rules, penalties, auxiliary losses, the unit-norm decoder.
//!
//! Everything else (inputs, dictionary, trainer, evaluation, kernels) they share with sparse attention.

use burn::module::Param;
use burn::tensor::{Int, Tensor, TensorData};

use crate::config::{Architecture, SaeConfig};
use crate::ops::{self, EncodeOptions, Selection, SparseCodes};
use crate::sae::{Activations, Encoded, Sae, row_norms};

/// Part of the old value that BatchTopK's running threshold keeps at each step.
const THRESHOLD_DECAY: f64 = 0.99;

impl Architecture {
    /// The rule that makes activations of scores. At inference BatchTopK takes its measured threshold; as long as none
    /// was measured (it is 0 then) it takes the k largest of each row.
    pub(crate) fn selection(
        self,
        config: &SaeConfig,
        training: bool,
        batch_threshold: Option<Tensor<1>>,
    ) -> Selection {
        let k = config.k.unwrap_or(0);
        match self {
            Self::Attention | Self::MlpSparsemax => Selection::Sparsemax(config.value),
            Self::Relu | Self::AttentionRelu | Self::Gated => Selection::Threshold(0.0),
            Self::TopK => Selection::TopK(k),
            Self::BatchTopK if training => Selection::BatchTopK(k),
            Self::BatchTopK => match batch_threshold.map_or(0.0, |t| t.into_scalar::<f32>()) {
                0.0 => Selection::TopK(k),
                measured => Selection::Threshold(measured),
            },
            Self::JumpRelu => Selection::JumpRelu {
                bandwidth: config.bandwidth.unwrap_or(0.0) as f32,
            },
        }
    }
}

impl Sae {
    /// Gated (arXiv 2404.16014, section 3.2): a latent whose gate is open contributes
    /// `ReLU(exp(r_mag) * w + b_mag)`, with `w` the gate's score without its bias.
    pub(crate) fn magnitudes(&self, gate: &SparseCodes) -> Option<SparseCodes> {
        let (scale, bias) = (
            self.magnitude_scale.as_ref()?,
            self.magnitude_bias.as_ref()?,
        );
        let at_entries = |vector: &Param<Tensor<1>>| select_entries(vector.val(), gate);
        let shared = match &self.encoder_bias {
            Some(gate_bias) => gate.values.clone() - at_entries(gate_bias),
            None => gate.values.clone(),
        };
        let values = shared * at_entries(scale).exp() + at_entries(bias);
        Some(SparseCodes {
            values: burn::tensor::activation::relu(values),
            ..gate.clone()
        })
    }

    /// The sparsity penalty of a batch `[1]`, before its coefficient; none for architectures without.
    ///
    /// - ReLU: mean over rows of `sum_j a_j / d` (decoder rows have length one);
    /// - gated: the same of the open gates' pre-activations (arXiv 2404.16014, equation 8);
    /// - JumpReLU: mean over rows of `L0 / d`, with the gradient of arXiv 2407.14435, equation 12:
    ///   `dtheta_j = -1 / epsilon * mean over rows of 1[|z_j - theta_j| < epsilon / 2] / d`.
    ///
    /// Divided by the width d, as FVU is in these units (inputs are scaled to `mean ||u||^2 = d`), so that
    /// coefficients have the size that the papers use beside a sum of squares.
    pub fn penalty(&self, encoded: &Encoded) -> Option<Tensor<1>> {
        let Activations::Sparse(codes) = &encoded.activations else {
            return None;
        };
        let per_row = (codes.pattern.rows() * self.config.d_in) as f64;
        match self.config.architecture {
            Architecture::Relu | Architecture::AttentionRelu => {
                Some(codes.values.clone().sum() / per_row)
            }
            Architecture::Gated => {
                let gate = encoded.gate.as_ref()?;
                Some(gate.values.clone().sum() / per_row)
            }
            Architecture::JumpRelu => Some(self.jumprelu_l0(codes)? / per_row),
            _ => None,
        }
    }

    /// Number of active entries `[1]`, with JumpReLU's straight-through gradient for the thresholds.
    fn jumprelu_l0(&self, codes: &SparseCodes) -> Option<Tensor<1>> {
        let thresholds = self.log_thresholds.as_ref()?.val().exp(); // [M]
        let bandwidth = self.config.bandwidth? as f32;
        let theta: Vec<f32> = thresholds.clone().into_data().iter().collect();
        let mut slope = vec![0.0f32; theta.len()];
        for (j, z) in codes.pattern.indices().iter().zip(codes.scores.iter()) {
            if (z - theta[*j as usize]).abs() < bandwidth / 2.0 {
                slope[*j as usize] -= 1.0 / bandwidth;
            }
        }
        let device = thresholds.device();
        let l0 = codes.firing_counts().iter().map(|n| *n as f32).sum::<f32>();
        let slope = Tensor::<1>::from_data(TensorData::new(slope, [theta.len()]), &device);
        // A value of L0 and a gradient of `slope`: the linear term cancels, its derivative does not.
        let linear = (thresholds * slope).sum();
        Some(linear.clone() - linear.detach() + l0 as f64)
    }

    /// The auxiliary reconstruction of a batch, where the architecture has one: `(target, reconstruction)`,
    /// both `[B, d]`, whose squared distance joins the loss.
    ///
    /// - TopK and BatchTopK (arXiv 2406.04093, appendix A.2): the `aux_k` best of the `dead` latents, those that
    ///   [`Training::keep`](crate::Training::keep) leaves out aside, explain what the model has left over;
    /// - gated (arXiv 2404.16014, equation 8): the open gates' pre-activations explain the input, through a
    ///   decoder that does not learn from it.
    ///
    /// Both decode as the model does, through W_V where there is one.
    pub fn auxiliary(
        &self,
        x: &Tensor<2>,
        x_hat: &Tensor<2>,
        encoded: &Encoded,
        dead: &[u32],
        aux_k: usize,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        match self.config.architecture {
            Architecture::TopK | Architecture::BatchTopK if !dead.is_empty() && aux_k > 0 => {
                let residual = x.clone() - x_hat.clone();
                let explained = self.explain_with_dead(encoded, dead, aux_k)?;
                Some((residual.detach(), explained))
            }
            Architecture::Gated => {
                let gate = encoded.gate.as_ref()?;
                let frozen = ops::decode(gate, self.concepts.val().detach());
                let frozen = match &self.w_v {
                    Some(w_v) => frozen.matmul(w_v.val().detach()),
                    None => frozen,
                };
                let bias = self.pre_bias.as_ref().map(|b| b.val().detach().unsqueeze());
                let frozen = frozen * encoded.input.norms.clone();
                Some((
                    x.clone(),
                    match bias {
                        Some(bias) => frozen + bias,
                        None => frozen,
                    },
                ))
            }
            _ => None,
        }
    }

    fn explain_with_dead(
        &self,
        encoded: &Encoded,
        dead: &[u32],
        aux_k: usize,
    ) -> Option<Tensor<2>> {
        let device = encoded.queries.device();
        let takes_part = |j: &&u32| encoded.keep.get(**j as usize) != Some(&0.0);
        let ids: Vec<i32> = dead.iter().filter(takes_part).map(|j| *j as i32).collect();
        let count = ids.len();
        if count == 0 {
            return None;
        }
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &device);
        let encoder = self.encoder.as_ref()?.val().select(0, ids.clone()); // [dead, d]
        let options = EncodeOptions {
            bias: self
                .encoder_bias
                .as_ref()
                .map(|bias| bias.val().select(0, ids.clone())),
            ..EncodeOptions::default()
        };
        let selection = Selection::TopK(aux_k.min(count));
        let codes = ops::encode(encoded.queries.clone(), encoder, options, selection);
        let explained = ops::decode(&codes, self.concepts.val().select(0, ids));
        Some(self.valued(explained) * encoded.input.norms.clone())
    }

    /// BatchTopK: the smallest positive activation of a training batch `[1]`, which its threshold follows.
    pub fn smallest_activation(&self, encoded: &Encoded) -> Option<Tensor<1>> {
        self.batch_threshold.as_ref()?;
        let Activations::Sparse(codes) = &encoded.activations else {
            return None;
        };
        let smallest = codes
            .host_values()
            .into_iter()
            .filter(|a| *a > 0.0)
            .reduce(f32::min)?;
        Some(Tensor::from_data(
            [smallest],
            &codes.values.device().inner(),
        ))
    }

    /// Moves BatchTopK's threshold towards the smallest activation of a batch (arXiv 2412.06410, section 3).
    pub fn follow_threshold(mut self, smallest: Tensor<1>) -> Self {
        self.batch_threshold = self.batch_threshold.map(|threshold| {
            threshold.map(|old| {
                let old: f32 = old.into_scalar();
                let device = smallest.device();
                let smallest: f32 = smallest.into_scalar();
                let kept = if old == 0.0 {
                    0.0
                } else {
                    THRESHOLD_DECAY as f32
                };
                let new = Tensor::from_data([kept * old + (1.0 - kept) * smallest], &device);
                Tensor::from_inner(new).set_require_grad(false)
            })
        });
        self
    }

    /// The part of a dictionary gradient `[M, d]` that does not change the rows' lengths: what lies along a
    /// row is taken out (Bricken et al. 2023, appendix).
    pub fn across_concepts(&self, gradient: Tensor<2>) -> Tensor<2> {
        let concepts = self.concepts.val().inner();
        let along = (gradient.clone() * concepts.clone()).sum_dim(1); // [M, 1], rows have length one
        gradient - concepts * along
    }

    /// The model with the rows of its dictionary at length one.
    pub fn with_unit_concepts(mut self) -> Self {
        self.concepts = self.concepts.map(|concepts| {
            let concepts = concepts.inner();
            let norms = row_norms(concepts.clone());
            Tensor::from_inner(concepts / norms).require_grad()
        });
        self
    }
}

/// `vector [M]` at the latent of each entry, `[entries]`.
fn select_entries(vector: Tensor<1>, codes: &SparseCodes) -> Tensor<1> {
    let ids: Vec<i32> = codes.pattern.indices().iter().map(|j| *j as i32).collect();
    let ids = TensorData::new(ids, [codes.pattern.len()]);
    let device = vector.device();
    vector.select(0, Tensor::<1, Int>::from_data(ids, &device))
}
