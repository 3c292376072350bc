"""Compares a tail with the model that it was made of, before it is written."""

from dataclasses import dataclass

import numpy as np
import onnx
import torch

from sae_export import ExportError

from .family import Family, Plan

TOLERANCE = 2e-5  # of the largest output: right tails were off by 2e-6, one with another GELU by 3e-5


@dataclass(frozen=True)
class Compared:
    runtime: str
    documents: int
    tokens: int
    difference: float  # the largest
    largest: float  # of the outputs


def run(data: bytes, hidden: np.ndarray) -> tuple[str, np.ndarray]:
    """The output of a tail, by onnxruntime or else by onnx's own evaluator; and what ran it."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(onnx.load_from_string(data))
        return f"onnx {onnx.__version__}", evaluator.run(None, {"hidden": hidden})[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {onnxruntime.__version__}", session.run(None, {"hidden": hidden})[0]


def compare(data: bytes, family: Family, plan: Plan, documents: int = 2, longest: int = 128) -> Compared:
    """Checks the file's form, and its output on random documents; raises if torch's is another."""
    onnx.checker.check_model(data, full_check=True)
    generator = torch.Generator().manual_seed(0)
    inputs = family.sample(documents, min(plan.context, longest), generator)
    hidden, expected = (tensor.float().cpu().numpy() for tensor in family.reference(inputs, plan))
    runtime, found = run(data, hidden)
    if found.shape != expected.shape:
        raise ExportError(f"the tail gives {list(found.shape)}, the model {list(expected.shape)}")
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= TOLERANCE * max(largest, 1e-3):
        raise ExportError(f"the tail's output differs from the model's by {difference:.3g} of {largest:.3g}; nothing was written")
    return Compared(runtime, documents, hidden.shape[1], difference, largest)
