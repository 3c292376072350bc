"""Writes activation data sets with the packages that people write them with, and what a reader must find in them.

    write_formats.py OUT_DIR

`OUT_DIR/expected.json` lists data sets to be read, `OUT_DIR/refused.json` those to be refused; paths in both are
relative to OUT_DIR. A data set to be read has "name", "path", "options" (of "tensor", "layer", "drop_first_token",
"labels"), "rows", "width", "values" (a file of raw float32 [rows, width]), "labels" (null, or a file of raw int64
[rows]), "documents" (null, or the first row of every document) and "tokens" (null, or the token id of every row). One to be refused has "name", "path", "options"
and "says", parts of the message.

Nothing may unpickle anything: every pickle here creates `OUT_DIR/PICKLE_WAS_READ` when it is read.
"""

import base64
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import safetensors
import safetensors.numpy

f16, f32, f64 = np.float16, np.float32, np.float64


class Out:
    """The folder, and the two lists."""

    def __init__(self, root):
        self.root = root
        self.expected, self.refused = [], []
        for folder in ("good", "bad", "values"):
            (root / folder).mkdir(parents=True)

    def good_path(self, name):
        return self.root / "good" / name

    def bad_path(self, name):
        return self.root / "bad" / name

    def good(self, path, values, of_rows=None, documents=None, name=None, tokens=None, **options):
        """`of_rows` are the labels, `documents` is the number of rows of each document."""
        name = name or path.name
        values = np.asarray(values, dtype="<f4").reshape(-1, np.shape(values)[-1])
        assert np.isfinite(values).all(), name
        (self.root / f"values/{name}.f32").write_bytes(values.tobytes())
        if of_rows is not None:
            of_rows = np.asarray(of_rows, dtype="<i8").reshape(-1)
            assert len(of_rows) == len(values), name
            (self.root / f"values/{name}.i64").write_bytes(of_rows.tobytes())
        if documents is not None:
            assert sum(documents) == len(values), name
            documents = [0, *np.cumsum(documents)[:-1].tolist()]
        labels = None if of_rows is None else f"values/{name}.i64"
        entry = {"name": name, "path": self.relative(path), "options": options}
        entry |= {"rows": values.shape[0], "width": values.shape[1], "values": f"values/{name}.f32"}
        tokens = None if tokens is None else np.asarray(tokens).reshape(-1).tolist()
        self.expected.append(entry | {"labels": labels, "documents": documents, "tokens": tokens})

    def bad(self, path, says=None, name=None, **options):
        """`says` is the name of the path if it is not given."""
        entry = {"name": name or path.name, "path": self.relative(path), "options": options}
        self.refused.append(entry | {"says": [path.name] if says is None else says})

    def relative(self, path):
        return str(path.relative_to(self.root))

    def cut(self, source, *lengths):
        """The start of a good file, cut after so many bytes (from the end, if negative)."""
        data = source.read_bytes()
        for length in lengths:
            path = self.bad_path(f"cut{length}-{source.name}")
            path.write_bytes(data[:length])
            self.bad(path)

    def good_parts(self, name, write, parts, *expected):
        """A folder whose files are to be read in the order of their numbers, part-2 before part-10."""
        folder = self.good_path(name)
        folder.mkdir()
        for number, part in zip((1, 2, 10, 30), parts):
            write(folder / f"part-{number}{self.suffix(name)}", part)
        self.good(folder, *expected)
        return folder

    def bad_parts(self, name, write, first, second):
        """A folder of two files that are not alike."""
        folder = self.bad_path(name)
        folder.mkdir()
        for number, part in ((1, first), (2, second)):
            write(folder / f"part-{number}{self.suffix(name)}", part)
        self.bad(folder, [f"part-2{self.suffix(name)}"])

    def suffix(self, name):
        return "." + name.split("-")[0]

    def finish(self):
        for name, entries in (("expected", self.expected), ("refused", self.refused)):
            assert len({entry["name"] for entry in entries}) == len(entries)
            lines = ",\n".join(json.dumps(entry) for entry in entries)
            (self.root / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def acts(*shape, dtype=f32, seed=0):
    """Random rows that `dtype` holds exactly, with its extremes at both ends."""
    values = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)
    flat = values.reshape(-1)
    flat[1], flat[-1] = -0.0, {f16: 65504, f32: 1e-40, f64: -1e30}[dtype]
    if dtype is f16:
        flat[2] = 6e-8  # a subnormal
    return values


def some_labels(count, seed=0):
    return np.random.default_rng([7, count, seed]).integers(0, 12, count)


def pickled(out):
    class Creates:
        def __reduce__(self):
            return open, (str(out.root / "PICKLE_WAS_READ"), "w")

    return Creates()


# ---------------------------------------------------------------------------------------------------------- numpy


