"""Tests the surprisals of tools/complexity.py: a tiny random language model reads every prefix of a document on its own.

    python3 sae-eval/tests/python/test_surprisal.py        (torch, transformers, numpy)
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import unittest

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import tiny_models
from sae_complexity import ComplexityError, surprisal
from sae_report.data import Data, Side
from sae_report.meanings import Meanings
from safetensors.numpy import save_file


class Surprisal(unittest.TestCase):
    TEXTS = ("a cat of the tree is a pet", "the dog", "this is a photo of a plant")

    def data(self, directory, ids):
        """Rows of all tokens but the first of each document."""
        texts = "".join(json.dumps({"text": text}) + "\n" for text in self.TEXTS)
        (directory / "rows.texts.jsonl").write_text(texts)
        document = np.concatenate([np.full(len(own) - 1, i) for i, own in enumerate(ids)])
        positions = np.concatenate([np.arange(1, len(own)) for own in ids]).astype(np.int32)
        tokens = np.concatenate([own[1:] for own in ids]).astype(np.int32)
        rows = np.zeros((len(tokens), 2), np.float32)
        save_file(
            {"activations": rows, "doc": document, "tokens": tokens, "positions": positions}, directory / "rows.safetensors"
        )
        data = Data(directory / "rows.safetensors", {}, None)
        return Side(data, np.arange(data.rows)), Meanings(directory / "rows.safetensors", data)

    def test_against_the_model_prefix_by_prefix(self):
        with tempfile.TemporaryDirectory() as work:
            directory = pathlib.Path(work)
            tiny_models.save("llama", directory / "model")
            tokenizer = tiny_models.tokenizer()
            ids = [tokenizer(text)["input_ids"] for text in self.TEXTS]
            side, meanings = self.data(directory, ids)
            args = argparse.Namespace(model=str(directory / "model"), gguf=None, device="cpu", cache=directory / "cache")
            found = surprisal.cached(side, meanings, args)
            model = transformers.AutoModelForCausalLM.from_pretrained(directory / "model").eval()
            row = 0
            for own in ids:
                expected = [np.nan]
                for end in range(1, len(own)):
                    with torch.inference_mode():
                        scores = torch.log_softmax(model(torch.tensor([own[:end]])).logits[0, -1].double(), dim=-1)
                    expected.append(-float(scores[own[end]]))
                behind = len(own) - 1
                np.testing.assert_allclose(found[row : row + behind, 0], expected[1:], atol=1e-4)
                np.testing.assert_allclose(found[row : row + behind, 1], [*expected[2:], np.nan], atol=1e-4)
                row += behind
            (directory / "model" / "config.json").unlink()
            np.testing.assert_array_equal(surprisal.cached(side, meanings, args), found)
            # another model of the same name has a file of its own
            (directory / "other").mkdir()
            (directory / "model").rename(directory / "other" / "model")
            with self.assertRaisesRegex(ComplexityError, "--model"):
                surprisal.cached(side, meanings, argparse.Namespace(**vars(args) | {"model": str(directory / "other" / "model")}))
            meanings.ids = np.asarray(meanings.ids) + 1
            with self.assertRaisesRegex(ComplexityError, "(?s)other tokens|--model"):
                surprisal.cached(side, meanings, args)


if __name__ == "__main__":
    unittest.main()
