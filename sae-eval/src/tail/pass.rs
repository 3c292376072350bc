//! The pass over documents: rows are encoded together, replaced in several versions, and the rest of the model goes on.

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use rayon::prelude::*;
use sae_data::norm;
use serde::{Deserialize, Serialize};

use super::answers::{self, Answers};
use super::documents::Document;
use super::kept::Kept;
use super::loss::{self, Judge, Losses};
use super::opened::Opened;
use super::survey::check;
use crate::classes::Filter;
use crate::evaluate::Passes;
use crate::model::{Codes, Model, values};
use crate::progress::Progress;
use crate::ranking::{Ranking, Rule};
use crate::ranking_pass::RankedOn;
use crate::report::tail::TailSection;

/// The name of the pass on a terminal.
const PASS: &str = "the rest of the model";

/// Rows whose documents are judged together, if they are enough for all processors.
const ROWS: usize = 4096;

/// How latents are ranked and chosen, and where what is done is kept.
pub(crate) struct Asked<'a> {
    pub(crate) rule: Rule,
    pub(crate) ns: &'a [usize],
    /// What else changes the numbers, for the file that is kept.
    pub(crate) about: serde_json::Value,
    /// The directory of the report, if what is done is to be kept.
    pub(crate) dir: Option<&'a std::path::Path>,
}

/// One document that is done.
#[derive(Serialize, Deserialize)]
enum Done {
    Losses(Losses),
    Answers(Answers),
}

impl Opened {
    /// Judges all documents.
    pub(crate) fn judge(
        &self,
        passes: &Passes,
        model: &Model,
        asked: &Asked,
    ) -> Result<TailSection> {
        let ranked = self.rank(passes, model, asked)?;
        let about = self.about(asked, ranked.as_ref())?;
        let (mut kept, mut done) = Kept::open::<Done>(asked.dir, &about);
        let total = self.documents.rows.len();
        let before = done.len();
        if before > 0 {
            eprintln!("{before} of {total} documents are done already");
        }
        let mut progress = Progress::new(PASS, "documents", total, before);
        for group in self.documents.groups(done.len(), ROWS) {
            let group: Vec<Document> = group
                .map(|number| self.documents.read(number))
                .collect::<Result<_>>()?;
            let some = self.group(&group, passes, model, asked.ns, ranked.as_ref())?;
            kept.add(&some);
            progress.add(some.len());
            done.extend(some);
        }
        let rate = progress.rate();
        drop(progress);
        if total > before {
            eprintln!("{PASS}: {rate}");
        }
        Ok(self.section(done, asked.ns, ranked.as_ref()))
    }

    /// The ranking of latents for each class, for a tail that answers with classes.
    fn rank(&self, passes: &Passes, model: &Model, asked: &Asked) -> Result<Option<Ranking>> {
        let (Some(data), Some(classes)) = (&self.ranked_on, &self.classes) else {
            return Ok(None);
        };
        let first = asked.ns.iter().copied().max().unwrap_or(0);
        let ranked_on = RankedOn::new(data, classes.names.len(), asked.rule, first)?;
        let ranking = ranked_on.rank(passes, model, &mut |_, _, _| {})?;
        ensure!(
            self.survey.classes.iter().any(|class| ranking.has(*class)),
            "{}: it has no row of the class of any document, so no latents can be ranked",
            data.path().display()
        );
        Ok(Some(ranking))
    }

    /// What identifies this evaluation: another one does not go on with its documents.
    fn about(&self, asked: &Asked, ranking: Option<&Ranking>) -> Result<serde_json::Value> {
        let mut chosen = blake3::Hasher::new();
        if let (Some(ranking), Some(classes)) = (ranking, &self.classes) {
            for class in 0..classes.names.len() {
                chosen.update(format!("{:?}\n", ranking.best_first(class)).as_bytes());
            }
            chosen.update(classes.contents().as_bytes());
        }
        Ok(serde_json::json!({
            "program": env!("CARGO_PKG_VERSION"),
            "tail": self.network.tail().blake3,
            "data": self.documents.data().fingerprint()?,
            "documents": self.documents.rows.len(),
            "tokens_and_classes": self.survey.contents,
            "ranking_and_head": chosen.finalize().to_hex().as_str(),
            "ns": asked.ns,
            "limit": self.survey.limit.to_bits(),
            "first_stays": self.documents.first_stays,
            "run": asked.about,
        }))
    }

