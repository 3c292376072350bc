//! The zero-shot head: the class whose embedding has the largest cosine with a row.

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, Int, Tensor, TensorData};
use sae_data::ActivationData;

/// Class embeddings, ready to classify.
pub(crate) struct Head {
    /// Unit rows, transposed: `[d, classes]`.
    weights: Tensor<2>,
    /// Name of each class.
    pub(crate) names: Vec<String>,
}

impl Head {
    /// From `weights [classes, width]`.
    pub(crate) fn new(
        weights: Vec<f32>,
        width: usize,
        names: Vec<String>,
        device: &Device,
    ) -> Self {
        let weights =
            Tensor::<2>::from_data(TensorData::new(weights, [names.len(), width]), device);
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

    /// The labels of rows `start..start + count`, checked against the number of classes.
    pub(crate) fn labels(
        &self,
        data: &ActivationData,
        start: usize,
        count: usize,
    ) -> Result<Vec<usize>> {
        let (classes, path) = (self.classes(), data.path().display());
        let labels = data.labels(start..start + count)?;
        let labels = labels.with_context(|| format!("{path} has no labels"))?;
        if let Some(at) = labels.iter().position(|label| *label >= classes) {
            let (row, label) = (start + at, labels[at]);
            bail!("{path}: row {row} has label {label}, but there are {classes} class embeddings");
        }
        Ok(labels)
    }
}

/// Right answers by class.
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

    /// Adds the answers of a batch to those rows whose label `counts`.
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

    /// Rows of a class, and the part of them answered rightly (none if there are no rows).
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

    /// Right answers over all rows.
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
        let head = Head::new(vec![10.0, 0.0, 0.1, 0.1], 2, names, &device);
        let x = Tensor::from_data([[1.0, 1.0], [1.0, 0.1]], &device);
        assert_eq!(head.classify(x), [1, 0]);
    }
}
