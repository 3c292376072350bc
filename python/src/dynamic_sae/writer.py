"""Activations from any hook go to disk as a data set that ``sae-train`` reads: :class:`ActivationWriter`."""

import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from . import shards
from .errors import DynamicSaeError

TOOL = "dynamic_sae.ActivationWriter 1"


def array_of(values: Any, name: str) -> np.ndarray:
    """A numpy array of a tensor on any device, an array or a list; bfloat16 becomes float32, exactly."""
    if hasattr(values, "detach"):  # torch
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    array = np.asarray(values)
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise DynamicSaeError(f"{name}: expected numbers, not {array.dtype}; give a numpy array or a torch tensor")
    return array


def integers(values: Any, name: str, shape: tuple[int, ...], dtype: type = np.int32) -> np.ndarray:
    """Integers of a shape; a single one counts for all."""
    array = array_of(values, name)
    if array.dtype.kind not in "iu":
        raise DynamicSaeError(f"{name}: expected integers, not {array.dtype}")
    if array.ndim and array.shape != shape:
        raise DynamicSaeError(f"{name}: shape {list(array.shape)} does not fit the rows; expected {list(shape)}")
    limits = np.iinfo(dtype)
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        raise DynamicSaeError(f"{name}: {int(array.min())} to {int(array.max())} does not fit {np.dtype(dtype)}")
    return np.broadcast_to(array.astype(dtype), shape)


