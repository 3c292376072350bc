//! One latent per direction: the assignment with the largest sum of cosines. The directions are the concepts that data was
//! made of (`recovery/`), or the latents of another run (`compare/`).

use pathfinding::kuhn_munkres::{Weights, kuhn_munkres};

/// Largest work for which the assignment is optimal: the smaller of G and M squared times the larger, the algorithm's
/// worst case. It is that of 2,048 directions on each side.
const MAX_WORK: usize = 1 << 33;
/// Candidates per concept of the greedy assignment, which is used beyond that.
const CANDIDATES: usize = 16;
/// Steps per unit of a cosine: the algorithm needs integers.
const STEPS: f64 = 1e9;

/// For each true concept its latent and their cosine.
pub(crate) type Pairs = Vec<Option<(u32, f32)>>;

/// Collects the cosines of all concepts with the latents, block by block.
pub(crate) struct Matcher {
    concepts: usize,
    /// All cosines `[M, G]`, if the assignment will be optimal.
    all: Option<Vec<f32>>,
    /// For each concept its closest latents, closest first.
    closest: Vec<Vec<(f32, u32)>>,
    latents: u32,
}

impl Matcher {
    pub(crate) fn new(concepts: usize, latents: usize) -> Self {
        let (least, most) = (concepts.min(latents), concepts.max(latents));
        let work = least.checked_mul(least).and_then(|w| w.checked_mul(most));
        Self::with(concepts, work.is_some_and(|work| work <= MAX_WORK))
    }

    fn with(concepts: usize, optimal: bool) -> Self {
        Self {
            concepts,
            all: optimal.then(Vec::new),
            closest: vec![Vec::new(); concepts],
            latents: 0,
        }
    }

    /// True if the assignment has the largest possible sum of cosines.
    pub(crate) fn is_optimal(&self) -> bool {
        self.all.is_some()
    }

    /// Adds the cosines of the next latents with all concepts, `[latents, G]`.
    pub(crate) fn add(&mut self, cosines: &[f32]) {
        for row in cosines.chunks_exact(self.concepts) {
            for (closest, cosine) in self.closest.iter_mut().zip(row) {
                if closest.len() == CANDIDATES && closest[CANDIDATES - 1].0 >= *cosine {
                    continue;
                }
                let place = closest.partition_point(|(other, _)| other >= cosine);
                if place < CANDIDATES {
                    closest.truncate(CANDIDATES - 1);
                    closest.insert(place, (*cosine, self.latents));
                }
            }
            self.latents += 1;
        }
        if let Some(all) = &mut self.all {
            all.extend_from_slice(cosines);
        }
    }

    /// The largest cosine of each concept with any latent.
    pub(crate) fn largest(&self) -> impl Iterator<Item = f32> {
        let first = |closest: &Vec<(f32, u32)>| closest.first().map_or(0.0, |(cosine, _)| *cosine);
        self.closest.iter().map(first)
    }

    /// Assigns latents to concepts, at most one each.
    pub(crate) fn pairs(&self) -> Pairs {
        let Some(all) = &self.all else {
            return self.greedy();
        };
        let (concepts, latents) = (self.concepts, self.latents as usize);
        let cosines = Cosines {
            values: all,
            concepts,
            by_concept: concepts <= latents,
            sign: 1,
        };
        let (_, given) = kuhn_munkres(&cosines);
        let mut pairs = vec![None; concepts];
        for (row, column) in given.into_iter().enumerate() {
            let (concept, latent) = if concepts <= latents {
                (row, column)
            } else {
                (column, row)
            };
            pairs[concept] = Some((latent as u32, all[latent * concepts + concept]));
        }
        pairs
    }

