"""Tests tools/check_tail.py: it must agree with a plain computation in torch float32, and notice every changed number.

    python3 sae-eval/tests/python/test_check_tail.py        (torch, transformers, safetensors, numpy, blake3, onnx; twenty seconds)

The plain computation goes document by document and version by version, and calls each block of a tiny random model itself.
"""

import contextlib
import copy
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from blake3 import blake3
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import check_tail
import tiny_models
import write_tails
from tiny_models import CLASSES

TAILS = {"llama": ("llama", 1), "bert": ("bert_classifier", 2), "clip": ("clip_classifier", 2)}
LATENTS, ACTIVE, NS = 48, 6, (1, 5, 10)
MASK = (1 << 64) - 1
WORK = tempfile.TemporaryDirectory()


class Dictionary:
    """A random top-k dictionary."""

    def __init__(self, width, scale):
        draw = torch.Generator().manual_seed(5)
        self.enc, dec = torch.randn((2, LATENTS, width), generator=draw)
        self.dec = torch.nn.functional.normalize(0.5 * dec + self.enc)
        self.b_dec, self.b_enc = 0.1 * torch.randn(width, generator=draw), 0.1 * torch.randn(LATENTS, generator=draw)
        self.scale = scale
        self.enc = self.enc / self.enc.norm(dim=1, keepdim=True)

    def save(self, path):
        path.mkdir(parents=True)
        own = {"name": "topk", "k": ACTIVE, "refinement": 0}
        cfg = {"d_in": len(self.b_dec), "n_latents": LATENTS, "architecture": own, "scale": 1.0, "norm_exponent": 0.0}
        cfg |= {"input_scale": self.scale, "unit_norm_decoder": True, "pre_bias": True, "encoder_bias": True}
        cfg |= dict.fromkeys(("query_projection", "key_projection", "value_projection"), False)
        (path / "cfg.json").write_text(json.dumps({"seed": 0, "model": cfg}))
        weights = {"W_enc": self.enc, "W_dec": self.dec, "b_dec": self.b_dec, "b_enc": self.b_enc}
        save_file(weights, path / "sae.safetensors")

    def codes(self, row):
        z = self.enc @ ((row - self.b_dec) / self.scale) + self.b_enc
        values, places = z.topk(ACTIVE)
        return torch.zeros(LATENTS).scatter(0, places, values.clamp(min=0))

    def decoded(self, a):
        return self.scale * (a @ self.dec) + self.b_dec


