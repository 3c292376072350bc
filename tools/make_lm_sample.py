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

Tokens, positions, texts and the vocabulary are written beside the activations, in files of their own (docs/DATA.md, "What
rows are").
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

SOURCE = "/postgresql-doc-"
ROWS = {"train": 8_800, "heldout": 1_200}
OUTLIERS = {"train": 2, "heldout": 1}
BEYOND = 10  # times the median norm


def load(export: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors activations [N, d], doc, tokens and positions [N], and the index's metadata."""
    index = json.loads((export / "index.json").read_text())
    parts = [load_file(export / shard["file"]) for shard in index["shards"]]
    tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return tensors, index["metadata"]


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


def write_meanings(export: pathlib.Path, dst: pathlib.Path, split: str, tensors: dict, chosen: np.ndarray) -> None:
    """What the chosen rows are: their tokens and positions, and the texts of their documents."""
    tokens = {name: np.ascontiguousarray(tensors[name][chosen]) for name in ("tokens", "positions")}
    save_file(tokens, dst / f"{split}.tokens.safetensors")
    lines = (export / "texts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    texts = dict(zip(np.unique(tensors["doc"]).tolist(), lines, strict=True))
    kept = np.unique(tensors["doc"][chosen]).tolist()
    (dst / f"{split}.texts.jsonl").write_text("".join(texts[number] for number in kept), encoding="utf-8")
    shutil.copy(export / "vocab.json", dst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("exports", "prose", "dst"):
        parser.add_argument(name, type=pathlib.Path)
    args = parser.parse_args()
    args.dst.mkdir(parents=True, exist_ok=True)
    for split, wanted in ROWS.items():
        tensors, about = load(args.exports / split)
        rows, documents = tensors["activations"], tensors["doc"]
        with (args.prose / f"{split}.jsonl").open(encoding="utf-8") as lines:
            allowed = {number for number, line in enumerate(lines) if SOURCE in json.loads(line)["source"]}
        chosen = choose(rows, documents, allowed, wanted, OUTLIERS[split])
        metadata = {name: about[name] for name in ("model", "place", "context", "drop_first") if name in about}
        write_meanings(args.exports / split, args.dst, split, tensors, chosen)
        sample = {"activations": np.ascontiguousarray(rows[chosen]), "doc": documents[chosen].astype(np.int64)}
        save_file(sample, args.dst / f"{split}.safetensors", metadata=metadata | {"split": split})
        norms = np.linalg.norm(rows[chosen].astype(np.float32), axis=1)
        largest = ", ".join(f"{norm:.0f}" for norm in np.sort(norms)[::-1][: OUTLIERS[split] + 1])
        print(f"{split}: {len(chosen)} rows of {len(set(sample['doc'].tolist()))} documents, largest norms {largest}")


if __name__ == "__main__":
    main()
