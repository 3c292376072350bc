"""Shards on disk (docs/DATA.md, "Our shards"): whole or absent, streamed, with checksums. The format is written here only.

:class:`dynamic_sae.ActivationWriter` and ``tools/export_activations.py`` both write through this module. It needs numpy and
blake3; torch is not imported.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from .errors import DynamicSaeError

FORMAT, VERSION = "dynamic-sae.shards", 1
INDEX, VOCABULARY, TEXTS = "index.json", "vocab.json", "texts.jsonl"
OWN_FILES = (INDEX, "shard-*.safetensors", VOCABULARY, TEXTS, "*.tmp")  # the index first: a directory without it is not complete
DTYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}
# numpy has no bfloat16: an array of uint16 holds the bits of one.
FORMAT_NAMES = {"float16": "F16", "float32": "F32", "uint16": "BF16", "int64": "I64", "int32": "I32"}


def write_file(path: pathlib.Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Writes under a temporary name, syncs, renames. Returns the size and the BLAKE3 hash."""
    from blake3 import blake3

    temporary = path.with_name(path.name + ".tmp")
    size, digest = 0, blake3()
    with temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            size += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)
    return size, digest.hexdigest()


def sync_directory(path: pathlib.Path) -> None:
    """Makes renames in a directory durable, where the system has a call for it."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def write_json(path: pathlib.Path, value: object) -> None:
    """A JSON file, whole or absent."""
    write_file(path, [(json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()])


def safetensors_parts(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, without a copy of the data (safetensors.numpy.save_file makes one)."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # keeps all aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": FORMAT_NAMES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, tensor in ordered:
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        yield memoryview(np.ascontiguousarray(little).reshape(-1).view(np.uint8))


def stored(values: np.ndarray, dtype: str, place: Callable[[int], str]) -> np.ndarray:
    """Rows in the type that they are stored in, bfloat16 as its bits.

    Args:
        values: rows ``[n, d]`` of floats.
        dtype: a key of :data:`DTYPES`.
        place: the name of a row by its number, for messages.

    Raises:
        DynamicSaeError: if a number is NaN or infinite, or the type cannot hold it.
    """
    refuse_at(~np.isfinite(values), lambda row, column: f"{place(row)}: activation {column} is not finite "
              f"({values[row, column]}); leave such rows out, or look for what made them")
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            result = bfloat16_bits(values.astype(np.float32))
            infinite = (result & 0x7FFF) == 0x7F80
        else:
            result = values.astype({"f16": np.float16, "f32": np.float32}[dtype])
            infinite = ~np.isfinite(result)
    others = "f32" if dtype == "bf16" else "bf16 or f32"
    refuse_at(infinite, lambda row, column: f"{place(row)}: activation {column} is {values[row, column]:.4g}, which does not fit "
              f"{DTYPES[dtype]}; " + ("scale the rows down" if dtype == "f32" else f"use dtype {others}"))
    return result


def refuse_at(wrong: np.ndarray, message: Callable[[int, int], str]) -> None:
    """Raises with the first place of a mask ``[n, d]``, if it has any."""
    if wrong.any():
        row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise DynamicSaeError(message(int(row), int(column)))


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper half of float32 numbers, rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


class ShardWriter:
    """Collects rows and writes a shard whenever the next document does not fit into the current one.

    Args:
        directory: where the shards go; it exists, and nobody else writes there.
        dtype: a key of :data:`DTYPES`; rows are given in it already (:func:`stored`).
        shard_bytes: largest size of a shard, without its header.
        tool: who writes, for the headers.
    """

    def __init__(self, directory: pathlib.Path, dtype: str, shard_bytes: int, tool: str):
        self.directory, self.dtype, self.shard_bytes, self.tool = directory, dtype, shard_bytes, tool
        self.shards: list[dict[str, object]] = []
        self.rows = 0  # in finished shards
        self.used = 0  # in the current one
        self.capacity = 0
        self.buffers: dict[str, np.ndarray] = {}  # [capacity, ...] by tensor, allocated at the first rows

    def add(self, tensors: Mapping[str, np.ndarray], whole: bool = True) -> None:
        """Appends rows.

        Args:
            tensors: ``activations [n, d]`` and whatever else has an entry per row, ``[n]``: the same names each time.
            whole: these are the rows of one document, which goes into the next shard if it does not fit into this one.
        """
        count = len(tensors["activations"])
        if not self.buffers:
            self._allocate(tensors)
        if whole and self.used + count > self.capacity and count <= self.capacity:
            self._write_shard()
        start = 0
        while start < count:  # more than one round only for rows that may be cut, or a document larger than a shard
            length = min(count - start, self.capacity - self.used)
            for name, tensor in tensors.items():
                self.buffers[name][self.used : self.used + length] = tensor[start : start + length]
            self.used, start = self.used + length, start + length
            if self.used == self.capacity:
                self._write_shard()

    def _allocate(self, tensors: Mapping[str, np.ndarray]) -> None:
        row_bytes = sum(tensor[:1].nbytes for tensor in tensors.values())
        self.capacity = max(1, self.shard_bytes // row_bytes)
        self.buffers = {name: np.empty((self.capacity, *tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items()}

    def _write_shard(self) -> None:
        if self.used == 0:
            return
        tensors = {name: buffer[: self.used] for name, buffer in self.buffers.items()}
        name = f"shard-{len(self.shards):05}.safetensors"
        size, digest = write_file(self.directory / name, safetensors_parts(tensors, {"tool": self.tool}))
        self.shards.append({"file": name, "rows": self.used, "bytes": size, "blake3": digest})
        self.rows += self.used
        self.used = 0

    def finish(self, metadata: Mapping[str, Any], image: Mapping[str, object] | None = None) -> None:
        """Writes the last shard and the index."""
        self._write_shard()
        if not self.buffers:
            raise DynamicSaeError(f"{self.directory}: no row was given, so there is nothing to write; add rows first")
        index = {"format": FORMAT, "version": VERSION, "rows": self.rows, "width": self.buffers["activations"].shape[1]}
        index |= {"dtype": DTYPES[self.dtype], "shards": self.shards}
        index |= ({"image": image} if image else {}) | {"metadata": metadata}
        self.buffers = {}
        write_json(self.directory / INDEX, index)


class TextWriter:
    """``texts.jsonl``: the text of each document that has rows, in their order. It gets its name once it is complete."""

    def __init__(self, directory: pathlib.Path):
        self.path = directory / TEXTS
        self.file: BinaryIO | None = None

    def add(self, text: str) -> None:
        """The text of the next document."""
        if self.file is None:
            self.file = self.path.with_name(f"{TEXTS}.tmp").open("wb")
        line = json.dumps({"text": text}, ensure_ascii=False)
        self.file.write(line.encode("utf-8", "replace") + b"\n")  # a text may hold half a surrogate pair

    def close(self) -> None:
        """Gives up what was not finished."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def finish(self) -> None:
        """Writes the rest and gives the file its name."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.close()
            self.path.with_name(f"{TEXTS}.tmp").replace(self.path)


def remove(directory: pathlib.Path, patterns: Iterable[str] = OWN_FILES) -> None:
    """Removes what a writer wrote, the index first, so that what is partly removed never looks complete."""
    for pattern in patterns:
        for path in directory.glob(pattern):
            path.unlink()


def token_strings(tokenizer: Any) -> list[str]:
    """The text of every token id of a Hugging Face tokenizer, so that the strings of consecutive tokens, one after the other, are
    their text.

    Many tokenizers leave out the space before the first token that they decode, or mark a piece within a word (##ing). So
    each token is decoded behind the letter "a", and the text of that letter is taken away.
    """

    def decode(ids: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    alone = decode([[token] for token in range(len(tokenizer))])
    behind = decode([[*before, token] for token in range(len(tokenizer))])
    (start,) = decode([before])
    special = set(tokenizer.all_special_ids)
    return [
        text[len(start) :] if token not in special and text.startswith(start) else alone[token]
        for token, text in enumerate(behind)
    ]
