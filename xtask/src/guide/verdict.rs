//! Where the recommended k stands between its half and its double, criterion by criterion.
//!
//! Reconstruction gets better with every latent, so its best k says nothing: what counts is what a doubling of k gains, up to
//! the recommended one and beyond it. Every other criterion can prefer any k, and is said to.

use std::collections::BTreeSet;

use serde::Serialize;

use super::measured::{self, Group, name};
use crate::results::columns::Column;
use crate::results::numbers::{Form, Mean, text};

/// There is a knee at k if the doubling beyond it gains at most this part of what the doubling before it gained.
const KNEE: f64 = 0.5;

/// An architecture at several k.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) architecture: &'static str,
    pub(super) k: usize,
    pub(super) judged: Vec<Judged>,
    pub(super) claim: Claim,
}

/// Whether these numbers support the claim that k is a good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Claim {
    /// No criterion prefers another k, and one or more tell k from another; or, without such criteria, a knee is at k.
    Supported,
    /// Some criteria do, some do not.
    Partly,
    /// Every criterion that can tell prefers another k, or nothing singles k out.
    NotSupported,
    /// Nothing was measured at k and beside it.
    Open,
}

/// One criterion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Judged {
    pub(super) criterion: String,
    pub(super) at: String,
    /// Mean and deviation over the seeds at each k.
    pub(super) values: Vec<(usize, Mean)>,
    /// The k with the best mean: of equal ones the recommended, then the lowest.
    pub(super) best: usize,
    /// How far the mean at the recommended k is behind the best.
    pub(super) behind: f64,
    /// The larger standard deviation over the seeds, of those at the best and at the recommended k.
    pub(super) spread: Option<f64>,
    pub(super) finding: Finding,
    #[serde(skip)]
    form: Form,
}

/// What a criterion says of the recommended k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Finding {
    Best,
    /// Another k is better by no more than the spread.
    WithinSpread,
    /// Another k is better.
    Behind,
    /// No k is behind the best by more than the spread.
    NoDifference,
    /// Of reconstruction: the part of the error that a doubling of k takes away, up to the recommended k and from it on;
    /// none where that k was not run.
    Gains {
        before: Option<f64>,
        after: Option<f64>,
        knee: Option<bool>,
    },
}

/// The verdict on an architecture, from the groups that are of it.
pub(super) fn verdict(
    architecture: &'static str,
    k: usize,
    groups: &[Group],
    columns: &[Column],
) -> Verdict {
    let own = groups
        .iter()
        .filter(|group| group.candidate.architecture == architecture);
    let own: Vec<&Group> = own.collect();
    let criteria = columns.iter().filter(|column| column.best != 0.0);
    let judged: Vec<Judged> = criteria
        .filter_map(|column| judge(column, k, &own))
        .collect();
    Verdict {
        architecture,
        k,
        claim: claim(&judged),
        judged,
    }
}

/// A criterion; none where it has no number at k, or none beside it.
fn judge(column: &Column, k: usize, groups: &[&Group]) -> Option<Judged> {
    let at = |group: &&Group| Some((group.candidate.k?, group.number(&column.at)?));
    let mut values: Vec<(usize, Mean)> = groups.iter().filter_map(at).collect();
    values.retain(|(_, (mean, _))| mean.is_finite());
    values.sort_by_key(|(k, _)| *k);
    let own = values.iter().find(|(at, _)| *at == k)?.1;
    if values.len() < 2 {
        return None;
    }
    let better = |(at, (mean, _)): &&(usize, Mean)| (column.best * mean, *at == k);
    // the last of equal ones counts: from right to left that is the lowest
    let best = values.iter().rev().max_by(|a, b| {
        let (a, b) = (better(a), better(b));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
    })?;
    let (best, most) = *best;
    let behind = |other: Mean| column.best * (most.0 - other.0);
    let spread = |other: Mean| Some(most.1?.max(other.1?));
    let is_near = |other: Mean| behind(other) <= spread(other).unwrap_or(0.0);
    let finding = match measured::error(column) {
        Some(error) => gains(k, &values, error),
        None if values.iter().all(|(_, value)| is_near(*value)) => Finding::NoDifference,
        None if best == k => Finding::Best,
        None if is_near(own) => Finding::WithinSpread,
        None => Finding::Behind,
    };
    Some(Judged {
        criterion: column.title.clone(),
        at: column.at.clone(),
        best,
        behind: behind(own),
        spread: spread(own),
        finding,
        form: column.form,
        values,
    })
}

/// What a doubling of k takes away of the error, on both sides of `k`.
fn gains(k: usize, values: &[(usize, Mean)], error: fn(f64) -> f64) -> Finding {
    let errors = values
        .iter()
        .map(|(k, (mean, _))| (*k as f64, error(*mean)));
    let errors: Vec<(f64, f64)> = errors.collect();
    let gain = |(a, from): (f64, f64), (b, to): (f64, f64)| {
        let is_ratio = from > 0.0 && to > 0.0;
        is_ratio.then(|| 1.0 - (to / from).powf((b / a).log2().recip()))
    };
    let (mut before, mut after) = (None, None);
    for pair in errors.windows(2) {
        match (pair[0].0, pair[1].0) {
            (_, to) if to == k as f64 => before = gain(pair[0], pair[1]),
            (from, _) if from == k as f64 => after = gain(pair[0], pair[1]),
            _ => {}
        }
    }
    let knee = before.zip(after);
    let knee = knee.map(|(before, after)| before > 0.0 && after <= KNEE * before);
    Finding::Gains {
        before,
        after,
        knee,
    }
}

