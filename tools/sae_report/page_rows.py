"""Compares the rows that report.html shows as tokens, texts or cells of images with the files of the data set."""

import base64
import re

import numpy as np

BEFORE, BEHIND = 10, 5  # tokens around a row
TOKEN = 40  # characters of a token
SPACES = dict.fromkeys(map(ord, "\n\r\t\v\f\x85\u2028\u2029"), " ")
POSITION = re.compile(r"Mean L0 is ([0-9.,]+) at the first position")


def plain(text):
    """A text without the characters that the page replaces: controls and those that turn the direction of text."""
    text = text.translate(SPACES)
    return "".join(c for c in text if (c.isprintable() or c == "\u3000") and c != "\ufffd" and c != "…")


class Rows:
    """Compares the rows of the page with `meanings`; counts what it has seen of each kind."""

    def __init__(self, meanings, side, pieces, a, largest):
        self.meanings, self.pieces, self.a, self.largest = meanings, pieces, a, largest
        self.place = {int(number): i for i, number in enumerate(side.row_numbers)}
        self.labels = side.labels
        self.pictures = [url for i in range(len(pieces)) for url in pieces.get(f"pictures-{i}", [])]
        self.seen = {"tokens": 0, "texts": 0, "cells": 0}
        self.wrong, self.worst, self.shaded, self.differ = [], 0.0, 0, 0

    def expect(self, holds, row, what):
        if not holds:
            self.wrong.append(f"row {row}: {what}")

    def row(self, packed):
        number, document, position, label, content = packed
        of = self.meanings
        if of.starts is not None:
            self.expect(document == of.document(number), number, f"document {document}")
        if of.positions is not None:
            self.expect(position == of.positions[number], number, f"position {position}")
        if self.labels is not None:
            self.expect(label == self.labels[self.place[number]], number, f"class {label}")
        if of.ids is not None and of.starts is not None:
            self.token(number, content)
        elif of.thumbnails is not None:
            self.cell(number, content)
        elif of.texts is not None:
            self.seen["texts"] += 1
            text = content.removesuffix("…") if isinstance(content, str) else None
            self.expect(text and plain(of.text(number)).startswith(plain(text)), number, f"text {content!r}")

    def token(self, number, content):
        self.seen["tokens"] += 1
        around = self.meanings.around(number, BEFORE, BEHIND)
        words = [plain(self.meanings.word(row)[:TOKEN]) for row in around]
        same = isinstance(content, dict) and [plain(word) for word in content["t"]] == words
        self.expect(same and content["i"] == number - around.start, number, f"tokens {content}, not {words}")

    def cell(self, number, content):
        self.seen["cells"] += 1
        of = self.meanings
        if not isinstance(content, dict):
            self.expect(False, number, f"no picture but {content!r}")
            return
        grid = of.image["grid"] if of.image else [1, 1]
        cell = of.cell(number) if of.image and of.positions is not None else None
        self.expect(content["g"] == grid and content["c"] == cell, number, f"cell {content['c']}, not {cell}")
        picture = base64.b64decode(self.pictures[content["p"]].split(",", 1)[1])
        self.expect(picture == of.thumbnail(number), number, "another picture than its own")

    def shades(self, latent, numbers, shades):
        """A digit d from 1 to 9 says that 9 |a| / max is in (d - 1, d]; 0, that the latent is not active."""
        for number, digits in zip(numbers, shades, strict=True):
            around = self.meanings.around(number, BEFORE, BEHIND)
            self.expect(len(digits) == len(around), number, f"{len(digits)} shades for {len(around)} tokens")
            for row, digit in zip(around, map(int, digits)):
                inside = row in self.place  # a row beyond max_norm is not shaded
                part = 9 * abs(self.a[self.place[row], latent]) / self.largest[latent] if inside else 0.0
                self.shaded += digit > 0
                self.differ += (digit > 0) != (part > 0)
                self.worst = max(self.worst, part - digit, digit - 1 - part)


def compare_rows(compare, meanings, side, pieces, cards, rows, a, largest, html):
    """Says how far the page's rows are from the files."""
    of = Rows(meanings, side, pieces, a, largest)
    for packed in rows:
        of.row(packed)
    kinds = ", ".join(f"{count} {kind}" for kind, count in of.seen.items() if count)
    compare.say(f"rows that are not as in the files (of {kinds or 'rows by number'})", len(of.wrong), 0)
    for wrong in of.wrong[:5]:
        print(f"  {wrong}")
    if of.seen["tokens"]:
        shaded = [(j, card) for j, card in enumerate(cards) if card[8]]
        for j, card in shaded:
            of.shades(j, [rows[place][0] for place, _ in card[3] + card[4]], card[8])
        live = sum(bool(card[3]) for card in cards)
        compare.say("latents without any shade", live - len(shaded), 0)
        compare.say("shades of tokens (ninths of the largest)", of.worst, 2e-2)
        compare.say("tokens that are shaded, but not active (part)", of.differ / max(of.shaded, 1), 2e-3)
    positions(compare, meanings, side, a, html)


def positions(compare, meanings, side, a, html):
    """Mean L0 of the rows at the first position of their documents."""
    starts = meanings.starts
    if starts is None or len(starts) == meanings.rows:
        return
    first = np.isin(side.row_numbers, starts)
    said = POSITION.search(html)
    l0 = (a[first] != 0).sum(1).mean() if first.any() else np.nan
    compare.say("mean L0 at the first position", abs(float(said[1].replace(",", "")) - l0) if said else np.inf, 0.06)
