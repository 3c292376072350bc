//! k-sparse probing (Gurnee et al. 2023, arXiv 2305.01610; as SAEBench does it): how well the k latents that differ
//! most between a class and the rest tell the two apart.

use rayon::prelude::*;

use super::bootstrap::Draws;
use super::logistic::Rows;
use super::sample::Columns;
use super::scores::{Answers, Scores};

/// The probes of one class.
pub(super) struct Probed {
    /// Latents, largest difference first.
    pub(super) latents: Vec<u32>,
    /// Scores for each k.
    pub(super) scores: Vec<Scores>,
}

/// Probes each of `classes` with each number of latents in `ks`.
pub(super) fn probe(
    train: &Columns,
    held_out: &Columns,
    draws: &Draws,
    classes: &[usize],
    ks: &[usize],
) -> Vec<Probed> {
    let most = ks.iter().copied().max().unwrap_or(0);
    let chosen = chosen(train, classes, most);
    let each = classes.par_iter().zip(chosen);
    each.map(|(class, latents)| {
        let rows = (0u32..).zip(&held_out.labels.of);
        let of_class = rows.filter(|(_, label)| **label as usize == *class);
        let of_class = draws.count(of_class.map(|(row, _)| row));
        let scores = ks.iter().map(|k| {
            let first = &latents[..latents.len().min(*k)];
            Scores::of(&answers(train, held_out, *class, first), &of_class, draws)
        });
        let scores = scores.collect();
        Probed { latents, scores }
    })
    .collect()
}

/// For each of `classes` the latents with the largest `|mean over its rows - mean over the others|`, best first; ties
/// go to the lower index. Latents that are never active are not chosen.
fn chosen(train: &Columns, classes: &[usize], most: usize) -> Vec<Vec<u32>> {
    let of_class = &train.labels.rows;
    let mut best: Vec<Vec<(f64, u32)>> = vec![Vec::new(); classes.len()];
    let mut sums = vec![0.0; of_class.len()];
    for j in 0..train.latents() {
        let column = train.of(j);
        if column.is_empty() {
            continue;
        }
        sums.fill(0.0);
        for (row, a) in column {
            sums[train.labels.of[*row as usize] as usize] += f64::from(*a);
        }
        let all: f64 = sums.iter().sum();
        for (class, best) in classes.iter().zip(&mut best) {
            let mine = sums[*class] / of_class[*class] as f64;
            let others = (all - sums[*class]) / (train.rows() - of_class[*class]) as f64;
            let difference = (mine - others).abs();
            let place = best.partition_point(|(other, _)| *other >= difference);
            if place < most {
                best.truncate(most - 1);
                best.insert(place, (difference, j as u32));
            }
        }
    }
    let latents = |best: Vec<(f64, u32)>| best.into_iter().map(|(_, j)| j).collect();
    best.into_iter().map(latents).collect()
}

/// Fits a probe of `class` on the training rows and applies it to the held-out rows.
fn answers(train: &Columns, held_out: &Columns, class: usize, latents: &[u32]) -> Answers {
    let units: Vec<f64> = latents.iter().map(|j| deviation(train, *j)).collect();
    let beta = weighted(train, class, latents, &units).fit();
    let (rows, x) = active(held_out, latents, &units);
    let labels = &held_out.labels.of;
    let k = latents.len();
    let mut said = vec![beta[k] > 0.0; labels.len()]; // without an active latent the intercept decides
    for (i, row) in rows.iter().enumerate() {
        said[*row as usize] = Rows::score(&beta, &x[i * k..][..k]) > 0.0;
    }
    let said = (0u32..)
        .zip(said)
        .filter_map(|(row, said)| said.then_some(row));
    Answers::new(said, labels, class)
}

/// Standard deviation of latent `j` over all rows; 1 if it is constant.
fn deviation(columns: &Columns, j: u32) -> f64 {
    let n = columns.rows() as f64;
    let entries = columns.of(j as usize).iter().map(|(_, a)| f64::from(*a));
    let mean = entries.clone().sum::<f64>() / n;
    let silent = n - columns.of(j as usize).len() as f64;
    let squares = entries.map(|a| (a - mean).powi(2)).sum::<f64>() + silent * mean * mean;
    let deviation = (squares / n).sqrt();
    if deviation > 0.0 { deviation } else { 1.0 }
}

