//! The section `[eval]` of a config: what an evaluation looks at beside the data of `[data]`. Training only keeps it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limit::MaxNorm;

/// `[eval]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The rest of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<TailConfig>,
}

/// `[eval.tail]`: the rest of the model, which goes on from reconstructions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TailConfig {
    /// The rest of the model from the layer on: an ONNX file.
    pub file: Option<PathBuf>,
    /// Documents: activations of all tokens from position 0 on. Default: the held-out ones.
    pub data: Option<PathBuf>,
    /// Labelled activations on which the latents of a class are ranked. Default: the training activations.
    pub ranked_on: Option<PathBuf>,
    /// Class embeddings `[classes, e]`, for a tail that gives embeddings.
    pub class_embeddings: Option<PathBuf>,
    /// Only the first so many documents.
    pub documents: Option<usize>,
    /// Rows of a larger norm stay as they are. Default: every row is replaced.
    pub max_norm: Option<MaxNorm>,
}

impl EvalConfig {
    /// The same with absolute paths, which is valid in any directory.
    pub fn absolute(&self) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let each = |path: &Option<PathBuf>| path.as_deref().map(absolute);
        let tail = |tail: &TailConfig| TailConfig {
            file: each(&tail.file),
            data: each(&tail.data),
            ranked_on: each(&tail.ranked_on),
            class_embeddings: each(&tail.class_embeddings),
            ..tail.clone()
        };
        Self {
            tail: self.tail.as_ref().map(tail),
        }
    }
}
