"""Tests tools/export_tail.py on tiny random models: the ONNX files, run by onnx's own evaluator, must give torch's outputs.

    python3 sae-eval/tests/python/test_export_tail.py        (torch, transformers, safetensors, numpy, blake3, onnx; about a minute)
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import export_tail
import tiny_models
from sae_tail import layers
from tiny_models import CLASSES, CONTEXT, MODELS

ALLOWED = set(
    "MatMul Gemm Add Sub Mul Div Pow Sqrt Reciprocal Neg Exp Erf Tanh Sigmoid Softmax ReduceMean Reshape Transpose Slice "
    "Concat Unsqueeze Squeeze Where Identity Shape".split()
)
PROMPTS = ("{}", "this is a kind of {}")
TOLERANCE = 1e-4
WORK = tempfile.TemporaryDirectory()


def directory(name: str) -> pathlib.Path:
    """Of a tiny model, written once."""
    path = pathlib.Path(WORK.name) / name
    if not path.exists():
        tiny_models.save(name, path)
    return path


def run(*arguments: object) -> tuple[str, str | int | None]:
    """What the program prints, and its message if it fails."""
    printed = io.StringIO()
    code = None
    with mock.patch.object(sys, "argv", ["export_tail.py", *map(str, arguments)]):
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                export_tail.main()
            except SystemExit as exit:
                code = exit.code
    return printed.getvalue(), code


def modality(name: str) -> str:
    return "vision" if name.startswith("clip") else "text"


def export(name: str, layer: int, *arguments: object) -> onnx.ModelProto:
    out = pathlib.Path(WORK.name) / "tail.onnx"
    given = ("--model", directory(name), "--modality", modality(name), "--layer", layer, *arguments, "--overwrite", out)
    printed, code = run(*given)
    assert code is None, (code, printed)
    assert "differ by at most" in printed, printed
    return onnx.load(out)


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def tail(model: onnx.ModelProto, hidden: torch.Tensor) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, {"hidden": hidden.numpy()})[0]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Parity(unittest.TestCase):
    def compare(self, name: str, model: onnx.ModelProto, layer: int, pooling: str = "mean", after=lambda x: x) -> None:
        """Against the torch model, for several numbers and lengths of documents."""
        own = tiny_models.load(name, directory(name))
        for seed, (documents, tokens) in enumerate(((1, 1), (3, 2), (2, 7), (1, CONTEXT))):
            given = tiny_models.inputs(name, documents, tokens, seed)
            states, expected = tiny_models.states_and_output(name, own, given, pooling)
            found, expected = tail(model, states[layer]), after(expected.numpy())
            with self.subTest(documents=documents, tokens=tokens):
                self.assertEqual(found.shape, expected.shape)
                self.assertEqual(found.dtype, np.float32)
                self.assertGreater(expected.std(), 0.05)
                self.assertLess(np.abs(found - expected).max(), TOLERANCE)

    def test_every_model_at_every_layer(self):
        for name in MODELS:
            for layer in range(4):
                with self.subTest(name=name, layer=layer):
                    model = export(name, layer)
                    self.compare(name, model, layer)
                    kind = "decoder" if model.graph.output[0].type.tensor_type.shape.dim[1].dim_param else "encoder"
                    self.assertEqual(metadata(model)["dynamic-sae.kind"], kind)

    def test_layers_differ(self):
        """A tail at another layer gives another output, so the test above can fail."""
        for name in MODELS:
            own = tiny_models.load(name, directory(name))
            states, expected = tiny_models.states_and_output(name, own, tiny_models.inputs(name, 2, 7, 0))
            for layer in (1, 2):
                found = tail(export(name, layer), states[layer - 1])
                self.assertGreater(np.abs(found - expected.numpy()).max(), 100 * TOLERANCE, (name, layer))

    def test_pooling_and_normalize(self):
        for name in ("bert", "distilbert"):
            self.compare(name, export(name, 1, "--pooling", "cls"), 1, "cls")
            self.compare(name, export(name, 3, "--pooling", "cls", "--normalize"), 3, "cls", unit)
            self.compare(name, export(name, 2, "--pooling", "mean", "--normalize"), 2, "mean", unit)
        self.compare("clip", export("clip", 2, "--normalize"), 2, after=unit)

    def test_negative_layers(self):
        model = export("gpt2", -2)
        self.assertEqual(metadata(model)["dynamic-sae.layer"], "2")
        self.compare("gpt2", model, 2)

    def test_a_shorter_context(self):
        model = export("llama", 1, "--context", 7)
        self.assertEqual(metadata(model)["dynamic-sae.context"], "7")
        own = tiny_models.load("llama", directory("llama"))
        for tokens in (3, 7):
            states, expected = tiny_models.states_and_output("llama", own, tiny_models.inputs("llama", 2, tokens, tokens))
            self.assertLess(np.abs(tail(model, states[1]) - expected.numpy()).max(), TOLERANCE)

    def test_the_past_does_not_see_the_future(self):
        for name in ("llama", "gpt2"):
            model = export(name, 0)
            hidden = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
            other = hidden.clone()
            other[0, 5] = hidden[0, 4]
            before, after = tail(model, hidden), tail(model, other)
            np.testing.assert_array_equal(before[0, :5], after[0, :5])
            self.assertGreater(np.abs(before[0, 5:] - after[0, 5:]).max(), 0.01)


class Classifiers(unittest.TestCase):
    def setUp(self):
        self.classes = pathlib.Path(WORK.name) / "classes.json"
        self.classes.write_text(json.dumps(CLASSES), encoding="utf-8")

    def head(self, name: str, pooling: str, as_is: bool) -> np.ndarray:
        """Text by text, without padding."""
        own, tokenizer = tiny_models.load(name, directory(name)), tiny_models.tokenizer()
        rows = []
        for text in CLASSES.values():
            total = 0
            for prompt in PROMPTS:
                ids = torch.tensor([tokenizer(prompt.replace("{}", text))["input_ids"]])
                if name.startswith("clip"):
                    with torch.no_grad():
                        features = own.get_text_features(input_ids=ids)
                    embedding = getattr(features, "pooler_output", features)
                else:
                    _, embedding = tiny_models.states_and_output(name, own, {"input_ids": ids}, pooling)
                total += unit(embedding.numpy()) / len(PROMPTS)
            rows.append(total if as_is else unit(total))
        return np.concatenate(rows)

    def test_heads(self):
        prompts = [part for prompt in PROMPTS for part in ("--class-prompts", prompt)]
        for name, layer, pooling, mean in (
            ("bert", 1, "mean", None),
            ("bert", 3, "cls", "as-is"),
            ("roberta", 2, "mean", "unit"),
            ("clip", 2, None, None),
            ("clip", 0, None, "as-is"),
            ("clip", 3, None, "unit"),
        ):
            given = ["--class-texts", self.classes, *prompts]
            given += ["--pooling", pooling] if pooling else []
            given += ["--head-mean", mean] if mean else []
            model = export(name, layer, *given)
            self.assertEqual(metadata(model)["dynamic-sae.kind"], "classifier")
            self.assertEqual(json.loads(metadata(model)["dynamic-sae.classes"]), list(CLASSES))
            own = tiny_models.load(name, directory(name))
            scale = own.logit_scale.exp().item() if name == "clip" else 1
            head = self.head(name, pooling or "mean", mean == "as-is")
            for documents, tokens in ((1, 3), (3, 7)):
                given = tiny_models.inputs(name, documents, tokens, documents)
                states, embedding = tiny_models.states_and_output(name, own, given, pooling or "mean")
                expected = scale * unit(embedding.numpy()) @ head.T
                with self.subTest(name=name, layer=layer, mean=mean, documents=documents):
                    self.assertGreater(expected.std(), 0.01)
                    self.assertLess(np.abs(tail(model, states[layer]) - expected).max() / scale, TOLERANCE / 10)


class Format(unittest.TestCase):
    def check(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.assertEqual([(entry.domain, entry.version) for entry in model.opset_import], [("", 17)])
        self.assertFalse(model.functions or graph.sparse_initializer)
        self.assertLessEqual({node.op_type for node in graph.node}, ALLOWED)
        self.assertEqual([value.name for value in graph.input], ["hidden"])
        dims = graph.input[0].type.tensor_type.shape.dim
        self.assertEqual([dim.dim_param or dim.dim_value for dim in dims[:2]], ["batch", "tokens"])
        self.assertGreater(dims[2].dim_value, 0)
        self.assertEqual(len(graph.output), 1)
        for value in (graph.input[0], graph.output[0]):
            self.assertEqual(value.type.tensor_type.elem_type, onnx.TensorProto.FLOAT)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for tensor in graph.initializer:
            self.assertIn(tensor.data_type, (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64))
            self.assertFalse(tensor.external_data)
        lengths = {node.output[0] for node in graph.node if node.op_type == "Shape"}
        for node in graph.node:
            fixed = {"Slice": (1, 3, 4), "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,)}.get(node.op_type, ())
            self.assertTrue(all(node.input[place] in constants for place in fixed), node)
            if node.op_type == "Slice":
                self.assertTrue(node.input[2] in constants or node.input[2] in lengths, node)
            if node.op_type == "Shape":
                self.assertEqual((list(node.input), {a.name: a.i for a in node.attribute}), (["hidden"], {"start": 1, "end": 2}))
            used = [place for place, name in enumerate(node.input) if name in lengths]
            self.assertIn((node.op_type, used), [(node.op_type, []), ("Slice", [2])])

    def test_format(self):
        for name in MODELS:
            for layer in (0, 3):
                with self.subTest(name=name, layer=layer):
                    model = export(name, layer)
                    self.check(model)
                    told = metadata(model)
                    self.assertEqual(told["dynamic-sae.tail"], "1")
                    self.assertEqual(told["dynamic-sae.layer"], str(layer))
                    self.assertEqual(told["dynamic-sae.model"], str(directory(name)))
                    patches = (tiny_models.SIDE // tiny_models.PATCH) ** 2
                    self.assertEqual(told["dynamic-sae.context"], str(patches + 1 if modality(name) == "vision" else CONTEXT))
                    self.assertNotIn("dynamic-sae.classes", told)

    def test_the_same_file_again(self):
        self.assertEqual(export("llama", 1), export("llama", 1))


class Wrong(unittest.TestCase):
    def refused(self, words: str, *arguments: object, out: str = "refused.onnx") -> None:
        path = pathlib.Path(WORK.name) / out
        before = path.read_bytes() if path.is_file() else None
        printed, message = run(*arguments, path)
        self.assertRegex(str(message), words)
        self.assertRegex(str(message), r"\Aerror: [^\n]+\Z")
        self.assertEqual(printed, "")
        self.assertEqual(path.read_bytes() if path.is_file() else None, before)
        self.assertFalse(list(pathlib.Path(WORK.name).glob("*.tmp")))

    def test_arguments(self):
        work = pathlib.Path(WORK.name)
        classes = work / "wrong-classes.json"
        classes.write_text(json.dumps(CLASSES), encoding="utf-8")
        bert = ("--model", directory("bert"), "--modality", "text", "--layer", 1)
        clip = ("--model", directory("clip"), "--modality", "vision", "--layer", 1)
        tower = ("--model", directory("clip-vision"), "--modality", "vision", "--layer", 1)
        llama = ("--model", directory("llama"), "--modality", "text", "--layer", 1)
        self.refused(r"--layer 4: .* has layers 0\.\.3, or -4\.\.-1", *bert[:-1], 4)
        self.refused(r"--layer -5: .* has layers 0\.\.3", *llama[:-1], -5)
        self.refused("--context 13: .* takes 1 to 12 tokens", *bert, "--context", 13)
        self.refused("--context 0: .* takes 1 to 12 tokens", *llama, "--context", 0)
        self.refused("--context is for text", *clip, "--context", 4)
        self.refused("--pooling is for text", *clip, "--pooling", "cls")
        self.refused("for --modality vision", "--model", directory("clip"), "--modality", "text", "--layer", 1)
        self.refused("for --modality text", "--model", directory("gpt2"), "--modality", "vision", "--layer", 1)
        self.refused("leave out --normalize and --class-texts", *llama, "--normalize", "--class-texts", classes)
        self.refused("--class-prompts and --head-mean need --class-texts", *bert, "--class-prompts", "{}")
        self.refused('needs a "{}"', *bert, "--class-texts", classes, "--class-prompts", "a cat")
        self.refused("vision tower alone", *tower, "--class-texts", classes)
        self.refused("--gguf no.gguf: no such file", *llama, "--gguf", "no.gguf")
        self.refused("--model .*/absent", "--model", work / "absent", "--modality", "text", "--layer", 1)
        self.refused("absent.json", *bert, "--class-texts", work / "absent.json")
        self.refused("no directory", *bert, out="absent/tail.onnx")
        self.refused("is a directory", *bert, out="bert")
        (work / "there.onnx").write_text("something else")
        self.refused("there.onnx exists; .*--overwrite", *bert, out="there.onnx")

    def test_models(self):
        work = pathlib.Path(WORK.name)

        def refused(words: str, base: str, **changes: object) -> None:
            changed = work / f"changed-{base}-{'-'.join(changes)}"
            changed.mkdir()
            for path in directory(base).iterdir():
                (changed / path.name).write_bytes(path.read_bytes())
            config = json.loads((changed / "config.json").read_text()) | changes
            (changed / "config.json").write_text(json.dumps(config))
            self.refused(words, "--model", changed, "--modality", "text", "--layer", 1)

        unknown = work / "unknown"
        unknown.mkdir()
        (unknown / "config.json").write_text(json.dumps({"model_type": "t5"}))
        words = "type t5 have no tail yet; known types: bert, clip, .*, xlm-roberta"
        self.refused(words, "--model", unknown, "--modality", "text", "--layer", 1)
        refused("activation function is relu", "bert", hidden_act="relu")
        refused("is_decoder", "bert", is_decoder=True)
        refused("attends to 5 tokens", "mistral", sliding_window=5)
        refused("at most 4096 tokens; set --context", "llama", max_position_embeddings=5000)
        rotary = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
        refused("rotary positions of type dynamic", "llama", rope_parameters=rotary)

    def test_weights_that_are_not_finite(self):
        path = pathlib.Path(WORK.name) / "infinite"
        model = tiny_models.save("gpt2", path)
        with torch.no_grad():
            model.transformer.h[2].mlp.c_fc.weight[0, 0] = float("inf")
        model.save_pretrained(path)
        self.refused("block2/intermediate.weight of the model is not finite", "--model", path, "--modality", "text", "--layer", 1)

    def test_weights_that_are_missing(self):
        path = pathlib.Path(WORK.name) / "headless"
        tiny_models.save("llama", path).model.save_pretrained(path)
        words = "lacks 1 weights of LlamaForCausalLM, such as lm_head.weight"
        self.refused(words, "--model", path, "--modality", "text", "--layer", 1)

    def test_a_tail_that_is_not_the_model_is_not_written(self):
        with mock.patch("sae_tail.layers.math.sqrt", lambda x: x**0.49):  # in the tail alone
            arguments = ("--model", directory("bert"), "--modality", "text", "--layer", 1)
            self.refused("output differs from the model's by .*; nothing was written", *arguments)
        # the difference between two kinds of GELU is 20 times that of another order of sums
        for seed in (0, 1):
            path = pathlib.Path(WORK.name) / f"gelu-{seed}"
            tiny_models.save("gpt2", path, seed)
            with mock.patch.dict(layers.ACTIVATIONS, gelu_new=layers.ACTIVATIONS["gelu"]):
                self.refused("output differs", "--model", path, "--modality", "text", "--layer", 1)

    def test_without_onnx(self):
        stub = pathlib.Path(WORK.name) / "stub"
        stub.mkdir()
        (stub / "onnx.py").write_text("raise ImportError('no module')")
        environment = os.environ | {"PYTHONPATH": str(stub)}
        command = [sys.executable, ROOT / "tools/export_tail.py", "--model", "m", "--modality", "text", "--layer", "1", "o"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Aerror: [^\n]*pip install onnx\n\Z")


if __name__ == "__main__":
    with WORK:
        unittest.main()
