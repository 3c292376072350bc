//! What is left of a language model's predictions when reconstructions take the place of its activations.
//!
//! Position 0 stays as it is: in language models it is an attention sink with a hundred times the norm of the others. At the
//! positions after it, except the last, which has no next token:
//!
//! ```text
//! CE_clean   hidden states as they are          CE_zero   replaced by zeros
//! CE_sae     replaced by x_hat                  CE_mean   replaced by the mean of all replaced rows
//! loss recovered        = (CE_zero - CE_sae) / (CE_zero - CE_clean)
//! loss recovered (mean) = (CE_mean - CE_sae) / (CE_mean - CE_clean)
//! KL                    = mean of sum_v p_clean(v) (log p_clean(v) - log p(v))
//! kept, first n         = share of predictions whose most likely token by the model as it is, is among the n most likely
//! ```
//!
//! CE is the mean cross-entropy of the next token, in nats.

use serde::{Deserialize, Serialize};

use super::bootstrap_over;
use super::likelihood::{Clean, log_sum_exp};
use crate::criteria::bootstrap::{Draws, Interval};
use crate::criteria::estimate;
use crate::report::criteria::Estimate;
use crate::report::tail::ByPosition;

/// The ways in which rows are replaced, in the order of [`Sums::ce`].
pub(super) const VERSIONS: usize = 4;
/// The version of the reconstruction among them; 0 is the document as it is.
const SAE: usize = 1;
const ZERO: usize = 2;
const MEAN: usize = 3;
/// Names of the versions.
const NAMES: [&str; VERSIONS] = ["clean", "sae", "zero", "mean"];
/// "Among the n most likely".
const KEPT: [usize; 3] = [1, 5, 10];

/// Sums over predictions of one document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    predictions: u64,
    /// Cross-entropy of each version.
    #[serde(with = "exact")]
    ce: [f64; VERSIONS],
    /// KL of each version; 0 of the first.
    #[serde(with = "exact")]
    kl: [f64; VERSIONS],
    /// Predictions kept among the first n, of the reconstruction.
    kept: [u64; KEPT.len()],
}

/// Numbers as their bits: JSON may be read one unit in the last place off, and an evaluation that goes on would say something else
/// than one that was never stopped.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::VERSIONS;

    pub(super) fn serialize<S: Serializer>(
        numbers: &[f64; VERSIONS],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        numbers.map(f64::to_bits).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[f64; VERSIONS], D::Error> {
        Ok(<[u64; VERSIONS]>::deserialize(deserializer)?.map(f64::from_bits))
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.predictions += other.predictions;
        for version in 0..VERSIONS {
            self.ce[version] += other.ce[version];
            self.kl[version] += other.kl[version];
        }
        for (sum, more) in self.kept.iter_mut().zip(other.kept) {
            *sum += more;
        }
    }
}

/// The sums of one document, by position: `[2^i, 2^(i + 1))` is at place i.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Losses {
    by_position: Vec<Sums>,
}

/// Judges one document, version by version.
pub(super) struct Judge<'a> {
    tokens: &'a [i64],
    /// The model as it is, at each judged position.
    clean: Vec<Clean>,
    /// The most likely tokens of it.
    first: Vec<usize>,
    found: Losses,
}

impl<'a> Judge<'a> {
    /// For a document with these token ids, all below `vocabulary`.
    pub(super) fn new(tokens: &'a [i64]) -> Self {
        Self {
            tokens,
            clean: Vec::new(),
            first: Vec::new(),
            found: Losses {
                by_position: Vec::new(),
            },
        }
    }

    /// Adds the logits `[tokens, vocabulary]` of a version; the first must be the document as it is.
    pub(super) fn add(&mut self, version: usize, logits: &[f32]) {
        let vocabulary = logits.len() / self.tokens.len();
        let judged = 1..self.tokens.len().saturating_sub(1);
        for (at, position) in judged.enumerate() {
            let row = &logits[position * vocabulary..][..vocabulary];
            let place = position.ilog2() as usize;
            if version == 0 {
                if self.found.by_position.len() <= place {
                    self.found.by_position.resize(place + 1, Sums::default());
                }
                self.first.push(largest(row));
                self.clean.push(Clean::new(row));
                self.found.by_position[place].predictions += 1;
            }
            let clean = &self.clean[at];
            let log_sum_exp = match version {
                0 => clean.log_sum_exp(),
                _ => log_sum_exp(row),
            };
            let next = self.tokens[position + 1] as usize;
            let sums = &mut self.found.by_position[place];
            sums.ce[version] += log_sum_exp - f64::from(row[next]);
            if version > 0 {
                sums.kl[version] += clean.kl(row, log_sum_exp);
            }
            if version == SAE {
                let rank = rank(row, self.first[at]);
                for (kept, n) in sums.kept.iter_mut().zip(KEPT) {
                    *kept += u64::from(rank < n);
                }
            }
        }
    }

    pub(super) fn finish(self) -> Losses {
        self.found
    }
}

/// Place of the largest number; of equal ones the first.
pub(super) fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = at;
        }
    }
    best
}

/// How many are more likely than `token`; of equal ones the first is.
fn rank(row: &[f32], token: usize) -> usize {
    let own = row[token];
    let before = |(at, value): &(usize, &f32)| **value > own || (**value == own && *at < token);
    row.iter().enumerate().filter(before).count()
}

