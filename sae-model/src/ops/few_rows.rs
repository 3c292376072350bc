//! Products of few rows. `gemm` adds up small outputs in another order than large ones (`cpu/product.rs`), so the codes of
//! a row alone would differ in their last bits from those of the same row in a batch. A few rows are therefore filled up.

use burn::tensor::Tensor;

/// Products with so many rows (and at least four columns) are not small to `gemm`.
const ENOUGH: usize = 65;

/// `x W`, `[B, d]`: a row of it does not depend on the number of rows.
pub(crate) fn product(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let [rows, _] = x.dims();
    first(filled(x, 0.0).matmul(weight), rows)
}

/// The rows `x [B, c]`, and rows of `value` behind them if they are few.
pub(super) fn filled(x: Tensor<2>, value: f32) -> Tensor<2> {
    let [rows, columns] = x.dims();
    if rows >= ENOUGH {
        return x;
    }
    let more = Tensor::full([ENOUGH - rows, columns], value, &x.device());
    Tensor::cat(vec![x, more], 0)
}

/// The first `rows` rows.
pub(super) fn first(x: Tensor<2>, rows: usize) -> Tensor<2> {
    match x.dims()[0] == rows {
        true => x,
        false => x.narrow(0, 0, rows),
    }
}