def numpy_files(out):
    for dtype, bits in ((f16, 16), (f32, 32), (f64, 64)):
        for version in ((1, 0), (2, 0), (3, 0)):
            values = acts(37, 5 + version[0], dtype=dtype)
            path = out.good_path(f"f{bits}-v{version[0]}.npy")
            with path.open("wb") as file:
                np.lib.format.write_array(file, values, version=version)
            out.good(path, values)
    path = out.good_path("one.npy")
    np.save(path, acts(1, 3))
    out.good(path, acts(1, 3))

    values = acts(11, 7, 13, dtype=f16)
    path = out.good_path("3d.npy")
    np.save(path, values)
    out.good(path, values, documents=[7] * 11)
    out.good(path, values[:, 1:], documents=[6] * 11, name="3d-drop.npy", drop_first_token=True)
    of_examples, of_rows = some_labels(11), some_labels(77)
    for name, labels in (("examples", of_examples), ("rows", of_rows)):
        file = out.good_path(f"3d-labels-{name}.npy")
        np.save(file, labels)
        each = np.broadcast_to(labels.reshape(11, -1), (11, 7))
        options = {"labels": out.relative(file)}
        out.good(path, values, each, [7] * 11, f"3d-labels-of-{name}.npy", **options)
        options["drop_first_token"] = True
        out.good(path, values[:, 1:], each[:, 1:], [6] * 11, f"3d-drop-labels-of-{name}.npy", **options)

    parts = [acts(n, 9, seed=n) for n in (5, 1, 30, 12)]
    folder = out.good_parts("npy-folder", np.save, parts, np.concatenate(parts))
    file = out.good_path("npy-folder-labels.npy")
    np.save(file, some_labels(48))
    out.good(folder, np.concatenate(parts), some_labels(48), name="npy-folder-with-labels", labels=out.relative(file))


def bad_numpy_files(out):
    values = acts(20, 6)
    for name, array in {
        "big-endian": values.astype(">f4"),
        "object": np.array([[pickled(out)] * 2] * 3, dtype=object),
        "fortran": np.asfortranarray(values),
        "int": np.arange(20).reshape(5, 4),
        "bool": values > 0,
        "complex": values.astype(np.complex64),
        "struct": np.zeros((5, 4), dtype=[("a", "<f4"), ("b", "<f4")]),
        "scalar": np.float32(1.5),
        "1d": values[0],
        "4d": acts(2, 3, 4, 5),
        "no-rows": values[:0],
        "no-columns": values[:, :0],
    }.items():
        path = out.bad_path(f"{name}.npy")
        np.save(path, array, allow_pickle=True)
        out.bad(path)
    path = out.bad_path("ndim.npy")  # the header promises more than the file has room for
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    out.bad(path)
    path = out.bad_path("text.npy")
    path.write_text("these are no activations\n" * 20)
    out.bad(path)
    out.cut(out.good_path("f32-v1.npy"), 4, 9, 40, 128, 300, -1)

    for name, other in (("widths", acts(4, 7)), ("dtypes", acts(4, 6, dtype=f16)), ("dimensions", acts(4, 2, 6))):
        out.bad_parts(f"npy-mixed-{name}", np.save, values, other)
    for source, count in (("f32-v1.npy", 36), ("f32-v1.npy", 38), ("f32-v1.npy", 0), ("3d.npy", 12)):
        path = out.bad_path(f"labels-{count}-of-{source}")
        np.save(path, some_labels(count))
        out.bad(out.good_path(source), [path.name], path.name, labels=out.relative(path))


# ---------------------------------------------------------------------------------------------------- safetensors


def safetensors_file(path, tensors):
    safetensors.numpy.save_file(tensors, path, metadata={"made by": "a test"})


def save_bf16(path, values):
    """Rounds towards zero; `safetensors.numpy` writes no bfloat16 of its own."""
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    spec = {"dtype": "bfloat16", "shape": bits.shape, "data_ptr": bits.ctypes.data, "data_len": bits.nbytes}
    path.write_bytes(safetensors.serialize({"acts": safetensors.TensorSpec(**spec)}, metadata={"format": "pt"}))
    return (bits.astype(np.uint32) << 16).view(f32)


def safetensors_files(out):
    for dtype, bits in ((f16, 16), (f32, 32)):
        values = acts(41, 17, dtype=dtype)
        path = out.good_path(f"f{bits}.safetensors")
        safetensors_file(path, {"acts": values, "scale": np.ones(3, f32)})
        out.good(path, values)
    path = out.good_path("bf16.safetensors")
    out.good(path, save_bf16(path, acts(23, 5)))

    values, labels = acts(31, 8), some_labels(31)
    for dtype in (np.int64, np.int32, np.uint8):
        path = out.good_path(f"labels-{np.dtype(dtype).name}.safetensors")
        safetensors_file(path, {"x": values, "labels": labels.astype(dtype)})
        out.good(path, values, labels)
    path = out.good_path("several.safetensors")
    safetensors_file(path, {"mlp": acts(31, 5), "resid": values, "a": acts(3, 3, dtype=f16), "labels": labels})
    out.good(path, values, labels, tensor="resid")

    lengths = [4, 1, 9, 16, 1]
    for dtype in (np.int32, np.int64):
        path = out.good_path(f"doc-{np.dtype(dtype).name}.safetensors")
        documents = np.repeat(np.array([0, 1, 5, 6, 40], dtype), lengths)
        safetensors_file(path, {"acts": values, "doc": documents})
        out.good(path, values, documents=lengths)

    values, labels = acts(6, 5, 8), some_labels(6)
    path = out.good_path("3d.safetensors")
    safetensors_file(path, {"acts": values, "labels": labels})
    out.good(path, values, np.repeat(labels, 5), [5] * 6)
    out.good(path, values[:, 1:], np.repeat(labels, 4), [4] * 6, "3d-drop.safetensors", drop_first_token=True)

    parts, labels = [acts(n, 10, dtype=f16, seed=n) for n in (3, 14, 6)], some_labels(23)
    named = [{"acts": a, "labels": b} for a, b in zip(parts, np.split(labels, [3, 17]))]
    out.good_parts("safetensors-folder", safetensors_file, named, np.concatenate(parts), labels)


