//! How decoder directions lie to each other: nearest latents by cosine, all cosines as a histogram, and the two
//! directions in which the dictionary spreads most (PCA). Work grows with the number of latents, not with its square:
//! beyond [`COMPARED`] latents only the most frequent ones are compared with all.

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;
use sae_model::Sae;

use crate::directions::directions;
use crate::model::values;

/// Latents that are compared with all others.
pub(super) const COMPARED: usize = 4096;
/// Nearest latents that are kept.
pub(super) const NEAREST: usize = 5;
/// Bins of the histogram of cosines, from -1 to 1.
pub(super) const COSINE_BINS: usize = 80;
/// Cosines computed at a time: 4 MB, which stay in the cache, and whose memory is used again.
const AT_A_TIME: usize = 1 << 20;
/// Directions that subspace iteration follows; more than two, so that these two converge.
const SUBSPACE: usize = 8;
/// Widths up to which they are multiplied with `X^T X`, `[d, d]`.
const GRAM: usize = 1024;
/// Rounds of subspace iteration.
const ROUNDS: usize = 16;

/// A latent and how close it is.
pub(super) type Near = (u32, f32);

/// The geometry of the decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decoder {
    /// For each latent its nearest ones; empty if it was not compared.
    pub(super) near: Vec<Vec<Near>>,
    /// Number of latents that were compared with all.
    pub(super) compared: usize,
    /// Pairs by their cosine.
    pub(super) cosines: Vec<u64>,
    /// Place of each latent in the plane of the first two principal components.
    pub(super) plane: Vec<[f32; 2]>,
    /// Parts of the directions' variance along these.
    pub(super) explained: [f64; 2],
}

/// Measures the geometry; `fired` are the rows on which each latent is active.
pub(super) fn measure(sae: &Sae, fired: &[u64]) -> Decoder {
    let unit = directions(sae);
    let [latents, _] = unit.dims();
    let mut order: Vec<u32> = (0..latents as u32).collect();
    if latents > COMPARED {
        order.sort_by_key(|j| (std::cmp::Reverse(fired[*j as usize]), *j));
        order.truncate(COMPARED);
        order.retain(|j| fired[*j as usize] > 0);
    }
    let mut found = Decoder {
        near: vec![Vec::new(); latents],
        compared: order.len(),
        cosines: vec![0; COSINE_BINS],
        ..Decoder::default()
    };
    let transposed = unit.clone().transpose(); // [d, M]
    for block in order.chunks((AT_A_TIME / latents).max(1)) {
        let chosen: Vec<i32> = block.iter().map(|j| *j as i32).collect();
        let chosen = Tensor::<1, Int>::from_data(chosen.as_slice(), &unit.device());
        let own = unit.clone().select(0, chosen); // [n, d]
        found.add(block, &values(own.matmul(transposed.clone())), latents);
    }
    drop(transposed);
    (found.plane, found.explained) = plane(unit, fired);
    found
}

impl Decoder {
    /// Adds the cosines of some latents with all.
    fn add(&mut self, block: &[u32], cosines: &[f32], latents: usize) {
        let each: Vec<(Vec<Near>, Vec<u64>)> = block
            .par_iter()
            .zip(cosines.par_chunks_exact(latents))
            .map(|(j, row)| nearest(*j, row))
            .collect();
        for (j, (near, counts)) in block.iter().zip(each) {
            self.near[*j as usize] = near;
            for (all, count) in self.cosines.iter_mut().zip(counts) {
                *all += count;
            }
        }
    }
}

/// The nearest latents of latent `own` by its cosines with all, and the cosines by bins.
fn nearest(own: u32, cosines: &[f32]) -> (Vec<Near>, Vec<u64>) {
    let mut near: Vec<Near> = Vec::with_capacity(NEAREST + 1);
    let mut counts = vec![0; COSINE_BINS];
    let mut least = f32::NEG_INFINITY; // of the nearest ones, once there are enough
    for (j, cosine) in (0u32..).zip(cosines) {
        if j == own || !cosine.is_finite() {
            continue;
        }
        let bin = (cosine + 1.0) * (COSINE_BINS as f32 / 2.0);
        counts[(bin as usize).min(COSINE_BINS - 1)] += 1;
        if *cosine > least {
            insert(&mut near, (j, *cosine), NEAREST);
            if near.len() == NEAREST {
                least = near[NEAREST - 1].1;
            }
        }
    }
    (near, counts)
}

