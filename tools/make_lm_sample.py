#!/usr/bin/env python3
"""Cut the language-model sample of this repository from exported activations of prose.

    python3 tools/make_lm_sample.py EXPORTS PROSE data/smollm2           (needs numpy, safetensors)

EXPORTS holds the directories `train` and `heldout`, which export_activations.py writes from PROSE/train.jsonl and
PROSE/heldout.jsonl, which prose.py writes (docs/DATA.md has the commands). Whole documents are taken in the order of the
file, which is that of a hash, until there are enough rows. Only PostgreSQL's documentation is taken, because its licence
lets anyone pass on what is made from it.

About one in 10,000 rows of a language model has a norm beyond ten times the median. These are too few for a sample to
have any by chance, but the sample is meant to show how a recipe handles them. So the first documents with such a row
come first, OUTLIERS of them on each side. The sample is a pure function of the exports: there is no seed.
"""

import argparse
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

SOURCE = "/postgresql-doc-"
ROWS = {"train": 8_800, "heldout": 1_200}
OUTLIERS = {"train": 2, "heldout": 1}
BEYOND = 10  # times the median norm


def load(export: pathlib.Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Activations [N, d], document numbers [N], and the index's metadata."""
    index = json.loads((export / "index.json").read_text())
    parts = [load_file(export / shard["file"]) for shard in index["shards"]]
    rows, documents = (np.concatenate([part[name] for part in parts]) for name in ("activations", "doc"))
    return rows, documents, index["metadata"]


def choose(rows: np.ndarray, documents: np.ndarray, allowed: set[int], wanted: int, outliers: int) -> np.ndarray:
    """The rows to take, at most `wanted`: whole documents, first `outliers` of them with outliers, then all in order."""
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    beyond = norms > BEYOND * np.median(norms)
    print(f"{beyond.sum()} of {len(rows)} rows beyond {BEYOND} times the median norm of {np.median(norms):.1f}")
    numbers, lengths = np.unique(documents, return_counts=True)
    lengths = dict(zip(numbers.tolist(), lengths.tolist(), strict=True))
    special = [number for number in dict.fromkeys(documents[beyond].tolist()) if number in allowed][:outliers]
    if len(special) < outliers:
        raise SystemExit(f"error: only {len(special)} documents with such a row may be taken; {outliers} are wanted")
    taken: set[int] = set()
    room = wanted
    for number in special + [number for number in numbers.tolist() if number in allowed]:
        if number not in taken and lengths[number] <= room:
            taken.add(number)
            room -= lengths[number]
    return np.flatnonzero(np.isin(documents, list(taken)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("exports", "prose", "dst"):
        parser.add_argument(name, type=pathlib.Path)
    args = parser.parse_args()
    args.dst.mkdir(parents=True, exist_ok=True)
    for split, wanted in ROWS.items():
        rows, documents, about = load(args.exports / split)
        with (args.prose / f"{split}.jsonl").open(encoding="utf-8") as lines:
            allowed = {number for number, line in enumerate(lines) if SOURCE in json.loads(line)["source"]}
        chosen = choose(rows, documents, allowed, wanted, OUTLIERS[split])
        metadata = {name: about[name] for name in ("model", "place", "context", "drop_first") if name in about}
        tensors = {"activations": np.ascontiguousarray(rows[chosen]), "doc": documents[chosen].astype(np.int64)}
        save_file(tensors, args.dst / f"{split}.safetensors", metadata=metadata | {"split": split})
        norms = np.linalg.norm(rows[chosen].astype(np.float32), axis=1)
        largest = ", ".join(f"{norm:.0f}" for norm in np.sort(norms)[::-1][: OUTLIERS[split] + 1])
        print(f"{split}: {len(chosen)} rows of {len(set(tensors['doc'].tolist()))} documents, largest norms {largest}")


if __name__ == "__main__":
    main()
