//! The backward pass of each operation: the tensors that it saves, and the gradients that it registers.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use sae_comm::Comm;

use crate::ops::gradients::GradientOps;
use crate::ops::{Norm, Pattern, Selection, SparseValue, processes};

/// The backward pass of an operation on one tensor, if that tensor wants a gradient: `gradient` makes it of the result's.
fn hand_on<B: GradientOps, S>(
    ops: Ops<S, 1>,
    grads: &mut Gradients,
    gradient: impl FnOnce(FloatTensor<B>, S) -> FloatTensor<B>,
) {
    let [parent] = ops.parents;
    let grad = grads.consume::<B>(&ops.node);
    if let Some(node) = parent {
        grads.register::<B>(node.id, gradient(grad, ops.state));
    }
}

#[derive(Debug)]
pub(super) struct SparseAttentionBackward;

impl<B: GradientOps> Backward<B, 1> for SparseAttentionBackward {
    /// Scores, threshold and the kind of value.
    type State = (FloatTensor<B>, FloatTensor<B>, SparseValue);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, (scores, threshold, value)| {
            B::sparse_attention_backward(&scores, &threshold, &grad, value)
        });
    }
}

#[derive(Debug)]
pub(super) struct EncodeBackward;

/// Everything that the backward pass of an encoding needs.
#[derive(Clone, Debug)]
pub(super) struct EncodeState<B: GradientOps> {
    pub(super) queries: FloatTensor<B>,
    pub(super) dictionary: FloatTensor<B>,
    pub(super) thresholds: FloatTensor<B>,
    pub(super) scores: FloatTensor<B>,
    pub(super) pattern: Arc<Pattern>,
    pub(super) selection: Selection,
}

impl<B: GradientOps> Backward<B, 4> for EncodeBackward {
    type State = EncodeState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [queries, dictionary, bias, thresholds] = ops.parents;
        let s = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let (Some(node), Selection::JumpRelu { bandwidth }) = (thresholds, s.selection) {
            let dtheta =
                B::threshold_gradient(&grad, &s.scores, &s.thresholds, &s.pattern, bandwidth);
            grads.register::<B>(node.id, dtheta);
        }
        if bias.is_none() && queries.is_none() && dictionary.is_none() {
            return;
        }
        let dz = B::score_gradient(&grad, &s.scores, &s.thresholds, &s.pattern, s.selection);
        if let Some(node) = bias {
            let dbias = B::codes_column_sums(dz.clone(), s.pattern.clone());
            grads.register::<B>(node.id, dbias);
        }
        if let Some(node) = queries {
            let dq = B::codes_times(dz.clone(), s.dictionary, s.pattern.clone());
            grads.register::<B>(node.id, dq);
        }
        if let Some(node) = dictionary {
            grads.register::<B>(
                node.id,
                B::codes_transposed_times(&dz, &s.queries, &s.pattern),
            );
        }
    }
}

#[derive(Debug)]
pub(super) struct AtEntriesBackward;

impl<B: GradientOps> Backward<B, 1> for AtEntriesBackward {
    type State = Arc<Pattern>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, B::codes_column_sums);
    }
}

#[derive(Debug)]
pub(super) struct DecodeBackward;

impl<B: GradientOps> Backward<B, 2> for DecodeBackward {
    /// Values, dictionary and where the entries are.
    type State = (FloatTensor<B>, FloatTensor<B>, Arc<Pattern>);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [values_node, dictionary_node] = ops.parents;
        let (values, dictionary, pattern) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = values_node {
            let dots = B::codes_dots(grad.clone(), dictionary, pattern.clone());
            grads.register::<B>(node.id, dots);
        }
        if let Some(node) = dictionary_node {
            grads.register::<B>(node.id, B::codes_transposed_times(&values, &grad, &pattern));
        }
    }
}

#[derive(Debug)]
pub(super) struct AttendBackward;

/// Everything that the backward pass of sparse attention needs.
#[derive(Clone, Debug)]
pub(super) struct AttendState<B: GradientOps> {
    pub(super) queries: FloatTensor<B>,
    pub(super) dictionary: FloatTensor<B>,
    pub(super) values: FloatTensor<B>,
    pub(super) pattern: Arc<Pattern>,
    pub(super) value: SparseValue,
}