class Case:
    """A run on a tiny model's hidden states, and what its report should say."""

    def __init__(self, name, limit=None):
        self.name, (self.tail, self.layer) = name, TAILS[name]
        self.limit = np.inf if limit is None else limit
        self.run = pathlib.Path(WORK.name) / f"{name}-{limit}"
        self.run.mkdir()
        self.saved = pathlib.Path(WORK.name) / f"model-{name}"
        self.model = tiny_models.load(name, self.saved) if self.saved.exists() else tiny_models.save(name, self.saved)
        self.first = 1 if name == "llama" else 0
        self.train, self.documents = self.draw(60, 1), self.draw(40, 2)
        rows = torch.cat([hidden for hidden, _, _ in self.train])
        self.dictionary = Dictionary(rows.shape[1], float(rows.norm(dim=1).mean()) / 2)
        self.dictionary.save(self.run / "model")
        for split, documents in (("train", self.train), ("heldout", self.documents)):
            self.write(self.run / split, documents)
        paths = {"train": str(self.run / "train"), "held_out": str(self.run / "heldout")}
        (self.run / "config.toml").write_text("[data]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in paths.items()))
        self.section = self.facts() | (self.losses() if name == "llama" else {"classes": self.classes()})

    def draw(self, count, seed):
        """(hidden states rounded to f16, tokens, class) of documents; no document to rank on has the last class."""
        draw, found = torch.Generator().manual_seed(seed), []
        for number in range(count):
            length = 10 if self.name == "clip" else int(torch.randint(1, 13, (1,), generator=draw))
            given = tiny_models.inputs(self.name, 1, length, 1000 * seed + number)
            if self.name == "llama":
                given["input_ids"] = self.written(given["input_ids"], draw)
            states, _ = tiny_models.states_and_output(self.name, self.model, given)
            label = int(torch.randint(0, 4 - seed % 2 if seed == 2 else 2, (1,), generator=draw)) % 3
            ids = given.get("input_ids", torch.zeros((1, length), dtype=torch.int64))[0]
            found.append((states[self.layer][0].half().float(), ids, label))
        return found

    def written(self, ids, draw):
        """The first token, and what the model writes after it: it must lose by an ablation, or loss recovered says nothing."""
        for at in range(1, ids.shape[1]):
            ids[0, at] = torch.multinomial(self.model(ids[:, :at]).logits[0, -1].softmax(0), 1, generator=draw)
        return ids

    def write(self, path, documents):
        path.mkdir()
        each = [(i, len(hidden), label) for i, (hidden, _, label) in enumerate(documents)]
        tensors = {
            "activations": torch.cat([hidden for hidden, _, _ in documents]).half(),
            "tokens": torch.cat([ids for _, ids, _ in documents]).int(),
            "positions": torch.cat([torch.arange(length) for _, length, _ in each]).int(),
            "doc": torch.cat([torch.full((length,), i) for i, length, _ in each]),
            "labels": torch.cat([torch.full((length,), label) for _, length, label in each]),
        }
        save_file(tensors, path / "shard-00000.safetensors")
        (path / "index.json").write_text(json.dumps({"shards": [{"file": "shard-00000.safetensors"}]}))

    def stays(self, hidden):
        return [i < self.first or float(row.double().norm()) > self.limit for i, row in enumerate(hidden)]

    def replaced(self, hidden, by):
        out = [row if stay else by(row) for row, stay in zip(hidden, self.stays(hidden))]
        return torch.stack(out)

    def rest(self, hidden):
        x, model = hidden[None], self.model
        if self.name == "llama":
            tower, places = model.model, torch.arange(len(hidden))[None]
            turned = tower.rotary_emb(x, places)
            mask = torch.full((1, 1, len(hidden), len(hidden)), -torch.inf).triu(1)
            for block in tower.layers[self.layer :]:
                x = block(x, attention_mask=mask, position_ids=places, position_embeddings=turned)
            return model.lm_head(tower.norm(x))[0]
        if self.name == "bert":
            for block in model.encoder.layer[self.layer :]:
                x = block(x)
            x, scale = x.mean(1), 1.0
        else:
            for block in model.vision_model.encoder.layers[self.layer :]:
                x = block(x, None)
            x = model.visual_projection(model.vision_model.post_layernorm(x[:, 0]))
            scale = model.logit_scale.exp()
        if not hasattr(self, "head"):
            self.head = write_tails.class_head(self.name, model)
        return (scale * torch.nn.functional.normalize(x) @ self.head.T)[0]

    def facts(self):
        file = ROOT / f"sae-eval/tests/data/tails/{self.tail}.onnx"
        stays = [self.stays(hidden) for hidden, _, _ in self.documents]
        found = {"file": str(file), "blake3": blake3(file.read_bytes()).hexdigest(), "model": self.name, "layer": self.layer}
        found |= {"kind": "decoder" if self.name == "llama" else "classifier", "data": str(self.run / "heldout")}
        found |= {"documents": len(stays), "tokens": sum(map(len, stays)), "replaced": sum(each.count(False) for each in stays)}
        found |= {"max_norm": self.limit} if np.isfinite(self.limit) else {}
        return found | {"beyond_max_norm": sum(sum(each[self.first :]) for each in stays)}

    def losses(self):
        rows = [row for hidden, _, _ in self.documents for row, stay in zip(hidden, self.stays(hidden)) if not stay]
        mean = torch.stack(rows).double().mean(0).float()
        reconstructed = lambda row: self.dictionary.decoded(self.dictionary.codes(row))
        ways = (lambda row: row, reconstructed, lambda row: 0 * row, lambda row: mean)
        told = []  # document, position, CE and KL of each version, kept
        for number, (hidden, ids, _) in enumerate(self.documents):
            logits = [self.rest(self.replaced(hidden, way)).double() for way in ways]
            for at in range(1, len(hidden) - 1):
                logs = [torch.log_softmax(each[at], 0) for each in logits]
                order = logits[1][at].argsort(descending=True).tolist()
                place = order.index(int(logits[0][at].argmax()))
                numbers = [-float(each[ids[at + 1]]) for each in logs]
                numbers += [float((logs[0].exp() * (logs[0] - each)).sum()) for each in logs]
                told.append((number, at, np.array([*numbers, place < 1, place < 5, place < 10])))
        names = [f"{loss}_{way}" for loss in ("ce", "kl") for way in ("clean", "sae", "zero", "mean")]
        names += [f"kept_first_{n}" for n in (1, 5, 10)]

        def means(some):
            found = dict(zip(names, np.mean([numbers for _, _, numbers in some], 0), strict=True))
            for key, base in (("loss_recovered", "ce_zero"), ("loss_recovered_mean", "ce_mean")):
                found[key] = (found[base] - found["ce_sae"]) / (found[base] - found["ce_clean"])
            return found

        count = len(self.documents)
        of = [[each for each in told if each[0] == number] for number in range(count)]
        drawn = [[mixed(count * draw + i + 1) * count >> 32 for i in range(count)] for draw in range(200)]
        drawn = [means([each for number in numbers for each in of[number]]) for numbers in drawn]
        metrics = []
        for name, value in means(told).items():
            low, high = np.percentile([each[name] for each in drawn], [2.5, 97.5]) - np.mean([each[name] for each in drawn])
            metrics.append({"name": name, "value": value, "low": value + low, "high": value + high})
        by_position = []
        for start in (1, 2, 4, 8):
            some = [each for each in told if start <= each[1] < 2 * start]
            own = {key: means(some)[key] for key in ("ce_clean", "ce_sae", "kl_sae", "loss_recovered")}
            by_position.append({"from": start, "to": 2 * start - 1, "predictions": len(some)} | own)
        return {"metrics": [each for each in metrics if each["name"] != "kl_clean"], "by_position": by_position}

    def classes(self):
        """Top-n classification, with the ranking of the training rows."""
        fired, mass = np.zeros((2, 3, LATENTS))
        for hidden, _, label in self.train:
            for row in hidden:
                a = self.dictionary.codes(row).double().numpy()
                fired[label] += a != 0
                mass[label] += np.abs(a) / np.linalg.norm(a)
        right = {0: [], 1: []}
        for hidden, _, label in self.documents:
            if label not in right:
                continue
            order = sorted(range(LATENTS), key=lambda j: (-fired[label][j], -mass[label][j], j))
            keep = [torch.zeros(LATENTS).index_fill(0, torch.tensor(order[:n]), 1) for n in (*NS, LATENTS)]
            ways = [part for own in keep for part in (own, 1 - own)]
            chosen = lambda way: lambda row: self.dictionary.decoded(self.dictionary.codes(row) * way)
            versions = [self.replaced(hidden, chosen(way)) for way in ways]
            right[label].append([int(self.rest(each).argmax()) == label for each in (hidden, *versions)])
        each = {label: np.mean(rows, 0) for label, rows in right.items()}
        over, names = np.mean(list(each.values()), 0), list(CLASSES)
        rows = [{"n": str(n), "on": over[1 + 2 * i], "off": over[2 + 2 * i]} for i, n in enumerate((*NS, "all"))]
        per_class = [
            {"class": names[c], "documents": len(right[c]), "clean": own[0], "on": list(own[1::2]), "off": list(own[2::2])}
            for c, own in each.items()
        ]
        all_rows = np.mean([row[0] for rows in right.values() for row in rows])
        found = {"clean": over[0], "clean_over_documents": all_rows, "top_n": rows, "per_class": per_class}
        return found | {"unranked": names[2:]}

    def check(self, section, *options):
        """The exit code or message, and what was printed."""
        out = self.run / "reports"
        out.mkdir(exist_ok=True)
        report = {"top_n": None, "tail": section}
        (out / "report.json").write_text(json.dumps(report, default=lambda number: number.item()))
        printed = io.StringIO()
        argv = ["check_tail.py", str(self.run), "--quiet", "--runtime", "onnx", *map(str, options)]
        with mock.patch("sys.argv", argv), contextlib.redirect_stdout(printed):
            try:
                check_tail.main()
            except SystemExit as stopped:
                return stopped.code, printed.getvalue()
        return 0, printed.getvalue()


def mixed(index):
    """The upper half of splitmix64's output number `index`."""
    z = index * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) >> 32


