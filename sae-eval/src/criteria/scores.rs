//! Answers to "does this row belong to the class?", and their scores.

use super::bootstrap::Draws;

/// Held-out rows that were assigned to a class.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    /// Rows that belong to the class.
    pub(crate) hits: Vec<u32>,
    /// Rows that do not.
    pub(crate) false_alarms: Vec<u32>,
}

impl Answers {
    /// From the rows that were assigned to `class`.
    pub(crate) fn new(said: impl Iterator<Item = u32>, labels: &[u32], class: usize) -> Self {
        let (hits, false_alarms) = said.partition(|row| labels[*row as usize] as usize == class);
        Self { hits, false_alarms }
    }
}

/// Scores in every draw of rows; NaN if a draw has no row of the class or, for `balanced`, no other row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scores {
    /// `(TPR + TNR) / 2`: the mean of the shares of correct answers on the class's rows and on the other rows.
    pub(crate) balanced: Vec<f64>,
    /// Harmonic mean of precision and recall.
    pub(crate) f1: Vec<f64>,
}

impl Scores {
    /// Scores of answers about a class that has `of_class` rows in each draw.
    pub(crate) fn of(answers: &Answers, of_class: &[u32], draws: &Draws) -> Self {
        let hits = draws.count(answers.hits.iter().copied());
        let false_alarms = draws.count(answers.false_alarms.iter().copied());
        let (mut balanced, mut f1) = (Vec::new(), Vec::new());
        for ((hits, false_alarms), positives) in hits.iter().zip(&false_alarms).zip(of_class) {
            let [hits, false_alarms, positives] =
                [hits, false_alarms, positives].map(|n| f64::from(*n));
            let negatives = draws.rows() as f64 - positives;
            balanced.push((hits / positives + 1.0 - false_alarms / negatives) / 2.0);
            f1.push(match positives > 0.0 {
                true => 2.0 * hits / (hits + false_alarms + positives),
                false => f64::NAN,
            });
        }
        Self { balanced, f1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_by_hand() {
        // 4 of 10 rows are of the class; 3 of them are found, and 2 others.
        let labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
        let draws = Draws::new(10);
        let answers = Answers::new([0, 2, 3, 4, 9].into_iter(), &labels, 1);
        assert_eq!(answers.hits, [0, 2, 3]);
        let of_class = draws.count(0..4);
        let scores = Scores::of(&answers, &of_class, &draws);
        assert!((scores.balanced[0] - (0.75 + 4.0 / 6.0) / 2.0).abs() < 1e-12);
        assert!((scores.f1[0] - 2.0 * 0.6 * 0.75 / (0.6 + 0.75)).abs() < 1e-12);
        let nothing = Scores::of(&Answers::default(), &of_class, &draws);
        assert_eq!((nothing.balanced[0], nothing.f1[0]), (0.5, 0.0));
        let nobody = Scores::of(&Answers::default(), &vec![0; of_class.len()], &draws);
        assert!(nobody.balanced[0].is_nan() && nobody.f1[0].is_nan());
    }
}
