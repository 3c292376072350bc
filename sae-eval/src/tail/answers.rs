//! Classification by the rest of the model: top-n as the authors of arXiv 2604.14925 measure it.
//!
//! All tokens of a document are replaced by reconstructions from the first n latents of its class (on), or from all others
//! (off), the rest of the model goes on, and its head answers. Accuracy is taken within each class, then averaged over classes.
//! Differences from their code: latents are ranked on rows that are not judged, unless the same are named, and no latents are
//! left out for firing often. (Their mask does that in the ranking pass alone, by a running mean that begins at zero and depends
//! on the order of the classes.)

use anyhow::{Context, Result, ensure};
use sae_data::{ActivationData, Options};
use serde::{Deserialize, Serialize};

use super::file::{Kind, Tail};
use super::loss::largest;
use crate::head::Accuracy;
use crate::report::tail::{ClassRow, TailClasses};
use crate::tail_arguments::TailArguments;

/// The key of the class embeddings in a config.
const CLASS_EMBEDDINGS: &str = "eval.tail.class_embeddings";
/// Most classes of a head.
const MAX_CLASSES: usize = 1 << 20;

/// What the head answered for one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answers {
    label: usize,
    /// With the activations as they are.
    clean: usize,
    /// For each n and for all latents: the first n on, and off.
    by_n: Vec<[usize; 2]>,
}

impl Answers {
    /// `answers` has one entry for each version: as it is, then on and off for each n.
    pub(super) fn new(label: usize, answers: &[usize]) -> Self {
        Self {
            label,
            clean: answers[0],
            by_n: answers[1..]
                .chunks_exact(2)
                .map(|pair| [pair[0], pair[1]])
                .collect(),
        }
    }
}

/// The classes, and how an output becomes an answer.
pub(super) struct Classes {
    pub(super) names: Vec<String>,
    /// Class embeddings of length one `[classes, e]`, where the tail gives embeddings.
    embeddings: Option<Vec<f32>>,
}

impl Classes {
    pub(super) fn of(tail: &Tail, arguments: &TailArguments) -> Result<Self> {
        if tail.kind == Kind::Classifier {
            return Ok(Self {
                names: tail.classes.clone(),
                embeddings: None,
            });
        }
        let path = arguments.class_embeddings.as_ref().with_context(|| {
            format!(
                "the tail {} gives embeddings of width {}; name the embeddings of the classes by {CLASS_EMBEDDINGS} (--tail-class-embeddings)",
                tail.path.display(),
                tail.outputs
            )
        })?;
        let file = ActivationData::open(path, &Options::default())
            .with_context(|| format!("{CLASS_EMBEDDINGS} {}", path.display()))?;
        ensure!(
            file.width() == tail.outputs,
            "{CLASS_EMBEDDINGS} {}: they have width {}, the tail gives {}",
            path.display(),
            file.width(),
            tail.outputs
        );
        ensure!(
            file.rows() <= MAX_CLASSES,
            "{CLASS_EMBEDDINGS} {}: {} rows, and at most {MAX_CLASSES} classes are read",
            path.display(),
            file.rows()
        );
        let mut embeddings = file.read(0..file.rows())?;
        ensure!(
            embeddings.iter().all(|x| x.is_finite()),
            "{CLASS_EMBEDDINGS} {}: NaN or infinity",
            path.display()
        );
        for embedding in embeddings.chunks_exact_mut(tail.outputs) {
            let squares: f64 = embedding.iter().map(|x| f64::from(*x).powi(2)).sum();
            let norm = squares.sqrt().max(1e-12) as f32;
            embedding.iter_mut().for_each(|x| *x /= norm);
        }
        Ok(Self {
            names: (0..file.rows()).map(|class| class.to_string()).collect(),
            embeddings: Some(embeddings),
        })
    }

    /// BLAKE3 of the head, if it is not the tail's.
    pub(super) fn contents(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for x in self.embeddings.iter().flatten() {
            hasher.update(&x.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The class that an output of the tail says.
    pub(super) fn answer(&self, output: &[f32]) -> usize {
        let Some(embeddings) = &self.embeddings else {
            return largest(output);
        };
        let product = |class: &[f32]| -> f32 { class.iter().zip(output).map(|(a, b)| a * b).sum() };
        let cosines: Vec<f32> = embeddings.chunks_exact(output.len()).map(product).collect();
        largest(&cosines)
    }
}

/// The section of the report. `ranked` says which classes have a ranking.
pub(super) fn section(
    classes: &Classes,
    ns: &[usize],
    documents: &[Answers],
    ranked: impl Fn(usize) -> bool,
) -> TailClasses {
    let judged = |answer: &dyn Fn(&Answers) -> usize| {
        let mut accuracy = Accuracy::new(classes.names.len());
        for one in documents {
            accuracy.add(&[answer(one)], &[one.label], |label| ranked(*label));
        }
        accuracy
    };
    let clean = judged(&|one| one.clean);
    let all = ns.iter().map(|n| n.to_string()).chain(["all".into()]);
    let rows: Vec<(String, [Accuracy; 2])> = all
        .enumerate()
        .map(|(at, n)| (n, [0, 1].map(|side| judged(&|one| one.by_n[at][side]))))
        .collect();
    let with_documents = (0..classes.names.len()).filter(|class| clean.of_class(*class).0 > 0);
    TailClasses {
        clean: clean.over_classes(),
        clean_over_documents: clean.over_rows(),
        top_n: rows
            .iter()
            .map(|(n, [on, off])| crate::report::TopNRow {
                n: n.clone(),
                on: on.over_classes(),
                off: off.over_classes(),
            })
            .collect(),
        unranked: (0..classes.names.len())
            .filter(|class| !ranked(*class))
            .map(|class| classes.names[class].clone())
            .collect(),
        per_class: with_documents
            .map(|class| ClassRow {
                class: classes.names[class].clone(),
                documents: clean.of_class(class).0,
                clean: clean.of_class(class).1,
                on: rows
                    .iter()
                    .map(|(_, [on, _])| on.of_class(class).1)
                    .collect(),
                off: rows
                    .iter()
                    .map(|(_, [_, off])| off.of_class(class).1)
                    .collect(),
            })
            .collect(),
    }
}
