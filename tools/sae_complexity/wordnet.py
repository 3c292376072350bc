"""What WordNet says of its nouns, for the gloss of each: senses of the noun, depth of its synset."""

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from wordnet_glosses import definition

HYPERNYMS = ("@", "@i")  # kind of; instance of


@dataclass(frozen=True)
class Synset:
    lemma: str
    hypernyms: tuple[str, ...]
    gloss: str


def read_synsets(wordnet: pathlib.Path) -> dict[str, Synset]:
    """Offset -> synset of all nouns (wndb(5WN) has the format)."""
    found = {}
    with (wordnet / "data.noun").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            head, gloss = line.split("|", 1)
            fields = head.split()
            words = int(fields[3], 16)
            pointers = fields[4 + 2 * words + 1 :]
            hypernyms = (pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in HYPERNYMS)
            found[fields[0]] = Synset(fields[4].lower(), tuple(hypernyms), gloss.strip())
    return found


def read_senses(wordnet: pathlib.Path) -> dict[str, int]:
    """Noun -> number of its senses."""
    with (wordnet / "index.noun").open(encoding="utf-8") as lines:
        fields = (line.split() for line in lines if not line.startswith("  "))
        return {own[0]: int(own[2]) for own in fields}


def depths(synsets: dict[str, Synset]) -> dict[str, int]:
    """Offset -> fewest steps to a synset without a hypernym."""
    below: dict[str, list[str]] = {}
    for offset, synset in synsets.items():
        for above in synset.hypernyms:
            below.setdefault(above, []).append(offset)
    level = [offset for offset, synset in synsets.items() if not synset.hypernyms]
    found: dict[str, int] = {}
    depth = 0
    while level:
        found.update(dict.fromkeys(level, depth))
        level = list({own for above in level for own in below.get(above, ()) if own not in found})
        depth += 1
    return found


def of_glosses(wordnet: pathlib.Path, texts: list[str]) -> Iterator[tuple[int, int, int]]:
    """For every text: how many synsets have this gloss, and senses and depth of the synset, -1 unless it is one.

    A gloss of several synsets says nothing of which one is meant, so it has neither. The gloss may be whole, or cut
    before its first example. Senses are those of the synset's first noun, the most usual one.
    """
    synsets, senses = read_synsets(wordnet), read_senses(wordnet)
    depth = depths(synsets)
    own: dict[str, set[str]] = {}
    for offset, synset in synsets.items():
        for text in {synset.gloss, definition(synset.gloss)}:
            own.setdefault(text, set()).add(offset)
    for text in texts:
        matches = own.get(text, set())
        if len(matches) == 1:
            (offset,) = matches
            yield 1, senses.get(synsets[offset].lemma, -1), depth[offset]
        else:
            yield len(matches), -1, -1