class ActivationWriter:
    """Writes activations as shards (docs/DATA.md, "Our shards"), batch by batch; memory holds one batch and one shard.

    Use it as a context manager: its end writes ``index.json``, and a directory with this file is complete. If the block ends with
    an error, or the process is killed, there is no index.

    Args:
        directory: a new or empty directory.
        dtype: ``"f16"``, ``"bf16"`` or ``"f32"``, in which numbers are stored.
        shard_mb: largest size of a shard in MiB.
        metadata: where the rows come from, for ``index.json``, for example ``{"model": "gpt2", "place": "layer 8"}``.
        tokenizer: a Hugging Face tokenizer, whose strings are written as ``vocab.json``, so that tokens can be shown.
        overwrite: replace the shards of an earlier writer in ``directory``, finished or not.

    Example:
        >>> with ActivationWriter("activations", tokenizer=tokenizer) as writer:
        ...     for texts in batches:
        ...         inputs = tokenizer(texts, padding=True, return_tensors="pt")
        ...         hidden = model(**inputs, output_hidden_states=True).hidden_states[8]
        ...         writer.add(hidden, mask=inputs["attention_mask"], tokens=inputs["input_ids"], texts=texts)
    """

    def __init__(
        self, directory: str | pathlib.Path, dtype: str = "f16", shard_mb: float = 512, metadata: Mapping[str, Any] | None = None,
        tokenizer: Any = None, overwrite: bool = False,
    ):
        if dtype not in shards.DTYPES:
            raise DynamicSaeError(f"dtype {dtype!r}: use one of {', '.join(shards.DTYPES)}")
        if shard_mb <= 0:
            raise DynamicSaeError(f"shard_mb {shard_mb}: a shard must have a size above zero")
        self.directory = pathlib.Path(directory)
        self.dtype, self.metadata = dtype, {"tool": TOOL} | dict(metadata or {})
        empty_directory(self.directory, overwrite)
        self.rows = 0
        """Rows that were added."""
        self.documents = 0
        """Documents that have rows."""
        self._last_doc: int | None = None
        self._columns: frozenset[str] | None = None  # what each batch has: the tensors, and "texts"
        self._width = 0
        self._texts = shards.TextWriter(self.directory)
        self._shards = shards.ShardWriter(self.directory, dtype, int(shard_mb * 2**20), TOOL)
        self._open = True
        if tokenizer is not None:
            shards.write_json(self.directory / shards.VOCABULARY, shards.token_strings(tokenizer))

    def add(
        self, rows: Any, doc: Any = None, tokens: Any = None, positions: Any = None, labels: Any = None, mask: Any = None,
        texts: str | Sequence[str] | None = None,
    ) -> None:
        """Appends a batch of rows, numpy arrays or torch tensors on any device.

        Each batch must have what the first one had. A batch that is refused leaves nothing behind.

        Args:
            rows: ``[n, d]``, or ``[batch, tokens, d]``: each example is a document.
            doc: ids of documents, which never decrease: one for all rows, or ``[n]``, or ``[batch]``. Default: ``[n, d]`` has no
                documents, the examples of ``[batch, tokens, d]`` are numbered on. A document may go on in the next batch.
            tokens: token ids, ``[n]`` or ``[batch, tokens]``.
            positions: places in the input of the model, from 0, ``[n]`` or ``[batch, tokens]``. Default: ``[n, d]`` has none, an
                example counts its tokens in ``mask``. Give them if ``mask`` leaves out more than padding.
            labels: class numbers: one for all rows, or ``[n]``, or ``[batch]``.
            mask: ``[n]`` or ``[batch, tokens]``, true for rows to keep: the attention mask.
            texts: the text of each document that begins in this batch: a list, or a string if it is one. Where there are no
                documents, one for each row. Texts of documents without rows are left out.

        Raises:
            DynamicSaeError: if shapes do not fit each other, a number is NaN, infinite or too large for ``dtype``, or the batch
                has other parts than the first one.
        """
        if not self._open:
            raise DynamicSaeError(f"{self.directory}: this writer is finished; open another in a directory of its own")
        batch = Batch(array_of(rows, "rows"), mask)
        next_doc = 0 if self._last_doc is None else self._last_doc + 1
        tensors = {
            "doc": batch.documents(doc, next_doc), "labels": batch.per_document(labels, "labels"),
            "tokens": batch.per_row(tokens, "tokens"), "positions": batch.positions(positions),
        }
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        columns = frozenset(tensors) | ({"texts"} if texts is not None else set())
        self._check_columns(columns, batch.rows.shape[1])
        begins = self._beginnings(tensors.get("doc"), len(batch.rows))
        kept_texts = batch.texts(texts, begins, "doc" in tensors)
        tensors["activations"] = shards.stored(
            batch.rows, self.dtype, lambda row: f"row {self.rows + row} (row {row} of this batch)"
        )
        self._columns, self._width = columns, batch.rows.shape[1]
        self._append(tensors, begins)
        for text in kept_texts:
            self._texts.add(text)

    def _check_columns(self, columns: frozenset[str], width: int) -> None:
        """The parts and the width of a batch are those of the first one."""
        if self._columns is None:
            return
        if columns != self._columns:
            name = min(columns ^ self._columns)
            raise DynamicSaeError(f"{name}: this batch has {'it' if name in columns else 'none'}, the first batch had "
                                  f"{'none' if name in columns else 'it'}; give it with each batch or with none")
        if width != self._width:
            raise DynamicSaeError(f"rows: width {width}, but the first batch had {self._width}; write them "
                                  "into another directory")

    def _beginnings(self, doc: np.ndarray | None, count: int) -> np.ndarray:
        """The rows of a batch at which a document begins; all rows where there are no documents."""
        if doc is None:
            return np.arange(count)
        before = np.concatenate([[-1 if self._last_doc is None else self._last_doc], doc[:-1]]) if count else doc
        if (doc < before).any():
            row = int((doc < before).argmax())
            raise DynamicSaeError(f"doc: {int(doc[row])} comes after {int(before[row])}; ids of documents are 0 or more and "
                                  "never decrease")
        return np.flatnonzero(doc != before)

    def _append(self, tensors: dict[str, np.ndarray], begins: np.ndarray) -> None:
        """Hands rows on, document by document."""
        count = len(tensors["activations"])
        if count == 0:
            return
        if "doc" not in tensors:
            self._shards.add(tensors, whole=False)
        else:
            cuts = [0, *(int(row) for row in begins if row), count]
            for start, end in zip(cuts[:-1], cuts[1:], strict=True):
                self._shards.add({name: tensor[start:end] for name, tensor in tensors.items()})
            self.documents += len(begins)
            self._last_doc = int(tensors["doc"][-1])
        self.rows += count

    def finish(self) -> None:
        """Writes the last shard, then the index. The end of the ``with`` block calls it."""
        if self._open:
            self._open = False
            self._texts.finish()
            self._shards.finish(self.metadata)

    def close(self) -> None:
        """Gives up: the directory stays without an index."""
        self._open = False
        self._texts.close()

    def __enter__(self) -> "ActivationWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()