/// Inserts into a list that falls, of at most `most` entries; of equal ones the first stays first.
pub(super) fn insert(near: &mut Vec<Near>, entry: Near, most: usize) {
    if near.len() == most && near.last().is_some_and(|last| last.1 >= entry.1) {
        return;
    }
    let place = near.partition_point(|other| other.1 >= entry.1);
    near.truncate(most - 1);
    near.insert(place, entry);
}

/// Each direction's place in the plane of largest variance, and the parts of the variance along its two axes. Found by
/// subspace iteration on the directions of live latents (Halko, Martinsson & Tropp 2011, algorithm 4.4).
fn plane(unit: Tensor<2>, fired: &[u64]) -> (Vec<[f32; 2]>, [f64; 2]) {
    let [latents, width] = unit.dims();
    let device = unit.device();
    let mask: Vec<f32> = fired.iter().map(|n| f32::from(u8::from(*n > 0))).collect();
    let live = mask.iter().sum::<f32>();
    let size = SUBSPACE.min(width);
    if live < 3.0 || size < 2 {
        return (vec![[0.0; 2]; latents], [0.0; 2]);
    }
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [latents, 1]), &device);
    let mean = mask.clone().transpose().matmul(unit.clone()) / live; // [1, d]
    let centred = unit - mean;
    let masked = match live as usize == latents {
        true => centred.clone(),
        false => centred.clone() * mask,
    };
    let variance = masked.clone().square().sum().into_scalar::<f32>();
    let variance = f64::from(variance);
    // With few columns, products of the subspace with X^T X are cheaper than those with X and X^T in each round.
    let gram = (width <= GRAM).then(|| masked.clone().transpose().matmul(masked.clone()));
    let mut basis: Vec<Vec<f64>> = (0..size).map(|k| start(k, width)).collect();
    let mut projected = centred.clone();
    for round in 1..=ROUNDS {
        orthonormalise(&mut basis);
        let q = basis.iter().flatten().map(|v| *v as f32).collect();
        let q = Tensor::<2>::from_data(TensorData::new::<f32, _>(q, [size, width]), &device);
        if round == ROUNDS {
            projected = centred.matmul(q.transpose()); // [M, k]
            break;
        }
        let z = match &gram {
            Some(gram) => q.matmul(gram.clone()),
            None => {
                let y = masked.clone().matmul(q.transpose()); // [M, k]
                y.transpose().matmul(masked.clone())
            }
        }; // [k, d]
        let z = values(z);
        basis = z
            .chunks_exact(width)
            .map(|row| row.iter().map(|v| f64::from(*v)).collect())
            .collect();
    }
    let y = values(projected);
    let (first, second) = principal(&y, size, fired);
    let along = |row: &[f32], axis: &[f64]| -> f32 {
        row.iter()
            .zip(axis)
            .map(|(y, v)| f64::from(*y) * v)
            .sum::<f64>() as f32
    };
    let places = y
        .chunks_exact(size)
        .map(|row| [along(row, &first.1), along(row, &second.1)]);
    (
        places.collect(),
        [first.0, second.0].map(|value| value / variance.max(1e-30)),
    )
}

/// A vector to start from, the same in every run.
fn start(k: usize, width: usize) -> Vec<f64> {
    let entry =
        |i: usize| f64::from(super::tally::hash(k as u32, i as u64)) / f64::from(u32::MAX) - 0.5;
    (0..width).map(entry).collect()
}

/// Gram-Schmidt, twice for numerical orthogonality.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for k in 0..basis.len() {
        let (done, rest) = basis.split_at_mut(k);
        let vector = &mut rest[0];
        for other in done.iter().chain(done.iter()) {
            let along = dot(vector, other);
            vector
                .iter_mut()
                .zip(other)
                .for_each(|(v, o)| *v -= along * o);
        }
        let norm = dot(vector, vector).sqrt().max(1e-30);
        vector.iter_mut().for_each(|v| *v /= norm);
    }
}

