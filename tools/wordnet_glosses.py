#!/usr/bin/env python3
"""Write WordNet's noun glosses as documents for export_activations.py, and the texts of their classes.

Usage:  python3 tools/wordnet_glosses.py glosses.jsonl classes.json [--first-definition] [--shuffle SEED] [--limit N]

Needs numpy, and data.noun of WordNet 3.0 (Debian package wordnet-base). The label of a gloss is the lexicographer file
of its noun, one of 26: act, animal, ..., time. classes.json maps them to descriptions, after lexnames(5WN), and is for
--class-texts. With --first-definition --shuffle 0 --limit 24000 they are the ones that data/wordnet_minilm is cut from.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

import numpy as np

# In the order of their numbers in WordNet, which start at 3 for nouns.
CLASSES = {
    "Tops": "unique beginner, a most general concept",
    "act": "an act or action",
    "animal": "an animal",
    "artifact": "a man-made object or artifact",
    "attribute": "an attribute or property of people or objects",
    "body": "a body part",
    "cognition": "a cognitive process or content of thought",
    "communication": "a communicative process or content",
    "event": "a natural event",
    "feeling": "a feeling or emotion",
    "food": "a food or drink",
    "group": "a grouping of people or objects",
    "location": "a spatial position or place",
    "motive": "a goal or motive",
    "object": "a natural object, not man-made",
    "person": "a person",
    "phenomenon": "a natural phenomenon",
    "plant": "a plant",
    "possession": "possession and transfer of possession, money",
    "process": "a natural process",
    "quantity": "a quantity or unit of measure",
    "relation": "a relation between people, things or ideas",
    "shape": "a two or three dimensional shape",
    "state": "a stable state of affairs or condition",
    "substance": "a substance or material",
    "time": "time and temporal relations",
}
FIRST_NOUN_FILE = 3


def read_glosses(data_noun: pathlib.Path, first_definition: bool) -> Iterator[dict[str, str]]:
    names = list(CLASSES)
    with data_noun.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            fields, gloss = line.split("|", 1)
            text = gloss.strip()
            if first_definition:
                text = text.split('; "')[0]  # what follows are examples
            yield {"text": text, "label": names[int(fields.split()[1]) - FIRST_NOUN_FILE]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glosses", type=pathlib.Path, help="documents to write, .jsonl")
    parser.add_argument("classes", type=pathlib.Path, help="class texts to write, .json")
    parser.add_argument("--data-noun", type=pathlib.Path, default="/usr/share/wordnet/data.noun")
    parser.add_argument("--first-definition", action="store_true", help="cut a gloss before its first example")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle with numpy's default_rng(SEED)")
    parser.add_argument("--limit", type=int, metavar="N", help="keep the first N, after shuffling")
    args = parser.parse_args()
    if not args.data_noun.is_file():
        raise SystemExit(f"error: no {args.data_noun}: install the Debian package wordnet-base, or pass --data-noun")
    glosses = list(read_glosses(args.data_noun, args.first_definition))
    if args.shuffle is not None:
        glosses = [glosses[i] for i in np.random.default_rng(args.shuffle).permutation(len(glosses))]
    glosses = glosses[: args.limit]
    lines = (json.dumps(gloss, ensure_ascii=False) + "\n" for gloss in glosses)
    args.glosses.write_text("".join(lines), encoding="utf-8")
    args.classes.write_text(json.dumps(CLASSES, indent=1) + "\n", encoding="utf-8")
    print(f"{len(glosses)} glosses in {len({gloss['label'] for gloss in glosses})} classes")


if __name__ == "__main__":
    main()
