//! From the L0 of sparse attention to a k, and what speaks against trusting it.

use serde::Serialize;

use super::measured::{Group, MEDIAN, P5, P95};
use crate::results::columns::{DEAD_SHARE, FINAL_L0, FVU, HALFWAY_L0, L0};
use crate::results::queue::BySeed;

/// L0 that changes by a larger part between half of the training and its end was still moving; held-out rows whose L0 is
/// another than that of training rows by a larger part are noted, too.
const MOVING: f64 = 0.1;
/// From this p95 / p5 on, one k does not fit all rows.
const VARIED: f64 = 2.0;

/// Why this k, in the words of the guide.
pub(super) const RULE: &str = "k is the mean of L0 over the held-out rows, rounded to a whole number. TopK spends k latents on \
    every row and BatchTopK k on average, so with this k each spends as many latents in all as sparse attention does. (The \
    median would spend more or less in all wherever L0 is skewed.) This L0 is not free of every choice: the factor t of the \
    scores (model.scale) moves it, and k with it.";

/// The k, and the distribution that it comes from: means over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Recommendation {
    /// For TopK and for BatchTopK.
    pub(super) k: usize,
    /// What each seed alone would say.
    pub(super) k_by_seed: Vec<usize>,
    pub(super) l0_mean: f64,
    pub(super) l0_median: Option<f64>,
    pub(super) l0_p5: Option<f64>,
    pub(super) l0_p95: Option<f64>,
    /// p95 / p5; none where p5 is 0.
    pub(super) spread: Option<f64>,
    pub(super) training_l0_halfway: Option<f64>,
    pub(super) training_l0_final: Option<f64>,
    /// From halfway to the end, as a part of the former.
    pub(super) training_l0_change: Option<f64>,
    pub(super) fvu: Option<f64>,
    pub(super) dead_share: Option<f64>,
}

/// The recommendation of these runs of sparse attention; none where none of them has been evaluated.
pub(super) fn recommend(attention: &Group, n_latents: usize) -> Option<Recommendation> {
    let l0_mean = attention.mean(L0).filter(|l0| l0.is_finite())?;
    let [p5, p95] = [P5, P95].map(|at| attention.mean(at));
    let [half, end] = [HALFWAY_L0, FINAL_L0].map(|at| attention.mean(at));
    let ratio = |a: Option<f64>, b: Option<f64>| {
        let (a, b) = a.zip(b).filter(|(_, b)| *b > 0.0)?;
        Some(a / b)
    };
    let rounded = |l0: f64| (l0.round() as usize).clamp(1, n_latents.max(1));
    let of_seeds = attention.numbers.get(L0).map(BySeed::values);
    Some(Recommendation {
        k: rounded(l0_mean),
        k_by_seed: of_seeds
            .into_iter()
            .flatten()
            .map(|l0| rounded(*l0))
            .collect(),
        l0_mean,
        l0_median: attention.mean(MEDIAN),
        l0_p5: p5,
        l0_p95: p95,
        spread: ratio(p95, p5),
        training_l0_halfway: half,
        training_l0_final: end,
        training_l0_change: ratio(end, half).map(|ratio| ratio - 1.0),
        fvu: attention.mean(FVU),
        dead_share: attention.mean(DEAD_SHARE),
    })
}

impl Recommendation {
    /// k / 2 (rounded up), k and 2 k, as far as there are so many latents, each once.
    pub(super) fn ks(&self, n_latents: usize) -> Vec<usize> {
        let mut ks = vec![self.k.div_ceil(2), self.k, 2 * self.k];
        ks.retain(|k| *k <= n_latents);
        ks.dedup();
        ks
    }

    /// Whether one k fits all rows, in words.
    pub(super) fn fit(&self) -> String {
        match self.spread {
            None if self.l0_p5.is_none() => String::new(),
            None => {
                "At least 5 % of the rows have no latent at all: no k fits these and the others."
                    .into()
            }
            Some(spread) if spread >= VARIED => format!(
                "A row at the 95th percentile has {spread:.1} times the latents of one at the 5th: one k per row (TopK) is too \
                 small for the former and too large for the latter; BatchTopK, whose k is a mean, can follow the rows."
            ),
            Some(spread) => format!(
                "A row at the 95th percentile has {spread:.1} times the latents of one at the 5th (below {VARIED}): one k fits \
                 most rows."
            ),
        }
    }

    /// What speaks against trusting the k.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(change) = self.training_l0_change.filter(|it| it.abs() > MOVING) {
            let (way, k) = match change < 0.0 {
                true => ("fell", "smaller"),
                false => ("rose", "larger"),
            };
            warnings.push(format!(
                "L0 was still moving: in training it {way} by {:.0} % from half of the steps to the end, so a longer training \
                 would probably find a {k} k; train as long as you will train the SAE itself (--steps)",
                100.0 * change.abs()
            ));
        }
        let training = self.training_l0_final.filter(|l0| *l0 > 0.0);
        if let Some(more) = training.map(|l0| self.l0_mean / l0 - 1.0)
            && more.abs() > MOVING
        {
            let side = if more > 0.0 { "more" } else { "fewer" };
            warnings.push(format!(
                "held-out rows have {:.0} % {side} latents than rows of training: the model fits its training rows better than \
                 others, or the two sides differ; k is that of held-out rows",
                100.0 * more.abs()
            ));
        }
        if self.k_by_seed.iter().any(|k| *k != self.k) {
            let all: Vec<String> = self.k_by_seed.iter().map(usize::to_string).collect();
            warnings.push(format!(
                "the seeds disagree: each alone would say {}",
                all.join(", ")
            ));
        }
        warnings
    }
}
