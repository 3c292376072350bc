//! Mean and squared distances of rows, computed in parts that can be merged.

/// Mean of rows and squared distances to it, in f64.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    pub(crate) rows: usize,
    /// `mean(x) [d]`.
    pub(crate) mean: Vec<f64>,
    /// `sum (x - mean)^2` of each column.
    squares: Vec<f64>,
}

impl Moments {
    /// The moments of no rows.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            rows: 0,
            mean: vec![0.0; width],
            squares: vec![0.0; width],
        }
    }

    /// The moments of rows of one width.
    pub(crate) fn of(rows: &[&[f32]], width: usize) -> Self {
        let mut moments = Self::new(width);
        moments.rows = rows.len();
        for row in rows {
            let sums = moments.mean.iter_mut().zip(*row);
            sums.for_each(|(sum, x)| *sum += f64::from(*x));
        }
        for mean in &mut moments.mean {
            *mean /= rows.len().max(1) as f64;
        }
        for row in rows {
            let squares = moments.squares.iter_mut().zip(&moments.mean).zip(*row);
            squares.for_each(|((square, mean), x)| *square += (f64::from(*x) - mean).powi(2));
        }
        moments
    }

    /// Merges with the moments of other rows (Chan, Golub & LeVeque).
    pub(crate) fn add(&mut self, other: &Self) {
        if other.rows == 0 {
            return;
        }
        let (n, m) = (self.rows as f64, other.rows as f64);
        let total = n + m;
        for (i, (mean, squares)) in self.mean.iter_mut().zip(&mut self.squares).enumerate() {
            let delta = other.mean[i] - *mean;
            *mean += delta * m / total;
            *squares += other.squares[i] + delta * delta * n * m / total;
        }
        self.rows += other.rows;
    }

    /// `sum ||x - mean(x)||^2`.
    pub(crate) fn squares(&self) -> f64 {
        self.squares.iter().sum()
    }

    /// `mean ||x - mean(x)||^2`.
    pub(crate) fn variance(&self) -> f64 {
        self.squares() / self.rows.max(1) as f64
    }

    /// `mean(x)` as float32.
    pub(crate) fn mean_f32(&self) -> Vec<f32> {
        self.mean.iter().map(|mean| *mean as f32).collect()
    }

    /// `sum ||x - point||^2`.
    pub(crate) fn squares_about(&self, point: &[f64]) -> f64 {
        let moved: f64 = self
            .mean
            .iter()
            .zip(point)
            .map(|(m, p)| (m - p).powi(2))
            .sum();
        self.squares() + self.rows as f64 * moved
    }
}
