//! What a sparse autoencoder is made of: its switches, and the named presets that set them.

use serde::{Deserialize, Serialize};

use crate::ops::SparseValue;

/// t of the default preset, chosen so that L0 comes out between 20 and 50 (docs/SCIENCE.md).
const SCALE: f64 = 0.7;

/// Steps of refinement of the default preset (docs/SCIENCE.md).
const REFINEMENT: usize = 2;

/// `||mean(x)|| / sigma` from which on sparsemax needs a pre-bias (docs/SCIENCE.md).
const PRE_BIAS_FROM: f64 = 1.0 / 3.0;

/// More steps than this are a mistake.
const MAX_REFINEMENT: usize = 100;

/// How latent activations come from an activation of the model that is explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Sparse attention: concepts are keys and values, sparsemax chooses (arXiv 2604.14925).
    #[default]
    Attention,
    /// Ablation of arXiv 2604.14925: attention with ReLU and an L1 penalty instead of sparsemax.
    AttentionRelu,
    /// Ablation of arXiv 2604.14925: a separate encoder, chosen from by sparsemax.
    MlpSparsemax,
    /// ReLU and an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity").
    Relu,
    /// The k largest of each row (Gao et al. 2024, arXiv 2406.04093).
    #[serde(rename = "topk")]
    TopK,
    /// The `k B` largest of a batch of B rows (Bussmann et al. 2024, arXiv 2412.06410).
    #[serde(rename = "batch_topk")]
    BatchTopK,
    /// A learned threshold per latent and a penalty on L0 (Rajamanoharan et al. 2024, arXiv 2407.14435).
    #[serde(rename = "jumprelu")]
    JumpRelu,
    /// Separate gates and magnitudes (Rajamanoharan et al. 2024, arXiv 2404.16014).
    Gated,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 8] = [
        Self::Attention,
        Self::AttentionRelu,
        Self::MlpSparsemax,
        Self::Relu,
        Self::TopK,
        Self::BatchTopK,
        Self::JumpRelu,
        Self::Gated,
    ];

    /// Whether concepts are both encoder and decoder.
    pub fn is_attention(self) -> bool {
        matches!(self, Self::Attention | Self::AttentionRelu)
    }

    /// Whether sparsemax chooses the latents.
    pub fn is_sparsemax(self) -> bool {
        matches!(self, Self::Attention | Self::MlpSparsemax)
    }

    /// Whether it has a number k of latents to choose.
    pub fn has_k(self) -> bool {
        matches!(self, Self::TopK | Self::BatchTopK)
    }

    /// Whether inference can refine the values of what it selected: not where an entry may be zero (JumpReLU) or where
    /// magnitudes are made separately (gated), and not where L1 has a say in the values.
    pub fn can_refine(self) -> bool {
        self.is_sparsemax() || self.has_k()
    }

    /// Whether a penalty in the loss brings sparsity.
    pub fn has_penalty(self) -> bool {
        matches!(
            self,
            Self::AttentionRelu | Self::Relu | Self::JumpRelu | Self::Gated
        )
    }

    /// The usual `input_scale` for data of width `d_in` and variance `mean ||x - mean(x)||^2`: sparsemax sees
    /// rows of length about one, the others rows of `mean ||u||^2 = d`, the scale of the papers' coefficients.
    /// The presets of the paper and of its code see rows as they are.
    pub fn input_scale(self, preset: Preset, d_in: usize, variance: f64) -> f64 {
        match self {
            Self::Attention if preset != Preset::Default => 1.0,
            Self::Attention | Self::MlpSparsemax => variance.sqrt(),
            _ => (variance / d_in as f64).sqrt(),
        }
    }

    /// Whether there is usually a pre-bias, for data of this `||mean(x)|| / sigma`.
    ///
    /// Sparse attention has one where the mean weighs much: there latents die without it. Where it weighs little, concepts
    /// carry classes better without it. The presets of the paper and of its code have none, and the others have one, as
    /// in their papers.
    pub fn pre_bias(self, preset: Preset, mean_over_sigma: f64) -> bool {
        match self {
            Self::Attention if preset != Preset::Default => false,
            Self::Attention | Self::MlpSparsemax => mean_over_sigma >= PRE_BIAS_FROM,
            _ => true,
        }
    }

    /// The usual model of this architecture for activations of width `d_in` and `n_latents` latents; for
    /// [`Architecture::Attention`] it is that of `preset`.
    ///
    /// Those without sparsemax see inputs divided by one number (`input_scale`), have a pre-bias, an encoder
    /// bias and decoder rows of length one, and start with encoder = decoder = random unit rows.
    pub fn config(self, preset: Preset, d_in: usize, n_latents: usize) -> SaeConfig {
        let attention = preset.config(d_in, n_latents);
        let default = Preset::Default.config(d_in, n_latents);
        match self {
            Self::Attention => attention,
            Self::MlpSparsemax => SaeConfig {
                architecture: self,
                value_projection: false,
                encoder_bias: true,
                ..default
            },
            _ => SaeConfig {
                architecture: self,
                norm_exponent: 0.0,
                norm_range: None,
                scale: 1.0,
                refinement: 0,
                value_projection: false,
                encoder_bias: true,
                unit_norm_decoder: true,
                k: self.has_k().then_some(32),
                bandwidth: (self == Self::JumpRelu).then_some(1.0),
                ..default
            },
        }
    }
}