/// The numbers of all documents, with intervals over documents, and those by position.
pub(super) fn summary(documents: &[Losses]) -> (Vec<Estimate>, Vec<ByPosition>) {
    let whole = |losses: &Losses| {
        let mut sums = Sums::default();
        losses.by_position.iter().for_each(|some| sums.add(some));
        sums
    };
    let totals: Vec<Sums> = documents.iter().map(whole).collect();
    let draws = Draws::new(documents.len());
    let column = |of: &dyn Fn(&Sums) -> f64| bootstrap_over(&draws, totals.iter().map(of));
    let predictions = column(&|sums| sums.predictions as f64);
    let per_prediction = |of: &dyn Fn(&Sums) -> f64| -> Vec<f64> {
        let sums = column(of).into_iter().zip(&predictions);
        sums.map(|(sum, predictions)| sum / predictions).collect()
    };
    let ce: Vec<Vec<f64>> = (0..VERSIONS)
        .map(|v| per_prediction(&|sums| sums.ce[v]))
        .collect();
    let mut metrics = Vec::new();
    let mut tell = |name: String, columns: &[f64], formula: &str| {
        metrics.push(estimate(name, Interval::of(columns), formula.into()));
    };
    for (base, name, words) in [
        (
            ZERO,
            "loss_recovered",
            "(CE_zero - CE_sae) / (CE_zero - CE_clean)",
        ),
        (
            MEAN,
            "loss_recovered_mean",
            "(CE_mean - CE_sae) / (CE_mean - CE_clean)",
        ),
    ] {
        let part = |draw: usize| (ce[base][draw] - ce[SAE][draw]) / (ce[base][draw] - ce[0][draw]);
        let columns: Vec<f64> = (0..predictions.len()).map(part).collect();
        tell(name.into(), &columns, words);
    }
    for (version, name) in NAMES.iter().enumerate() {
        let words = "mean cross-entropy of the next token, in nats";
        tell(format!("ce_{name}"), &ce[version], words);
    }
    for (version, name) in NAMES.iter().enumerate().skip(1) {
        let words = "mean over predictions of KL(p_clean || p), in nats";
        tell(
            format!("kl_{name}"),
            &per_prediction(&|sums| sums.kl[version]),
            words,
        );
    }
    for (at, n) in KEPT.iter().enumerate() {
        let words = "share of predictions whose most likely token stays among the n most likely";
        tell(
            format!("kept_first_{n}"),
            &per_prediction(&|sums| sums.kept[at] as f64),
            words,
        );
    }
    (metrics, by_position(documents))
}

fn by_position(documents: &[Losses]) -> Vec<ByPosition> {
    let places = documents
        .iter()
        .map(|one| one.by_position.len())
        .max()
        .unwrap_or(0);
    let each = (0..places).map(|place| {
        let mut sums = Sums::default();
        let there = documents
            .iter()
            .filter_map(|one| one.by_position.get(place));
        there.for_each(|some| sums.add(some));
        let mean = |sum: f64| sum / sums.predictions as f64;
        ByPosition {
            from: 1 << place,
            to: (2 << place) - 1,
            predictions: sums.predictions,
            ce_clean: mean(sums.ce[0]),
            ce_sae: mean(sums.ce[SAE]),
            kl_sae: mean(sums.kl[SAE]),
            loss_recovered: Some((sums.ce[ZERO] - sums.ce[SAE]) / (sums.ce[ZERO] - sums.ce[0]))
                .filter(|part| part.is_finite()),
        }
    });
    each.filter(|one| one.predictions > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_hand() {
        // Four tokens: positions 1 and 2 are judged, with the next tokens 1 and 0. Vocabulary of two.
        let tokens = [0, 0, 1, 0];
        let mut judge = Judge::new(&tokens);
        let even = [0.0f32; 8];
        let sure = [0.0, 0.0, 0.0, 20.0, 20.0, 0.0, 0.0, 0.0];
        let wrong = [0.0, 0.0, 20.0, 0.0, 0.0, 20.0, 0.0, 0.0];
        for (version, logits) in [sure, even, wrong, even].iter().enumerate() {
            judge.add(version, logits);
        }
        let (metrics, by_position) = summary(&[judge.finish()]);
        let value = |name: &str| {
            let found = metrics.iter().find(|metric| metric.name == name);
            found.and_then(|metric| metric.value).unwrap_or(f64::NAN)
        };
        let close = |name: &str, to: f64| {
            assert!((value(name) - to).abs() < 1e-6, "{name} {}", value(name))
        };
        close("ce_clean", 0.0);
        close("ce_sae", 2f64.ln());
        close("ce_zero", 20.0);
        close("kl_sae", 2f64.ln());
        close("kl_zero", 20.0);
        close("loss_recovered", (20.0 - 2f64.ln()) / 20.0);
        close("loss_recovered_mean", 0.0);
        // Of equal logits the first is more likely: token 1 is second at position 1, token 0 first at position 2.
        close("kept_first_1", 0.5);
        close("kept_first_5", 1.0);
        let places: Vec<_> = by_position
            .iter()
            .map(|one| (one.from, one.to, one.predictions))
            .collect();
        assert_eq!(places, [(1, 1, 1), (2, 3, 1)]);
    }
}