/// The rows on which at least one of `latents` is active, and their activations `[rows, k]` divided by `units`.
fn active(columns: &Columns, latents: &[u32], units: &[f64]) -> (Vec<u32>, Vec<f64>) {
    const NONE: u32 = u32::MAX;
    let mut places = vec![NONE; columns.rows()];
    let (mut rows, mut x) = (Vec::new(), Vec::new());
    for (feature, (j, unit)) in latents.iter().zip(units).enumerate() {
        for (row, a) in columns.of(*j as usize) {
            let place = &mut places[*row as usize];
            if *place == NONE {
                *place = rows.len() as u32;
                rows.push(*row);
                x.resize(x.len() + latents.len(), 0.0);
            }
            x[*place as usize * latents.len() + feature] = f64::from(*a) / unit;
        }
    }
    (rows, x)
}

/// The weighted training rows of the regression: class and rest have the same total weight, and all weights add up to
/// the number of rows (scikit-learn's `class_weight="balanced"`). Rows without active latents are equal, so they become
/// one row of the class and one of the rest, with the weight of all.
fn weighted(train: &Columns, class: usize, latents: &[u32], units: &[f64]) -> Rows {
    let (rows, x) = active(train, latents, units);
    let of = |row: &u32| train.labels.of[*row as usize] as usize == class;
    let mine = train.labels.rows[class];
    let counts = [train.rows() - mine, mine];
    let weights = counts.map(|n| train.rows() as f64 / (2.0 * n as f64));
    let mut all = Rows {
        k: latents.len(),
        x,
        y: rows.iter().map(of).collect(),
        weights: Vec::new(),
    };
    all.weights = all.y.iter().map(|y| weights[usize::from(*y)]).collect();
    let active = all.y.iter().filter(|y| **y).count();
    for (y, silent) in [
        (true, mine - active),
        (false, counts[0] - (rows.len() - active)),
    ] {
        all.x.resize(all.x.len() + latents.len(), 0.0);
        all.y.push(y);
        all.weights.push(silent as f64 * weights[usize::from(y)]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::columns;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_latents_that_differ_most_are_chosen() {
        // Means on class 1 (rows 0 and 1) and on the rest (2, 3, 4): 0 and 2; 4 and 3; -6 and 0; never active; 2 and 0.
        let dense = [
            0.0, 4.0, -6.0, 0.0, 4.0, //
            0.0, 4.0, -6.0, 0.0, 0.0, //
            2.0, 3.0, 0.0, 0.0, 0.0, //
            2.0, 3.0, 0.0, 0.0, 0.0, //
            2.0, 3.0, 0.0, 0.0, 0.0,
        ];
        let train = columns(&dense, 5, &[1, 1, 0, 0, 0], 2);
        assert_eq!(chosen(&train, &[1], 3), [[2, 0, 4]]);
        assert_eq!(chosen(&train, &[0, 1], 9), [[2, 0, 4, 1], [2, 0, 4, 1]]);
    }

    #[test]
    fn a_latent_that_tells_a_class_is_all_that_a_probe_needs() {
        let labels: Vec<u32> = (0..30).map(|row| u32::from(row % 3 == 0)).collect();
        let dense: Vec<f32> = labels.iter().flat_map(|l| [*l as f32, 0.5]).collect();
        let data = columns(&dense, 2, &labels, 2);
        let draws = Draws::new(30);
        for probed in probe(&data, &data, &draws, &[0, 1], &[1, 2]) {
            assert_eq!(probed.latents, [0, 1]);
            for scores in probed.scores {
                assert_eq!((scores.balanced[0], scores.f1[0]), (1.0, 1.0));
            }
        }
    }

    proptest! {
        /// Merging silent rows gives the same fit as keeping each of them.
        #[test]
        fn silent_rows_may_be_one(
            dense in prop::collection::vec(prop_oneof![3 => Just(0.0f32), 1 => -3f32..3.0], 80),
            labels in prop::collection::vec(0u32..2, 40),
        ) {
            prop_assume!(labels.contains(&0) && labels.contains(&1));
            let train = columns(&dense, 2, &labels, 2);
            let units = [0, 1].map(|j| deviation(&train, j));
            let mine = labels.iter().filter(|label| **label == 1).count() as f64;
            let one_by_one = Rows {
                k: 2,
                x: dense.iter().enumerate().map(|(i, a)| f64::from(*a) / units[i % 2]).collect(),
                y: labels.iter().map(|label| *label == 1).collect(),
                weights: labels.iter().map(|label| 20.0 / if *label == 1 { mine } else { 40.0 - mine }).collect(),
            };
            for (a, b) in weighted(&train, 1, &[0, 1], &units).fit().iter().zip(one_by_one.fit()) {
                prop_assert!((a - b).abs() < 1e-6, "{} {}", a, b);
            }
        }
    }
}
