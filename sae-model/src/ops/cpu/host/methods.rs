//! The methods of `SaeOps` for a backend that is read on the host, to be expanded inside `impl SaeOps`. The module
//! that expands them has `FloatTensor`, `Arc`, `ops` and `host` in scope.

/// The dense operations of `SaeOps`, on the host.
macro_rules! dense_ops {
    () => {
        fn sparse_attention(
            scores: FloatTensor<Self>,
            value: ops::SparseValue,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            host::sparse_attention::<Self>(&scores, value)
        }

        fn sparse_attention_backward(
            scores: FloatTensor<Self>,
            threshold: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            value: ops::SparseValue,
        ) -> FloatTensor<Self> {
            host::sparse_attention_backward::<Self>(&scores, &threshold, &grad, value)
        }
    };
}

/// The operations of `SaeOps` on sparse codes, on the host.
macro_rules! sparse_ops {
    () => {
        fn encode(
            queries: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            thresholds: FloatTensor<Self>,
            mask: Arc<Vec<f32>>,
            selection: ops::Selection,
        ) -> ops::Encoding<Self> {
            host::encode(&queries, &dictionary, &bias, &thresholds, &mask, selection)
        }

        fn score_gradient(
            grad: FloatTensor<Self>,
            scores: Arc<Vec<f32>>,
            thresholds: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
            selection: ops::Selection,
        ) -> FloatTensor<Self> {
            host::score_gradient::<Self>(&grad, &scores, &thresholds, &pattern, selection)
        }

        fn threshold_gradient(
            grad: FloatTensor<Self>,
            scores: Arc<Vec<f32>>,
            thresholds: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
            bandwidth: f32,
        ) -> FloatTensor<Self> {
            host::threshold_gradient::<Self>(&grad, &scores, &thresholds, &pattern, bandwidth)
        }

        fn codes_times(
            values: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
        ) -> FloatTensor<Self> {
            host::codes_times::<Self>(&values, &dictionary, &pattern)
        }

        fn codes_dots(
            x: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
        ) -> FloatTensor<Self> {
            host::codes_dots::<Self>(&x, &dictionary, &pattern)
        }

        fn codes_transposed_times(
            values: FloatTensor<Self>,
            x: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
        ) -> FloatTensor<Self> {
            host::codes_transposed_times::<Self>(&values, &x, &pattern)
        }

        fn codes_column_sums(
            values: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
        ) -> FloatTensor<Self> {
            host::codes_column_sums::<Self>(&values, &pattern)
        }
    };
}

/// The row-wise operations of `SaeOps`, on the host, and the backward pass of `attend`.
macro_rules! row_ops {
    () => {
        fn attend(
            queries: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            mask: Arc<Vec<f32>>,
            value: ops::SparseValue,
        ) -> ops::Attended<Self> {
            host::attend::<Self>(&queries, &dictionary, &mask, value)
        }

        fn attend_backward(
            queries: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            values: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            pattern: Arc<ops::Pattern>,
            what: (ops::Selection, bool),
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            host::attend_backward::<Self>(&queries, &dictionary, &values, &grad, &pattern, what)
        }

        fn normalize(
            x: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            norm: ops::Norm,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            host::normalize::<Self>(&x, &bias, norm)
        }

        fn normalize_backward(
            u: FloatTensor<Self>,
            norms: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            norm: ops::Norm,
        ) -> FloatTensor<Self> {
            host::normalize_backward::<Self>(&u, &norms, &grad, norm)
        }

        fn project(
            u: FloatTensor<Self>,
            _bias: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            _norms: FloatTensor<Self>,
            _norm: ops::Norm,
        ) -> FloatTensor<Self> {
            <Self as burn::backend::ops::FloatTensorOps<Self>>::float_matmul(u, weight)
        }

        fn project_backward(
            u: FloatTensor<Self>,
            q: FloatTensor<Self>,
            norms: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            norm: ops::Norm,
        ) -> FloatTensor<Self> {
            host::project_backward::<Self>((&u, &q, &norms), &weight, &grad, norm)
        }

        fn restore(
            y: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            _u: FloatTensor<Self>,
            norms: FloatTensor<Self>,
            factor: f32,
            _norm: ops::Norm,
        ) -> FloatTensor<Self> {
            host::restore::<Self>(&y, &bias, &norms, factor)
        }

        fn restore_backward(
            y: FloatTensor<Self>,
            u: FloatTensor<Self>,
            norms: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            factor: f32,
            norm: ops::Norm,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            host::restore_backward::<Self>(&y, &u, &norms, &grad, factor, norm)
        }

        fn squared_error(x_hat: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
            host::squared_error::<Self>(&x_hat, &x)
        }

        fn squared_norm(x: FloatTensor<Self>) -> FloatTensor<Self> {
            host::squared_norm::<Self>(&x)
        }

        fn squared_error_backward(
            x_hat: FloatTensor<Self>,
            x: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            host::squared_error_backward::<Self>(&x_hat, &x, &grad)
        }
    };
}

/// Adam of `SaeOps`, on the host, into new memory.
#[cfg(any(feature = "ndarray", feature = "wgpu"))]
macro_rules! adam_op {
    () => {
        fn adam(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            moment_1: FloatTensor<Self>,
            moment_2: FloatTensor<Self>,
            step: ops::AdamStep,
        ) -> ops::AdamUpdate<Self> {
            host::adam_op::<Self>(&param, &grad, &moment_1, &moment_2, step)
        }
    };
}

#[cfg(any(feature = "ndarray", feature = "wgpu"))]
pub(crate) use adam_op;
pub(crate) use {dense_ops, row_ops, sparse_ops};
