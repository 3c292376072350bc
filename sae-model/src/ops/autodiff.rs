//! The closed-form backward pass, registered with Burn's autodiff for every backend at once.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use super::{SaeOps, SparseValue};

#[derive(Debug)]
struct SparseAttentionBackward;

/// What the backward pass needs: scores, threshold and the kind of value.
type Saved<B> = (FloatTensor<B>, FloatTensor<B>, SparseValue);

impl<B: SaeOps> Backward<B, 1> for SparseAttentionBackward {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let [scores_node] = ops.parents;
        let grad = grads.consume::<B>(&ops.node);
        if let Some(node) = scores_node {
            let (scores, threshold, value) = ops.state;
            grads.register::<B>(
                node.id,
                B::sparse_attention_backward(scores, threshold, grad, value),
            );
        }
    }
}

impl<B: SaeOps, C: CheckpointStrategy> SaeOps for Autodiff<B, C> {
    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let prep = SparseAttentionBackward
            .prepare::<C>([scores.node()])
            .compute_bound()
            .stateful();
        let scores = scores.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => {
                let (weights, threshold) = B::sparse_attention(scores.clone(), value);
                let saved = (scores, threshold.clone(), value);
                (
                    prep.finish(saved, weights),
                    <FloatTensor<Self>>::new(threshold),
                )
            }
            OpsKind::UnTracked(prep) => {
                let (weights, threshold) = B::sparse_attention(scores, value);
                (prep.finish(weights), <FloatTensor<Self>>::new(threshold))
            }
        }
    }

    /// First derivatives only: the gradient is computed outside the graph.
    fn sparse_attention_backward(
        scores: FloatTensor<Self>,
        threshold: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        value: SparseValue,
    ) -> FloatTensor<Self> {
        <FloatTensor<Self>>::new(B::sparse_attention_backward(
            scores.into_primitive(),
            threshold.into_primitive(),
            grad.into_primitive(),
            value,
        ))
    }
}
