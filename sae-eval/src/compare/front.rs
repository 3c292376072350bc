//! The Pareto front of reconstruction against sparsity.

/// The definition, in words.
pub(super) const DEFINITION: &str = "A recipe is on the front if no other recipe that was evaluated on the same rows is at least as good in FVU \
                                     and in L0 and better in one of the two (means over its seeds).";

/// A recipe with its mean FVU and mean L0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) recipe: usize,
    pub(super) fvu: f64,
    pub(super) l0: f64,
}

/// The recipes on the front, by their L0.
pub(super) fn front(places: &[Place]) -> Vec<usize> {
    let beaten = |place: &Place| {
        places.iter().any(|other| {
            let as_good = other.fvu <= place.fvu && other.l0 <= place.l0;
            as_good && (other.fvu < place.fvu || other.l0 < place.l0)
        })
    };
    let mut front: Vec<&Place> = places.iter().filter(|place| !beaten(place)).collect();
    front.sort_by(|a, b| a.l0.total_cmp(&b.l0).then(b.fvu.total_cmp(&a.fvu)));
    front.into_iter().map(|place| place.recipe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(of: &[(f64, f64)]) -> Vec<Place> {
        let place = |(recipe, (fvu, l0)): (usize, &(f64, f64))| Place {
            recipe,
            fvu: *fvu,
            l0: *l0,
        };
        of.iter().enumerate().map(place).collect()
    }

    #[test]
    fn by_hand() {
        let of = [
            (0.3, 40.0),
            (0.2, 60.0),
            (0.35, 50.0),
            (0.2, 70.0),
            (0.25, 40.0),
            (0.5, 10.0),
            (0.5, 10.0),
        ];
        assert_eq!(front(&places(&of)), [5, 6, 4, 1]);
        assert_eq!(front(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn it_falls_and_nothing_is_better(of in prop::collection::vec((0f64..1.0, 1f64..50.0), 1..12)) {
            let found = front(&places(&of));
            prop_assert!(!found.is_empty());
            prop_assert!(found.windows(2).all(|w| of[w[0]].1 <= of[w[1]].1 && of[w[0]].0 >= of[w[1]].0));
            for (fvu, l0) in &of {
                prop_assert!(found.iter().any(|i| of[*i].0 <= *fvu && of[*i].1 <= *l0));
            }
        }
    }
}
