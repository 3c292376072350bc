"""Layers that families of models share. Sizes in comments: b documents, t tokens, d the width of a state."""

import math
from dataclasses import dataclass

import torch
from transformers.pytorch_utils import Conv1D

from sae_export import ExportError

from .graph import Graph

MASKED = -1e9  # added to a score; its softmax is exactly 0 in f32


def matrix(graph: Graph, x: str, weight: torch.Tensor, bias: torch.Tensor | None, name: str) -> str:
    """x [b, t, in] times weight [in, out], plus bias [out]."""
    x = graph.op("MatMul", x, graph.weight(weight, f"{name}.weight"))
    return x if bias is None else graph.op("Add", x, graph.weight(bias, f"{name}.bias"))


def dense(graph: Graph, x: str, module: torch.nn.Module, name: str) -> str:
    """GPT-2's Conv1D keeps its weight as [in, out], a Linear as [out, in]."""
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    return matrix(graph, x, weight, module.bias, name)


def layer_norm(graph: Graph, x: str, module: torch.nn.LayerNorm, name: str, axis: int = 2) -> str:
    """Over the last axis of x, which is `axis`."""
    x = graph.op("Sub", x, graph.op("ReduceMean", x, axes=[axis], keepdims=1))
    x = graph.op("Div", x, _root_mean_square(graph, x, module.eps, axis))
    x = graph.op("Mul", x, graph.weight(module.weight, f"{name}.weight"))
    return graph.op("Add", x, graph.weight(module.bias, f"{name}.bias"))


def rms_norm(graph: Graph, x: str, module: torch.nn.Module, name: str) -> str:
    x = graph.op("Div", x, _root_mean_square(graph, x, module.variance_epsilon, axis=2))
    return graph.op("Mul", x, graph.weight(module.weight, f"{name}.weight"))


def _root_mean_square(graph: Graph, x: str, eps: float, axis: int) -> str:
    variance = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[axis], keepdims=1)
    return graph.op("Sqrt", graph.op("Add", variance, graph.scalar(eps)))


def unit_norm(graph: Graph, x: str, width: int) -> str:
    """Rows [b, width] of norm 1; torch.nn.functional.normalize does not divide by less than 1e-12 either."""
    mean = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[1], keepdims=1)
    square = graph.op("Mul", mean, graph.scalar(width))
    return graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, graph.scalar(1e-24))))


def _gelu(graph: Graph, x: str) -> str:
    erf = graph.op("Erf", graph.op("Mul", x, graph.scalar(math.sqrt(0.5))))
    return graph.op("Mul", graph.op("Mul", x, graph.scalar(0.5)), graph.op("Add", erf, graph.scalar(1)))


def _gelu_tanh(graph: Graph, x: str) -> str:
    cube = graph.op("Mul", graph.op("Mul", graph.op("Mul", x, x), x), graph.scalar(0.044715))
    tanh = graph.op("Tanh", graph.op("Mul", graph.op("Add", x, cube), graph.scalar(math.sqrt(2 / math.pi))))
    return graph.op("Mul", graph.op("Mul", x, graph.scalar(0.5)), graph.op("Add", tanh, graph.scalar(1)))


def _quick_gelu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, graph.scalar(1.702))))


def _silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


ACTIVATIONS = {"gelu": _gelu, "quick_gelu": _quick_gelu, "silu": _silu, "swish": _silu}
ACTIVATIONS |= {"gelu_new": _gelu_tanh, "gelu_pytorch_tanh": _gelu_tanh}


def activation(graph: Graph, x: str, name: object) -> str:
    """By its name in transformers."""
    if name not in ACTIVATIONS:
        raise ExportError(f"the model's activation function is {name}; a tail can have {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](graph, x)


def causal_mask(graph: Graph) -> str:
    """Added to scores [b, heads, t, t]: 0 for a token's own position and those before it."""
    if "mask" not in graph.constants:
        full = torch.full((graph.context, graph.context), MASKED).triu(1)
        graph.constants["mask"] = graph.table(full[None, None], "/causal_mask")
    return graph.cut(graph.cut(graph.constants["mask"], 2), 3)


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer."""

    count: int
    size: int
    scale: float
    groups: int | None = None  # heads of keys and values, where they are fewer
    causal: bool = False


def split_heads(graph: Graph, x: str, count: int, size: int) -> str:
    """[b, t, count * size] as [b, t, count, size]."""
    return graph.reshape(x, 0, 0, count, size)


def repeat_heads(graph: Graph, x: str, heads: Heads) -> str:
    """[b, t, groups, size] as [b, t, heads, size]; neighbouring heads share a group."""
    groups = heads.groups or heads.count
    if groups == heads.count:
        return x
    x = graph.op("Unsqueeze", x, graph.integers(3))
    x = graph.op("Concat", *[x] * (heads.count // groups), axis=3)
    return graph.reshape(x, 0, 0, heads.count, heads.size)


def attention(graph: Graph, q: str, k: str, v: str, heads: Heads) -> str:
    """Queries, keys and values, each [b, t, heads, size], to [b, t, heads * size]."""
    q = graph.op("Transpose", graph.op("Mul", q, graph.scalar(heads.scale)), perm=[0, 2, 1, 3])
    k = graph.op("Transpose", repeat_heads(graph, k, heads), perm=[0, 2, 3, 1])
    v = graph.op("Transpose", repeat_heads(graph, v, heads), perm=[0, 2, 1, 3])
    scores = graph.op("MatMul", q, k)
    if heads.causal:
        scores = graph.op("Add", scores, causal_mask(graph))
    mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=3), v)
    return graph.reshape(graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, heads.count * heads.size)