def bad_safetensors_files(out):

    def by_hand(name, header, length=None, data=bytes(48)):
        path = out.bad_path(f"{name}.safetensors")
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
        out.bad(path)

    def tensor(start, end, dtype="F32", shape=(2, 3)):
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    by_hand("header-too-long", {"a": tensor(0, 48, shape=(4, 3))}, length=1 << 20)
    by_hand("header-huge", {"a": tensor(0, 48, shape=(4, 3))}, length=(1 << 64) - 1)
    by_hand("overlapping", {"a": tensor(0, 24), "b": tensor(12, 36)})
    by_hand("past-the-end", {"a": tensor(0, 24), "b": tensor(24, 72, shape=(4, 3))})
    by_hand("backwards", {"a": tensor(48, 0)})
    by_hand("wrong-size", {"a": tensor(0, 48)})
    by_hand("overflowing", {"a": tensor(0, 48, shape=(1 << 62, 1 << 62))})
    by_hand("unknown-dtype", {"a": tensor(0, 48, dtype="X7", shape=(4, 3))})
    by_hand("not-json", b"acts: F32 [4, 3] at 0..48")
    by_hand("not-utf8", b"\xff\xfe\x00{")

    values = acts(20, 6)
    for name, says, tensors, options in (
        ("two-candidates", ["first", "second"], {"first": values, "second": values + 1}, {}),
        ("no-such-tensor", ["elsewhere"], {"acts": values}, {"tensor": "elsewhere"}),
        ("only-ints", [], {"acts": np.arange(12).reshape(4, 3)}, {}),
        ("only-1d", [], {"acts": values[0]}, {}),
        ("too-few-labels", ["labels"], {"acts": values, "labels": some_labels(19)}, {}),
    ):
        path = out.bad_path(f"{name}.safetensors")
        safetensors_file(path, tensors)
        out.bad(path, [path.name, *says], **options)
    out.bad_parts("safetensors-mixed-widths", safetensors_file, {"acts": values}, {"acts": acts(20, 5)})
    out.cut(out.good_path("f32.safetensors"), 5, 8, 60, 500, -1)


# -------------------------------------------------------------------------------------------- Hugging Face datasets


def saelens_dataset(values, hook):
    """The rows of one buffer, as `CacheActivationsRunner._create_shard` makes them."""
    count, context, width = values.shape
    features = datasets.Features(
        {
            hook: datasets.Array2D(shape=(context, width), dtype=str(values.dtype)),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=context),
        }
    )
    tokens = np.arange(count * context, dtype=np.int32).reshape(count, context)
    return datasets.Dataset.from_dict({hook: values, "token_ids": tokens}, features=features)