/// The two largest eigenvalues, with their vectors, of `y^T y` over the live rows of `y [M, k]`.
fn principal(y: &[f32], size: usize, fired: &[u64]) -> ((f64, Vec<f64>), (f64, Vec<f64>)) {
    let mut gram = vec![vec![0.0; size]; size];
    for (row, _) in y.chunks_exact(size).zip(fired).filter(|(_, n)| **n > 0) {
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate() {
                gram[i][j] += f64::from(*a) * f64::from(*b);
            }
        }
    }
    let mut pairs = eigen(gram);
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut pairs = pairs.into_iter().map(|(value, mut vector)| {
        let largest = vector
            .iter()
            .copied()
            .fold(0.0, |m: f64, v| if v.abs() > m.abs() { v } else { m });
        vector.iter_mut().for_each(|v| *v *= largest.signum());
        (value, vector)
    });
    let mut next = || pairs.next().unwrap_or((0.0, vec![0.0; size]));
    (next(), next())
}

/// Eigenvalues and eigenvectors of a small symmetric matrix, by Jacobi's rotations.
fn eigen(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    let n = a.len();
    let mut v: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
        .collect();
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q].abs() < 1e-300 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (above, below) = a.split_at_mut(q);
                for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
                for row in &mut v {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
            }
        }
    }
    (0..n)
        .map(|j| (a[j][j], v.iter().map(|row| row[j]).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn eigenvalues_by_hand() {
        let mut pairs = eigen(vec![vec![2.0, 1.0], vec![1.0, 2.0]]);
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert!((pairs[0].0 - 3.0).abs() < 1e-12 && (pairs[1].0 - 1.0).abs() < 1e-12);
        assert!((pairs[0].1[0] - pairs[0].1[1]).abs() < 1e-12);
    }

    #[test]
    fn the_plane_has_the_largest_variance() {
        // variance 9 along the second axis, 4 along the fourth, little elsewhere; the last two latents are dead
        let mut rows = Vec::new();
        for i in 0..202u64 {
            let noise =
                |k: u32| f64::from(super::super::tally::hash(k, i)) / f64::from(u32::MAX) - 0.5;
            rows.extend(
                [
                    0.1 * noise(0),
                    6.0 * noise(1),
                    0.1 * noise(2),
                    4.0 * noise(3),
                    0.1 * noise(4),
                ]
                .map(|v| v as f32),
            );
        }
        let fired: Vec<u64> = (0..202).map(|i| u64::from(i < 200)).collect();
        let unit = Tensor::<2>::from_data(TensorData::new(rows.clone(), [202, 5]), &Device::flex());
        let (places, explained) = plane(unit, &fired);
        assert!(
            explained[0] > explained[1] && explained[0] + explained[1] > 0.99,
            "{explained:?}"
        );
        let mean: Vec<f32> = (0..5)
            .map(|c| (0..200).map(|i| rows[i * 5 + c]).sum::<f32>() / 200.0)
            .collect();
        for (i, place) in places.iter().enumerate() {
            let expected = [rows[i * 5 + 1] - mean[1], rows[i * 5 + 3] - mean[3]];
            assert!(
                (place[0].abs() - expected[0].abs()).abs() < 0.1,
                "{place:?} {expected:?}"
            );
            assert!(
                (place[1].abs() - expected[1].abs()).abs() < 0.15,
                "{place:?} {expected:?}"
            );
        }
    }

    #[test]
    fn nearest_latents_by_hand() {
        let (near, counts) = nearest(1, &[0.5, 1.0, -0.9, 0.5, 0.7, f32::NAN]);
        assert_eq!(near, [(4, 0.7), (0, 0.5), (3, 0.5), (2, -0.9)]);
        assert_eq!(counts.iter().sum::<u64>(), 4);
        assert_eq!(counts[(1.5 * COSINE_BINS as f32 / 2.0) as usize], 2);
    }
}
