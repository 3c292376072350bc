"""An ONNX graph that grows node by node, so that a tail has no operators but those of its format (docs/TAIL.md)."""

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from sae_export import ExportError

from . import TOOL

OPSET, IR_VERSION = 17, 8  # of one ONNX release, 1.12
OPERATORS = frozenset(
    "MatMul Gemm Add Sub Mul Div Pow Sqrt Reciprocal Neg Exp Erf Tanh Sigmoid Softmax ReduceMean Reshape Transpose Slice "
    "Concat Unsqueeze Squeeze Where Identity Shape".split()
)
LARGEST = (1 << 31) - (1 << 20)  # bytes of weights; protobuf reads no message of 2 GiB


class Graph:
    """Nodes and weights from the input `hidden` [batch, tokens, width] on.

    Methods that add something return the name of its result.
    """

    def __init__(self, width: int, context: int):
        self.width, self.context = width, context
        self.hidden = "hidden"
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.constants: dict[tuple, str] = {}  # those that are used again, by value
        self.cuts: dict[tuple[str, int], str] = {}  # tables cut to the documents' length, by table and axis
        self.prefix = ""
        self.parameters = self.bytes = 0
        self.length: str | None = None

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of what is added within begin with `name`."""
        before, self.prefix = self.prefix, f"{self.prefix}{name}/"
        try:
            yield
        finally:
            self.prefix = before

    def op(self, operator: str, *inputs: str, **attributes: object) -> str:
        assert operator in OPERATORS, operator
        output = f"{self.prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def weight(self, tensor: torch.Tensor, name: str) -> str:
        """Parameters of the model."""
        self.parameters += tensor.numel()
        return self.table(tensor, name)

    def table(self, tensor: torch.Tensor, name: str) -> str:
        """Numbers that are not parameters of the model, such as a mask."""
        self.bytes += 4 * tensor.numel()
        if self.bytes > LARGEST:
            raise ExportError("the tail is larger than 2 GB, the most that one ONNX file holds; choose a later --layer")
        if not tensor.isfinite().all():
            raise ExportError(f"{self.prefix}{name} of the model is not finite")
        return self._initializer(tensor.detach().float().cpu().contiguous().numpy(), name)

    def scalar(self, value: float) -> str:
        key = ("scalar", value)
        if key not in self.constants:
            self.constants[key] = self._initializer(np.float32(value).reshape(()), f"/scalar_{len(self.constants)}")
        return self.constants[key]

    def integers(self, *values: int) -> str:
        key = ("integers", *values)
        if key not in self.constants:
            self.constants[key] = self._initializer(np.array(values, np.int64), f"/integers_{len(self.constants)}")
        return self.constants[key]

    def _initializer(self, values: np.ndarray, name: str) -> str:
        name = name[1:] if name.startswith("/") else self.prefix + name
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        return self.op("Slice", x, *(self.integers(i) for i in (start, end, axis, 1)))

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps a size, -1 is what is left."""
        return self.op("Reshape", x, self.integers(*shape))

    def cut(self, table: str, axis: int) -> str:
        """The first rows of a table along `axis`, as many as the documents have tokens."""
        if self.length is None:
            self.length = self.op("Shape", self.hidden, start=1, end=2)
        if (table, axis) not in self.cuts:
            ends = (self.integers(0), self.length, self.integers(axis), self.integers(1))
            self.cuts[table, axis] = self.op("Slice", table, *ends)
        return self.cuts[table, axis]

    def finish(self, result: str, name: str, dims: list[str | int], metadata: dict[str, str]) -> bytes:
        """The file's content; `result` becomes the output `name` of these dimensions."""
        self.nodes.append(helper.make_node("Identity", [result], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            "tail",
            [helper.make_tensor_value_info(self.hidden, TensorProto.FLOAT, ["batch", "tokens", self.width])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)],
            self.initializers,
        )
        model = helper.make_model(
            graph, producer_name=TOOL, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        helper.set_model_props(model, metadata)
        return model.SerializeToString()