def saelens_folder(folder, buffers, hook):
    """What `CacheActivationsRunner.run` leaves: one file a buffer, moved into one folder (_consolidate_shards)."""
    entries = []
    folder.mkdir()
    for number, values in enumerate(buffers):
        saelens_dataset(values, hook).save_to_disk(folder / "shard", num_shards=1)
        name = f"data-{number:05d}-of-{len(buffers):05d}.arrow"
        shutil.move(folder / "shard/data-00000-of-00001.arrow", folder / name)
        shutil.move(folder / "shard/dataset_info.json", folder / "dataset_info.json")
        shutil.rmtree(folder / "shard")
        entries.append({"filename": name})
    state = {"_data_files": entries, "_fingerprint": "0123456789abcdef", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    return datasets.load_from_disk(folder)


def read_back(folder, column):
    return datasets.load_from_disk(folder).with_format("numpy")[:][column]


def huggingface_folders(out):
    hook = "blocks.8.hook_resid_pre"
    for dtype, bits in ((f16, 16), (f32, 32)):
        values = acts(21, 6, 11, dtype=dtype)
        folder = out.good_path(f"saelens-f{bits}")
        written = saelens_folder(folder, [values[:8], values[8:16], values[16:]], hook)
        written.shuffle(seed=3)  # SAELens' shuffle=True leaves its indices, `cache-*.arrow`, in the folder
        assert (read_back(folder, hook) == values).all()
        tokens = read_back(folder, "token_ids")
        out.good(folder, values, documents=[6] * 21, tokens=tokens)
        name = f"{folder.name}-drop"
        out.good(folder, values[:, 1:], documents=[5] * 21, tokens=tokens[:, 1:], name=name, drop_first_token=True)

    one = saelens_dataset(values, hook)
    for name, dataset, count in (
        ("hf-three-shards", one, 3),
        ("hf-eleven-shards", one, 11),
        ("hf-shuffled", one.shuffle(seed=5), 2),
        ("hf-order-of-state", one, 3),
    ):
        folder = out.good_path(name)
        dataset.save_to_disk(folder, num_shards=count)
        if name == "hf-order-of-state":  # which orders the files, not their names
            state = json.loads((folder / "state.json").read_text())
            state["_data_files"].reverse()
            (folder / "state.json").write_text(json.dumps(state))
        tokens = read_back(folder, "token_ids")
        out.good(folder, read_back(folder, hook), documents=[6] * 21, tokens=tokens, tensor=hook)
    path = out.good_path("hf-array2d.parquet")  # what push_to_hub uploads
    one.to_parquet(path)
    tokens = np.arange(21 * 6).reshape(21, 6)
    out.good(path, values, documents=[6] * 21, tokens=tokens)
    out.good(path, values[:, 1:], documents=[5] * 21, tokens=tokens[:, 1:], name=f"drop-{path.name}", drop_first_token=True)

    lengths = [3, 17, 1, 8, 40, 2]
    documents = [acts(n, 7, seed=n) for n in lengths]
    tokens = [np.arange(n) - n for n in lengths]
    nested = {"text": [f"document {n}" * n for n in lengths], "acts": documents, "token_ids": tokens}
    labels = some_labels(6)
    sequence, value = datasets.Sequence, datasets.Value
    for name, of_rows in (("hf-nested", value("float32")), ("hf-nested-f16", value("float16"))):
        features = {"text": value("string"), "acts": sequence(sequence(of_rows)), "label": value("int64")}
        features["token_ids"] = sequence(value("int64"))
        rounded = [d.astype(f16) if "16" in name else d for d in documents]
        folder = out.good_path(name)
        data = {**nested, "acts": rounded, "label": labels}
        datasets.Dataset.from_dict(data, datasets.Features(features)).save_to_disk(folder, num_shards=2)
        # a label is of a document, therefore of all its rows
        expected = (np.concatenate(rounded), np.repeat(labels, lengths), lengths)
        out.good(folder, *expected, tokens=np.concatenate(tokens))
        path = out.good_path(f"{name}.parquet")
        datasets.Dataset.from_dict(data, datasets.Features(features)).to_parquet(path, batch_size=4)
        out.good(path, *expected, tokens=np.concatenate(tokens))
    lengths, documents = [n for n in lengths if n > 1], [d for d in documents if len(d) > 1]
    folder = out.good_path("hf-nested-drop")
    columns = {"token_ids": datasets.LargeList(value("int32"))}
    columns["acts"] = datasets.LargeList(datasets.LargeList(value("float32")))
    tokens = [np.arange(n) + 10 * n for n in lengths]
    data = {"token_ids": tokens, "acts": documents}
    datasets.Dataset.from_dict(data, datasets.Features(columns)).save_to_disk(folder)
    tokens, name = np.concatenate(tokens), "hf-nested-large"
    out.good(folder, np.concatenate(documents), documents=lengths, tokens=tokens, name=name)
    kept = np.concatenate([d[1:] for d in documents])
    tokens = np.concatenate([np.arange(1, n) + 10 * n for n in lengths])
    out.good(folder, kept, documents=[n - 1 for n in lengths], tokens=tokens, drop_first_token=True)

    values, labels = acts(333, 12), some_labels(333)
    columns = {"acts": sequence(value("float32"), length=12), "label": value("int64")}
    columns["token_ids"] = sequence(value("int32"))  # the tokens of a sentence: none of them is the row's
    flat = {"acts": values, "label": labels, "token_ids": [[1, 2, 3][: 1 + i % 3] for i in range(333)]}
    flat = datasets.Dataset.from_dict(flat, datasets.Features(columns))
    folder = out.good_path("hf-flat")
    flat.save_to_disk(folder, num_shards=4)
    out.good(folder, values, labels)
    columns = {"acts": sequence(value("float32")), "label": datasets.ClassLabel(12)}
    flat = datasets.Dataset.from_dict({"acts": values, "label": labels}, datasets.Features(columns))
    path = out.good_path("hf-cache.arrow")  # as `map` leaves them in the cache
    flat.map(lambda row: row, writer_batch_size=5, cache_file_name=str(path))
    out.good(path, values, labels)


def bad_huggingface_folders(out):
    one = saelens_dataset(acts(9, 4, 5), "acts")
    folder = out.bad_path("hf-dataset-dict")
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(folder)
    out.bad(folder, ["hf-dataset-dict", "train"])
    for name in ("hf-missing-file", "hf-cut-file"):
        folder = out.bad_path(name)
        one.save_to_disk(folder, num_shards=3)
        path = folder / "data-00001-of-00003.arrow"
        path.unlink() if name == "hf-missing-file" else path.write_bytes(path.read_bytes()[:-60])
        out.bad(folder, [path.name])
    folder = out.bad_path("hf-state-is-no-json")
    one.save_to_disk(folder)
    (folder / "state.json").write_text("{")
    out.bad(folder, ["state.json"])


# -------------------------------------------------------------------------------------------------- Arrow, by pyarrow


def fixed(values):
    """FixedSizeList of a 2-D array, FixedSizeList of FixedSizeList of a 3-D one."""
    array = pa.array(values.reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def lists(values, item=None, kind=pa.list_):
    return pa.array(list(values), kind(item or pa.from_numpy_dtype(values.dtype)))


def in_documents(values, lengths):
    parts = [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]
    return pa.array(parts, pa.list_(pa.list_(pa.float32())))


def stream(path, table, batch=None, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch)


def file(path, table, batch=None):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def usual_columns(rows):
    """Columns to be passed over, nulls among them."""
    some = [None if i % 5 == 2 else i for i in range(rows)]
    text = [None if i is None else "x" * (i % 7) for i in some]
    return {
        "text": pa.array(text),
        "id": pa.array(some, pa.int16()),
        "ok": pa.array([i % 3 == 0 for i in range(rows)]),
        "score": pa.array(np.arange(rows, dtype=f32)),
        "meta": pa.array([None if i is None else {"k": i, "words": ["a"] * (i % 3)} for i in some]),
        "words": pa.array([["w"] * (i % 4) for i in range(rows)], pa.list_(pa.string())),
        "bytes": pa.array([b"12"] * rows),
        "nothing": pa.nulls(rows),
        "when": pa.array(some, pa.timestamp("us")),
    }


def rare_columns(rows):
    text = [f"a text of more than twelve bytes, {i}" for i in range(rows)]
    types = pa.array([i % 2 for i in range(rows)], pa.int8())
    return {
        "category": pa.array(text[:3] * rows).slice(0, rows).dictionary_encode(),
        "large": pa.array(text, pa.large_string()),
        "fixed": pa.array([b"123"] * rows, pa.binary(3)),
        "map": pa.array([[("k", i)] for i in range(rows)], pa.map_(pa.string(), pa.int32())),
        "decimal": pa.array(range(rows), pa.int64()).cast(pa.decimal128(22, 2)),
        "union": pa.UnionArray.from_sparse(types, [pa.array(range(rows)), pa.array(text)]),
        "view": pa.array(text, pa.string_view()),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([1.5])),
    }


def arrow_files(out):
    values, labels = acts(53, 9), some_labels(53)
    half = acts(53, 9, dtype=f16)
    plain = pa.table({"acts": fixed(values)})
    lengths = [4, 30, 1, 18]
    nested = in_documents(values, lengths)
    after = {"acts": lists(values), "label": pa.array(labels)}
    required = pa.schema([pa.field("acts", pa.list_(pa.field("item", pa.float32(), False), 9), False)])
    for name, table, batch, expected, of_rows in (
        ("stream-fixed", plain, None, values, None),
        ("stream-fixed-batches", plain, 3, values, None),
        ("stream-fixed-f16", pa.table({"acts": fixed(half)}), 20, half, None),
        ("stream-fixed-f64", pa.table({"acts": fixed(acts(53, 9, dtype=f64))}), 20, acts(53, 9, dtype=f64), None),
        ("stream-required", pa.table([fixed(values)], required), None, values, None),
        ("stream-list", pa.table({"acts": lists(values)}), 11, values, None),
        ("stream-list-f16", pa.table({"acts": lists(half)}), 11, half, None),
        ("stream-large-list", pa.table({"acts": lists(values, kind=pa.large_list)}), 11, values, None),
        ("stream-usual-columns", pa.table(usual_columns(53) | after), 10, values, labels),
        ("stream-rare-columns", pa.table(rare_columns(53) | after), None, values, labels),
    ):
        path = out.good_path(f"{name}.arrow")
        stream(path, table, batch)
        out.good(path, expected, of_rows)

    cube = acts(8, 4, 9)
    for name, write in (("stream", stream), ("file", file)):
        path = out.good_path(f"{name}-fixed-of-fixed.arrow")
        write(path, pa.table({"acts": fixed(cube)}), 3)
        out.good(path, cube, documents=[4] * 8)
        path = out.good_path(f"{name}-nested.arrow")
        write(path, pa.table({"acts": nested}), 3)
        out.good(path, values, documents=lengths)
        path = out.good_path(f"{name}-sliced.arrow")
        write(path, pa.table(usual_columns(53) | after).slice(13, 29))
        out.good(path, values[13:42], labels[13:42])
        path = out.good_path(f"{name}-sliced-fixed.arrow")
        write(path, pa.table({"acts": fixed(half)}).slice(13, 29), 8)
        out.good(path, half[13:42])
        path = out.good_path(f"{name}-sliced-nested.arrow")
        write(path, pa.table({"acts": nested}).slice(1, 2))
        out.good(path, values[4:35], documents=lengths[1:3])
    path = out.good_path("file-batches.arrow")
    file(path, pa.table(usual_columns(53) | after), 7)
    out.good(path, values, labels)
    path = out.good_path("two-columns.arrow")
    file(path, pa.table({"mlp": fixed(half), "blocks.0.resid": fixed(values)}), 7)
    out.good(path, values, tensor="blocks.0.resid")
    path = out.good_path("stream-no-end-mark.arrow")  # the format allows a stream just to stop
    path.write_bytes(out.good_path("stream-fixed-batches.arrow").read_bytes()[:-8])
    out.good(path, values)
    path = out.good_path("uncompressed.feather")
    pa.feather.write_feather(plain, path, compression="uncompressed")
    out.good(path, values)
    parts = [plain.slice(0, 20), plain.slice(20, 1), plain.slice(21)]
    out.good_parts("arrow-folder", stream, parts, values)


def bad_tables(rows=10):
    """Tables that hold no [rows, width], for Arrow and Parquet, and what must be said besides the name."""
    values = acts(rows, 4)
    row = values.tolist()
    element = pa.list_(pa.float32())
    return {
        "ragged": (pa.table({"acts": pa.array(row[:6] + [[1.0, 2.0]] + row[6:], element)}), []),
        "ragged-nested": (pa.table({"acts": pa.array([row[:6], [[1.0]], row[6:]], pa.list_(element))}), []),
        "null-row": (pa.table({"acts": pa.array(row[:6] + [None] + row[6:], element)}), []),
        "null-row-fixed": (pa.table({"acts": pa.array(row[:6] + [None] + row[6:], pa.list_(pa.float32(), 4))}), []),
        "null-element": (pa.table({"acts": pa.array(row[:6] + [[1.0, None, 2.0, 3.0]], element)}), []),
        "null-document": (pa.table({"acts": pa.array([row[:6], None, row[6:]], pa.list_(element))}), []),
        "null-inner-row": (pa.table({"acts": pa.array([row[:6], [row[6], None]], pa.list_(element))}), []),
        "null-label": (pa.table({"acts": pa.array(row, element), "label": [1] * (rows - 1) + [None]}), ["label"]),
        "only-ints": (pa.table({"id": np.arange(rows), "tokens": pa.array([[1, 2]] * rows)}), []),
        "two-candidates": (pa.table({"first": fixed(values), "second": fixed(values)}), ["first", "second"]),
        "no-rows": (pa.table({"acts": fixed(values)}).slice(0, 0), []),
    }


def bad_arrow_files(out):
    for name, (table, says) in bad_tables().items():
        for kind, write in (("stream", stream), ("file", file)):
            path = out.bad_path(f"{kind}-{name}.arrow")
            write(path, table)
            out.bad(path, [path.name, *says])
    plain = pa.table({"acts": fixed(acts(400, 8))})
    for codec in ("lz4", "zstd"):
        path = out.bad_path(f"{codec}.feather")
        pa.feather.write_feather(plain, path, compression=codec)
        out.bad(path, [path.name, "compress"])
        path = out.bad_path(f"{codec}-stream.arrow")
        stream(path, plain, compression=codec)
        out.bad(path, [path.name, "compress"])
    out.bad(out.good_path("stream-fixed.arrow"), ["elsewhere"], "arrow-no-such-column", tensor="elsewhere")
    out.cut(out.good_path("stream-fixed-batches.arrow"), 3, 6, 100, 700, -60)
    out.cut(out.good_path("file-batches.arrow"), 7, 50, 2000, -4, -20)
    out.bad_parts("arrow-mixed-widths", stream, plain, pa.table({"acts": fixed(acts(4, 9))}))


# ------------------------------------------------------------------------------------------------ Parquet, by pyarrow


def parquet_file(path, table):
    pq.write_table(table, path)


def parquet_files(out):
    values, labels = acts(61, 10), some_labels(61)
    half, double = acts(61, 10, dtype=f16), acts(61, 10, dtype=f64)
    few = np.random.default_rng(3).choice(acts(1, 9)[0], (61, 10))  # a dictionary is worth it
    plain = {"acts": lists(values)}
    lengths = [4, 30, 1, 18, 8]
    nested = in_documents(values, lengths)
    with_label = {"acts": fixed(values), "label": pa.array(labels)}
    required = pa.schema([pa.field("acts", pa.list_(pa.field("element", pa.float32(), False)), False)])

    def write(name, columns, expected, of_rows=None, documents=None, options=None, tokens=None, **settings):
        path = out.good_path(f"{name}.parquet")
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, path, **settings)
        out.good(path, expected, of_rows, documents, tokens=tokens, **options or {})

    write("fixed", {"acts": fixed(values)}, values)
    write("fixed-f16", {"acts": fixed(half)}, half)
    write("list", plain, values)
    write("list-f16", {"acts": lists(half)}, half)
    write("list-f64", {"acts": lists(double)}, double)
    write("large-list", {"acts": lists(values, kind=pa.large_list)}, values)
    write("nested", {"acts": nested}, values, documents=lengths)
    write("nested-groups", {"acts": nested}, values, documents=lengths, row_group_size=2)
    write("fixed-of-fixed", {"acts": fixed(acts(8, 4, 9))}, acts(8, 4, 9), documents=[4] * 8)
    write("required", pa.table([lists(values)], required), values)
    write("no-arrow-schema", {"acts": fixed(values)}, values, store_schema=False)
    write("item", plain, values, use_compliant_nested_type=False)  # inner fields as older writers name them
    write("label", with_label, values, labels)
    write("labels-int32", {"acts": plain["acts"], "labels": pa.array(labels, pa.int32())}, values, labels)
    write("groups", with_label, values, labels, row_group_size=7)
    write("usual-columns", {**usual_columns(61), **with_label}, values, labels, row_group_size=25)
    two = {"mlp": fixed(half), "blocks.0.resid": fixed(values)}
    write("two-columns", two, values, options={"tensor": "blocks.0.resid"})
    write("sliced", pa.table(with_label).slice(9, 33), values[9:42], labels[9:42], row_group_size=10)
    for codec in ("none", "snappy", "zstd", "lz4", "gzip"):
        for version in ("1.0", "2.0"):
            settings = {"compression": codec, "data_page_version": version, "data_page_size": 300}
            write(f"{codec}-page-v{version[0]}", {"acts": lists(few)}, few, row_group_size=23, **settings)
    small = {"data_page_size": 64, "write_batch_size": 16}
    write("dictionary", {"acts": lists(few)}, few, use_dictionary=True, **small)
    write("dictionary-then-plain", plain, values, use_dictionary=True, dictionary_pagesize_limit=128, **small)
    for version in ("1.0", "2.0"):
        write(f"small-pages-v{version[0]}", plain, values, use_dictionary=False, data_page_version=version, **small)
    for name, column, expected in (("f16", half, half), ("f64", double, double)):
        write(f"small-pages-{name}", {"acts": lists(column)}, expected, use_dictionary=True, **small)
    write("nested-small-pages", {"acts": nested}, values, documents=lengths, use_dictionary=False, **small)
    first = np.cumsum([0, *lengths[:-1]])
    later = np.delete(values, first, axis=0)
    settings = {"options": {"drop_first_token": True}, "documents": [length - 1 for length in lengths], **small}
    for name, dictionary in (("plain", False), ("dictionary", True)):  # the latter ends in a page of nothing
        name = f"nested-small-pages-{name}"
        write(name, {"acts": nested}, later, row_group_size=3, use_dictionary=dictionary, **settings)
    write("labels-small-pages", with_label, values, labels, row_group_size=40, **small)
    ids = np.random.default_rng(11).integers(0, 50257, 61)
    for name, kind in (("i64", pa.int64()), ("i32", pa.int32()), ("u16", pa.uint16())):
        of_rows = {"token_ids": pa.array(ids, kind), "acts": lists(values)}
        write(f"tokens-{name}", of_rows, values, tokens=ids, row_group_size=25, **small)
        in_lists = pa.array([part.tolist() for part in np.split(ids, first[1:])], pa.list_(kind))
        with_ids = {"acts": nested, "token_ids": in_lists}
        for dictionary in (True, False):
            settings = {"documents": lengths, "row_group_size": 2, "use_dictionary": dictionary, **small}
            write(f"tokens-nested-{name}-{dictionary}".lower(), with_ids, values, tokens=ids, **settings)
    settings = {"options": {"drop_first_token": True}, "documents": [length - 1 for length in lengths], **small}
    write("tokens-drop", with_ids, later, tokens=np.delete(ids, first), **settings)
    sentences = pa.array([[1, 2, 3][: 1 + i % 3] for i in range(61)], pa.list_(pa.int32()))
    write("tokens-of-sentences", {"acts": lists(values), "token_ids": sentences}, values)  # none of them is the row's
    names = pa.array([f"{i}" for i in range(61)])
    write("tokens-no-integers", {"acts": lists(values), "token_ids": names}, values)
    write("byte-stream-split", plain, values, use_dictionary=False, use_byte_stream_split=True)
    write("checksums", with_label, values, labels, write_page_checksum=True, write_page_index=True)

    path = out.good_path("pandas.parquet")
    pd.DataFrame({"acts": list(values), "label": labels}, index=np.arange(61) * 2).to_parquet(path)
    out.good(path, values, labels)
    with_label = pa.table(with_label)
    parts = [with_label.slice(0, 30), with_label.slice(30, 1), with_label.slice(31)]
    out.good_parts("parquet-folder", parquet_file, parts, values, labels)


