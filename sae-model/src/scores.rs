//! From queries to latents: the scores that an architecture selects from.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::across::Across;
use crate::ops::{self, EncodeOptions, Selection, SparseCodes, SparseValue};
use crate::parameters::{B_ENC, Parameters, W_DEC, W_ENC};

/// Whether a batch is one of training.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// Codes of a row depend on this row alone.
    #[default]
    Inference,
    /// What is selected may depend on the batch.
    Training {
        /// 1 for latents that may take part, 0 for those that are not selected whatever their score, as if it were minus
        /// infinity `[M]`; empty for all. Where all are 0, nothing is selected. The released code sets the scores of
        /// latents that fire on more than a tenth of the data to zero, which with its value (the score) is the same.
        mask: Arc<Vec<f32>>,
    },
}

impl Mode {
    /// Training with every latent.
    pub fn training() -> Self {
        Self::Training {
            mask: Arc::default(),
        }
    }

    /// The mask; empty where all latents take part.
    pub fn mask(&self) -> Arc<Vec<f32>> {
        match self {
            Self::Inference => Arc::default(),
            Self::Training { mask } => mask.clone(),
        }
    }
}

/// The scores `z = q W_enc^T + b_enc [B, M]` of a batch: what they are made of, for they are never stored.
#[derive(Clone, Copy, Debug)]
pub struct Scores<'a> {
    pub(crate) parameters: &'a Parameters,
    /// q `[B, d]`, times the scale t.
    pub(crate) queries: &'a Tensor<2>,
    /// t.
    pub(crate) scale: f64,
    pub(crate) mode: &'a Mode,
    pub(crate) across: &'a Across,
}

/// The latents that an architecture makes of scores.
#[derive(Clone, Debug)]
pub struct Selected {
    /// Latents a.
    pub latents: SparseCodes,
    /// Codes that the terms of the loss read beside the latents: the open gates of `gated`.
    pub gate: Option<SparseCodes>,
}

/// Latents, and what they make of the dictionary.
#[derive(Clone, Debug)]
pub struct Attended {
    /// The latents.
    pub selected: Selected,
    /// `y [B, d]`.
    pub y: Tensor<2>,
    /// `y * factor = a W_dec`.
    pub factor: f64,
}

impl From<SparseCodes> for Selected {
    fn from(latents: SparseCodes) -> Self {
        Self {
            latents,
            gate: None,
        }
    }
}

impl Scores<'_> {
    /// Whether the batch is one of training.
    pub fn is_training(&self) -> bool {
        matches!(self.mode, Mode::Training { .. })
    }

    /// A vector among the model's parameters.
    pub fn vector(&self, name: &str) -> Option<Tensor<1>> {
        self.parameters.vector(name)
    }

    /// The latents that this rule selects.
    pub fn select(&self, selection: Selection) -> Selected {
        self.codes(B_ENC, selection).into()
    }

    /// The latents that this rule selects with the thresholds of this name.
    pub fn select_above(&self, thresholds: &str, selection: Selection) -> Selected {
        let options = EncodeOptions {
            thresholds: self.vector(thresholds),
            ..self.options(B_ENC)
        };
        self.encode(options, selection).into()
    }

    /// The codes that this rule selects, from scores with the bias of this name.
    pub fn codes(&self, bias: &str, selection: Selection) -> SparseCodes {
        self.encode(self.options(bias), selection)
    }

    /// The latents that sparsemax selects; scores are divided by the scale t again.
    pub fn sparsemax(&self, value: SparseValue) -> Selected {
        let latents = self.codes(B_ENC, Selection::Sparsemax(value));
        latents.divided(self.value_scale(value)).into()
    }

    /// The same and `y = a W_dec`, in one operation: where the dictionary is the encoder, too, there is no bias, and all latents are
    /// here.
    pub fn attend(&self, value: SparseValue) -> Option<Attended> {
        let has_encoder = self.vector(B_ENC).is_some() || self.parameters.matrix(W_ENC).is_some();
        if has_encoder || self.across.is_apart() {
            return None;
        }
        let (y, latents) = ops::attend(
            self.queries.clone(),
            self.encoder(),
            self.mode.mask(),
            value,
        );
        let scale = self.value_scale(value);
        Some(Attended {
            selected: latents.divided(scale).into(),
            y,
            factor: 1.0 / scale,
        })
    }

    /// By what selected scores are divided to become latents.
    fn value_scale(&self, value: SparseValue) -> f64 {
        match value {
            SparseValue::Score => self.scale,
            SparseValue::Probability => 1.0,
        }
    }

    /// W_enc `[M, d]`; the dictionary where there is none.
    fn encoder(&self) -> Tensor<2> {
        let encoder = self.parameters.matrix(W_ENC);
        let encoder = encoder.or_else(|| self.parameters.matrix(W_DEC.name));
        encoder.expect("every model has a decoder")
    }

    fn options(&self, bias: &str) -> EncodeOptions {
        EncodeOptions {
            bias: self.vector(bias),
            thresholds: None,
            mask: self.mode.mask(),
        }
    }

    fn encode(&self, options: EncodeOptions, selection: Selection) -> SparseCodes {
        let queries = self.queries.clone();
        self.across
            .encode(queries, self.encoder(), options, selection)
    }
}
