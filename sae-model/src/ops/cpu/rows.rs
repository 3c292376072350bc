//! Row-wise steps before and after the dictionary, each in one pass over `[B, d]`.
//!
//! Made of Burn's primitives, they take about thirty passes per training step, each with its own memory. With small
//! dictionaries, this costs as much as a third of the dense product.

use rayon::prelude::*;

/// Smallest squared norm, so that a row equal to the pre-bias has a finite gradient.
pub(crate) const TINY: f64 = 1e-24;
/// Minimum number of rows per task.
const GRAIN: usize = 64;

/// The divisor of a row before the dictionary, and its factor after it: `n = s (||x0|| / s)^p`. With exponent `p = 1`,
/// n is the row's norm (and u has length one); with `p = 0`, n is s for all rows.
///
/// The exponent applies to lengths from `s / range` to `s range`. Outside, n is proportional to the length, and u keeps
/// the length that it has at that end: `n = s r'^p r / r'` with `r = ||x0|| / s` and r' the number in the range nearest
/// to r.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    /// p.
    pub(crate) exponent: f32,
    /// s.
    pub(crate) scale: f32,
    /// Infinite if the exponent applies to every length.
    pub(crate) range: f32,
}

impl Norm {
    /// n of a row `x0 = x - b`.
    fn of(self, x0: &[f32]) -> f32 {
        if self.exponent == 0.0 && self.range.is_infinite() {
            return self.scale;
        }
        let length = dot(x0, x0).max(TINY as f32).sqrt();
        if self.exponent == 1.0 {
            return length;
        }
        let ratio = length / self.scale;
        let near = ratio.clamp(1.0 / self.range, self.range);
        let n = self.scale * near.powf(self.exponent);
        if near == ratio { n } else { n * (ratio / near) }
    }

    /// The exponent that applies to the row with this u and n: p, or 1 outside the range.
    fn exponent_at(self, u: &[f32], n: f32) -> f32 {
        if self.range.is_infinite() {
            return self.exponent;
        }
        let ratio = squared_length(u).sqrt() * n / self.scale;
        if (1.0 / self.range..=self.range).contains(&ratio) {
            self.exponent
        } else {
            1.0
        }
    }
}

/// `u = (x - b) / n`: `x [B, d]` -> `(u [B, d], n [B])`. An empty bias means zero.
pub(crate) fn normalize(x: &[f32], bias: &[f32], d: usize, norm: Norm) -> (Vec<f32>, Vec<f32>) {
    let (mut u, mut norms) = (vec![0.0; x.len()], vec![0.0; x.len() / d]);
    let rows = (
        u.par_chunks_exact_mut(d),
        x.par_chunks_exact(d),
        norms.par_iter_mut(),
    );
    rows.into_par_iter()
        .with_min_len(GRAIN)
        .for_each(|(u, x, n)| {
            u.copy_from_slice(x);
            if !bias.is_empty() {
                u.iter_mut().zip(bias).for_each(|(u, b)| *u -= b);
            }
            *n = norm.of(u);
            let inverse = 1.0 / *n;
            u.iter_mut().for_each(|u| *u *= inverse);
        });
    (u, norms)
}

/// The bias gradient of [`normalize`] from `grad [B, d]` with respect to u:
/// `dx0 = (du - p u (u . du) / ||u||^2) / n`, `db = -sum of dx0`.
pub(crate) fn normalize_backward(
    u: &[f32],
    norms: &[f32],
    grad: &[f32],
    d: usize,
    norm: Norm,
) -> Vec<f32> {
    sum_rows(norms.len(), d, |row, sums| {
        let (u, g) = (&u[row * d..][..d], &grad[row * d..][..d]);
        let inverse = 1.0 / norms[row];
        let along = match norm.exponent_at(u, norms[row]) {
            0.0 => 0.0,
            p => p * dot(u, g) / squared_length(u),
        };
        for ((s, u), g) in sums.iter_mut().zip(u).zip(g) {
            *s -= (g - along * u) * inverse;
        }
    })
}

