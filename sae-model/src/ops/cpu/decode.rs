//! Products of sparse codes with dense rows, for decoding and for every gradient of encoder and decoder.
//!
//! With codes A `[B, M]` (sparse), a dictionary D `[M, d]` and rows X `[B, d]`: `A D` ([`times`]), `(X D^T)` at the
//! entries of A ([`dots`]), `A^T X` ([`transposed_times`]) and the column sums of A ([`column_sums`]). One thread adds
//! up each output element in a fixed order, so the result does not depend on the number of threads.

use rayon::prelude::*;

use super::simd::{self, Simd};
use crate::ops::codes::Pattern;

/// Minimum number of output rows per task.
const GRAIN: usize = 16;

/// `A D`: `values` at `pattern [B, M]`, `dictionary [M, d]` -> `[B, d]`.
pub(crate) fn times(
    values: &[f32],
    pattern: &Pattern,
    dictionary: &[f32],
    d: usize,
    simd: Simd,
) -> Vec<f32> {
    let mut out = vec![0.0; pattern.rows() * d];
    out.par_chunks_exact_mut(d)
        .with_min_len(GRAIN)
        .enumerate()
        .for_each(|(row, out)| {
            let entries = pattern.row(row);
            // Write before reading; otherwise each fresh page is mapped twice, which costs many times as much.
            out.fill(0.0);
            simd::add_weighted_rows(
                simd,
                out,
                &values[entries.clone()],
                &pattern.indices()[entries],
                dictionary,
            );
        });
    out
}

/// `x_i . d_j` for every entry (i, j): `x [B, d]`, `dictionary [M, d]` -> `[entries]`.
pub(crate) fn dots(
    x: &[f32],
    pattern: &Pattern,
    dictionary: &[f32],
    d: usize,
    simd: Simd,
) -> Vec<f32> {
    let mut out = vec![0.0; pattern.len()];
    let mut rows = Vec::with_capacity(pattern.rows());
    let mut rest = out.as_mut_slice();
    for row in 0..pattern.rows() {
        let (head, tail) = rest.split_at_mut(pattern.row(row).len());
        rows.push(head);
        rest = tail;
    }
    rows.into_par_iter()
        .with_min_len(GRAIN)
        .enumerate()
        .for_each(|(row, out)| {
            let indices = &pattern.indices()[pattern.row(row)];
            simd::dot_rows(simd, out, &x[row * d..][..d], indices, dictionary);
        });
    out
}

/// The sum of `A^T X` over the terms (A, X), written once: values at `pattern [B, M]`, `x [B, d]` -> `[M, d]`. With two
/// terms, it is the gradient of a dictionary that both encodes and decodes.
pub(crate) fn transposed_times(
    terms: &[(&[f32], &[f32])],
    pattern: &Pattern,
    d: usize,
    simd: Simd,
) -> Vec<f32> {
    let by_latent = pattern.by_latent();
    let mut out = vec![0.0; pattern.latents() * d];
    out.par_chunks_exact_mut(d)
        .with_min_len(GRAIN)
        .enumerate()
        .for_each_init(Vec::new, |weights, (latent, out)| {
            let entries = by_latent.offsets[latent]..by_latent.offsets[latent + 1];
            let rows = &by_latent.rows[entries.clone()];
            let positions = &by_latent.positions[entries];
            out.fill(0.0); // as in `times`
            for (values, x) in terms {
                weights.clear();
                weights.extend(positions.iter().map(|p| values[*p as usize]));
                simd::add_weighted_rows(simd, out, weights, rows, x);
            }
        });
    out
}

/// Sum over the rows of `values` at `pattern [B, M]` -> `[M]`, added up in f64.
pub(crate) fn column_sums(values: &[f32], pattern: &Pattern) -> Vec<f32> {
    let mut sums = vec![0.0f64; pattern.latents()];
    for (j, v) in pattern.indices().iter().zip(values) {
        sums[*j as usize] += f64::from(*v);
    }
    sums.into_iter().map(|s| s as f32).collect()
}