def bad_parquet_files(out):
    for name, (table, says) in bad_tables().items():
        path = out.bad_path(f"{name}.parquet")
        pq.write_table(table, path)
        out.bad(path, [path.name, *says])
    plain = pa.table({"acts": lists(acts(400, 8))})
    path = out.bad_path("brotli.parquet")
    pq.write_table(plain, path, compression="brotli")
    out.bad(path)
    path = out.bad_path("page-header.parquet")  # the footer is whole, the first page is not
    pq.write_table(plain, path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    out.bad(path)
    out.bad(out.good_path("list.parquet"), ["elsewhere"], "parquet-no-such-column", tensor="elsewhere")
    out.cut(out.good_path("groups.parquet"), 3, 4, 11, 1000, -8, -1)
    out.bad_parts("parquet-mixed-widths", parquet_file, plain, pa.table({"acts": fixed(acts(4, 9))}))


# --------------------------------------------------------------------------------------------------------------- saev


def saev_folder(folder, values, layers, cls_token, budget, labels=None, spelling="code", data="", drop=()):
    """Shards as saev's ShardWriter writes them; `values` is [example, layer, token, d].

    Every file has room for the same number of examples, the last one too; where the examples fill the files
    exactly there is one more, with none. The document of the protocol spells two keys differently from the code, and
    says that the last file is smaller: "document" is so.
    """
    examples, _, tokens, width = values.shape
    a_file = budget // (tokens * len(layers))
    keys = {
        "code": ("content_tokens_per_example", "max_tokens_per_shard"),
        "document": ("patches_per_ex", "patches_per_shard"),
    }[spelling]
    metadata = {"family": "clip", "ckpt": "ViT-B-16/openai", "layers": layers, keys[0]: tokens - cls_token}
    metadata |= {"cls_token": cls_token, "d_model": width, "n_examples": examples, keys[1]: budget, "data": data}
    metadata |= {"dataset": "/data/images", "pixel_agg": None, "dtype": "float32", "protocol": "2.1"}
    metadata = {key: value for key, value in metadata.items() if key not in drop}
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2))
    shards = []
    for number, start in enumerate(range(0, examples + (spelling == "code"), a_file)):
        part = values[start : start + a_file]
        padding = 0 if spelling == "document" else a_file - len(part)
        whole = np.concatenate([part, np.zeros((padding, *values.shape[1:]), f32)])
        name = f"acts{number:06}.bin"
        (folder / name).write_bytes(whole.astype("<f4").tobytes())
        shards.append({"name": name, "n_examples": len(part)})
    (folder / "shards.json").write_text(json.dumps(shards, indent=2))
    if labels is not None:
        (folder / "labels.bin").write_bytes(labels.astype(np.uint8).tobytes())