    /// Judges some documents.
    fn group(
        &self,
        group: &[Document],
        passes: &Passes,
        model: &Model,
        ns: &[usize],
        ranking: Option<&Ranking>,
    ) -> Result<Vec<Done>> {
        let mut rows: Vec<f32> = Vec::new();
        let mut labels = Vec::new();
        let mut places: Vec<Vec<usize>> = Vec::new();
        for document in group {
            let own = self.documents.own_rows(document);
            let own = own.filter(|(_, row)| norm(row) <= self.survey.limit);
            let mut here = Vec::new();
            for (place, row) in own {
                rows.extend_from_slice(row);
                labels.extend(document.label);
                here.push(place);
            }
            places.push(here);
        }
        let versions = match rows.len() / self.network.tail().width {
            // every document stays as it is, in every version
            0 => vec![Vec::new(); ranking.map_or(loss::VERSIONS - 1, |_| 2 * ns.len() + 2)],
            count => {
                let (codes, x_hat) = model.reconstruct(passes.tensor(&rows, count));
                match ranking {
                    None => losses_of(&x_hat, &self.survey.mean),
                    Some(ranking) => choices(model, &codes, x_hat, ns, ranking, &labels),
                }
            }
        };
        let starts: Vec<usize> = places
            .iter()
            .scan(0, |next, here| {
                Some(std::mem::replace(next, *next + here.len()))
            })
            .collect();
        let each = group.par_iter().zip(places).zip(starts);
        each.map(|((document, places), start)| {
            let spliced = self.spliced(document, &places, start, &versions);
            let all: Vec<&[f32]> = [&document.hidden[..]]
                .into_iter()
                .chain(spliced.iter().map(Vec::as_slice))
                .collect();
            self.judged(document, &all)
        })
        .collect()
    }

    /// A document with its rows at `places` replaced, for each version.
    fn spliced(
        &self,
        document: &Document,
        places: &[usize],
        start: usize,
        versions: &[Vec<f32>],
    ) -> Vec<Vec<f32>> {
        let width = self.network.tail().width;
        let splice = |version: &Vec<f32>| {
            let mut hidden = document.hidden.clone();
            for (row, place) in (start..).zip(places) {
                hidden[place * width..][..width].copy_from_slice(&version[row * width..][..width]);
            }
            hidden
        };
        versions.iter().map(splice).collect()
    }

    /// Judges all versions of a document, the first of which is the document as it is.
    fn judged(&self, document: &Document, versions: &[&[f32]]) -> Result<Done> {
        let (tail, classes) = (self.network.tail(), self.classes.as_ref());
        check(&self.documents, document, tail, classes)?; // a file may have changed
        let tokens = document.hidden.len() / tail.width;
        let (Some(classes), Some(label)) = (classes, document.label) else {
            let mut judge = Judge::new(&document.tokens);
            self.network.run(versions, tokens, |version, logits| {
                judge.add(version, logits);
                Ok(())
            })?;
            return Ok(Done::Losses(judge.finish()));
        };
        let mut answers = Vec::with_capacity(versions.len());
        self.network.run(versions, tokens, |_, output| {
            answers.push(classes.answer(output));
            Ok(())
        })?;
        Ok(Done::Answers(Answers::new(label, &answers)))
    }

    fn section(&self, done: Vec<Done>, ns: &[usize], ranking: Option<&Ranking>) -> TailSection {
        let (tail, survey, documents) = (self.network.tail(), &self.survey, done.len());
        let (mut losses, mut answers) = (Vec::new(), Vec::new());
        for one in done {
            match one {
                Done::Losses(one) => losses.push(one),
                Done::Answers(one) => answers.push(one),
            }
        }
        let (metrics, by_position) = match losses.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => loss::summary(&losses),
        };
        let classes = self.classes.as_ref().zip(ranking);
        TailSection {
            file: tail.path.display().to_string(),
            blake3: tail.blake3.clone(),
            kind: tail.kind.name().into(),
            model: tail.model.clone(),
            layer: tail.layer,
            data: self.documents.data().path().display().to_string(),
            documents,
            tokens: self.documents.tokens(),
            replaced: survey.count,
            max_norm: Some(survey.limit).filter(|limit| limit.is_finite()),
            beyond_max_norm: survey.beyond,
            metrics,
            by_position,
            classes: classes.map(|(classes, ranking)| {
                answers::section(classes, ns, &answers, |class| ranking.has(class))
            }),
        }
    }
}

/// Rows as the versions of [`loss::VERSIONS`] replace them: by `x_hat [n, d]`, by zeros, by the mean.
fn losses_of(x_hat: &Tensor<2>, mean: &[f32]) -> Vec<Vec<f32>> {
    let [count, width] = x_hat.dims();
    vec![
        values(x_hat.clone()),
        vec![0.0; count * width],
        mean.repeat(count),
    ]
}

/// Rows from the first n latents of their class, and from all others, for each n; then from all latents and from none.
fn choices(
    model: &Model,
    codes: &Codes,
    x_hat: Tensor<2>,
    ns: &[usize],
    ranking: &Ranking,
    labels: &[usize],
) -> Vec<Vec<f32>> {
    let filter = Filter::new(codes, ranking, labels);
    let of = |keep: &dyn Fn(u64) -> bool| values(filter.decoded(model, |rank| keep(rank.into())));
    let mut versions = Vec::with_capacity(2 * ns.len() + 2);
    for n in ns.iter().map(|n| *n as u64) {
        versions.extend([of(&|rank| rank < n), of(&|rank| rank >= n)]);
    }
    versions.extend([values(x_hat), of(&|_| false)]);
    versions
}
