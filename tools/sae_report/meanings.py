"""Meanings of rows, read independently of sae-data: docs/DATA.md, "What rows are"."""

import json

import numpy as np

from .data import tensors


class Meanings:
    """Tokens, positions, texts and thumbnails of the rows of `data`, which was read from `path`; None where there are none.

    Rows are numbered as in the whole data set. No row may have been left out of the files (`drop_first_token`).
    """

    def __init__(self, path, data):
        self.starts, self.rows = data.starts, data.rows
        self.path, self.is_dir = path, path.is_dir()
        index = path / "index.json"
        about = json.loads(index.read_text()) if index.is_file() else {}
        files = [path] if not self.is_dir else [path / shard["file"] for shard in about.get("shards", [])]
        files = [file for file in files if file.suffix == ".safetensors"]
        self.ids, self.positions = (self.integers(files, name) for name in ("tokens", "positions"))
        words = self.beside("vocab.json") or (None if self.is_dir else existing(path.parent / "vocab.json"))
        self.words = json.loads(words.read_text("utf-8")) if words and self.ids is not None else None
        texts = self.beside("texts.jsonl")
        self.texts = texts and [json.loads(line)["text"] for line in texts.read_text("utf-8").split("\n") if line]
        self.thumbnails, self.image = self.beside("thumbnails"), about.get("image")

    def beside(self, name):
        return existing(self.path / name if self.is_dir else self.path.with_suffix("." + name))

    def integers(self, files, name):
        found = [tensors(file).get(name) for file in files]
        if found and all(found):
            return np.concatenate([values for _, values in found])
        extra = self.beside("tokens.safetensors")
        own = tensors(extra).get(name) if extra else None
        return None if own is None else np.asarray(own[1]).ravel()

    def word(self, row):
        """The string of a row's token, or its number."""
        token = int(self.ids[row])
        return (self.words[token] if self.words and token < len(self.words) else None) or str(token)

    def document(self, row):
        return int(np.searchsorted(self.starts, row, "right")) - 1

    def around(self, row, before, behind):
        """The rows of the document of `row` around it."""
        document = self.document(row)
        end = self.starts[document + 1] if document + 1 < len(self.starts) else self.rows
        return range(max(int(self.starts[document]), row - before), min(int(end), row + behind + 1))

    def unit(self, row):
        """The number of the document that a text or a thumbnail belongs to, or of the row where there are no documents."""
        return row if self.starts is None else self.document(row)

    def text(self, row):
        per_document = self.starts is not None and len(self.texts) == len(self.starts)
        return self.texts[self.document(row) if per_document else row]

    def cell(self, row):
        """The row and column of a patch; None for the class token and others."""
        patch = int(self.positions[row]) - self.image["first_patch"]
        return None if patch < 0 else list(divmod(patch, self.image["grid"][1]))

    def thumbnail(self, row):
        for suffix in ("jpg", "png"):
            if file := existing(self.thumbnails / f"{self.unit(row)}.{suffix}"):
                return file.read_bytes()
        return None


def existing(path):
    return path if path.exists() else None