def saev_folders(out):
    data = base64.b64encode(pickle.dumps(pickled(out))).decode()
    values = acts(17, 2, 6, 7)
    labels = some_labels(17 * 6).reshape(17, 6)  # [example, content token]: none for [CLS]
    for spelling in ("code", "document"):
        folder = out.good_path(f"saev-{spelling}")
        saev_folder(folder, values, [8, 11], False, 63, labels, spelling, data)
        for index, layer in enumerate((8, 11)):
            of_layer = values[:, index]
            out.good(folder, of_layer, labels, [6] * 17, f"{folder.name}-layer-{layer}", layer=layer)

        folder = out.good_path(f"saev-{spelling}-cls")
        saev_folder(folder, values, [11, -2], True, 63, None, spelling, data)
        out.good(folder, values[:, 1], documents=[6] * 17, layer=-2)
        out.good(folder, values[:, 0, 1:], None, [5] * 17, f"{folder.name}-drop", layer=11, drop_first_token=True)

    folder = out.good_path("saev-cls-labels-drop")  # without [CLS] every row has its label
    saev_folder(folder, values, [8, 11], True, 100, labels[:, 1:], data=data)
    out.good(folder, values[:, 1, 1:], labels[:, 1:], [5] * 17, layer=11, drop_first_token=True)
    folder = out.good_path("saev-one-layer")
    saev_folder(folder, values[:, :1], [-2], False, 10_000, labels)
    out.good(folder, values[:, 0], labels, [6] * 17)
    folder = out.good_path("saev-last-is-empty")
    saev_folder(folder, values[:15, :1], [8], False, 31)
    assert '"n_examples": 0' in (folder / "shards.json").read_text()
    out.good(folder, values[:15, 0], documents=[6] * 15)


