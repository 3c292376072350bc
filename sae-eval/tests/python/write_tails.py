"""Writes the tails in sae-eval/tests/data/tails, which a reader of tails must run or refuse.

    write_tails.py OUT_DIR          (needs torch, transformers, safetensors, numpy, blake3, onnx)

OUT_DIR/NAME.onnx is the tail of a tiny random model by tools/export_tail.py, OUT_DIR/NAME.safetensors hidden states
`hidden` [b, t, d] with the `output` that the torch model, not the ONNX file, has for them. The files in OUT_DIR/wrong must be
refused; damaged() below says why.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tools"))

import export_tail
import tiny_models
from tiny_models import CLASSES

PROMPTS = ("--class-prompts", "{}", "--class-prompts", "this is a kind of {}")
TAILS = {
    "bert_encoder": ("bert", 1, ("--normalize",)),
    "bert_classifier": ("bert", 2, ("--class-texts", "classes.json", *PROMPTS)),
    "clip_classifier": ("clip", 2, ("--class-texts", "classes.json", *PROMPTS)),
    "llama": ("llama", 1, ()),
    "gpt2": ("gpt2", 2, ()),
}
DOCUMENTS, TOKENS = 2, 7
WIDTH = 4  # of the tails that are wrong

Attribute = dict[str, object]


def class_head(name: str, model: torch.nn.Module) -> torch.Tensor:
    """Text by text."""
    tokenizer, prompts, rows = tiny_models.tokenizer(), PROMPTS[1::2], []
    for text in CLASSES.values():
        embeddings = []
        for prompt in prompts:
            ids = torch.tensor([tokenizer(prompt.replace("{}", text))["input_ids"]])
            if name == "clip":
                features = model.get_text_features(input_ids=ids)
                embeddings.append(getattr(features, "pooler_output", features))
            else:
                embeddings.append(tiny_models.states_and_output(name, model, {"input_ids": ids})[1])
        rows.append(sum(map(torch.nn.functional.normalize, embeddings)))
    return torch.nn.functional.normalize(torch.cat(rows))


def expected(name: str, layer: int, arguments: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """By the torch model alone."""
    model = tiny_models.load(name, pathlib.Path(name))
    states, output = tiny_models.states_and_output(name, model, tiny_models.inputs(name, DOCUMENTS, TOKENS, seed=1))
    if "--normalize" in arguments or "--class-texts" in arguments:
        output = torch.nn.functional.normalize(output)
    if "--class-texts" in arguments:
        scale = model.logit_scale.exp() if name == "clip" else 1.0
        output = scale * output @ class_head(name, model).T
    return {"hidden": states[layer].contiguous(), "output": output.contiguous()}


def write_tails(out: pathlib.Path) -> None:
    """In the working directory, so that no path of this machine is written."""
    pathlib.Path("classes.json").write_text(json.dumps(CLASSES), encoding="utf-8")
    for file, (name, layer, arguments) in TAILS.items():
        if not pathlib.Path(name).exists():
            tiny_models.save(name, pathlib.Path(name))
        modality = "vision" if name == "clip" else "text"
        given = ("--model", name, "--modality", modality, "--layer", str(layer), *arguments)
        sys.argv = ["export_tail.py", *given, "--overwrite", str(out / f"{file}.onnx")]
        export_tail.main()
        with torch.no_grad():
            save_file(expected(name, layer, arguments), out / f"{file}.safetensors")


def encoder(
    nodes: list[tuple[str, list[str], str, Attribute]],
    initializers: dict[str, np.ndarray] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from `hidden` to `embedding` that is a tail in all but what the nodes make wrong."""
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in nodes],
        "tail",
        [helper.make_tensor_value_info("hidden", dtype, ["batch", "tokens", WIDTH])],
        [helper.make_tensor_value_info("embedding", dtype, ["batch", WIDTH])],
        [numpy_helper.from_array(values, name) for name, values in (initializers or {}).items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    told = {"tail": "1", "kind": "encoder", "model": "wrong", "layer": "1", "context": "8"}
    helper.set_model_props(model, {f"dynamic-sae.{name}": value for name, value in told.items()})
    return model


POOL = ("ReduceMean", ["hidden"], "pooled", {"axes": [1], "keepdims": 0})


def sum_of(name: str, rank: int) -> list[tuple[str, list[str], str, Attribute]]:
    """Adds the mean of a tensor to the pooled states."""
    mean = ("ReduceMean", [name], "mean", {"axes": list(range(rank)), "keepdims": 0})
    return [mean, ("Add", ["pooled", "mean"], "embedding", {})]


def outer_product() -> onnx.ModelProto:
    """From two initializers of 24 KB: [60000, 1] times [1, 60000] is 14.4 GB."""
    ones = {"column": np.ones((6000, 1), np.float32), "row": np.ones((1, 6000), np.float32)}
    longer = [("Concat", [name] * 10, f"long_{name}", {"axis": axis}) for axis, name in enumerate(ones)]
    product = ("MatMul", ["long_column", "long_row"], "product", {})
    return encoder([POOL, *longer, product, *sum_of("product", 2)], ones)


def weighted(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A right tail, of one matrix."""
    weight = np.eye(WIDTH, dtype=np.float16 if dtype == TensorProto.FLOAT16 else np.float32)
    return encoder([POOL, ("MatMul", ["pooled", "weight"], "embedding", {})], {"weight": weight}, dtype)


def external() -> onnx.ModelProto:
    model = weighted()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    return model


def lying_initializer() -> onnx.ModelProto:
    model = weighted()
    model.graph.initializer[0].dims[:] = [100_000, 100_000]
    model.graph.initializer[0].raw_data = bytes(16)
    return model


def two_inputs() -> onnx.ModelProto:
    model = encoder([POOL, ("Add", ["pooled", "mask"], "embedding", {})])
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", WIDTH]))
    return model


def integer_output() -> onnx.ModelProto:
    model = encoder([POOL, ("Identity", ["numbers"], "embedding", {})], {"numbers": np.ones((1, WIDTH), np.int64)})
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def no_metadata() -> onnx.ModelProto:
    model = weighted()
    del model.metadata_props[:]
    return model


def range_bomb() -> onnx.ModelProto:
    """10^12 numbers out of a shape."""
    shape = {"shape": np.array([10**12], np.int64)}
    return encoder([POOL, ("ConstantOfShape", ["shape"], "many", {}), *sum_of("many", 1)], shape)


def damaged() -> dict[str, Callable[[], onnx.ModelProto]]:
    return {
        "unknown_operator": lambda: encoder([POOL, ("Relu", ["pooled"], "embedding", {})]),
        "float16": lambda: weighted(TensorProto.FLOAT16),
        "external": external,
        "outer_product": outer_product,
        "lying_initializer": lying_initializer,
        "two_inputs": two_inputs,
        "integer_output": integer_output,
        "no_metadata": no_metadata,
        "range_bomb": range_bomb,
    }


def write_wrong(out: pathlib.Path) -> None:
    onnx.checker.check_model(weighted(), full_check=True)
    for name, make in damaged().items():
        model = make()
        if name not in ("external", "lying_initializer"):  # all others are models that ONNX allows
            onnx.checker.check_model(model, full_check=True)
        (out / f"{name}.onnx").write_bytes(model.SerializeToString())
    whole = (out.parent / "bert_encoder.onnx").read_bytes()
    (out / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (out / "not_onnx.onnx").write_text("This is not an ONNX file.\n")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1]).resolve()
    (out / "wrong").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        before = os.getcwd()
        os.chdir(work)
        write_tails(out)
        os.chdir(before)
    write_wrong(out / "wrong")


if __name__ == "__main__":
    main()
