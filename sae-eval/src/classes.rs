//! Top-n classification: how much of a class its first n latents carry.

use anyhow::Result;
use burn::tensor::Tensor;
use sae_data::ActivationData;
use sae_model::ops::Pattern;
use sae_model::{Input, SparseCodes};

use crate::evaluate::{ObserveTrain, Passes};
use crate::head::{Accuracy, Head};
use crate::model::{Codes, Model};
use crate::page::Carried;
use crate::ranking::{Ranking, Rule};
use crate::ranking_pass::{RankedOn, labels};
use crate::report::{ClassAccuracy, TopN, TopNRow};

/// Everything that top-n classification needs except a model.
pub(crate) struct Setting<'a> {
    pub(crate) head: &'a Head,
    /// Numbers of latents to keep or drop.
    pub(crate) ns: &'a [usize],
    /// The training split.
    pub(crate) train: &'a ActivationData,
    /// The same, as the rows on which latents are ranked.
    ranked_on: RankedOn<'a>,
}

/// Accuracies of one model.
pub(crate) struct Judged {
    /// Over the rows of all classes: of the activations, and of their full reconstructions.
    all: [Accuracy; 2],
    /// Over the rows of the ranked classes: of the activations.
    original: Accuracy,
    /// Over the same rows: `(n, on, off)` for each n, then for all latents (`None`).
    rows: Vec<(Option<usize>, Accuracy, Accuracy)>,
    /// The first latents of each class.
    ranking: Ranking,
}

impl Judged {
    /// The numbers of latents of the curves, `None` for all latents.
    pub(crate) fn ns(&self) -> Vec<Option<usize>> {
        self.rows.iter().map(|(n, _, _)| *n).collect()
    }

    /// For each ranked class its first latents, and its accuracy with the first n on and off.
    pub(crate) fn carried(&self) -> Vec<Carried> {
        let ranked = (0..self.original.classes()).filter(|class| self.ranking.has(*class));
        let of = |class: usize| Carried {
            class,
            latents: self.ranking.best_first(class),
            curve: self
                .rows
                .iter()
                .map(|(_, on, off)| (on.of_class(class).1, off.of_class(class).1))
                .collect(),
        };
        ranked.map(of).collect()
    }
}

impl<'a> Setting<'a> {
    pub(crate) fn new(
        head: &'a Head,
        rule: Rule,
        ns: &'a [usize],
        train: &'a ActivationData,
    ) -> Result<Self> {
        let first = ns.iter().copied().max().unwrap_or(0);
        Ok(Self {
            head,
            ns,
            train,
            ranked_on: RankedOn::new(train, head.classes(), rule, first)?,
        })
    }
}

/// Top-n classification during one pass over the held-out split.
pub(crate) struct ClassPass<'a> {
    setting: &'a Setting<'a>,
    model: &'a Model,
    pub(crate) judged: Judged,
}

impl<'a> ClassPass<'a> {
    /// Ranks the latents; `observe` sees the training rows as they are encoded.
    pub(crate) fn new(
        passes: &Passes,
        model: &'a Model,
        setting: &'a Setting<'a>,
        observe: &mut ObserveTrain,
    ) -> Result<Self> {
        let ranking = setting.ranked_on.rank(passes, model, observe)?;
        let accuracy = || Accuracy::new(setting.head.classes());
        let ns = setting.ns.iter().copied().map(Some).chain([None]);
        let judged = Judged {
            all: [accuracy(), accuracy()],
            original: accuracy(),
            rows: ns.map(|n| (n, accuracy(), accuracy())).collect(),
            ranking,
        };
        Ok(Self {
            setting,
            model,
            judged,
        })
    }

