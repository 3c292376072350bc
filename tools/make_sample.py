#!/usr/bin/env python3
"""Cut the sample data set of this repository from the full WordNet-MiniLM sentence embeddings.

Usage:  python3 tools/make_sample.py SOURCE_DIR data/wordnet_minilm      (needs numpy, safetensors)

SOURCE_DIR holds the shards that tools/export_activations.py writes from the WordNet glosses (README, "Your own
activations"), or sentences.safetensors (activations f16 [N, d], labels i64 [N]); class_embeddings.safetensors (weight
f32 [C, d]) and classes.json. If texts.jsonl is there, too, the texts of the chosen rows are written beside them. The cut
is stratified by class and a pure function of SEED, so running it again gives the same rows.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

SEED = 0
ROWS = 15_200
HELD_OUT = 0.158  # fraction of each class
SMALL_CLASS = 60  # a class keeps at least this many rows, or all it has


def class_quota(sizes: np.ndarray) -> np.ndarray:
    """Rows to take from each class: proportional to its size, small classes kept whole."""
    quota = np.minimum(sizes, np.maximum(SMALL_CLASS, np.floor(sizes * ROWS / sizes.sum()))).astype(int)
    large = np.argsort(-sizes)
    i = 0
    while quota.sum() != ROWS:  # settle the rounding on the largest classes
        quota[large[i % 8]] += 1 if quota.sum() < ROWS else -1
        i += 1
    return quota


def load(source: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Activations [N, d] and labels [N]."""
    files = ["sentences.safetensors"]
    if (source / "index.json").exists():
        files = [shard["file"] for shard in json.loads((source / "index.json").read_text())["shards"]]
    parts = [load_file(source / file) for file in files]
    return np.concatenate([part["activations"] for part in parts]), np.concatenate([part["labels"] for part in parts])


def read_texts(source: pathlib.Path, rows: int) -> list[str] | None:
    """The lines of the texts, one per row, if there are texts."""
    path = source / "texts.jsonl"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(lines) != rows:
        raise SystemExit(f"error: {path} has {len(lines)} lines for {rows} rows")
    return lines


def main() -> None:
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    activations, labels = load(source)
    texts = read_texts(source, len(labels))
    rng = np.random.default_rng(SEED)
    quota = class_quota(np.bincount(labels))
    train, held_out = [], []
    for c, n in enumerate(quota):
        rows = rng.permutation(np.flatnonzero(labels == c))[:n]
        cut = max(1, round(n * HELD_OUT))
        held_out.append(rows[:cut])
        train.append(rows[cut:])
    for name, parts in (("train", train), ("heldout", held_out)):
        rows = np.sort(np.concatenate(parts))  # source order, which is already shuffled
        save_file(
            {"activations": np.ascontiguousarray(activations[rows]), "labels": labels[rows]},
            target / f"{name}.safetensors",
            metadata={"model": "all-MiniLM-L6-v2", "hook": "mean pooled, unit norm", "split": name},
        )
        if texts is not None:
            (target / f"{name}.texts.jsonl").write_text("".join(texts[row] for row in rows), encoding="utf-8")
        print(f"{name}: {len(rows)} rows, smallest class {np.bincount(labels[rows]).min()}")
    shutil.copy(source / "class_embeddings.safetensors", target)
    classes = json.loads((source / "classes.json").read_text())
    (target / "classes.json").write_text(json.dumps(classes) + "\n")


if __name__ == "__main__":
    main()