def bad_saev_folders(out):
    values = acts(17, 2, 6, 7)

    def folder(name, says, labels=None, drop=(), **options):
        path = out.bad_path(f"saev-{name}")
        saev_folder(path, values, [8, 11], False, 63, labels, drop=drop)
        out.bad(path, says, **options)
        return path

    (folder("missing-shard", ["acts000001.bin"], layer=8) / "acts000001.bin").unlink()
    (folder("missing-shards-json", ["shards.json"], layer=8) / "shards.json").unlink()
    (folder("empty-shard", ["acts000002.bin"], layer=8) / "acts000002.bin").write_bytes(b"")
    for name, row, count in (("count-too-high", 1, 6), ("count-huge", 3, 1 << 62), ("count-negative", 3, -1)):
        file = f"acts{row:06}.bin" if count > 0 else "shards.json"
        path = folder(name, [file], layer=8) / "shards.json"
        shards = json.loads(path.read_text())
        shards[row]["n_examples"] = count
        path.write_text(json.dumps(shards))
    path = folder("outside", ["shards.json"], layer=8) / "shards.json"  # a name that leads out of the folder
    path.write_text(path.read_text().replace("acts000001.bin", "../saev-missing-shard/acts000000.bin"))
    path = folder("cut-shard", ["acts000001.bin"], layer=8) / "acts000001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    for key in ("content_tokens_per_example", "cls_token", "d_model", "layers"):
        folder(f"without-{key}", ["metadata.json", key], drop=[key], layer=8)
    path = folder("float16", ["metadata.json", "float16"], layer=8) / "metadata.json"
    path.write_text(path.read_text().replace("float32", "float16"))
    (folder("no-json", ["metadata.json"], layer=8) / "metadata.json").write_text("{")
    folder("no-such-layer", ["saev-no-such-layer", "9"], layer=9)
    folder("which-layer", ["saev-which-layer", "layer"])
    folder("labels-too-short", ["labels.bin"], np.zeros(101), layer=8)
    folder("labels-too-long", ["labels.bin"], np.zeros(103), layer=8)


