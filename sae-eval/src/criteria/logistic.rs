//! Logistic regression on a few columns, by Newton's method.
//!
//! The crates for it (linfa-logistic 0.8, smartcore 0.7) have no weights. Weights balance classes of unequal size, and
//! let equal rows, of which sparse codes have thousands, be merged into one.

/// Strength of the penalty, as scikit-learn's `C = 1`.
const PENALTY: f64 = 1.0;
/// Limit of Newton steps; about ten suffice.
const MOST_STEPS: usize = 100;

/// Rows `x [n, k]` with their targets `y [n]` and weights `[n]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) k: usize,
    pub(super) x: Vec<f64>,
    pub(super) y: Vec<bool>,
    pub(super) weights: Vec<f64>,
}

impl Rows {
    /// Score of a row: `beta . x` plus the intercept, which is the last element of `beta [k + 1]`.
    pub(super) fn score(beta: &[f64], x: &[f64]) -> f64 {
        let products = beta.iter().zip(x).map(|(b, x)| b * x);
        products.sum::<f64>() + beta[x.len()]
    }

    /// Loss `sum_i w_i log(1 + exp(-s_i z_i)) + PENALTY / 2 sum_j beta_j^2`, where `s_i` is 1 or -1; the intercept has
    /// no penalty.
    fn loss(&self, beta: &[f64]) -> f64 {
        let squares: f64 = beta[..self.k].iter().map(|b| b * b).sum();
        let each = (0..self.y.len()).map(|i| {
            let z = Self::score(beta, &self.x[i * self.k..][..self.k]);
            let s = if self.y[i] { -z } else { z };
            self.weights[i] * (s.max(0.0) + (-s.abs()).exp().ln_1p())
        });
        each.sum::<f64>() + PENALTY / 2.0 * squares
    }

    /// Gradient `[k + 1]` and lower half of the Hessian `[k + 1, k + 1]` of the loss.
    fn derivatives(&self, beta: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let m = self.k + 1;
        let (mut gradient, mut hessian) = (vec![0.0; m], vec![0.0; m * m]);
        for j in 0..self.k {
            gradient[j] = PENALTY * beta[j];
            hessian[j * m + j] = PENALTY;
        }
        let mut row = vec![1.0; m];
        for i in 0..self.y.len() {
            row[..self.k].copy_from_slice(&self.x[i * self.k..][..self.k]);
            let p = 1.0 / (1.0 + (-Self::score(beta, &row[..self.k])).exp());
            let slope = self.weights[i] * (p - f64::from(u8::from(self.y[i])));
            let curvature = self.weights[i] * p * (1.0 - p);
            for a in 0..m {
                gradient[a] += slope * row[a];
                for b in 0..=a {
                    hessian[a * m + b] += curvature * row[a] * row[b];
                }
            }
        }
        (gradient, hessian)
    }

    /// The `beta [k + 1]` that minimises the loss, which is convex.
    pub(super) fn fit(&self) -> Vec<f64> {
        let mut beta = vec![0.0; self.k + 1];
        let mut loss = self.loss(&beta);
        for _ in 0..MOST_STEPS {
            let (gradient, hessian) = self.derivatives(&beta);
            let step = solved(hessian, gradient.clone());
            let decrement: f64 = step.iter().zip(&gradient).map(|(s, g)| s * g).sum();
            let mut part = 1.0;
            let (next, lower) = loop {
                let next: Vec<f64> = beta.iter().zip(&step).map(|(b, s)| b - part * s).collect();
                let lower = self.loss(&next);
                if lower <= loss - 1e-4 * part * decrement || part < 1e-9 {
                    break (next, lower);
                }
                part /= 2.0;
            };
            if decrement.is_nan() || decrement <= 1e-13 * (1.0 + loss) || lower >= loss {
                break;
            }
            (beta, loss) = (next, lower);
        }
        beta
    }
}

/// Solves `a x = b` for a positive definite `a [m, m]`, of which it reads the lower half (Cholesky).
fn solved(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let m = b.len();
    for j in 0..m {
        for i in j..m {
            let done: f64 = (0..j).map(|k| a[i * m + k] * a[j * m + k]).sum();
            let rest = a[i * m + j] - done;
            a[i * m + j] = match i == j {
                true => rest.max(1e-12).sqrt(), // certain predictions leave the intercept no curvature
                false => rest / a[j * m + j],
            };
        }
        let done: f64 = (0..j).map(|k| a[j * m + k] * b[k]).sum();
        b[j] = (b[j] - done) / a[j * m + j];
    }
    for j in (0..m).rev() {
        let done: f64 = (j + 1..m).map(|i| a[i * m + j] * b[i]).sum();
        b[j] = (b[j] - done) / a[j * m + j];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 rows with two different weights and two columns, the second mostly zero.
    fn rows() -> Rows {
        let mut rows = Rows {
            k: 2,
            ..Rows::default()
        };
        for i in 0..40 {
            let t = f64::from(i);
            rows.x.push((1.7 * t).sin() + t / 20.0);
            rows.x.push(if i % 3 == 0 { (t - 11.0) / 8.0 } else { 0.0 });
            rows.y.push((0.9 * t).cos() + t / 15.0 > 1.2);
            rows.weights.push(if i % 2 == 0 { 1.0 } else { 2.5 });
        }
        rows
    }

    /// Coefficients of scikit-learn 1.9.1: `LogisticRegression(C=1, tol=1e-12, solver="newton-cholesky").fit(x, y,
    /// sample_weight=weights)`; lbfgs finds the same.
    #[test]
    fn scikit_learn_finds_the_same() {
        let beta = rows().fit();
        for (ours, theirs) in beta.iter().zip([0.47872795, 1.12900437, -0.61891457]) {
            assert!((ours - theirs).abs() < 1e-8, "{beta:?}");
        }
    }

    #[test]
    fn equal_rows_may_be_one_of_their_weight() {
        let mut twice = rows();
        let copy = twice.clone();
        twice.x.extend(&copy.x);
        twice.y.extend(&copy.y);
        twice.weights.extend(&copy.weights);
        let heavy = Rows {
            weights: copy.weights.iter().map(|w| 2.0 * w).collect(),
            ..copy
        };
        for (a, b) in twice.fit().iter().zip(heavy.fit()) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }

    /// Separable classes, huge values, one class only, constant columns: all results stay finite.
    #[test]
    fn hard_cases_end() {
        for scale in [1e-3, 1.0, 1e3, 1e6] {
            let x = (0..20).map(|i| scale * f64::from(i - 10)).collect();
            let y = (0..20).map(|i| i >= 10).collect();
            let mut rows = Rows {
                k: 1,
                x,
                y,
                weights: vec![1.0; 20],
            };
            let beta = rows.fit();
            assert!(
                beta.iter().all(|b| b.is_finite()) && beta[0] > 0.0,
                "{beta:?}"
            );
            rows.y = vec![true; 20];
            assert!(rows.fit().iter().all(|b| b.is_finite()));
            rows.x = vec![scale; 20];
            assert!(rows.fit().iter().all(|b| b.is_finite()));
        }
    }
}