class Batch:
    """Rows as a matrix, and how what belongs to them is flattened and masked in the same way."""

    def __init__(self, values: np.ndarray, mask: Any):
        if values.dtype.kind != "f":
            raise DynamicSaeError(f"rows: expected floats, not {values.dtype}")
        if values.ndim not in (2, 3) or 0 in values.shape[1:]:
            raise DynamicSaeError(f"rows: expected [rows, width] or [batch, tokens, width], not {list(values.shape)}")
        self.shape = values.shape[:-1]  # [n] or [batch, tokens]
        self.examples = values.ndim == 3
        self.mask = np.ones(self.shape, bool)
        if mask is not None:
            self.mask = array_of(mask, "mask").astype(bool)
            if self.mask.shape != self.shape:
                raise DynamicSaeError(f"mask: shape {list(self.mask.shape)} does not fit the rows; expected {list(self.shape)}")
        self.rows = values[self.mask]

    def per_row(self, values: Any, name: str) -> np.ndarray | None:
        """An integer per row that is kept."""
        return None if values is None else integers(values, name, self.shape)[self.mask]

    def per_document(self, values: Any, name: str) -> np.ndarray | None:
        """An integer per row that is kept, from one per row or one per example."""
        if values is None:
            return None
        whole = integers(values, name, self.shape[:1], np.int64)
        return np.broadcast_to(whole[:, None] if self.examples else whole, self.shape)[self.mask]

    def documents(self, doc: Any, next_doc: int) -> np.ndarray | None:
        """Ids of documents; examples are numbered on, but for those without rows."""
        if doc is not None or not self.examples:
            return self.per_document(doc, "doc")
        some = self.mask.any(1)
        return self.per_document(next_doc + np.cumsum(some) - some, "doc")

    def positions(self, positions: Any) -> np.ndarray | None:
        """Places in the input of the model."""
        if positions is None and self.examples:
            positions = np.maximum(np.cumsum(self.mask, 1) - 1, 0)
        return self.per_row(positions, "positions")

    def texts(self, texts: str | Sequence[str] | None, begins: np.ndarray, documents: bool) -> list[str]:
        """The texts that are written: one for each document that begins in this batch and has rows, or for each row."""
        if texts is None:
            return []
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in texts):
            raise DynamicSaeError("texts: expected a string, or a list of strings")
        if len(texts) == self.shape[0] and (self.examples or not documents):
            return [texts[example] for example in np.nonzero(self.mask)[0][begins]]
        if len(texts) != len(begins):
            what = "documents that begin in this batch" if documents else "rows"
            raise DynamicSaeError(f"texts: {len(texts)} texts for {len(begins)} {what}; give one for each")
        return texts


def empty_directory(directory: pathlib.Path, overwrite: bool) -> None:
    """Makes the directory, or checks that it is empty."""
    if directory.exists() and not directory.is_dir():
        raise DynamicSaeError(f"{directory}: this is a file; give a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    if overwrite:
        shards.remove(directory)
    others = sorted(entry.name for entry in directory.iterdir())
    if not others:
        return
    own = {path.name for pattern in shards.OWN_FILES for path in directory.glob(pattern)}
    if strangers := [name for name in others if name not in own]:
        raise DynamicSaeError(f"{directory}: it has other files, such as {strangers[0]}; give a new or empty directory")
    state = "a finished data set" if shards.INDEX in own else "a data set whose writing was interrupted"
    raise DynamicSaeError(f"{directory}: it has {state}; give another directory, or overwrite=True to replace it")
