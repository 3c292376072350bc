//! The ranking of latents for each class, for top-n classification.
//!
//! Counters are dense, so classes are counted in groups whose counters fit into [`BUDGET`], and only the first n
//! latents of each class are kept. Memory is `BUDGET + O(classes n)`, not `O(classes M)`.

use std::cmp::Ordering;

use sae_model::SparseCodes;

/// Bytes of counters held at a time.
const BUDGET: usize = 128 << 20;
/// Bytes of the counters of one latent for one class.
const COUNTER: usize = size_of::<u32>() + size_of::<f64>();

/// The rule that ranks the latents of a class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// By the number of the class's rows with `a_j != 0`; ties by the sum of `|a_j| / ||a||_2` over these rows.
    /// Multiplying the activations of any row by a number other than 0 does not change the ranking.
    Firing,
    /// By the number of the class's rows with `a_j` above this; ties by the sum of `|a_j|` over the class's rows.
    Threshold(f32),
}

impl Rule {
    fn fires(self, a: f32) -> bool {
        match self {
            Self::Firing => a != 0.0,
            Self::Threshold(threshold) => a > threshold,
        }
    }

    /// The divisor of a row's `|a_j|` in the sum that settles ties.
    fn unit(self, row: &[f32]) -> f64 {
        match self {
            Self::Firing => {
                let squares = row.iter().map(|a| f64::from(*a) * f64::from(*a));
                squares.sum::<f64>().sqrt()
            }
            Self::Threshold(_) => 1.0,
        }
    }
}

/// Number of classes that can be counted at a time with `latents` latents: at least one.
pub(crate) fn classes_at_once(latents: usize) -> usize {
    (BUDGET / (latents * COUNTER)).max(1)
}

/// Counts how often each latent fires on each class of a group.
pub(crate) struct Counters {
    latents: usize,
    rule: Rule,
    /// Rows of the class on which the latent fires, `[classes, M]`.
    fired: Vec<u32>,
    /// The sum that settles ties, `[classes, M]`.
    mass: Vec<f64>,
}

impl Counters {
    /// Counters for at most `classes` classes.
    pub(crate) fn new(classes: usize, latents: usize, rule: Rule) -> Self {
        Self {
            latents,
            rule,
            fired: vec![0; classes * latents],
            mass: vec![0.0; classes * latents],
        }
    }

    /// Resets all counters for the next group.
    pub(crate) fn clear(&mut self) {
        self.fired.fill(0);
        self.mass.fill(0.0);
    }

    /// Adds a batch: its codes, and the place of each row's class in the group.
    pub(crate) fn add(&mut self, codes: &SparseCodes, places: &[usize]) {
        let (values, indices) = (codes.host_values(), codes.pattern.indices());
        for (row, place) in places.iter().enumerate() {
            let entries = codes.pattern.row(row);
            let unit = self.rule.unit(&values[entries.clone()]);
            for (j, a) in indices[entries.clone()].iter().zip(&values[entries]) {
                if *a == 0.0 {
                    continue; // an entry need not be active
                }
                let counter = place * self.latents + *j as usize;
                let fires = u32::from(self.rule.fires(*a));
                self.fired[counter] = self.fired[counter].saturating_add(fires);
                self.mass[counter] += f64::from(a.abs()) / unit;
            }
        }
    }

    /// The first `n` latents of the class at `place`, best first.
    pub(crate) fn top(&self, place: usize, n: usize) -> Vec<u32> {
        let start = place * self.latents;
        let (fired, mass) = (&self.fired[start..], &self.mass[start..]);
        let better_first = |a: &u32, b: &u32| -> Ordering {
            let (i, j) = (*a as usize, *b as usize);
            fired[j]
                .cmp(&fired[i])
                .then_with(|| mass[j].total_cmp(&mass[i]))
                .then(i.cmp(&j))
        };
        let mut order: Vec<u32> = (0..self.latents as u32).collect();
        if (1..order.len()).contains(&n) {
            order.select_nth_unstable_by(n - 1, better_first);
        }
        order.truncate(n);
        order.shrink_to_fit();
        order.sort_unstable_by(better_first);
        order
    }
}

/// The first latents of every class that has training rows.
pub(crate) struct Ranking {
    /// For each class its (latent, rank) pairs, ascending by latent; `None` for a class without training rows.
    classes: Vec<Option<Vec<(u32, u32)>>>,
}