/// Named starting points of [`Architecture::Attention`]; every switch can be overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// arXiv 2604.14925 as written: W_Q, W_K, W_V, scale 1/sqrt(d), attention weights, no pre-bias.
    Paper,
    /// The authors' released code: unit-norm query, no W_Q, scale 1, gated scores, no pre-bias.
    Released,
    /// What works best here (docs/SCIENCE.md): gated scores, queries and keys as they are, a W_V that starts at the
    /// identity, a pre-bias (which [`Architecture::pre_bias`] may leave out), unit concepts at start, and more latents for
    /// rows of large norm.
    Default,
}

impl Preset {
    /// The preset's model for activations of width `d_in` and a dictionary of `n_latents` concepts.
    pub fn config(self, d_in: usize, n_latents: usize) -> SaeConfig {
        let released = SaeConfig {
            d_in,
            n_latents,
            architecture: Architecture::Attention,
            value: SparseValue::Score,
            scale: 1.0,
            norm_exponent: 1.0,
            input_scale: 1.0,
            norm_range: None,
            query_projection: false,
            key_projection: true,
            value_projection: true,
            pre_bias: false,
            encoder_bias: false,
            unit_norm_decoder: false,
            refinement: 0,
            k: None,
            bandwidth: None,
            init: InitConfig {
                concepts: ConceptInit::Kaiming,
                projections: ProjectionInit::Kaiming,
                pre_bias: PreBiasInit::Mean,
            },
        };
        match self {
            Self::Released => released,
            Self::Paper => SaeConfig {
                value: SparseValue::Probability,
                scale: 1.0 / (d_in as f64).sqrt(),
                norm_exponent: 0.0,
                query_projection: true,
                ..released
            },
            Self::Default => SaeConfig {
                scale: SCALE,
                norm_exponent: 2.0,
                norm_range: Some(4.0),
                refinement: REFINEMENT,
                key_projection: false,
                pre_bias: true,
                init: InitConfig {
                    concepts: ConceptInit::Unit,
                    projections: ProjectionInit::Identity,
                    pre_bias: PreBiasInit::Mean,
                },
                ..released
            },
        }
    }
}

/// What one sparse autoencoder is made of, and how its parameters start.
///
/// `cfg.json` of a saved model is this, written out in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeConfig {
    /// Width d of the activations.
    pub d_in: usize,
    /// Number of latents M, the rows of the dictionary.
    pub n_latents: usize,
    /// How latent activations come about.
    #[serde(default)]
    pub architecture: Architecture,
    /// What a latent in the support of sparsemax contributes.
    pub value: SparseValue,
    /// Factor t on the scores before sparsemax: larger is sparser.
    pub scale: f64,
    /// p: inputs are divided by `n = s (||x0|| / s)^p`, and reconstructions multiplied by it. 1 is the
    /// unit-norm query, 0 divides by the same s everywhere; with 2, rows of large norm get more latents.
    pub norm_exponent: f64,
    /// s.
    pub input_scale: f64,
    /// R: p holds for rows with `||x0|| / s` in `[1 / R, R]`. Beyond it is 1, so that u keeps the length that it has at
    /// that end, and a row of huge norm gets no dense code. None: p holds for every row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_range: Option<f64>,
    /// Whether there is a W_Q `[d, d]`.
    pub query_projection: bool,
    /// Whether there is a W_K `[d, d]`.
    pub key_projection: bool,
    /// Whether there is a W_V `[d, d]`.
    pub value_projection: bool,
    /// Whether there is a pre-bias `[d]`, subtracted from the input and added to the output.
    pub pre_bias: bool,
    /// Whether there is an encoder bias `[M]`, added to the scores.
    #[serde(default)]
    pub encoder_bias: bool,
    /// Whether training keeps the rows of the dictionary at length one.
    #[serde(default)]
    pub unit_norm_decoder: bool,
    /// Steps by which inference refines the values of the selected latents (`refinement.rs`); for sparsemax, TopK and
    /// BatchTopK.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refinement: usize,
    /// Active latents a row, for TopK and BatchTopK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Width of the rectangle through which JumpReLU's thresholds learn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<f64>,
    /// How the parameters start.
    pub init: InitConfig,
}

