#!/usr/bin/env python3
"""Recompute the files of `sae-eval neuronpedia` from the run's files in numpy float64, and compare.

Usage:  python3 tools/check_neuronpedia.py runs/test_tokens uploads

Needs numpy and Python 3.11, and memory for the codes of all held-out rows, so it is for small runs, of the run's own rows.
Tolerances are those of check_page.py.
"""

import json
import pathlib
import sys

import numpy as np

from check_page import Comparison, codes, opened, places, strongest_rows


def features_of(directory):
    index = json.loads((directory / "index.json").read_text())
    for entry in index["files"]:
        body = json.loads((directory / entry["file"]).read_text("utf-8"))
        yield from body["features"]


def passage(meanings, row, most):
    """The rows and strings of the tokens around a row; a text is one token."""
    if meanings.ids is None:
        return [row], [meanings.text(row)]
    before = (most - 1) * 2 // 3
    around = meanings.around(row, before, most - 1 - before)
    return list(around), [meanings.word(r) for r in around]


class Check:
    """Looks for the row of each passage: the one of these strings whose activations are nearest."""

    def __init__(self, meanings, numbers, place, a, most):
        self.a, self.place, self.inside = a, place, {int(number): i for i, number in enumerate(numbers)}
        self.rows = {}  # strings -> the rows whose passage they are
        for row in self.inside:
            rows, words = passage(meanings, row, most)
            self.rows.setdefault(tuple(words), []).append((row, rows))
        self.unknown, self.worst, self.top, self.passages = 0, 0.0, 0.0, 0

    def feature(self, feature):
        """The largest differences of its values, in parts of its largest activation."""
        own = np.abs(self.a[:, feature["index"]])
        found = []
        for activation in feature["activations"]:
            self.passages += 1
            values = np.array(activation["values"])
            places = self.rows.get(tuple(activation["tokens"]), [])
            ours = [(np.abs(self.values(rows, feature["index"]) - values).max(), own[self.inside[row]]) for row, rows in places]
            if not ours:
                self.unknown += 1
                continue
            self.worst = max(self.worst, min(difference for difference, _ in ours) / own.max())
            # of several rows with one passage it is about that which is nearest to the next of the largest activations
            found.append([value for difference, value in ours if difference <= 1e-2 * own.max()])
        largest = own[strongest_rows(own, self.place, len(found))]
        for candidates, expected in zip(found, largest, strict=True):
            self.top = max(self.top, min((abs(c - expected) for c in candidates), default=np.inf) / own.max())

    def values(self, rows, latent):
        return np.array([self.a[self.inside[row], latent] if row in self.inside else 0.0 for row in rows])


def main():
    run, directory = map(pathlib.Path, sys.argv[1:3])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    model, side, meanings = opened(run)
    a = codes(model, side)
    place = places(side) if meanings.ids is not None else None
    check, compare = Check(meanings, side.row_numbers, place, a, most), Comparison()
    density, indices = 0.0, []
    for feature in features_of(directory):
        check.feature(feature)
        indices.append(feature["index"])
        density = max(density, abs(feature["density"] - (a[:, feature["index"]] != 0).mean()))
    live = (a != 0).sum(0)
    compare.say("latents that are missing", np.sum(live > 2) - len(set(indices) & set(np.flatnonzero(live > 2))), 0)
    compare.say(f"passages that are not in the data (of {check.passages})", check.unknown, 0)
    compare.say("activations (parts of the largest)", check.worst, 2e-3)
    compare.say("strongest rows are the strongest (parts)", check.top, 2e-3)
    compare.say("density", density, 2e-3)
    sys.exit(bool(compare.wrong))


if __name__ == "__main__":
    main()
