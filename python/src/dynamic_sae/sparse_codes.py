"""The sparse codes that ``sae-eval encode`` writes (docs/ENCODING.md), as a scipy matrix."""

import json
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from . import saved
from .errors import DynamicSaeError

if TYPE_CHECKING:
    import scipy.sparse

FORMAT, VERSION = "dynamic-sae.codes", 1
INDEX, PARTIAL = "index.json", "index.json.partial"
AGAIN = "run the same sae-eval encode again"


def codes(path: str | pathlib.Path, verify: bool = False) -> "scipy.sparse.csr_matrix":
    """The codes in a directory of ``sae-eval encode``.

    Args:
        path: the directory.
        verify: compare each shard with its BLAKE3 checksum, too; sizes and numbers of rows are always compared.

    Returns:
        float32 ``[rows, latents]``. Row i of it is row i of the data; the columns are all latents of the model, also where
        ``--latents`` kept only some. Values are those of the model, without the factor n of each row: ``row_norms`` of a loaded
        model gives n.

    Raises:
        DynamicSaeError: if the directory is of another kind, not finished, or damaged.
    """
    import scipy.sparse

    directory = pathlib.Path(path)
    index = read_index(directory)
    shards = [read_shard(directory / shard["file"], shard, index, verify) for shard in index["shards"]]
    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(offsets) for offsets, _, _ in shards)])
    offsets = np.cumsum(lengths)
    if len(offsets) - 1 != index["rows"]:
        raise DynamicSaeError(f'{directory / INDEX}: key "rows" is {index["rows"]}, the shards have {len(offsets) - 1}; {AGAIN} '
                              "into a new directory")
    indices = np.concatenate([np.zeros(0, np.int32), *(indices.astype(np.int32) for _, indices, _ in shards)])
    values = np.concatenate([np.zeros(0, np.float32), *(values.astype(np.float32) for _, _, values in shards)])
    return scipy.sparse.csr_matrix((values, indices, offsets), (index["rows"], index["latents"]))


def read_index(directory: pathlib.Path) -> dict[str, Any]:
    """``index.json`` of codes."""
    path = directory / INDEX
    if not path.is_file():
        if (directory / PARTIAL).is_file():
            raise DynamicSaeError(f"{directory}: the codes are not finished; {AGAIN}, which continues")
        raise DynamicSaeError(f"{directory}: no codes (there is no {INDEX}); give the directory that sae-eval encode RUN DATA "
                              "DIR has written")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DynamicSaeError(f"{path}: not valid JSON ({error}); copy the directory again") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        kind = "a data set of activations" if found == "dynamic-sae.shards" else "of another kind"
        raise DynamicSaeError(f'{path}: key "format" is not "{FORMAT}": this directory is {kind}; give one that sae-eval encode '
                              "has written")
    if index.get("version") != VERSION:
        raise DynamicSaeError(f'{path}: key "version" is {index.get("version")}, this package reads {VERSION}; install a newer '
                              "dynamic-sae")
    wanted = {"rows": int, "latents": int, "shards": list}
    for key, kind in wanted.items():
        if not isinstance(index.get(key), kind):
            raise DynamicSaeError(f'{path}: key "{key}" is missing or has a wrong value; {AGAIN} into a new directory')
    for shard in index["shards"]:
        if not isinstance(shard, dict) or not {"file", "rows", "entries", "bytes", "blake3"} <= set(shard):
            raise DynamicSaeError(f'{path}: key "shards" has an entry without file, rows, entries, bytes or blake3; {AGAIN} into '
                                  "a new directory")
        if pathlib.PurePath(shard["file"]).name != shard["file"]:
            raise DynamicSaeError(f'{path}: key "shards" names {shard["file"]!r}, which is not a file beside it')
    return index


def read_shard(
    path: pathlib.Path, shard: dict[str, Any], index: dict[str, Any], verify: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets ``[rows + 1]``, latents ``[entries]`` and values ``[entries]`` of a shard."""
    if not path.is_file():
        raise DynamicSaeError(f"{path}: it is missing, though {INDEX} names it; copy the directory again")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise DynamicSaeError(f"{path}: it has {size} bytes, {INDEX} says {shard['bytes']}; copy the directory again")
    if verify:
        from blake3 import blake3

        if blake3().update_mmap(str(path)).hexdigest() != shard["blake3"]:
            raise DynamicSaeError(f"{path}: it has been changed or damaged since it was written (its BLAKE3 checksum is "
                                  "another); copy the directory again")
    offsets, indices, values = read_parquet(path, shard, index) if path.suffix == ".parquet" else read_safetensors(path)
    rows, entries = len(offsets) - 1, len(values)
    whole = offsets[0] == 0 and offsets[-1] == entries == len(indices) and (np.diff(offsets) >= 0).all()
    if (rows, entries) != (shard["rows"], shard["entries"]) or not whole:
        raise DynamicSaeError(f"{path}: it has {rows} rows and {entries} entries, {INDEX} says {shard['rows']} and "
                              f"{shard['entries']}; {AGAIN} into a new directory")
    if entries and int(indices.max()) >= index["latents"]:
        raise DynamicSaeError(f'{path}: latent {int(indices.max())}, but {INDEX} says "latents": {index["latents"]}; {AGAIN} '
                              "into a new directory")
    return offsets, indices, values


def read_safetensors(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shard of ``--format safetensors``."""
    tensors = saved.safetensors_of(path)
    for name in ("offsets", "indices", "values"):
        if name not in tensors or tensors[name].ndim != 1:
            raise DynamicSaeError(f'{path}: tensor "{name}" is missing or not a list; {AGAIN} into a new directory')
    return tensors["offsets"].astype(np.int64), tensors["indices"], tensors["values"]


def read_parquet(path: pathlib.Path, shard: dict[str, Any], index: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shard of ``--format parquet``: one line per entry, whose rows count over all shards."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise DynamicSaeError(f"{path}: Parquet codes need pyarrow; pip install pyarrow, or encode with --format "
                              "safetensors") from None
    try:
        table = pyarrow.parquet.read_table(path, columns=["row", "latent", "value"])
    except (pyarrow.ArrowException, OSError) as error:
        raise DynamicSaeError(f"{path}: not a Parquet file of codes ({error}); copy the directory again") from None
    first = sum(before["rows"] for before in index["shards"][: index["shards"].index(shard)])
    rows = table["row"].to_numpy().astype(np.int64) - first
    if len(rows) and not (0 <= rows.min() and rows.max() < shard["rows"] and (np.diff(rows) >= 0).all()):
        raise DynamicSaeError(f"{path}: its rows are not {first} to {first + shard['rows'] - 1} in order; {AGAIN} into a new "
                              "directory")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shard["rows"]))])
    return offsets, table["latent"].to_numpy(), table["value"].to_numpy()
