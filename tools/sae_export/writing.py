"""Shards on disk (docs/DATA.md, "Our shards"): whole or absent, streamed, with checksums."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import torch
from blake3 import blake3

from . import TOOL, ExportError
from .reading import Document

FORMAT_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


def write_file(path: pathlib.Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write under a temporary name, sync, rename. Returns the size and the BLAKE3 hash."""
    temporary = path.with_name(path.name + ".tmp")
    size, digest = 0, blake3()
    with temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            size += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)  # makes the rename durable
    os.close(directory)
    return size, digest.hexdigest()


def write_json(path: pathlib.Path, value: object) -> None:
    write_file(path, [(json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()])


def safetensors_parts(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, without a copy of the data (safetensors.torch.save_file makes one)."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps all aligned
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": FORMAT_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, tensor in ordered:
        yield memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


def remove_export(directory: pathlib.Path) -> None:
    """Remove what this tool wrote, the index first, so that a partly removed export never looks complete."""
    for pattern in ("index.json", "shard-*.safetensors", "classes.json", "class_embeddings.safetensors", "*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()


class ShardWriter:
    """Collects rows and writes a shard whenever the next document does not fit into the current one."""

    def __init__(self, directory: pathlib.Path, dtype: torch.dtype, shard_bytes: int, labelled: bool):
        self.directory, self.dtype, self.shard_bytes, self.labelled = directory, dtype, shard_bytes, labelled
        self.shards: list[dict[str, object]] = []
        self.rows = 0  # in finished shards
        self.used = 0  # in the current one
        self.buffer: torch.Tensor | None = None  # [capacity, d], allocated at the first document
        remove_export(directory)

    def add(self, document: Document, rows: torch.Tensor) -> None:
        """Append the rows [k, d], f32, of one document."""
        if not rows.isfinite().all():
            raise ExportError(f"{document.name}: an activation is not finite")
        stored = rows.to(self.dtype)
        if not stored.isfinite().all():
            raise ExportError(
                f"{document.name}: activation {rows.abs().max():.4g} does not fit {FORMAT_NAMES[self.dtype]}; "
                "use --dtype bf16 or f32"
            )
        if self.buffer is None:
            row_bytes = rows.shape[1] * self.dtype.itemsize + (16 if self.labelled else 8)
            capacity = max(1, self.shard_bytes // row_bytes)
            self.buffer = torch.empty((capacity, rows.shape[1]), dtype=self.dtype)
            self.doc = torch.empty(capacity, dtype=torch.int64)
            self.labels = torch.empty(capacity, dtype=torch.int64)
        capacity = len(self.buffer)
        if self.used + len(stored) > capacity and len(stored) <= capacity:
            self._write_shard()
        while len(stored):  # more than one round only for a document larger than a shard
            part = stored[: capacity - self.used]
            place = slice(self.used, self.used + len(part))
            self.buffer[place] = part
            self.doc[place] = document.number
            if self.labelled:
                self.labels[place] = document.label
            self.used += len(part)
            stored = stored[len(part) :]
            if self.used == capacity:
                self._write_shard()

    def _write_shard(self) -> None:
        if self.used == 0:
            return
        tensors = {"activations": self.buffer[: self.used], "doc": self.doc[: self.used]}
        if self.labelled:
            tensors["labels"] = self.labels[: self.used]
        name = f"shard-{len(self.shards):05}.safetensors"
        size, digest = write_file(self.directory / name, safetensors_parts(tensors, {"tool": TOOL}))
        self.shards.append({"file": name, "rows": self.used, "bytes": size, "blake3": digest})
        self.rows += self.used
        self.used = 0

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the last shard and the index."""
        self._write_shard()
        if self.buffer is None:
            raise ExportError("the input has no document to export")
        index = {"format": "dynamic-sae.shards", "version": 1, "rows": self.rows, "width": self.buffer.shape[1]}
        index |= {"dtype": FORMAT_NAMES[self.dtype], "shards": self.shards, "metadata": metadata}
        write_json(self.directory / "index.json", index)