    /// Adds a batch `x [B, d]`, which starts at held-out row `start`, with its codes and full reconstruction.
    pub(crate) fn add(
        &mut self,
        held_out: &ActivationData,
        start: usize,
        x: Tensor<2>,
        encoded: &Codes,
        x_hat: Tensor<2>,
    ) -> Result<()> {
        let (head, codes) = (self.setting.head, &encoded.codes);
        let labels = labels(held_out, start, codes.pattern.rows())?;
        let [original, full] = [x, x_hat].map(|x| head.classify(x));
        let Judged {
            all,
            original: original_ranked,
            rows,
            ranking,
        } = &mut self.judged;
        let ranked = |label: &usize| ranking.has(*label);
        for (accuracy, answers) in all.iter_mut().zip([&original, &full]) {
            accuracy.add(answers, &labels, |_| true);
        }
        original_ranked.add(&original, &labels, ranked);
        let filter = Filter::new(encoded, ranking, &labels);
        let (model, nothing) = (self.model, |_| false);
        for (n, on, off) in rows {
            let (kept, dropped) = match n.map(|n| n as u64) {
                Some(n) => (
                    head.classify(filter.decoded(model, |rank| u64::from(rank) < n)),
                    head.classify(filter.decoded(model, |rank| u64::from(rank) >= n)),
                ),
                None => (full.clone(), head.classify(filter.decoded(model, nothing))),
            };
            on.add(&kept, &labels, ranked);
            off.add(&dropped, &labels, ranked);
        }
        Ok(())
    }
}

/// A batch of codes, from which selected entries are decoded.
pub(crate) struct Filter<'a> {
    codes: &'a SparseCodes,
    input: &'a Input,
    values: Vec<f32>,
    /// Rank of each entry for the class of its row.
    ranks: Vec<u32>,
}

impl<'a> Filter<'a> {
    /// Rows of these classes.
    pub(crate) fn new(encoded: &'a Codes, ranking: &Ranking, labels: &[usize]) -> Self {
        let Codes { codes, input } = encoded;
        Self {
            values: codes.host_values(),
            ranks: ranking.ranks(codes, labels),
            codes,
            input,
        }
    }

    /// Decodes the entries whose rank `keep` accepts.
    pub(crate) fn decoded(&self, model: &Model, keep: impl Fn(u32) -> bool) -> Tensor<2> {
        let pattern = &self.codes.pattern;
        let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..pattern.rows() {
            for entry in pattern.row(row).filter(|entry| keep(self.ranks[*entry])) {
                indices.push(pattern.indices()[entry]);
                values.push(self.values[entry]);
            }
            offsets.push(indices.len());
        }
        let pattern = Pattern::new(pattern.latents(), offsets, indices);
        let codes = SparseCodes::new(values, pattern, &self.codes.values.device());
        model.decode(codes, self.input)
    }
}

/// The report's section on top-n classification.
pub(crate) fn section(setting: &Setting, trained: &Judged, untrained: Option<&Judged>) -> TopN {
    let rows = |judged: &Judged| {
        let row = |(n, on, off): &(Option<usize>, Accuracy, Accuracy)| TopNRow {
            n: n.map_or("all".into(), |n| n.to_string()),
            on: on.over_classes(),
            off: off.over_classes(),
        };
        judged.rows.iter().map(row).collect()
    };
    let head = setting.head;
    let [original, full] = &trained.all;
    let per_class = (0..head.classes()).map(|class| {
        let (rows, original) = original.of_class(class);
        ClassAccuracy {
            class: head.names[class].clone(),
            rows,
            train_rows: Some(setting.ranked_on.rows[class]),
            original,
            reconstructed: full.of_class(class).1,
        }
    });
    let (rank_by, fire_threshold) = match setting.ranked_on.rule {
        Rule::Firing => ("firing", None),
        Rule::Threshold(threshold) => ("threshold", Some(threshold)),
    };
    let unranked = (0..head.classes()).filter(|class| setting.ranked_on.rows[*class] == 0);
    TopN {
        definition: TopN::definition(setting.ranked_on.rule),
        rank_by: Some(rank_by.into()),
        fire_threshold,
        unranked: unranked.map(|class| head.names[class].clone()).collect(),
        original_over_classes: trained.original.over_classes(),
        original_over_rows: trained.original.over_rows(),
        trained: rows(trained),
        untrained: untrained.map(rows),
        per_class: per_class.collect(),
    }
}
