//! The product of rows with rows, `a b^T`, with one order of additions for every shape.
//!
//! `gemm` 0.19 adds up each output element in the order of d, in stretches whose length depends on d alone. Small
//! outputs are the exception: up to 256 elements are added up in lanes, outputs with both sides at most 64 have other
//! stretches, and a single row or column has its own loops. Outputs that are never small are therefore equal, number
//! for number, however rows and columns are cut, and the scores of a row do not depend on the other rows. Threads cut
//! the output, never d.

use std::cell::RefCell;

use gemm::Parallelism;

/// Outputs with both sides at most this long are small to `gemm`.
const SMALL: usize = 64;
/// With at least this many rows and columns, an output with one side above [`SMALL`] exceeds 256 elements.
const LEAST: usize = 4;

/// The (rows, columns) of a product that is not small to `gemm` and contains one of `rows` by `columns`.
fn enlarged(rows: usize, columns: usize) -> (usize, usize) {
    let least_columns = if rows > SMALL { LEAST } else { SMALL + 1 };
    (rows.max(LEAST), columns.max(least_columns))
}

/// `out = a b^T` on this thread: `a [rows, d]`, `b [columns, d]`, `out [rows, columns]`, all row-major. Small products
/// are padded with zeros.
pub(crate) fn product_nt(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    let (rows, columns) = (a.len() / d, b.len() / d);
    let large = enlarged(rows, columns);
    if rows == 0 || columns == 0 || large == (rows, columns) {
        return gemm_nt(a, b, d, out, Parallelism::None);
    }
    PADDED.with_borrow_mut(|[a_large, b_large, out_large]| {
        fill(a_large, a, large.0 * d);
        fill(b_large, b, large.1 * d);
        out_large.resize(large.0 * large.1, 0.0);
        gemm_nt(a_large, b_large, d, out_large, Parallelism::None);
        let from = out_large.chunks_exact(large.1);
        for (out, from) in out.chunks_exact_mut(columns).zip(from) {
            out.copy_from_slice(&from[..columns]);
        }
    });
}

thread_local! {
    static PADDED: RefCell<[Vec<f32>; 3]> = RefCell::default();
}

/// Sets `target` to `source`, padded with zeros to `length`.
fn fill(target: &mut Vec<f32>, source: &[f32], length: usize) {
    target.clear();
    target.extend_from_slice(source);
    target.resize(length, 0.0);
}

/// [`product_nt`] without padding, with the given parallelism.
fn gemm_nt(a: &[f32], b: &[f32], d: usize, out: &mut [f32], parallelism: Parallelism) {
    let (rows, columns) = (a.len() / d, b.len() / d);
    assert!(a.len() == rows * d && b.len() == columns * d && out.len() == rows * columns);
    let (out_row, d_row) = (columns as isize, d as isize);
    // SAFETY: the three slices have exactly the extents that the sizes and strides describe, as just
    // asserted, and `out`, being borrowed mutably, overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            d,
            out.as_mut_ptr(),
            1,
            out_row,
            false,
            a.as_ptr(),
            1,
            d_row,
            b.as_ptr(),
            d_row,
            1,
            0.0f32,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::tests::noise;
    use super::*;

    /// Every part of a product equals that part of the whole, number for number.
    #[test]
    fn parts_of_a_product_are_those_of_the_whole() {
        for d in [1, 2, 3, 19, 384, 640, 1100] {
            let (rows, columns) = (130, 140);
            let (a, b) = (noise(rows * d, 1), noise(columns * d, 2));
            let mut whole = vec![0.0; rows * columns];
            gemm_nt(&a, &b, d, &mut whole, Parallelism::None);
            for (height, width) in [
                (1, 1),
                (1, 2),
                (2, 1),
                (1, 140),
                (130, 1),
                (3, 5),
                (16, 16),
                (16, 17),
                (17, 16),
                (2, 140),
                (64, 64),
                (65, 3),
                (3, 65),
                (64, 65),
                (65, 64),
                (130, 2),
                (100, 139),
            ] {
                let mut part = vec![0.0; height * width];
                let (first_row, first_column) = ((rows - height) / 2, columns - width);
                product_nt(
                    &a[first_row * d..][..height * d],
                    &b[first_column * d..],
                    d,
                    &mut part,
                );
                for (i, part) in part.chunks_exact(width).enumerate() {
                    let of_whole = &whole[(first_row + i) * columns + first_column..][..width];
                    assert_eq!(part, of_whole, "d = {d}, {height} x {width}, row {i}");
                }
            }
        }
    }

    /// Runs `gemm` on 1, 2, 3 and 8 threads, with shapes that it splits among threads and shapes that it does not
    /// split.
    #[test]
    fn threads_change_no_sum() {
        for (rows, columns, d) in [
            (7, 640, 640),
            (1030, 96, 96),
            (512, 384, 384),
            (65, 1301, 1100),
        ] {
            let (a, b) = (noise(rows * d, 1), noise(columns * d, 2));
            let on = |threads| {
                let mut out = vec![0.0; rows * columns];
                gemm_nt(&a, &b, d, &mut out, Parallelism::Rayon(threads));
                out
            };
            let one = on(1);
            assert!([2, 3, 8].into_iter().all(|threads| on(threads) == one));
        }
    }
}