impl<B: GradientOps> Backward<B, 2> for AttendBackward {
    type State = AttendState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [queries, dictionary] = ops.parents;
        let s = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let what = (Selection::Sparsemax(s.value), queries.is_some());
        let (dq, dc) = B::attend_backward(
            &s.queries,
            &s.dictionary,
            &s.values,
            &grad,
            &s.pattern,
            what,
        );
        if let Some(node) = queries {
            grads.register::<B>(node.id, dq);
        }
        if let Some(node) = dictionary {
            grads.register::<B>(node.id, dc);
        }
    }
}

#[derive(Debug)]
pub(super) struct NormalizeBackward;

impl<B: GradientOps> Backward<B, 1> for NormalizeBackward {
    /// u, n, and how n came about.
    type State = (FloatTensor<B>, FloatTensor<B>, Norm);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, (u, norms, norm)| {
            B::normalize_backward(&u, &norms, &grad, norm)
        });
    }
}

#[derive(Debug)]
pub(super) struct ProjectBackward;

/// Everything that the backward pass of the query projection needs.
#[derive(Clone, Debug)]
pub(super) struct ProjectState<B: GradientOps> {
    pub(super) u: FloatTensor<B>,
    pub(super) q: FloatTensor<B>,
    pub(super) norms: FloatTensor<B>,
    pub(super) weight: FloatTensor<B>,
    pub(super) norm: Norm,
}

impl<B: GradientOps> Backward<B, 2> for ProjectBackward {
    type State = ProjectState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [bias, weight] = ops.parents;
        let s = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = weight {
            let dw = B::float_matmul(B::float_transpose(s.u.clone()), grad.clone());
            grads.register::<B>(node.id, dw);
        }
        if let Some(node) = bias {
            let db = B::project_backward((&s.u, &s.q, &s.norms), &s.weight, &grad, s.norm);
            grads.register::<B>(node.id, db);
        }
    }
}

#[derive(Debug)]
pub(super) struct RestoreBackward;

impl<B: GradientOps> Backward<B, 2> for RestoreBackward {
    /// y, u, n, the factor, and how n came about.
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, f32, Norm);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [y_node, bias] = ops.parents;
        let (y, u, norms, factor, norm) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let (dy, db) = B::restore_backward(&y, &u, &norms, &grad, factor, norm);
        if let Some(node) = y_node {
            grads.register::<B>(node.id, dy);
        }
        if let Some(node) = bias {
            grads.register::<B>(node.id, db);
        }
    }
}

#[derive(Debug)]
pub(super) struct SquaredErrorBackward;

impl<B: GradientOps> Backward<B, 1> for SquaredErrorBackward {
    /// x_hat and x.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, (x_hat, x)| {
            B::squared_error_backward(&x_hat, &x, &grad)
        });
    }
}

#[derive(Debug)]
pub(super) struct SumBackward;

impl<B: GradientOps> Backward<B, 1> for SumBackward {
    /// The shape of what is added up.
    type State = Shape;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, shape| {
            let of_one = Shape::from(vec![1; shape.num_dims()]);
            B::float_expand(B::float_reshape(grad, of_one), shape)
        });
    }
}

#[derive(Debug)]
pub(super) struct SumOverBackward;

impl<B: GradientOps> Backward<B, 1> for SumOverBackward {
    type State = ();

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, ()| grad);
    }
}

#[derive(Debug)]
pub(super) struct GivenToBackward;

impl<B: GradientOps> Backward<B, 1> for GivenToBackward {
    type State = Arc<dyn Comm>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, comm| {
            processes::total_of::<B>(&grad, &*comm)
        });
    }
}

#[derive(Debug)]
pub(super) struct SpreadWeightsBackward;

impl<B: GradientOps> Backward<B, 1> for SpreadWeightsBackward {
    /// Where the entries are, the size of each row's support, and the processes.
    type State = (Arc<Pattern>, Arc<Vec<usize>>, Arc<dyn Comm>);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        hand_on::<B, _>(ops, grads, |grad, (pattern, sizes, comm)| {
            processes::centred::<B>(&grad, &pattern, &sizes, &*comm)
        });
    }
}
