//! How much of a dictionary comes back when the same recipe is trained with another seed: the one-to-one matching of decoder
//! directions with the largest sum of cosines, for every pair of runs, and which latents of the first run recur.
//!
//! Two models are in memory at a time, and of their cosines a block; the optimal matching alone holds all cosines, which is
//! why it is used for dictionaries up to a certain size only (`matching.rs`).

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sae_model::saved::{self, SavedModelError};

use super::data::{Matched, Pair, Recipe, Stability};
use super::opened::Opened;
use crate::directions::{directions, unit};
use crate::matching::{Matcher, Pairs};
use crate::model::values;
use crate::packed::{Column, PackedColumns};

/// A latent recurs if the cosine with its partner is at least this.
pub(crate) const RECURS: f32 = 0.7;
/// A latent is the same if the cosine with its partner is at least this.
pub(crate) const SAME: f32 = 0.9;
/// Cosines computed at a time: 32 MB.
const AT_A_TIME: usize = 1 << 23;

/// The definition, in words.
pub(super) fn definition() -> String {
    format!(
        "For every two runs of a recipe, the latents that fire on a held-out row are matched one to one, by the cosines of their \
         decoder directions (rows of W_dec W_V): optimal is the matching with the largest sum of cosines (Kuhn-Munkres). Beyond \
         2,048 latents it is greedy, in rounds: of each latent's 16 closest directions the closest pair is taken first, then the \
         closest of what is left; what is left over is matched again in the same way. A latent recurs in a run if the cosine with \
         its partner there is at least {RECURS}, and is the same at {SAME}; shares are of the pairs, as many as the smaller \
         dictionary has latents. Random: as many normally distributed directions, matched in the same way."
    )
}

/// Measures the stability of a recipe of several runs; `None` if no latent of one of them fires.
pub(super) fn measure(
    number: usize,
    recipe: &Recipe,
    runs: &[Opened],
) -> Result<Option<Stability>, SavedModelError> {
    let mut pairs = Vec::new();
    let mut of_first = Vec::new();
    let alive: Vec<Vec<u32>> = recipe.runs.iter().map(|run| alive(&runs[*run])).collect();
    if alive.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    for (i, a) in recipe.runs.iter().enumerate() {
        if i + 1 == recipe.runs.len() {
            break;
        }
        let first = of_run(&runs[*a], &alive[i])?;
        for (j, b) in recipe.runs.iter().enumerate().skip(i + 1) {
            let second = of_run(&runs[*b], &alive[j])?;
            let matching = matched(&first, &second);
            pairs.push(Pair {
                runs: [*a, *b],
                matched: matching.summary(),
            });
            if i == 0 {
                of_first.push((j, matching));
            }
        }
    }
    let first = &runs[recipe.runs[0]];
    let width = first.report.model.d_in;
    let [a, b] = [0, 1].map(|run| random(run as u64, alive[run].len(), width));
    Ok(Some(Stability {
        recipe: number,
        runs: recipe.runs.clone(),
        pairs,
        random: matched(&a, &b).summary(),
        latents: latents(first, &alive, &of_first),
        alive: alive.iter().map(Vec::len).collect(),
        rows: first.report.held_out.rows,
    }))
}

/// The latents of a run that fire on a held-out row; all of them where that is not known.
fn alive(run: &Opened) -> Vec<u32> {
    let latents = 0..run.report.model.n_latents as u32;
    match run.fired() {
        Some(fired) => latents.filter(|j| fired[*j as usize] > 0).collect(),
        None => latents.collect(),
    }
}

/// Decoder directions of some latents of a run.
fn of_run(run: &Opened, latents: &[u32]) -> Result<Tensor<2>, SavedModelError> {
    let dir = run.dir.model();
    let sae = saved::load(&dir, &Device::flex())?;
    Ok(select(&directions(&sae), latents))
}

/// Random directions.
fn random(stream: u64, count: usize, width: usize) -> Tensor<2> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    rng.set_stream(stream);
    let numbers: Vec<f32> = (0..count * width)
        .map(|_| StandardNormal.sample(&mut rng))
        .collect();
    unit(Tensor::from_data(
        TensorData::new(numbers, [count, width]),
        &Device::flex(),
    ))
}

fn select(rows: &Tensor<2>, which: &[u32]) -> Tensor<2> {
    let indices: Vec<i32> = which.iter().map(|j| *j as i32).collect();
    let count = indices.len();
    let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [count]), &rows.device());
    rows.clone().select(0, indices)
}

/// Partners of the rows of one set in another.
struct Matching {
    pairs: Pairs,
    optimal: bool,
}

/// Matches the rows of `a` with those of `b`, all rows of the smaller set.
fn matched(a: &Tensor<2>, b: &Tensor<2>) -> Matching {
    let [in_a, in_b] = [a, b].map(|rows| rows.dims()[0]);
    let mut pairs: Pairs = vec![None; in_a];
    let mut left = [in_a, in_b].map(|count| (0..count as u32).collect::<Vec<u32>>());
    let mut optimal = true;
    while left.iter().all(|left| !left.is_empty()) {
        let matcher = compared(&select(a, &left[0]), &select(b, &left[1]));
        optimal &= matcher.is_optimal();
        let found = matcher.pairs();
        let mut taken = vec![false; left[1].len()];
        for (row, pair) in left[0].iter().zip(&found) {
            let Some((other, cosine)) = pair else {
                continue;
            };
            pairs[*row as usize] = Some((left[1][*other as usize], *cosine));
            taken[*other as usize] = true;
        }
        left[0].retain(|row| pairs[*row as usize].is_none());
        let mut taken = taken.into_iter();
        left[1].retain(|_| taken.next() == Some(false));
    }
    Matching { pairs, optimal }
}

