#!/usr/bin/env python3
"""Write WordNet's glosses as documents for export_activations.py.

    python3 tools/wordnet_glosses.py glosses.jsonl classes.json [--first-definition] [--shuffle SEED] [--limit N]
    python3 tools/wordnet_glosses.py --all DST

Needs WordNet 3.0 (Debian package wordnet-base), and numpy for --shuffle.

The first form writes the labelled glosses of nouns, and the texts of their classes. The label of a gloss is the
lexicographer file of its noun, one of 26: act, animal, ..., time. classes.json maps them to descriptions, after
lexnames(5WN), and is for --class-texts. With --first-definition --shuffle 0 --limit 24000 the glosses are
those from which data/wordnet_minilm is cut.

The second form writes the glosses of all nouns, verbs, adjectives and adverbs, whole, with their examples, to
DST/{train,validation,heldout}.jsonl ({"text": ..., "source": "verb 00001740"}), without labels, because nouns and verbs
have no classes in common. The hash of a gloss's text before its first example chooses its split (2 % validation, 4 %
held out), so glosses with the same definition ("in a ... manner" twice) are on one side.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

from splits import write_splits

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
PARTS = ("noun", "verb", "adj", "adv")


def read_glosses(data: pathlib.Path) -> Iterator[tuple[str, int, str]]:
    """Offset, number of the lexicographer file, and gloss of every synset."""
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("  "):  # the licence
                fields, gloss = line.split("|", 1)
                offset, lexicographer_file = fields.split()[:2]
                yield offset, int(lexicographer_file), gloss.strip()


def definition(gloss: str) -> str:
    """The part of a gloss before its first example."""
    return gloss.split('; "')[0]


def write_all(wordnet: pathlib.Path, dst: pathlib.Path) -> None:
    documents: list[tuple[str, dict[str, str]]] = []
    for part in PARTS:
        for offset, _, gloss in read_glosses(wordnet / f"data.{part}"):
            documents.append((definition(gloss), {"text": gloss, "source": f"{part} {offset}"}))
    write_splits(dst, documents)


def write_nouns(args: argparse.Namespace) -> None:
    names = list(CLASSES)
    glosses = []
    for _, number, gloss in read_glosses(args.wordnet / "data.noun"):
        text = definition(gloss) if args.first_definition else gloss
        glosses.append({"text": text, "label": names[number - FIRST_NOUN_FILE]})
    if args.shuffle is not None:
        import numpy as np

        glosses = [glosses[i] for i in np.random.default_rng(args.shuffle).permutation(len(glosses))]
    glosses = glosses[: args.limit]
    lines = (json.dumps(gloss, ensure_ascii=False) + "\n" for gloss in glosses)
    args.glosses.write_text("".join(lines), encoding="utf-8")
    args.classes.write_text(json.dumps(CLASSES, indent=1) + "\n", encoding="utf-8")
    print(f"{len(glosses)} glosses in {len({gloss['label'] for gloss in glosses})} classes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("glosses", type=pathlib.Path, nargs="?", help="documents to write, .jsonl")
    option("classes", type=pathlib.Path, nargs="?", help="class texts to write, .json")
    option("--all", type=pathlib.Path, metavar="DST", help="directory to write all glosses to, in three splits")
    option("--wordnet", type=pathlib.Path, default="/usr/share/wordnet", help="directory with data.noun, data.verb and so on")
    option("--first-definition", action="store_true", help="cut a gloss before its first example")
    option("--shuffle", type=int, metavar="SEED", help="shuffle with numpy's default_rng(SEED)")
    option("--limit", type=int, metavar="N", help="keep the first N, after shuffling")
    args = parser.parse_args()
    if (args.classes is None) != (args.all is not None) or (args.all and args.glosses):
        parser.error("name a file for glosses and one for classes, or --all DST alone")
    if args.all and (args.first_definition or args.shuffle is not None or args.limit is not None):
        parser.error("--all writes every gloss, whole: leave out --first-definition, --shuffle and --limit")
    if not (args.wordnet / "data.noun").is_file():
        raise SystemExit(f"error: no {args.wordnet}/data.noun: install the Debian package wordnet-base, or pass --wordnet")
    if args.all:
        write_all(args.wordnet, args.all)
    else:
        write_nouns(args)


if __name__ == "__main__":
    main()