/// How the parameters start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// The dictionary.
    pub concepts: ConceptInit,
    /// W_Q, W_K and W_V.
    pub projections: ProjectionInit,
    /// The pre-bias.
    pub pre_bias: PreBiasInit,
}

/// How the dictionary C `[M, d]` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConceptInit {
    /// Rows of length one in random directions.
    Unit,
    /// Uniform in ±sqrt(6 / M): `kaiming_uniform_(C.T)` in torch, as in the released code.
    Kaiming,
}

/// How W_Q, W_K and W_V `[d, d]` start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProjectionInit {
    /// The identity: concepts start as their own keys and values.
    Identity,
    /// Uniform in ±sqrt(6 / d): `kaiming_uniform_` in torch, as in the released code.
    Kaiming,
}

/// How the pre-bias `[d]` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreBiasInit {
    /// The mean of the training data.
    Mean,
    /// Zero.
    Zero,
}

/// A value that no model can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("model.{key} = {value}: {remedy}")]
pub struct InvalidConfig {
    /// Name of the field.
    pub key: &'static str,
    /// Its value, as written.
    pub value: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl SaeConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`InvalidConfig`] for the first value that no model can have.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let invalid = |key, value: String, remedy| Err(InvalidConfig { key, value, remedy });
        if self.d_in == 0 {
            return invalid("d_in", "0".into(), "activations need at least one column");
        }
        if self.n_latents == 0 {
            return invalid(
                "n_latents",
                "0".into(),
                "a dictionary needs at least one latent; a common choice is 4 to 32 times the width",
            );
        }
        if !is_positive_f32(self.scale) {
            return invalid(
                "scale",
                self.scale.to_string(),
                "the score scale must be a positive number; 1 is the default, larger is sparser",
            );
        }
        if !(-4.0..=4.0).contains(&self.norm_exponent) {
            return invalid(
                "norm_exponent",
                self.norm_exponent.to_string(),
                "must lie between -4 and 4; 1 gives queries of length one, 0 leaves lengths as they are",
            );
        }
        if !is_positive_f32(self.input_scale) {
            return invalid(
                "input_scale",
                self.input_scale.to_string(),
                "inputs are divided by this number, so it must be positive",
            );
        }
        if let Some(range) = self.norm_range
            && !(range >= 1.0 && is_positive_f32(range))
        {
            return invalid(
                "norm_range",
                range.to_string(),
                "must be at least 1, for example 4; without it norm_exponent holds for every row",
            );
        }
        if self.refinement > 0 && !self.architecture.can_refine() {
            return invalid(
                "refinement",
                self.refinement.to_string(),
                "only sparsemax, TopK and BatchTopK can refine; remove it or set it to 0",
            );
        }
        if self.refinement > MAX_REFINEMENT {
            return invalid(
                "refinement",
                self.refinement.to_string(),
                "at most 100 steps; 2 are the default",
            );
        }
        if self.architecture.has_k() && !self.k.is_some_and(|k| (1..=self.n_latents).contains(&k)) {
            return invalid(
                "k",
                self.k.map_or("(none)".into(), |k| k.to_string()),
                "this architecture needs a k between 1 and n_latents, for example 32",
            );
        }
        if self.architecture == Architecture::JumpRelu
            && !self.bandwidth.is_some_and(is_positive_f32)
        {
            return invalid(
                "bandwidth",
                self.bandwidth.map_or("(none)".into(), |b| b.to_string()),
                "JumpReLU needs a positive bandwidth, for example 1",
            );
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Whether a number is positive and finite as the model sees it, in float32.
fn is_positive_f32(value: f64) -> bool {
    let value = value as f32;
    value.is_finite() && value > 0.0
}
