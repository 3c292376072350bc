"""Activations on disk, read independently of sae-data: docs/DATA.md has the formats and how a split is made.

Rows are read in blocks. Only the place (8 bytes), label and document of every row stay in memory.
"""

import json
import pathlib
import re

import numpy as np

SAFETENSORS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "u1"}
SAFETENSORS |= {"U64": "<u8", "U32": "<u4"}  # of codes
FLOATS = ("F16", "BF16", "F32")


def tensors(path):
    """Name -> (dtype's name, memory map) of a safetensors file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            shape, dtype = tuple(entry["shape"]), SAFETENSORS[entry["dtype"]]
            empty = end == start
            found[name] = (entry["dtype"], np.zeros(shape, dtype) if empty else
                           np.memmap(path, dtype, "r", 8 + length + start, shape))
    return found


def as_float32(array, dtype):
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32)


class Part:
    """Stored rows of one file: `read(a, b)` gives rows a..b; the rest are lengths of examples, labels, document ids."""

    def __init__(self, rows, read, examples=None, labels=None, ids=None):
        self.rows, self.read, self.examples, self.labels, self.ids = rows, read, examples, labels, ids


def matrix(array, dtype="F32", labels=None, ids=None):
    """A tensor [rows, d] or [examples, tokens, d] as a part."""
    examples = [array.shape[1]] * array.shape[0] if array.ndim == 3 else None
    rows = array.reshape(-1, array.shape[-1])
    return Part(len(rows), lambda a, b: as_float32(rows[a:b], dtype), examples, labels, ids)


def safetensors_part(path, wanted):
    found = tensors(path)
    floats = {k: v for k, v in found.items() if v[0] in FLOATS and k not in ("labels", "doc")}
    for dimensions in (2, 3):
        names = [k for k, v in floats.items() if v[1].ndim == dimensions and wanted in (None, k)]
        if names:
            break
    if len(names) != 1:
        raise SystemExit(f"{path}: which of the tensors {sorted(floats)}? data.tensor is {wanted}")
    dtype, array = floats[names[0]]
    extra = {k: np.asarray(found[k][1]).astype(np.int64).ravel() if k in found else None for k in ("labels", "doc")}
    return matrix(array, dtype, extra["labels"], extra["doc"] if array.ndim == 2 else None)


def pyarrow():
    try:
        import pyarrow.parquet
        import pyarrow.ipc
    except ImportError:
        raise SystemExit("Parquet and Arrow files need pyarrow: pip install pyarrow") from None
    return pyarrow


def column_of(schema, wanted):
    types = pyarrow().types

    def is_rows(kind):
        nested = False
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            nested, kind = True, kind.value_type
        return nested and types.is_floating(kind)

    names = [f.name for f in schema if is_rows(f.type) and wanted in (None, f.name)]
    if len(names) != 1:
        raise SystemExit(f"which of the columns {names or schema.names}? data.tensor is {wanted}")
    labels = next((name for name in ("label", "labels") if name in schema.names), None)
    return names[0], labels


def flat(column):
    """(rows [n, d], rows of each example, or None if the list's items are rows)."""
    types = pyarrow().types
    inner = column.flatten()
    if not types.is_floating(inner.type):
        lengths = np.diff(column.offsets.to_numpy()) if hasattr(column, "offsets") else np.full(
            len(column), column.type.list_size)
        return flat(inner)[0], [int(n) for n in lengths]
    values = inner.to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1), None


def table_part(read, wanted):
    """A batch of a table as a part; `read(columns)` reads it again, so that it need not be kept."""
    batch = read(None)
    name, label = column_of(batch.schema, wanted)

    def rows():
        return flat(read([name]).column(name))

    stored, examples = flat(batch.column(name))
    labels = None if label is None else batch.column(label).to_numpy(zero_copy_only=False).astype(np.int64)
    return Part(len(stored), lambda a, b: as_float32(rows()[0][a:b], "F32"), examples, labels)


def parquet_parts(path, wanted):
    file = pyarrow().parquet.ParquetFile(path)
    for group in range(file.num_row_groups):
        def read(columns, group=group):
            if read.last[0] != (group, columns):
                read.last[0] = (group, columns)
                read.last[1] = file.read_row_group(group, columns).combine_chunks()
            batches = read.last[1].to_batches()
            assert len(batches) == 1, "a row group in one batch"
            return batches[0]
        read.last = [None, None]
        yield table_part(read, wanted)


def arrow_parts(path, wanted):
    pa = pyarrow()
    source = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except pa.ArrowInvalid:
        batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
    for batch in batches:
        if batch.num_rows:
            yield table_part(lambda _, batch=batch: batch, wanted)