impl Ranking {
    /// Starts with no class ranked.
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            classes: vec![None; classes],
        }
    }

    /// Sets the latents of a class, best first.
    pub(crate) fn set(&mut self, class: usize, best_first: &[u32]) {
        let ranks = best_first.iter().copied().zip(0u32..);
        let mut by_latent: Vec<(u32, u32)> = ranks.collect();
        by_latent.sort_unstable();
        self.classes[class] = Some(by_latent);
    }

    /// True if a class has a ranking.
    pub(crate) fn has(&self, class: usize) -> bool {
        self.classes[class].is_some()
    }

    /// The latents of a class, best first; empty for a class without a ranking.
    pub(crate) fn best_first(&self, class: usize) -> Vec<u32> {
        let mut ranked = self.classes[class].clone().unwrap_or_default();
        ranked.sort_unstable_by_key(|(_, rank)| *rank);
        ranked.into_iter().map(|(latent, _)| latent).collect()
    }

    /// The rank of each entry of a batch for the class of its row; `u32::MAX` if it is not ranked.
    pub(crate) fn ranks(&self, codes: &SparseCodes, labels: &[usize]) -> Vec<u32> {
        let mut ranks = Vec::with_capacity(codes.pattern.len());
        for (row, label) in labels.iter().enumerate() {
            let ranked = self.classes[*label].as_deref().unwrap_or_default();
            let latents = &codes.pattern.indices()[codes.pattern.row(row)];
            ranks.extend(latents.iter().map(|latent| {
                let found = ranked.binary_search_by_key(latent, |(latent, _)| *latent);
                found.map_or(u32::MAX, |at| ranked[at].1)
            }));
        }
        ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use proptest::prelude::*;

    fn counted(rule: Rule, dense: &[f32], latents: usize, labels: &[usize]) -> Counters {
        let mut counters = Counters::new(3, latents, rule);
        let codes = SparseCodes::from_dense(dense, latents, &Device::flex());
        counters.add(&codes, labels);
        counters
    }

    #[test]
    fn firing_first_then_the_share_of_the_row_then_the_index() {
        // Both rows are of class 1. Latents 0 and 2 fire twice: 0 with 3/5 + 1/1.414 = 1.307, 2 with
        // 4/5 + 1/1.414 = 1.507. 1 and 3 never fire.
        let dense = [3.0, 0.0, -4.0, 0.0, 10.0, 0.0, 10.0, 0.0];
        let counters = counted(Rule::Firing, &dense, 4, &[1, 1]);
        assert_eq!(counters.top(1, 4), [2, 0, 1, 3]);
        // Each fires once. By |a| latent 0 would be last, but it has the whole norm of its row; the others have 0.707
        // of theirs.
        let counters = counted(
            Rule::Firing,
            &[1.0, 0.0, 0.0, 0.0, 100.0, 100.0],
            3,
            &[0, 0],
        );
        assert_eq!(counters.top(0, 3), [0, 1, 2]);
        assert_eq!(counters.top(2, 1), [0], "nothing was counted: the index");
    }

    #[test]
    fn a_threshold_first_then_the_mass_then_the_index() {
        // Class 1: latent 2 is above 0.2 twice, latent 0 once (strongly), 1 and 3 never; 3 has more mass than 1.
        let dense = [0.9, 0.1, 0.3, 0.0, 0.0, 0.0, 0.3, 0.2];
        let counters = counted(Rule::Threshold(0.2), &dense, 4, &[1, 1]);
        assert_eq!(counters.top(1, 4), [2, 0, 3, 1]);
        assert_eq!(counters.top(1, 2), [2, 0]);
        assert_eq!(counters.top(1, 0), [0u32; 0]);
        let counters = counted(Rule::Firing, &dense, 4, &[1, 1]);
        assert_eq!(counters.top(1, 4), [2, 0, 3, 1], "0.94, 0.83, 0.55, 0.1");
        // The effect of a threshold depends on the unit: latent 0 fires twice, weakly, latent 1 once.
        let dense = [0.15, 0.9, 0.15, 0.0];
        let times_ten: Vec<f32> = dense.iter().map(|a| 10.0 * a).collect();
        let top = |rule, rows| counted(rule, rows, 2, &[0, 0]).top(0, 2);
        assert_eq!(top(Rule::Threshold(0.2), &dense), [1, 0]);
        assert_eq!(top(Rule::Threshold(0.2), &times_ten), [0, 1]);
        assert_eq!(top(Rule::Firing, &dense), [0, 1]);
        assert_eq!(top(Rule::Firing, &times_ten), [0, 1]);
    }

    #[test]
    fn ranks_are_those_of_the_class_of_the_row() {
        let mut ranking = Ranking::new(3);
        ranking.set(0, &[2, 0]);
        ranking.set(2, &[3]);
        let dense = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0];
        let codes = SparseCodes::from_dense(&dense, 4, &Device::flex());
        let none = u32::MAX;
        assert_eq!(
            ranking.ranks(&codes, &[0, 2, 1]),
            [1, none, 0, none, 0, none, none]
        );
        assert!(ranking.has(0) && !ranking.has(1));
    }

    #[test]
    fn counters_fit_into_their_budget() {
        for (latents, classes) in [(65_536, 170), (2_048, 5_461), (1, 11_184_810)] {
            assert_eq!(classes_at_once(latents), classes);
            assert!(classes * latents * COUNTER <= BUDGET);
        }
        assert_eq!(classes_at_once(1 << 30), 1, "one class at least");
    }

    proptest! {
        #[test]
        fn rescaled_activations_have_the_same_ranking(
            dense in prop::collection::vec(prop_oneof![Just(0.0f32), -1e3f32..1e3], 60),
            powers in prop::collection::vec(-20i32..20, 10),
            n in 0usize..8,
        ) {
            let labels: Vec<usize> = (0..10).map(|row| row % 3).collect();
            // Powers of two cause no rounding, so even ties must stay.
            let scaled: Vec<f32> = dense.iter().enumerate()
                .map(|(i, a)| a * 2f32.powi(powers[i / 6])).collect();
            let [one, other] = [&dense, &scaled].map(|rows| counted(Rule::Firing, rows, 6, &labels));
            for class in 0..3 {
                prop_assert_eq!(one.top(class, n), other.top(class, n));
            }
        }

        #[test]
        fn the_first_n_are_the_beginning_of_all(
            dense in prop::collection::vec(prop_oneof![Just(0.0f32), Just(1.0), Just(2.0)], 60),
            n in 0usize..8,
        ) {
            let counters = counted(Rule::Threshold(1.0), &dense, 6, &[0; 10]);
            let all = counters.top(0, 6);
            prop_assert_eq!(counters.top(0, n), all[..n.min(6)].to_vec());
        }
    }
}
