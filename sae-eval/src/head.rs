//! The zero-shot head: the class whose embedding has the largest cosine with a row.

use burn::tensor::{Device, Int, Tensor, TensorData};
use sae_data::ClassHead;

/// Class embeddings, ready to classify.
pub(crate) struct Head {
    /// Unit rows, transposed: `[d, classes]`.
    weights: Tensor<2>,
    /// Name of each class.
    pub(crate) names: Vec<String>,
}

impl Head {
    /// Normalises the class embeddings of the data.
    pub(crate) fn new(classes: ClassHead, device: &Device) -> Self {
        let ClassHead {
            embeddings,
            names,
            width,
        } = classes;
        let embeddings = TensorData::new(embeddings, [names.len(), width]);
        let weights = Tensor::<2>::from_data(embeddings, device);
        let norms = weights.clone().square().sum_dim(1).sqrt().clamp_min(1e-12); // [classes, 1]
        Self {
            weights: (weights / norms).transpose(),
            names,
        }
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.names.len()
    }

    /// The class of each row of `x [B, d]`. A row's own norm does not change which cosine is largest.
    pub(crate) fn classify(&self, x: Tensor<2>) -> Vec<usize> {
        let best: Tensor<2, Int> = x.matmul(self.weights.clone()).argmax(1); // [B, 1]
        best.into_data()
            .iter::<i64>()
            .map(|class| class as usize)
            .collect()
    }
}

/// Number of right answers per class.
#[derive(Clone, Debug)]
pub(crate) struct Accuracy {
    right: Vec<u64>,
    rows: Vec<u64>,
}

impl Accuracy {
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            right: vec![0; classes],
            rows: vec![0; classes],
        }
    }

    /// Adds the answers for those rows of a batch whose label `counts`.
    pub(crate) fn add(
        &mut self,
        answers: &[usize],
        labels: &[usize],
        counts: impl Fn(&usize) -> bool,
    ) {
        let rows = answers.iter().zip(labels);
        for (answer, label) in rows.filter(|(_, label)| counts(label)) {
            self.right[*label] += u64::from(answer == label);
            self.rows[*label] += 1;
        }
    }

    /// Number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.rows.len()
    }

    /// Number of rows of a class, and the share of them answered correctly (`None` without rows).
    pub(crate) fn of_class(&self, class: usize) -> (u64, Option<f64>) {
        let rows = self.rows[class];
        (
            rows,
            (rows > 0).then(|| self.right[class] as f64 / rows as f64),
        )
    }

    /// Mean over classes of the accuracy within each; classes without rows do not count.
    pub(crate) fn over_classes(&self) -> f64 {
        let each: Vec<f64> = (0..self.rows.len())
            .filter_map(|class| self.of_class(class).1)
            .collect();
        each.iter().sum::<f64>() / each.len() as f64
    }

    /// Share of all rows answered correctly.
    pub(crate) fn over_rows(&self) -> f64 {
        self.right.iter().sum::<u64>() as f64 / self.rows.iter().sum::<u64>() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let mut accuracy = Accuracy::new(3);
        accuracy.add(&[0, 1, 1], &[0, 0, 1], |_| true);
        accuracy.add(&[0, 1], &[0, 1], |label| *label == 0);
        assert_eq!(accuracy.over_rows(), 0.75);
        assert_eq!(accuracy.over_classes(), (2.0 / 3.0 + 1.0) / 2.0); // class 2 has no rows
        assert_eq!(accuracy.of_class(2), (0, None));
    }

    #[test]
    fn cosine_decides_not_the_length_of_an_embedding() {
        let device = Device::flex();
        let names = vec!["long".into(), "short".into()];
        let classes = ClassHead {
            embeddings: vec![10.0, 0.0, 0.1, 0.1],
            names,
            width: 2,
        };
        let head = Head::new(classes, &device);
        let x = Tensor::from_data([[1.0, 1.0], [1.0, 0.1]], &device);
        assert_eq!(head.classify(x), [1, 0]);
    }
}