def saev_parts(path, layer, drop):
    about = json.loads((path / "metadata.json").read_text())
    names = ("content_tokens_per_example", "patches_per_ex", "n_patches_per_img", "content_tokens_per_ex")
    content = next(about[name] for name in names if name in about)
    tokens, width = content + bool(about["cls_token"]), about.get("d_model", about.get("d_vit"))
    at = 0 if layer is None else about["layers"].index(layer)
    labels = None
    if (path / "labels.bin").exists() and (drop or not about["cls_token"]):
        labels = np.fromfile(path / "labels.bin", np.uint8).astype(np.int64)
    for shard in json.loads((path / "shards.json").read_text()):
        count = shard.get("n_examples", shard.get("n_imgs"))
        if count:
            shape = (count, len(about["layers"]), tokens, width)
            part = matrix(np.memmap(path / shard["name"], "<f4", "r", shape=shape)[:, at])
            part.labels, labels = labels, None  # the first part gets all labels: they are concatenated anyway
            yield part


def natural(name):
    """A sort key by which part-2 comes before part-10."""
    return [(1, int(x), x) if x.isdigit() else (0, 0, x) for x in re.split(r"(\d+)", str(name)) if x]


def kind_of(path):
    head = path.read_bytes()[:16] if path.stat().st_size < 1 << 20 else open(path, "rb").read(16)
    if head[:4] == b"\x93NUM":
        return "npy"
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:5] == b"ARROW" or head[:4] == b"\xff" * 4:
        return "arrow"
    return "safetensors" if head[8:9] == b"{" else None


def file_parts(path, wanted):
    kind = kind_of(path)
    if kind == "npy":
        array = np.load(path, mmap_mode="r")
        return [matrix(array)]
    if kind == "safetensors":
        return [safetensors_part(path, wanted)]
    if kind in ("parquet", "arrow"):
        return list((parquet_parts if kind == "parquet" else arrow_parts)(path, wanted))
    raise SystemExit(f"{path}: unknown format")


def parts_of(path, wanted, layer, drop, labels):
    """(parts, whether a document may continue in the next part)."""
    if path.is_file():
        return file_parts(path, wanted), False
    if (path / "shards.json").exists() and (path / "metadata.json").exists():
        return list(saev_parts(path, layer, drop)), False
    if (path / "index.json").exists():
        shards = json.loads((path / "index.json").read_text())["shards"]
        return [p for s in shards for p in file_parts(path / s["file"], wanted)], True
    if (path / "state.json").exists():
        names = [f["filename"] for f in json.loads((path / "state.json").read_text())["_data_files"]]
        return [p for name in names for p in file_parts(path / name, wanted)], False
    files = sorted((f for f in path.iterdir() if f.is_file() and not f.name.startswith((".", "_"))
                    and not f.name.endswith((".tmp", "tokens.safetensors"))), key=natural)
    files = [f for f in files if not (labels and f.samefile(labels)) and f.stat().st_size and kind_of(f)]
    return [p for f in files for p in file_parts(f, wanted)], False


class Data:
    """A data set: rows [N, d], labels [N] or None, first rows of its documents or None."""

    def __init__(self, path, config, labels):
        path, drop = pathlib.Path(path), config.get("drop_first_token", False)
        self.parts, go_on = parts_of(path, config.get("tensor"), config.get("layer"), drop, labels)
        self.bounds = np.cumsum([0] + [part.rows for part in self.parts])
        stored = int(self.bounds[-1])
        kept, starts, examples = np.ones(stored, bool), [], []
        last_id, at, ordinal = None, 0, 0
        for part in self.parts:
            lengths = part.examples
            continues = False
            if part.ids is not None:
                edges = np.concatenate([[0], np.flatnonzero(np.diff(part.ids)) + 1, [part.rows]])
                lengths = np.diff(edges)
                continues = go_on and last_id == part.ids[0]
                last_id = part.ids[-1]
            for i, length in enumerate(lengths if lengths is not None else []):
                if not (i == 0 and continues):
                    starts.append(at)
                    kept[at] = kept[at] and not (drop and length)
                at += int(length)
            if lengths is None:
                at += part.rows
        self.place = np.flatnonzero(kept)
        self.rows = len(self.place)
        # a document begins at its first row that is kept
        self.starts = np.searchsorted(self.place, starts) if starts else None
        given = [part.labels for part in self.parts if part.labels is not None]
        self.labels = self.row_labels(np.concatenate(given) if given else None, labels, stored)
        self.width = self.read(np.arange(1)).shape[1]

    def row_labels(self, own, path, stored):
        if own is None and path is None:
            return None
        if own is None:
            own = np.load(path) if kind_of(pathlib.Path(path)) == "npy" else next(iter(tensors(path).values()))[1]
        own = np.asarray(own).astype(np.int64).ravel()
        if len(own) == stored:
            return own[self.place]
        if len(own) == self.rows:
            return own
        return own[np.searchsorted(self.starts, np.arange(self.rows), "right") - 1]

    def read(self, rows):
        """The rows with these ascending numbers, [n, d] float32."""
        places, out = self.place[rows], []
        while len(places):
            part = int(np.searchsorted(self.bounds, places[0], "right")) - 1
            inside = int(np.searchsorted(places, self.bounds[part + 1]))
            mine = places[:inside] - self.bounds[part]
            first, last = int(mine[0]), int(mine[-1]) + 1
            out.append(self.parts[part].read(first, last)[mine - first])
            places = places[inside:]
        return np.concatenate(out)


