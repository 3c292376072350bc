//! A look at all documents before the first is judged: which rows are replaced, by what mean, and whether a document does not fit.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use sae_data::{MaxNorm, norm};

use super::answers::Classes;
use super::documents::{Document, Documents};
use super::file::Tail;
use crate::criteria::bootstrap::quantile;

/// What is known of all documents.
pub(super) struct Survey {
    /// Rows of a larger norm stay.
    pub(super) limit: f64,
    /// Number of rows beyond the limit.
    pub(super) beyond: usize,
    /// Number of rows that are replaced.
    pub(super) count: usize,
    /// Mean of the rows that are replaced.
    pub(super) mean: Vec<f32>,
    /// The classes of the documents.
    pub(super) classes: BTreeSet<usize>,
    /// BLAKE3 of the tokens and classes of all documents.
    pub(super) contents: String,
}

impl Survey {
    /// Reads all documents: twice, if the limit is a multiple of the median.
    pub(super) fn of(
        documents: &Documents,
        tail: &Tail,
        classes: Option<&Classes>,
        max_norm: MaxNorm,
    ) -> Result<Self> {
        let limit = match max_norm {
            MaxNorm::Norm(norm) => norm,
            MaxNorm::Medians(multiple) => multiple * median_norm(documents)?,
            _ => f64::INFINITY,
        };
        let (mut count, mut beyond) = (0, 0);
        let mut sums = vec![0.0; tail.width];
        let (mut present, mut contents) = (BTreeSet::new(), blake3::Hasher::new());
        for number in 0..documents.rows.len() {
            let document = documents.read(number)?;
            check(documents, &document, tail, classes)?;
            present.extend(document.label);
            contents.update(format!("{:?} {:?}\n", document.label, document.tokens).as_bytes());
            for (_, row) in documents.own_rows(&document) {
                if norm(row) > limit {
                    beyond += 1;
                    continue;
                }
                count += 1;
                let each = sums.iter_mut().zip(row);
                each.for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        ensure!(
            count > 0,
            "no row of the documents of the tail is left to be replaced"
        );
        let mean = sums.into_iter().map(|sum| (sum / count as f64) as f32);
        Ok(Self {
            limit,
            beyond,
            count,
            mean: mean.collect(),
            classes: present,
            contents: contents.finalize().to_hex().to_string(),
        })
    }
}

/// Fails if a document has no class that the tail knows, or for a decoder not one known token for each row.
pub(super) fn check(
    documents: &Documents,
    document: &Document,
    tail: &Tail,
    classes: Option<&Classes>,
) -> Result<()> {
    let about = || {
        let at = documents.data().path().display();
        format!("{at}: document {}", document.number)
    };
    if let Some(classes) = classes {
        let label = document.label;
        let label = label.with_context(|| format!("{} has no label", about()))?;
        ensure!(
            label < classes.names.len(),
            "{} has label {label}, and the tail answers with {} classes, counted from 0",
            about(),
            classes.names.len()
        );
        return Ok(());
    }
    let (tokens, rows) = (document.tokens.len(), document.hidden.len() / tail.width);
    ensure!(
        tokens == rows,
        "{} has {rows} rows and {tokens} tokens",
        about()
    );
    let mut tokens = document.tokens.iter();
    let unknown = tokens.find(|token| !(0..tail.outputs as i64).contains(*token));
    ensure!(
        unknown.is_none(),
        "{} has the token {}, and the tail knows {}, counted from 0; export both with the same model",
        about(),
        unknown.copied().unwrap_or_default(),
        tail.outputs
    );
    Ok(())
}

fn median_norm(documents: &Documents) -> Result<f64> {
    let mut norms: Vec<f64> = Vec::new();
    for number in 0..documents.rows.len() {
        let document = documents.read(number)?;
        norms.extend(documents.own_rows(&document).map(|(_, row)| norm(row)));
    }
    norms.sort_unstable_by(f64::total_cmp);
    Ok(quantile(&norms, 0.5).unwrap_or(f64::INFINITY))
}
