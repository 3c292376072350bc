"""Shards on disk (docs/DATA.md, "Our shards"): whole or absent, streamed, with checksums."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import torch
from blake3 import blake3

from . import TOOL, ExportError
from .meanings import TEXTS, THUMBNAILS, VOCABULARY
from .reading import Document
from .states import Rows

FORMAT_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
FORMAT_NAMES |= {torch.int64: "I64", torch.int32: "I32"}


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
    own = ("index.json", "shard-*.safetensors", "classes.json", "class_embeddings.safetensors", "*.tmp")
    for pattern in (*own, VOCABULARY, TEXTS, f"{THUMBNAILS}/*.jpg", f"{THUMBNAILS}/*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()


class ShardWriter:
    """Collects rows and writes a shard whenever the next document does not fit into the current one."""

    def __init__(self, directory: pathlib.Path, dtype: torch.dtype, shard_bytes: int, labelled: bool):
        self.directory, self.dtype, self.shard_bytes, self.labelled = directory, dtype, shard_bytes, labelled
        self.shards: list[dict[str, object]] = []
        self.rows = 0  # in finished shards
        self.used = 0  # in the current one
        self.buffers: dict[str, torch.Tensor] = {}  # [capacity, ...] by tensor, allocated at the first document
        self.image: dict[str, object] | None = None
        remove_export(directory)

    def add(self, document: Document, rows: Rows) -> None:
        """Append the rows of one document."""
        tensors = self._tensors(document, rows)
        count = len(rows.values)
        if not self.buffers:
            row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
            self.capacity = max(1, self.shard_bytes // row_bytes)
            self.buffers = {
                name: torch.empty((self.capacity, *tensor.shape[1:]), dtype=tensor.dtype)
                for name, tensor in tensors.items()
            }
            self.image = rows.image
        if rows.image != self.image:
            self.image = None  # images of different sizes have no common grid
        if self.used + count > self.capacity and count <= self.capacity:
            self._write_shard()
        start = 0
        while start < count:  # more than one round only for a document larger than a shard
            length = min(count - start, self.capacity - self.used)
            for name, tensor in tensors.items():
                self.buffers[name][self.used : self.used + length] = tensor[start : start + length]
            self.used, start = self.used + length, start + length
            if self.used == self.capacity:
                self._write_shard()

    def _tensors(self, document: Document, rows: Rows) -> dict[str, torch.Tensor]:
        """What is stored of a document, one entry per row."""
        values = rows.values
        if not values.isfinite().all():
            raise ExportError(f"{document.name}: an activation is not finite")
        stored = values.to(self.dtype)
        if not stored.isfinite().all():
            raise ExportError(
                f"{document.name}: activation {values.abs().max():.4g} does not fit {FORMAT_NAMES[self.dtype]}; "
                "use --dtype bf16 or f32"
            )
        tensors = {"activations": stored, "doc": torch.full((len(stored),), document.number)}
        if self.labelled:
            tensors["labels"] = torch.full((len(stored),), document.label)
        for name, integers in (("tokens", rows.tokens), ("positions", rows.positions)):
            if integers is not None:
                tensors[name] = integers.to(torch.int32)
        return tensors

    def _write_shard(self) -> None:
        if self.used == 0:
            return
        tensors = {name: buffer[: self.used] for name, buffer in self.buffers.items()}
        name = f"shard-{len(self.shards):05}.safetensors"
        size, digest = write_file(self.directory / name, safetensors_parts(tensors, {"tool": TOOL}))
        self.shards.append({"file": name, "rows": self.used, "bytes": size, "blake3": digest})
        self.rows += self.used
        self.used = 0

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the last shard and the index."""
        self._write_shard()
        if not self.buffers:
            raise ExportError("the input has no document to export")
        index = {"format": "dynamic-sae.shards", "version": 1, "rows": self.rows, "width": self.buffers["activations"].shape[1]}
        index |= {"dtype": FORMAT_NAMES[self.dtype], "shards": self.shards}
        index |= ({"image": self.image} if self.image else {}) | {"metadata": metadata}
        write_json(self.directory / "index.json", index)