/// All cosines of the rows of `a` with those of `b`, block by block.
fn compared(a: &Tensor<2>, b: &Tensor<2>) -> Matcher {
    let [in_a, in_b] = [a, b].map(|rows| rows.dims()[0]);
    let mut matcher = Matcher::new(in_a, in_b);
    let columns = a.clone().transpose(); // [d, A]
    let block = (AT_A_TIME / in_a).clamp(1, in_b);
    for start in (0..in_b).step_by(block) {
        let rows = b.clone().narrow(0, start, block.min(in_b - start));
        matcher.add(&values(rows.matmul(columns.clone())));
    }
    matcher
}

impl Matching {
    fn summary(&self) -> Matched {
        let mut cosines: Vec<f32> = self.pairs.iter().flatten().map(|(_, c)| *c).collect();
        cosines.sort_by(|a, b| b.total_cmp(a));
        let count = cosines.len();
        let part = |bound: f32| {
            let above = cosines.iter().filter(|cosine| **cosine >= bound).count();
            above as f64 / count.max(1) as f64
        };
        let at = |percent: usize| {
            let place = percent * (count - 1) / 100;
            f64::from(cosines[place])
        };
        let sum: f64 = cosines.iter().map(|cosine| f64::from(*cosine)).sum();
        Matched {
            matching: if self.optimal { "optimal" } else { "greedy" }.into(),
            pairs: count,
            mean_cosine: sum / count.max(1) as f64,
            recur: part(RECURS),
            same: part(SAME),
            curve: match count {
                0 => Vec::new(),
                _ => (0..=100).map(at).collect(),
            },
        }
    }
}

/// The latents of the first run with their partners in the others; `of_first` has the matchings with these.
fn latents(first: &Opened, alive: &[Vec<u32>], of_first: &[(usize, Matching)]) -> PackedColumns {
    let count = first.report.model.n_latents;
    let mut recurs = vec![-1i32; count];
    let mut mean = vec![f32::NAN; count];
    for (place, latent) in alive[0].iter().enumerate() {
        let cosines = || of_first.iter().filter_map(|(_, m)| Some(m.pairs[place]?.1));
        let (sum, matched) = (cosines().sum::<f32>(), cosines().count());
        recurs[*latent as usize] = cosines().filter(|c| *c >= RECURS).count() as i32;
        mean[*latent as usize] = sum / matched as f32; // NaN without a partner
    }
    let fired = first.fired();
    let mut columns = vec![
        (
            "latent".to_string(),
            Column::U32((0..count as u32).collect()),
        ),
        // Without a record of what fires, -1.
        (
            "fired".into(),
            Column::I32(fired.map_or(vec![-1; count], |fired| {
                fired
                    .iter()
                    .map(|n| i32::try_from(*n).unwrap_or(i32::MAX))
                    .collect()
            })),
        ),
        ("recurs".into(), Column::I32(recurs)),
        ("mean".into(), Column::F32(mean)),
    ];
    for (other, matching) in of_first {
        let (mut cosine, mut partner) = (vec![f32::NAN; count], vec![-1i32; count]);
        for (latent, pair) in alive[0].iter().zip(&matching.pairs) {
            if let Some((place, value)) = pair {
                cosine[*latent as usize] = *value;
                partner[*latent as usize] = alive[*other][*place as usize] as i32;
            }
        }
        columns.push(("cosine".into(), Column::F32(cosine)));
        columns.push(("partner".into(), Column::I32(partner)));
    }
    PackedColumns::new(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(of: &[[f32; 3]]) -> Tensor<2> {
        let flat: Vec<f32> = of.iter().flatten().copied().collect();
        unit(Tensor::from_data(
            TensorData::new(flat, [of.len(), 3]),
            &Device::flex(),
        ))
    }

    #[test]
    fn a_permuted_dictionary_comes_back_whole() {
        let a = random(7, 40, 16);
        let order: Vec<u32> = (0..40).rev().collect();
        let b = select(&a, &order);
        let matching = matched(&a, &b);
        assert!(matching.optimal);
        for (i, pair) in matching.pairs.iter().enumerate() {
            let (other, cosine) = pair.unwrap();
            assert_eq!(other as usize, 39 - i);
            assert!((cosine - 1.0).abs() < 1e-5);
        }
        let summary = matching.summary();
        assert_eq!((summary.pairs, summary.recur, summary.same), (40, 1.0, 1.0));
        assert_eq!(summary.curve.len(), 101);
    }

    #[test]
    fn sets_of_different_sizes_and_directions_by_hand() {
        let a = rows(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        let b = rows(&[[0.0, 3.0, 4.0], [-1.0, 0.0, 0.0]]);
        let matching = matched(&a, &b);
        // 0.8 for the third row with the first, and 0 for the second row with the other: more than -1 + 0.8
        let of: Vec<Option<u32>> = matching.pairs.iter().map(|p| p.map(|p| p.0)).collect();
        assert_eq!(of, [None, Some(1), Some(0)]);
        let summary = matching.summary();
        assert!((summary.mean_cosine - 0.4).abs() < 1e-6);
        assert_eq!((summary.pairs, summary.recur, summary.same), (2, 0.5, 0.0));
        assert!((summary.curve[0] - 0.8).abs() < 1e-6 && summary.curve[100].abs() < 1e-6);
    }

    #[test]
    fn random_directions_are_the_same_in_every_run_and_differ_from_each_other() {
        let [a, again, b] = [0, 0, 1].map(|stream| values(random(stream, 30, 8)));
        assert_eq!(a, again);
        assert_ne!(a, b);
    }
}