/// The bias gradient of `q = u W` from `grad [B, d]` with respect to q, without `du = dq W^T`, because `u . du = q . dq`:
/// `db = sum_i p (q_i . dq_i) u_i / (||u_i||^2 n_i) - (sum_i dq_i / n_i) W^T`.
pub(crate) fn project_backward(
    (u, q, norms): (&[f32], &[f32], &[f32]),
    weight: &[f32],
    grad: &[f32],
    d: usize,
    norm: Norm,
) -> Vec<f32> {
    let along = sum_rows(norms.len(), d, |row, sums| {
        let range = row * d..(row + 1) * d;
        let (u, q, g) = (&u[range.clone()], &q[range.clone()], &grad[range]);
        let exponent = norm.exponent_at(u, norms[row]);
        let factor = exponent * dot(q, g) / squared_length(u) / norms[row];
        sums.iter_mut().zip(u).for_each(|(s, u)| *s += factor * u);
    });
    let scaled = sum_rows(norms.len(), d, |row, sums| {
        let inverse = 1.0 / norms[row];
        sums.iter_mut()
            .zip(&grad[row * d..][..d])
            .for_each(|(s, g)| *s += g * inverse);
    });
    let through = weight
        .chunks_exact(d)
        .map(|row| row.iter().zip(&scaled).map(|(w, s)| w * s).sum());
    let pairs = along.iter().zip(through);
    pairs.map(|(a, t): (&f32, f32)| a - t).collect()
}

/// `||u||^2`, but never zero.
fn squared_length(u: &[f32]) -> f32 {
    dot(u, u).max(f32::MIN_POSITIVE)
}

/// `x_hat = b + factor * n * y`: `y [B, d]` -> `[B, d]`.
pub(crate) fn restore(y: &[f32], bias: &[f32], norms: &[f32], d: usize, factor: f32) -> Vec<f32> {
    let mut out = vec![0.0; y.len()];
    let rows = (
        out.par_chunks_exact_mut(d),
        y.par_chunks_exact(d),
        norms.par_iter(),
    );
    rows.into_par_iter()
        .with_min_len(GRAIN)
        .for_each(|(out, y, n)| {
            let n = n * factor;
            if bias.is_empty() {
                out.iter_mut().zip(y).for_each(|(o, y)| *o = n * y);
            } else {
                out.iter_mut()
                    .zip(y)
                    .zip(bias)
                    .for_each(|((o, y), b)| *o = n * y + b);
            }
        });
    out
}

/// The gradients of [`restore`] from `grad [B, d]`: `dy = factor * n * grad`, and that of the bias, which also acts
/// through n: `dn = factor * grad . y`, `dx0 = dn p u / ||u||^2`.
pub(crate) fn restore_backward(
    (y, u, norms): (&[f32], &[f32], &[f32]),
    grad: &[f32],
    d: usize,
    factor: f32,
    norm: Norm,
) -> (Vec<f32>, Vec<f32>) {
    let mut dy = vec![0.0; y.len()];
    let rows = (
        dy.par_chunks_exact_mut(d),
        grad.par_chunks_exact(d),
        norms.par_iter(),
    );
    rows.into_par_iter()
        .with_min_len(GRAIN)
        .for_each(|(dy, g, n)| {
            let n = n * factor;
            dy.iter_mut().zip(g).for_each(|(dy, g)| *dy = n * g);
        });
    let bias = sum_rows(norms.len(), d, |row, sums| {
        let (y, u, g) = (
            &y[row * d..][..d],
            &u[row * d..][..d],
            &grad[row * d..][..d],
        );
        let along = match norm.exponent_at(u, norms[row]) {
            0.0 => 0.0,
            p => p * factor * dot(y, g) / squared_length(u),
        };
        for ((s, u), g) in sums.iter_mut().zip(u).zip(g) {
            *s += g - along * u;
        }
    });
    (dy, bias)
}

