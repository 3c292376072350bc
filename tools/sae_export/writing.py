"""Exported documents as shards; dynamic_sae.shards has the format."""

import pathlib

import numpy as np
from dynamic_sae import shards
from dynamic_sae.shards import DTYPES, VOCABULARY, safetensors_parts, token_strings, write_file, write_json

from . import TOOL
from .meanings import THUMBNAILS
from .reading import Document
from .states import Rows

__all__ = ["DTYPES", "VOCABULARY", "ShardWriter", "safetensors_parts", "token_strings", "write_file", "write_json"]

OWN_FILES = (*shards.OWN_FILES, "classes.json", "class_embeddings.safetensors", f"{THUMBNAILS}/*.jpg", f"{THUMBNAILS}/*.tmp")


class ShardWriter:
    """Writes the rows of documents, and how the rows of images lie in them."""

    def __init__(self, directory: pathlib.Path, dtype: str, shard_bytes: int, labelled: bool):
        self.dtype, self.labelled = dtype, labelled
        self.image: dict[str, object] | None = None
        shards.remove(directory, OWN_FILES)
        self.writer = shards.ShardWriter(directory, dtype, shard_bytes, TOOL)

    @property
    def shards(self) -> list[dict[str, object]]:
        """The shards that are written."""
        return self.writer.shards

    def add(self, document: Document, rows: Rows) -> None:
        """Append the rows of one document."""
        if not self.writer.buffers:
            self.image = rows.image
        if rows.image != self.image:
            self.image = None  # images of different sizes have no common grid
        self.writer.add(self._tensors(document, rows))

    def _tensors(self, document: Document, rows: Rows) -> dict[str, np.ndarray]:
        """What is stored of a document, one entry per row."""
        stored = shards.stored(rows.values.numpy(), self.dtype, lambda row: f"{document.name}, row {row} of it")
        tensors = {"activations": stored, "doc": np.full(len(stored), document.number, np.int64)}
        if self.labelled:
            tensors["labels"] = np.full(len(stored), document.label, np.int64)
        for name, integers in (("tokens", rows.tokens), ("positions", rows.positions)):
            if integers is not None:
                tensors[name] = integers.numpy().astype(np.int32)
        return tensors

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the last shard and the index."""
        self.writer.finish(metadata, self.image)