    /// Takes the closest pair of the candidates first, then the closest of what is left, and so on.
    fn greedy(&self) -> Pairs {
        let each = self.closest.iter().enumerate();
        let mut all: Vec<(f32, usize, u32)> = each
            .flat_map(|(g, closest)| closest.iter().map(move |(cosine, j)| (*cosine, g, *j)))
            .collect();
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (mut pairs, mut taken) = (
            vec![None; self.concepts],
            vec![false; self.latents as usize],
        );
        for (cosine, concept, latent) in all {
            if pairs[concept].is_none() && !taken[latent as usize] {
                pairs[concept] = Some((latent, cosine));
                taken[latent as usize] = true;
            }
        }
        pairs
    }
}

/// The cosines as the algorithm reads them: it needs no more rows than columns.
#[derive(Clone)]
struct Cosines<'a> {
    values: &'a [f32],
    concepts: usize,
    /// True if the rows are concepts.
    by_concept: bool,
    sign: i64,
}

impl Weights<i64> for Cosines<'_> {
    fn rows(&self) -> usize {
        self.concepts.min(self.values.len() / self.concepts)
    }

    fn columns(&self) -> usize {
        self.concepts.max(self.values.len() / self.concepts)
    }

    fn at(&self, row: usize, column: usize) -> i64 {
        let (concept, latent) = if self.by_concept {
            (row, column)
        } else {
            (column, row)
        };
        let cosine = self.values[latent * self.concepts + concept];
        self.sign * (f64::from(cosine) * STEPS) as i64
    }

    fn neg(&self) -> Self {
        Self {
            sign: -self.sign,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matched(cosines: &[f32], concepts: usize, optimal: bool) -> Pairs {
        let mut matcher = Matcher::with(concepts, optimal);
        cosines
            .chunks(2 * concepts)
            .for_each(|some| matcher.add(some));
        matcher.pairs()
    }

    #[test]
    fn the_best_sum_is_not_the_best_pair_first() {
        // [latent, concept]: greedily 0.9 + 0.1, at best 0.8 + 0.8.
        let cosines = [0.9, 0.8, 0.8, 0.1];
        assert_eq!(matched(&cosines, 2, true), [Some((1, 0.8)), Some((0, 0.8))]);
        assert_eq!(
            matched(&cosines, 2, false),
            [Some((0, 0.9)), Some((1, 0.1))]
        );
        let mut matcher = Matcher::new(2, 2);
        matcher.add(&cosines);
        assert_eq!(matcher.largest().collect::<Vec<_>>(), [0.9, 0.8]);
    }

    #[test]
    fn more_concepts_than_latents_leave_some_without() {
        let pairs = matched(&[0.5, 0.9, -0.3], 3, true);
        assert_eq!(pairs, [None, Some((0, 0.9)), None]);
        assert_eq!(matched(&[0.5, 0.9, -0.3], 3, false), pairs);
    }

    #[test]
    fn what_is_too_large_is_greedy() {
        assert!(Matcher::new(512, 8192).is_optimal());
        assert!(!Matcher::new(16_384, 65_536).is_optimal());
    }

    /// The largest sum of any assignment, by trying all.
    fn largest_sum(
        cosines: &[f32],
        concepts: usize,
        taken: &mut Vec<usize>,
        concept: usize,
    ) -> f32 {
        if concept == concepts {
            return 0.0;
        }
        let mut best = f32::MIN;
        for latent in 0..cosines.len() / concepts {
            if !taken.contains(&latent) {
                taken.push(latent);
                let rest = largest_sum(cosines, concepts, taken, concept + 1);
                best = best.max(cosines[latent * concepts + concept] + rest);
                taken.pop();
            }
        }
        best
    }

    proptest! {
        #[test]
        fn no_assignment_has_a_larger_sum(cosines in prop::collection::vec(-1f32..1.0, 4 * 5)) {
            let pairs = matched(&cosines, 4, true);
            let sum: f32 = pairs.iter().flatten().map(|(_, cosine)| cosine).sum();
            prop_assert!((sum - largest_sum(&cosines, 4, &mut Vec::new(), 0)).abs() < 1e-5);
            let mut latents: Vec<u32> = pairs.iter().flatten().map(|(latent, _)| *latent).collect();
            latents.sort_unstable();
            latents.dedup();
            prop_assert_eq!(latents.len(), 4);
        }
    }
}
