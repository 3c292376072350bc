//! Single-latent F1: how well the best latent of a class, above the best threshold, tells the class from the rest.

use super::sample::Columns;
use super::scores::Answers;

/// A latent and a threshold: rows with `a_j > threshold` are assigned to the class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Single {
    pub(super) latent: u32,
    pub(super) threshold: f64,
    /// F1 on the training rows, by which it was chosen.
    pub(super) train_f1: f64,
}

/// For each class the latent and the threshold with the largest F1 on the training rows (ties: the lower index, then
/// the higher threshold); `None` for a class on which no latent is above zero. A threshold lies midway between two
/// neighbouring activations above zero; the lowest lies midway between the smallest of them and zero.
pub(super) fn best(train: &Columns) -> Vec<Option<Single>> {
    let mut best: Vec<Option<Single>> = vec![None; train.labels.rows.len()];
    let mut hits = vec![0u32; best.len()];
    for latent in 0..train.latents() {
        let label = |row: u32| train.labels.of[row as usize] as usize;
        let active = train.of(latent).iter().filter(|(_, a)| *a > 0.0);
        let mut rows: Vec<(f32, usize)> = active.map(|(row, a)| (*a, label(*row))).collect();
        rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut said = 0;
        for equal in rows.chunk_by(|a, b| a.0 == b.0) {
            equal.iter().for_each(|(_, class)| hits[*class] += 1);
            said += equal.len();
            let next = rows.get(said).map_or(0.0, |(a, _)| f64::from(*a));
            let threshold = (f64::from(equal[0].0) + next) / 2.0;
            // a lower threshold raises F1 only for the classes of these rows
            for (_, class) in equal {
                let both = (said + train.labels.rows[*class]) as f64;
                let train_f1 = 2.0 * f64::from(hits[*class]) / both;
                if best[*class].is_none_or(|best| train_f1 > best.train_f1) {
                    best[*class] = Some(Single {
                        latent: latent as u32,
                        threshold,
                        train_f1,
                    });
                }
            }
        }
        rows.iter().for_each(|(_, class)| hits[*class] = 0);
    }
    best
}

impl Single {
    /// Assigns held-out rows to the class.
    pub(super) fn answers(&self, held_out: &Columns, class: usize) -> Answers {
        let above = held_out.of(self.latent as usize).iter();
        let above = above.filter(|(_, a)| f64::from(*a) > self.threshold);
        Answers::new(above.map(|(row, _)| *row), &held_out.labels.of, class)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::columns;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Tries every latent and threshold.
        #[test]
        fn no_other_threshold_is_better(
            dense in prop::collection::vec(prop_oneof![Just(0.0f32), Just(1.0), Just(2.0), -3f32..3.0], 60),
            labels in prop::collection::vec(0u32..3, 20),
        ) {
            let train = columns(&dense, 3, &labels, 3);
            for (class, found) in best(&train).into_iter().enumerate() {
                let f1 = |latent: usize, threshold: f32| {
                    let said = |row: &usize| dense[row * 3 + latent] > threshold;
                    let of = |row: &usize| labels[*row] as usize == class;
                    let hits = (0..20).filter(|row| said(row) && of(row)).count();
                    let both = (0..20).filter(said).count() + (0..20).filter(of).count();
                    if both == 0 { 0.0 } else { 2.0 * hits as f64 / both as f64 }
                };
                let thresholds = dense.iter().filter(|a| **a > 0.0).map(|a| a * 0.999_999).chain([0.0]);
                let tried = thresholds.flat_map(|t| (0..3).map(move |latent| (latent, t)));
                let most = tried.map(|(latent, t)| f1(latent, t)).fold(0.0, f64::max);
                prop_assert_eq!(found.map_or(0.0, |found| found.train_f1), most);
                if let Some(found) = found {
                    let answers = found.answers(&train, class);
                    let both = answers.hits.len() + answers.false_alarms.len() + train.labels.rows[class];
                    prop_assert_eq!(2.0 * answers.hits.len() as f64 / both as f64, found.train_f1);
                }
            }
        }
    }
}