fn claim(judged: &[Judged]) -> Claim {
    use Finding::{Behind, Best, Gains, WithinSpread};
    let count = |of: fn(&Finding) -> bool| judged.iter().filter(|one| of(&one.finding)).count();
    let agree = count(|it| matches!(it, Best | WithinSpread));
    let disagree = count(|it| matches!(it, Behind));
    let knees = count(|it| {
        matches!(
            it,
            Gains {
                knee: Some(true),
                ..
            }
        )
    });
    match (agree, disagree) {
        _ if judged.is_empty() => Claim::Open,
        (0, 0) if knees > 0 => Claim::Supported,
        (0, _) => Claim::NotSupported,
        (_, 0) => Claim::Supported,
        _ => Claim::Partly,
    }
}

impl Judged {
    /// What it says of k, in words.
    pub(super) fn words(&self) -> String {
        let distance = |value: f64| match self.form {
            // of two parts of 100 %, which are not parts of each other
            Form::Percent => format!("{:.1} points", 100.0 * value),
            form => text((value, None), form),
        };
        let by = distance(self.behind);
        let spread = match self.spread {
            Some(spread) => format!("the seeds' spread is {}", distance(spread)),
            None => "one seed, spread unknown".into(),
        };
        match self.finding {
            Finding::Best => "best at k".into(),
            Finding::WithinSpread => {
                format!("k is as good as the best: {by} behind, {spread}")
            }
            Finding::Behind => format!("prefers {}: k is {by} behind, {spread}", self.best),
            Finding::NoDifference => format!("does not tell them apart ({spread})"),
            Finding::Gains {
                before,
                after,
                knee,
            } => {
                let percent = |gain| text((gain, None), Form::Percent);
                let gain = |gain: Option<f64>| gain.map_or("unknown".into(), percent);
                let knee = match knee {
                    Some(true) => "a knee at k",
                    Some(false) => "no knee at k",
                    None => "a knee cannot be seen",
                };
                format!(
                    "a doubling takes away {} of the error up to k, {} beyond it: {knee}",
                    gain(before),
                    gain(after)
                )
            }
        }
    }
}

impl Verdict {
    /// The verdict in one sentence.
    pub(super) fn words(&self) -> String {
        use Finding::{Behind, Best, Gains, NoDifference, WithinSpread};
        let mut parts = Vec::new();
        self.add(&mut parts, "best at k in", |it| matches!(it.finding, Best));
        self.add(&mut parts, "as good as the best in", |it| {
            matches!(it.finding, WithinSpread)
        });
        let behind = self.judged.iter().filter(|it| it.finding == Behind);
        for k in behind.map(|it| it.best).collect::<BTreeSet<_>>() {
            self.add(&mut parts, &format!("k = {k} is better in"), |it| {
                it.finding == Behind && it.best == k
            });
        }
        self.add(&mut parts, "no difference in", |it| {
            matches!(it.finding, NoDifference)
        });
        for (knee, what) in [(true, "a knee at k in"), (false, "no knee at k in")] {
            self.add(
                &mut parts,
                what,
                |it| matches!(it.finding, Gains { knee: Some(own), .. } if own == knee),
            );
        }
        let claim = match self.claim {
            Claim::Supported => "supported",
            Claim::Partly => "supported in part",
            Claim::NotSupported => "not supported",
            Claim::Open => "open: nothing was measured at k and beside it",
        };
        let name = name(self.architecture);
        let why = match parts.is_empty() {
            true => String::new(),
            false => format!(": {}", parts.join("; ")),
        };
        let count = |of: fn(&Finding) -> bool| {
            let own = self.judged.iter().filter(|it| of(&it.finding));
            own.count()
        };
        let free = count(|it| !matches!(it, Gains { .. }));
        let agree = count(|it| matches!(it, Best | WithinSpread));
        let share = match free {
            0 => String::new(),
            _ => format!(" (by {agree} of {free} criteria that can prefer any k)"),
        };
        let k = self.k;
        format!("{name}, k = {k}: that this k is a good one is **{claim}**{share}{why}.")
    }

    /// Adds the titles of the criteria that say the same, if there are any.
    fn add(&self, parts: &mut Vec<String>, what: &str, which: impl Fn(&Judged) -> bool) {
        let own = self.judged.iter().filter(|judged| which(judged));
        let titles: Vec<String> = own
            .map(|judged| format!("\"{}\"", judged.criterion))
            .collect();
        if !titles.is_empty() {
            parts.push(format!("{what} {}", titles.join(", ")));
        }
    }
}
