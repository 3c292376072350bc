"""The rest of a model as a function of hidden states: a tail that is run as it is, or the model itself in torch."""

import argparse
import json
import pathlib

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from sae_export import ExportError, Inputs
from sae_export.splice import Splice
from sae_export.states import features

from .family import Decoder, Encoder, Family

MEMORY = 1 << 30  # bytes of intermediate results, about


class Erf(OpRun):
    """onnx has one of single numbers, rounded to float32."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy(),)


class Tail:
    """A tail's file."""

    def __init__(self, path: pathlib.Path):
        self.bytes = path.read_bytes()
        try:
            self.model = onnx.load_from_string(self.bytes)
        except DecodeError as error:
            raise ExportError(f"{path}: not an ONNX file") from error
        about = {entry.key.removeprefix("dynamic-sae."): entry.value for entry in self.model.metadata_props}
        if about.get("tail") != "1":
            raise ExportError(f"{path}: not a tail of version 1")
        self.kind, self.name, self.layer = about["kind"], about["model"], int(about["layer"])
        self.classes = json.loads(about["classes"]) if "classes" in about else None
        tensors = {value.name: value.type.tensor_type for value in (*self.model.graph.input, *self.model.graph.output)}
        shapes = {name: [dim.dim_value for dim in tensor.shape.dim] for name, tensor in tensors.items()}
        self.width, self.outputs = shapes.pop("hidden")[-1], next(iter(shapes.values()))[-1]

    def head(self) -> np.ndarray:
        """The last matrix of a classifier, [e, classes], with the scale of its logits."""
        weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        last = [node for node in self.model.graph.node if node.op_type == "MatMul"][-1]
        head = numpy_helper.to_array(weights[last.input[1]])
        if head.shape[-1] != self.outputs:
            raise ExportError(f"the last matrix of the tail is {list(head.shape)}, not a head of {self.outputs} classes")
        return head


class OnnxRest:
    """A tail, run by onnxruntime in float32, or by onnx's own evaluator with all weights and results in float64."""

    def __init__(self, tail: Tail, runtime: str | None):
        self.outputs = tail.outputs
        self.per_token = 16 * tail.width * len(tail.model.graph.node)  # bytes; results have about twice the width
        self.session = None
        if runtime != "onnx":
            self.session = self.open(tail, runtime)
        if self.session is None:
            model = onnx.ModelProto.FromString(tail.bytes)
            for tensor in model.graph.initializer:
                if tensor.data_type == onnx.TensorProto.FLOAT:
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
            self.evaluator = ReferenceEvaluator(model, new_ops=[Erf])
            self.about = f"the tail by onnx {onnx.__version__} in float64"

    def open(self, tail: Tail, runtime: str | None) -> object | None:
        try:
            import onnxruntime
        except ImportError as error:
            if runtime == "onnxruntime":
                raise ExportError("--runtime onnxruntime: it is not installed") from error
            return None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.about = f"the tail by onnxruntime {onnxruntime.__version__} in float32"
        return onnxruntime.InferenceSession(tail.bytes, options, providers=["CPUExecutionProvider"])

    def at_once(self, tokens: int) -> int:
        return max(1, MEMORY // (self.per_token * tokens))

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        if self.session is not None:
            return self.session.run(None, {"hidden": hidden.astype(np.float32)})[0].astype(np.float64)
        out = self.evaluator.run(None, {"hidden": hidden})[0]
        if out.dtype != np.float64:
            raise ExportError(f"onnx {onnx.__version__} computed a part of the tail in {out.dtype}")
        return out


class TorchRest:
    """The model itself in float64, with its hidden state replaced."""

    def __init__(self, family: Family, layer: int, args: argparse.Namespace, head: np.ndarray | None):
        """`head` [e, classes] of a classifier has the scale of its logits."""
        self.family, self.layer, self.pooling = family, layer, args.pooling
        self.model = torch.nn.Module.double(family.model)  # that of a quantised model's class refuses
        self.decoder, self.head = isinstance(family, Decoder), head
        unembedding = family.model.get_output_embeddings() if self.decoder else None
        self.splice = Splice(family.tower, layer, unembedding)
        self.outputs = unembedding.weight.shape[0] if self.decoder else None
        self.check()
        self.about = "the model by torch in float64" + ("" if head is None else ", with its head")

    def inputs(self, documents: int, tokens: int) -> Inputs:
        """Any, of this size."""
        inputs = self.family.sample(documents, tokens, torch.Generator().manual_seed(documents))
        return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}

    def output(self, inputs: Inputs) -> torch.Tensor:
        if self.decoder:
            return self.model(**inputs).logits
        if hasattr(self.model, "get_image_features"):
            return features(self.model, inputs)
        output = self.model(**inputs)
        if "pixel_values" in inputs:
            return getattr(output, "image_embeds", output.get("pooler_output"))
        last = output.last_hidden_state
        return last[:, 0] if self.pooling == "cls" else last.mean(1)

    def check(self) -> None:
        """Raises unless replacing the hidden state by itself changes nothing."""
        inputs = self.inputs(2, min(16, self.family.longest))
        tower = self.family.tower if "pixel_values" in inputs else self.model
        hidden = tower(**inputs, output_hidden_states=True).hidden_states[self.layer]
        whole = self.output(inputs)
        other = self.inputs(3, hidden.shape[1])
        with self.splice.of(hidden):
            found = self.output({name: value[:2] for name, value in other.items()})
        if not torch.allclose(whole, found, rtol=1e-9, atol=1e-9):
            worst = (whole - found).abs().max()
            raise ExportError(f"replacing hidden state {self.layer} by itself moves outputs by {worst:.3g}")

    def at_once(self, tokens: int) -> int:
        return max(1, 8192 // tokens)

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.ascontiguousarray(hidden)).to(self.model.device)
        with torch.inference_mode(), self.splice.of(given):
            found = self.output(self.inputs(*hidden.shape[:2]))
        if len(found) != len(hidden) or (self.decoder and found.shape[1] != hidden.shape[1]):
            raise ExportError(f"the model takes documents of another length than {hidden.shape[1]} tokens")
        if self.head is None:
            return found.cpu().numpy()
        return torch.nn.functional.normalize(found, dim=1).cpu().numpy() @ self.head


class Headed:
    """An encoder with class embeddings [classes, e] behind it."""

    def __init__(self, rest: OnnxRest | TorchRest, embeddings: np.ndarray):
        norms = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        self.rest, self.head, self.about = rest, (embeddings / norms).T, rest.about + ", with class embeddings"
        self.outputs, self.at_once = len(embeddings), rest.at_once

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        return self.rest(hidden) @ self.head


def scaled(family: Encoder, head: torch.Tensor) -> np.ndarray:
    """A zero-shot head [classes, e] as TorchRest takes it."""
    return head.double().cpu().numpy().T * family.scale()