class Side:
    """Some rows of a data set: one side of a split."""

    def __init__(self, data, rows):
        self.data, self.row_numbers, self.rows, self.width = data, rows, len(rows), data.width
        self.labels = None if data.labels is None else data.labels[rows]

    def blocks(self, size, which=None):
        """Yields (positions, rows as float64) of all rows, or of those at `which`."""
        which = np.arange(self.rows) if which is None else which
        for at in range(0, len(which), size):
            some = which[at : at + size]
            yield some, self.data.read(self.row_numbers[some]).astype(np.float64)


def mix(z):
    """splitmix64's finaliser."""
    word = (1 << 64) - 1
    z = (z + 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def shuffled(length, seed):
    """The permutation of 0..length that docs/DATA.md describes, position by position."""
    half = max(1, ((max(length - 1, 0)).bit_length() + 1) // 2)
    mask, keys, state = (1 << half) - 1, [], mix(seed ^ mix(0x5AE))
    for _ in range(6):
        state = mix(state)
        keys.append(state)
    for value in range(length):
        while True:
            left, right = value >> half, value & mask
            for key in keys:
                left, right = right, left ^ (mix(right ^ key) & mask)
            value = left << half | right
            if value < length:
                break
        yield value


def held_out_of(data, part):
    """A mask of the held-out rows of `data`; `part` is { fraction, seed } or { rows }."""
    starts = None if data.starts is None else np.append(data.starts, data.rows)

    def cut(row):
        return min(row, data.rows) if starts is None else int(starts[np.searchsorted(starts, min(row, data.rows))])

    held_out = np.zeros(data.rows, bool)
    if "rows" in part:
        held_out[cut(part["rows"][0]) : cut(part["rows"][1])] = True
        return held_out
    length = -(-data.rows // 4096)
    bounds = sorted({cut(i * length) for i in range(-(-data.rows // length) + 1)})
    wanted = int(np.floor(part["fraction"] * data.rows + 0.5))
    for stretch in shuffled(len(bounds) - 1, part.get("seed", 0)):
        if held_out.sum() >= wanted:
            break
        held_out[bounds[stretch] : bounds[stretch + 1]] = True
    return held_out


def within(side, limit):
    """(rows of norm at most `limit`, the others) of a side; rows that are not finite stay."""
    norms = np.concatenate([np.sqrt((x**2).sum(1)) for _, x in side.blocks(4096)])
    beyond = np.isfinite(norms) & (norms > limit)
    return tuple(Side(side.data, side.row_numbers[which]) for which in (~beyond, beyond))


def split(config):
    """(training side, held-out side) of `[data]`, including the rows beyond `max_norm`."""
    train = Data(config["train"], config, config.get("labels"))
    part = config.get("held_out", {"fraction": 0.1})
    if isinstance(part, str):
        try:
            other = Data(part, config, config.get("held_out_labels"))
        except SystemExit:  # the tensor may have another name there
            other = Data(part, config | {"tensor": None}, config.get("held_out_labels"))
        return Side(train, np.arange(train.rows)), Side(other, np.arange(other.rows))
    held_out = held_out_of(train, part)
    return Side(train, np.flatnonzero(~held_out)), Side(train, np.flatnonzero(held_out))


def whole(found, config, labels):
    """All rows of the data with this fingerprint, which are not the run's own."""
    data = Data(found["path"], config | {"tensor": found.get("tensor")}, labels)
    return Side(data, np.arange(data.rows))


def embeddings(path):
    data = Data(path, {}, None)
    return data.read(np.arange(data.rows)).astype(np.float64)