def leaves(node, path=()):
    """(path, value) of all numbers."""
    if isinstance(node, (dict, list, tuple)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, (*path, key))
    elif isinstance(node, (int, float, np.number)):
        yield path, node


class CheckTail(unittest.TestCase):
    def agrees(self, case, *options):
        code, printed = case.check(case.section, *options)
        self.assertEqual(code, 0, f"{code}\n{printed}")
        return printed

    def notices(self, case, every):
        """Changes every so many number, by one answer, 1e-4 nats, or .001 of loss recovered."""
        changed = [(path, value) for path, value in leaves(case.section) if path != ("documents",)]
        for path, value in changed[::every]:
            section = copy.deepcopy(case.section)
            node = section
            for key in path[:-1]:
                node = node[key]
            name = node.get("name", path[-1]) if isinstance(node, dict) else path[-1]
            share = 1e-3 if "recovered" in str(name) else 1e-4 if "classes" not in path else 1 / len(case.documents)
            node[path[-1]] = value + (1 if isinstance(value, int) else share)
            with self.subTest(path=path):
                code, printed = case.check(section)
                self.assertRegex(str(code), "numbers differ", printed)

    def test_decoder(self):
        case = Case("llama")
        self.agrees(case)
        self.agrees(case, "--model", case.saved, "--modality", "text", "--layer", 1)
        self.notices(case, 3)

    def test_decoder_with_a_limit(self):
        norms = torch.cat([hidden[1:].double().norm(dim=1) for hidden, _, _ in Case("llama", 1e9).documents])
        case = Case("llama", 1.1 * float(np.median(norms)))
        self.assertGreater(case.section["beyond_max_norm"], 0)
        self.agrees(case, "--tail-max-norm", "1.1x median")
        code, printed = case.check(case.section, "--tail-max-norm", "1.2x median")
        self.assertIn("max_norm", printed)
        self.assertIn("1 of", str(code))

    def test_classifiers(self):
        classes = pathlib.Path(WORK.name) / "classes.json"
        classes.write_text(json.dumps(CLASSES))
        for name, modality in (("bert", "text"), ("clip", "vision")):
            case = Case(name)
            self.agrees(case)
            own = ("--model", case.saved, "--modality", modality)
            self.assertIn("head is the tail's", self.agrees(case, *own))
            self.agrees(case, *own, "--class-texts", classes, *write_tails.PROMPTS)
            self.notices(case, 2)

    def test_what_does_not_fit(self):
        case = Case("bert", 1e6)
        for change, options, message in (
            ({}, ("--tail-data", case.run / "nothing"), "nothing"),
            ({"layer": 1}, (), "1 of"),
            ({"blake3": "0"}, (), "1 of"),
            ({"file": str(case.run / "no.onnx")}, (), "no.onnx"),
            ({}, ("--tail", ROOT / "sae-eval/tests/data/tails/clip_classifier.onnx"), "width 32"),
            ({}, ("--model", case.saved), "--modality"),
            ({}, ("--model", case.saved, "--modality", "text", "--layer", 1), "--layer 1"),
        ):
            with self.subTest(change=change, options=options):
                self.assertIn(message, str(case.check(case.section | change, *options)[0]))


if __name__ == "__main__":
    with torch.inference_mode():
        unittest.main()