def other_files(out):
    for suffix in ("npy", "safetensors", "arrow", "parquet"):
        path = out.bad_path(f"empty.{suffix}")
        path.touch()
        out.bad(path)
    for name in ("empty-folder", "folder-of-others"):
        folder = out.bad_path(name)
        folder.mkdir()
        out.bad(folder)
    (folder / "README.md").write_text("nothing to see\n")
    out.bad(out.bad_path("not-there.npy"))
    path = out.bad_path("notes.txt")
    path.write_text("these are no activations\n")
    out.bad(path)
    path = out.bad_path("acts.pkl")
    path.write_bytes(pickle.dumps(pickled(out)))
    out.bad(path)
    path = out.bad_path("acts.pt")  # as torch.save lays it out
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", pickle.dumps(pickled(out))), ("version", b"3\n"), ("data/0", bytes(96))):
            archive.writestr(zipfile.ZipInfo(f"acts/{name}"), data)
    out.bad(path)


def main():
    datasets.disable_progress_bars()
    out = Out(Path(sys.argv[1]).resolve())
    good = (numpy_files, safetensors_files, huggingface_folders, arrow_files, parquet_files, saev_folders)
    bad = (bad_numpy_files, bad_safetensors_files, bad_huggingface_folders, bad_arrow_files, bad_parquet_files)
    for family in (*good, *bad, bad_saev_folders, other_files):
        family(out)
    out.finish()


if __name__ == "__main__":
    main()
