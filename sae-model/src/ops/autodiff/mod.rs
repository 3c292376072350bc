//! The operations with gradients, for every backend at once: the backward passes in closed form (`nodes.rs`),
//! registered with Burn's autodiff.
//!
//! Sparse codes: with `dz` the gradient at the entries of the codes, `z = q E^T + bias` gives
//! `dq = dz E`, `dE = dz^T q` and `dbias = column sums of dz`; `y = a D` gives `da = g . d_j` at each entry and
//! `dD = a^T g`. First derivatives only: gradients are computed outside the graph. Operations that carry no gradient (dots, Adam,
//! the squared norm) are not here.

mod nodes;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::ops::{Backward, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, TensorMetadata};
use sae_comm::Comm;

use super::backend::{Attended, Encoding, SaeOps};
use super::gradients::GradientOps;
use super::{Norm, Pattern, Selection, SparseValue};
use nodes::{
    AtEntriesBackward, AttendBackward, AttendState, DecodeBackward, EncodeBackward, EncodeState,
    GivenToBackward, NormalizeBackward, ProjectBackward, ProjectState, RestoreBackward,
    SparseAttentionBackward, SpreadWeightsBackward, SquaredErrorBackward, SumBackward,
    SumOverBackward,
};

impl<B: GradientOps, C: CheckpointStrategy> SaeOps for Autodiff<B, C> {
    fn attend(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        value: SparseValue,
    ) -> Attended<Self> {
        let prep = AttendBackward
            .prepare::<C>([queries.node(), dictionary.node()])
            .compute_bound()
            .stateful();
        let (queries, dictionary) = (queries.into_primitive(), dictionary.into_primitive());
        let Attended {
            output,
            values,
            pattern,
        } = B::attend(queries.clone(), dictionary.clone(), mask, value);
        let output = match prep {
            OpsKind::Tracked(prep) => {
                let state = AttendState {
                    queries,
                    dictionary,
                    values: values.clone(),
                    pattern: pattern.clone(),
                    value,
                };
                prep.finish(state, output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        };
        Attended {
            output,
            values: <FloatTensor<Self>>::new(values),
            pattern,
        }
    }

    fn normalize(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        norm: Norm,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let prep = NormalizeBackward
            .prepare::<C>([bias.node()])
            .compute_bound()
            .stateful();
        let (u, norms) = B::normalize(x.into_primitive(), bias.into_primitive(), norm);
        let u = match prep {
            OpsKind::Tracked(prep) => prep.finish((u.clone(), norms.clone(), norm), u),
            OpsKind::UnTracked(prep) => prep.finish(u),
        };
        (u, <FloatTensor<Self>>::new(norms))
    }

    fn project(
        u: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let prep = ProjectBackward
            .prepare::<C>([bias.node(), weight.node()])
            .compute_bound()
            .stateful();
        let (u, bias) = (u.into_primitive(), bias.into_primitive());
        let (weight, norms) = (weight.into_primitive(), norms.into_primitive());
        let q = B::project(u.clone(), bias, weight.clone(), norms.clone(), norm);
        match prep {
            OpsKind::Tracked(prep) => {
                let state = ProjectState {
                    u,
                    q: q.clone(),
                    norms,
                    weight,
                    norm,
                };
                prep.finish(state, q)
            }
            OpsKind::UnTracked(prep) => prep.finish(q),
        }
    }

    fn restore(
        y: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        u: FloatTensor<Self>,
        norms: FloatTensor<Self>,
        factor: f32,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let prep = RestoreBackward
            .prepare::<C>([y.node(), bias.node()])
            .compute_bound()
            .stateful();
        let (y, bias) = (y.into_primitive(), bias.into_primitive());
        let (u, norms) = (u.into_primitive(), norms.into_primitive());
        let out = B::restore(y.clone(), bias, u.clone(), norms.clone(), factor, norm);
        match prep {
            OpsKind::Tracked(prep) => prep.finish((y, u, norms, factor, norm), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn squared_error(x_hat: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = SquaredErrorBackward
            .prepare::<C>([x_hat.node()])
            .compute_bound()
            .stateful();
        let (x_hat, x) = (x_hat.into_primitive(), x.into_primitive());
        let out = B::squared_error(x_hat.clone(), x.clone());
        match prep {
            OpsKind::Tracked(prep) => prep.finish((x_hat, x), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = SumBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful();
        let x = x.into_primitive();
        let out = B::sum(x.clone());
        match prep {
            OpsKind::Tracked(prep) => prep.finish(x.shape(), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn sum_over(x: FloatTensor<Self>, comm: Arc<dyn Comm>) -> FloatTensor<Self> {
        let prep = SumOverBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful();
        let out = B::sum_over(x.into_primitive(), comm);
        match prep {
            OpsKind::Tracked(prep) => prep.finish((), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn given_to(x: FloatTensor<Self>, comm: Arc<dyn Comm>) -> FloatTensor<Self> {
        let prep = GivenToBackward
            .prepare::<C>([x.node()])
            .compute_bound()
            .stateful();
        let x = x.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => prep.finish(comm, x),
            OpsKind::UnTracked(prep) => prep.finish(x),
        }
    }

    fn spread_weights(
        scores: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        pattern: Arc<Pattern>,
        sizes: Arc<Vec<usize>>,
        comm: Arc<dyn Comm>,
    ) -> FloatTensor<Self> {
        let prep = SpreadWeightsBackward
            .prepare::<C>([scores.node()])
            .compute_bound()
            .stateful();
        let weights = weights.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => prep.finish((pattern, sizes, comm), weights),
            OpsKind::UnTracked(prep) => prep.finish(weights),
        }
    }

    fn sparse_attention(
        scores: FloatTensor<Self>,
        value: SparseValue,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let prep = SparseAttentionBackward
            .prepare::<C>([scores.node()])
            .compute_bound()
            .stateful();
        let scores = scores.into_primitive();
        let (weights, threshold) = B::sparse_attention(scores.clone(), value);
        let weights = match prep {
            OpsKind::Tracked(prep) => prep.finish((scores, threshold.clone(), value), weights),
            OpsKind::UnTracked(prep) => prep.finish(weights),
        };
        (weights, <FloatTensor<Self>>::new(threshold))
    }

    fn encode(
        queries: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        thresholds: FloatTensor<Self>,
        mask: Arc<Vec<f32>>,
        selection: Selection,
    ) -> Encoding<Self> {
        let prep = EncodeBackward
            .prepare::<C>([
                queries.node(),
                dictionary.node(),
                bias.node(),
                thresholds.node(),
            ])
            .compute_bound()
            .stateful();
        let (queries, dictionary) = (queries.into_primitive(), dictionary.into_primitive());
        let (bias, thresholds) = (bias.into_primitive(), thresholds.into_primitive());
        let Encoding {
            values,
            scores,
            pattern,
        } = B::encode(
            queries.clone(),
            dictionary.clone(),
            bias,
            thresholds.clone(),
            mask,
            selection,
        );
        let values = match prep {
            OpsKind::Tracked(prep) => {
                let state = EncodeState {
                    queries,
                    dictionary,
                    thresholds,
                    scores: scores.clone(),
                    pattern: pattern.clone(),
                    selection,
                };
                prep.finish(state, values)
            }
            OpsKind::UnTracked(prep) => prep.finish(values),
        };
        Encoding {
            values,
            scores: <FloatTensor<Self>>::new(scores),
            pattern,
        }
    }

    fn at_entries(vector: FloatTensor<Self>, pattern: Arc<Pattern>) -> FloatTensor<Self> {
        let prep = AtEntriesBackward
            .prepare::<C>([vector.node()])
            .compute_bound()
            .stateful();
        let out = B::at_entries(vector.into_primitive(), pattern.clone());
        match prep {
            OpsKind::Tracked(prep) => prep.finish(pattern, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn codes_times(
        values: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        pattern: Arc<Pattern>,
    ) -> FloatTensor<Self> {
        let prep = DecodeBackward
            .prepare::<C>([values.node(), dictionary.node()])
            .compute_bound()
            .stateful();
        let (values, dictionary) = (values.into_primitive(), dictionary.into_primitive());
        let out = B::codes_times(values.clone(), dictionary.clone(), pattern.clone());
        match prep {
            OpsKind::Tracked(prep) => prep.finish((values, dictionary, pattern), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