/// `sum (x_hat - x)^2`, added up in f64.
pub(crate) fn squared_error(x_hat: &[f32], x: &[f32]) -> f64 {
    let partial: Vec<f64> = (x_hat.par_chunks(CHUNK), x.par_chunks(CHUNK))
        .into_par_iter()
        .map(|(a, b)| {
            let mut sums = [0.0f32; LANES];
            let (a_lanes, a_rest) = a.as_chunks::<LANES>();
            let (b_lanes, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a_lanes.iter().zip(b_lanes) {
                for lane in 0..LANES {
                    let e = a[lane] - b[lane];
                    sums[lane] += e * e;
                }
            }
            let rest: f32 = a_rest
                .iter()
                .zip(b_rest)
                .map(|(a, b)| (a - b) * (a - b))
                .sum();
            f64::from(rest) + sums.iter().map(|s| f64::from(*s)).sum::<f64>()
        })
        .collect();
    partial.iter().sum()
}

/// `sum x^2`, which is finite exactly if every number is and the sum does not overflow. The f32 sums of chunks are
/// added up in f64.
pub(crate) fn squared_norm(x: &[f32]) -> f64 {
    let of_chunk = |x: &[f32]| {
        let mut sums = [0.0f32; LANES];
        let (lanes, rest) = x.as_chunks::<LANES>();
        for x in lanes {
            for lane in 0..LANES {
                sums[lane] += x[lane] * x[lane];
            }
        }
        let rest: f32 = rest.iter().map(|x| x * x).sum();
        f64::from(rest) + sums.iter().map(|s| f64::from(*s)).sum::<f64>()
    };
    let partial: Vec<f64> = x.par_chunks(CHUNK).map(of_chunk).collect();
    partial.iter().sum()
}

/// `2 * scale * (x_hat - x)`.
pub(crate) fn squared_error_backward(x_hat: &[f32], x: &[f32], scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    (
        out.par_chunks_mut(CHUNK),
        x_hat.par_chunks(CHUNK),
        x.par_chunks(CHUNK),
    )
        .into_par_iter()
        .for_each(|(out, a, b)| {
            out.iter_mut()
                .zip(a)
                .zip(b)
                .for_each(|((o, a), b)| *o = 2.0 * scale * (a - b));
        });
    out
}

/// `g - (g . p) p`: the part of a gradient that does not change the length of the row p, which is one.
pub(crate) fn across(grad: &[f32], param: &[f32], out: &mut [f32]) {
    let along = dot(grad, param);
    for ((out, g), p) in out.iter_mut().zip(grad).zip(param) {
        *out = g - along * p;
    }
}

/// Scales a row to length one.
pub(crate) fn to_unit(row: &mut [f32]) {
    let length = dot(row, row).max(TINY as f32).sqrt();
    row.iter_mut().for_each(|value| *value /= length);
}

/// Number of floats per task; f32 sums have at most `CHUNK / LANES` terms.
const CHUNK: usize = 1 << 14;
const LANES: usize = 16;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    rest + sums.iter().sum::<f32>()
}

/// Sums over the rows, `[d]`; `add` adds one row. The rows are summed in blocks of a fixed size, so that the order of
/// additions does not depend on the number of threads.
fn sum_rows(rows: usize, d: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = (0..rows.div_ceil(GRAIN))
        .into_par_iter()
        .map(|block| {
            let mut sums = vec![0.0; d];
            for row in block * GRAIN..((block + 1) * GRAIN).min(rows) {
                add(row, &mut sums);
            }
            sums
        })
        .collect();
    let mut total = vec![0.0f64; d];
    for sums in blocks {
        total
            .iter_mut()
            .zip(sums)
            .for_each(|(t, s)| *t += f64::from(s));
    }
    total.into_iter().map(|t| t as f32).collect()
}
