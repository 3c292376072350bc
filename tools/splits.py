"""Puts documents into three splits by a hash, the same for every tool that collects texts, so no list has to be kept."""

import hashlib
import json
import pathlib

VALIDATION, HELD_OUT = 2, 4  # per cent of the names
NAMES = ("train", "validation", "heldout")

Document = dict[str, str]


def hashed(text: str) -> int:
    """64 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_of(name: str) -> str:
    """The split of everything with this name."""
    place = hashed(name) % 100
    return "validation" if place < VALIDATION else "heldout" if place < VALIDATION + HELD_OUT else "train"


def write_splits(directory: pathlib.Path, documents: list[tuple[str, Document]]) -> None:
    """Write {train,validation,heldout}.jsonl from (name that decides the split, document), ordered by each text's hash."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in NAMES:
        own = [document for name, document in documents if split_of(name) == split]
        own.sort(key=lambda document: hashed(document["text"]))
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in own)
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        words = sum(len(document["text"].split()) for document in own)
        print(f"{split}: {len(own)} documents, {words} words")
