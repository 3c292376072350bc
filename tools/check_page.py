#!/usr/bin/env python3
"""Recompute what a run's report.html says of its latents from the run's files in numpy float64, and compare.

Usage:  python3 tools/check_page.py runs/quickstart

Needs numpy and Python 3.11, and memory for the codes of all held-out rows, so it is for small runs. It unpacks the data
that the page's script reads, and compares tokens, shades, texts and cells of images with the files of the data set.
Tolerances are those of check_report.py: activations are within 1e-4 of each other, and a row may be active for one and
not for the other if it is that close to its threshold.
"""

import base64
import json
import pathlib
import re
import sys
import tomllib
import zlib

import numpy as np

from sae_report.data import split, within
from sae_report.meanings import Meanings
from sae_report.model import Model
from sae_report.page_rows import compare_rows

CLOSE = 1e-4
NEAR = 10  # tokens of a document at most this far apart are near each other
PIECE = NEAR + 1
ARTICLE = re.compile(r'<article class="apart">(.*?)</article>', re.S)
PART = re.compile(r'#latent-(\d+)".*?<td class="n">([-0-9.e]+) %</td>', re.S)
PACKED = re.compile(r'<script type="application/octet-stream;base64" id="([a-z0-9-]+)">([^<]*)</script>')


def unpacked(html):
    """The page's data by id."""
    pieces = {name: zlib.decompress(base64.b64decode(text), -15) for name, text in PACKED.findall(html)}
    return {name: raw if name == "columns" else json.loads(raw) for name, raw in pieces.items()}


def together(pieces, prefix):
    count = sum(name.startswith(prefix) for name in pieces)
    return [item for i in range(count) for item in pieces[f"{prefix}{i}"]]


def codes(model, side):
    blocks = [(model.encode(x)[0], x) for _, x in side.blocks(model.block())]
    return np.concatenate([a for a, _ in blocks])


class Comparison:
    def __init__(self):
        self.wrong = 0

    def say(self, name, worst, bound):
        self.wrong += not worst <= bound
        print(f"{name:<44} largest difference {worst:.2e} (at most {bound:g}) {'ok' if worst <= bound else 'DIFFERS'}")


def columns(raw, m):
    kinds = ["u4", "f4", "f4", "f4", "i4", "f4", "i4", "f4", "f4", "f4"]
    names = ["fired", "mean", "max", "entropy", "best", "f1", "near", "cosine", "x", "y"]
    return {n: np.frombuffer(raw, "<" + k, m, 4 * m * i) for i, (n, k) in enumerate(zip(names, kinds, strict=True))}


def by_class(compare, page, a, labels):
    active, mass = (a != 0).astype(float), np.abs(a)
    one_hot = np.eye(labels.max() + 1)[labels]
    fired, total, rows = active.sum(0), mass.T @ one_hot, one_hot.sum(0)
    part = total / np.maximum(mass.sum(0), 1e-300)[:, None]
    entropy = -(part * np.log(np.maximum(part, 1e-300))).sum(1) / np.log((rows > 0).sum())
    often = fired >= 10
    has = ~np.isnan(page["entropy"])
    compare.say("latents that have an entropy", np.sum(has != often), 2)
    compare.say("class entropy", np.abs(page["entropy"] - entropy)[has & often].max(), 2e-3)
    f1 = 2 * (active.T @ one_hot) / (fired[:, None] + rows)
    live = fired > 0
    compare.say("F1 of the best class", np.abs(page["f1"] - f1.max(1))[live].max(), 2e-2)
    own = f1[np.arange(len(f1)), page["best"].clip(0)]
    compare.say("F1 of the class that is named", np.abs(page["f1"] - own)[live].max(), 2e-2)


def decoder(compare, page, cards, values):
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    compared = page["near"] >= 0
    compare.say("nearest cosine", np.abs(page["cosine"] - cosines.max(1))[compared].max(), CLOSE)
    named = np.abs(page["cosine"] - cosines[np.arange(len(cosines)), page["near"].clip(0)])
    compare.say("cosine of the latent that is named", named[compared].max(), CLOSE)
    five = -np.sort(-cosines, axis=1)[:, :5]
    listed = [np.abs(np.array([c for _, c in card[5]]) - five[j]).max() for j, card in enumerate(cards) if card[5]]
    compare.say("five nearest cosines", max(listed), 2 * CLOSE)


def plane(compare, page, values, live):
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    centred = unit - unit[live].mean(0)
    variance = np.linalg.svd(centred[live], compute_uv=False) ** 2
    ours = [float((page[axis][live].astype(float) ** 2).sum()) for axis in "xy"]
    worst = max(abs(o - v) / v for o, v in zip(ours, variance, strict=False))
    compare.say("variance along the two components (relative)", worst, 2e-2)


def strongest_rows(values, place, most):
    """The strongest rows of the pieces of documents, without those near a stronger one; place is None without tokens."""
    order = np.flatnonzero(values)
    order = order[np.argsort(-np.abs(values[order]), kind="stable")]
    if place is None:
        return order[:most]
    document, at = place
    _, first = np.unique(np.stack([document[order], at[order] // PIECE]), axis=1, return_index=True)
    kept = []
    for row in order[np.sort(first)]:
        apart = [document[row] != document[other] or abs(at[row] - at[other]) > NEAR for other in kept]
        if all(apart) and len(kept) < most:
            kept.append(row)
    return np.array(kept, int)


def places(side):
    """Document and place in it of each held-out row; None if rows have no documents."""
    if side.data.starts is None:
        return None
    document = np.searchsorted(side.data.starts, side.row_numbers, "right") - 1
    return document, side.row_numbers - side.data.starts[document]


def examples(compare, cards, rows, a, side):
    row_of = {number: i for i, number in enumerate(side.row_numbers)}
    tokens = any(isinstance(row[4], dict) and "t" in row[4] for row in rows)
    where, most = places(side) if tokens else None, 10 if len(cards) <= 8192 else 5
    other_number = near = 0
    worst = top = deciles = jaccard = 0.0
    active = a != 0
    together = active.T.astype(np.float32) @ active.astype(np.float32)
    fired = active.sum(0)
    for j, card in enumerate(cards):
        strongest = [(row_of[rows[place][0]], value) for place, value in card[3]]
        for row, value in strongest + [(row_of[rows[place][0]], value) for place, value in card[4]]:
            worst = max(worst, abs(a[row, j] - value) / max(abs(value), 1e-9))
        expected = np.abs(a[strongest_rows(a[:, j], where, most), j])
        if len(expected) != len(strongest):
            other_number += 1
        top = max([top, *(abs(abs(v) - l) / max(l, 1e-9) for (_, v), l in zip(strongest, expected))])
        if where is not None:
            at = [(where[0][row], where[1][row]) for row, _ in strongest]
            near += sum(p[0] == q[0] and abs(p[1] - q[1]) <= NEAR for i, p in enumerate(at) for q in at[:i])
        if fired[j] >= 200:
            ranks = [(np.abs(a[:, j]) > abs(value)).sum() / fired[j] for _, value in card[4]]
            deciles = max(deciles, *np.abs(np.array(ranks) - (np.arange(len(ranks)) + 0.5) / len(ranks)))
        for other, value in card[6]:
            n = together[j, other]
            jaccard = max(jaccard, abs(value - n / (fired[j] + fired[other] - n)))
        compared = sum(card[1])
        worst = max(worst, abs(compared - fired[j]) / max(fired[j], 1) * 1e-2)
    compare.say("activations of all examples (relative)", worst, 2e-3)
    compare.say("strongest rows are the strongest (relative)", top, 2e-3)
    compare.say("latents with more or fewer strongest rows", other_number, 2)
    compare.say("strongest rows that are near a stronger one", near, 0)
    compare.say("place of the examples of each part", deciles, 0.3)
    compare.say("Jaccard index", jaccard, 5e-2)


def number_of(article, meanings):
    """The number of the row that an article is about; None if it does not say."""

    def as_int(text):
        return int(text.replace(",", ""))

    if found := re.search(r'class="about">row ([0-9,]+)', article):
        return as_int(found[1])
    found = re.search(r'class="about">document ([0-9,]+), position ([0-9]+)', article)
    if not found or meanings.positions is None:
        return None
    rows = meanings.around(int(meanings.starts[as_int(found[1])]), 0, meanings.rows)
    return next(row for row in rows if meanings.positions[row] == as_int(found[2]))


def apart(compare, html, model, side, meanings):
    """The rows that are taken apart, where they say which ones they are."""
    place = {int(number): i for i, number in enumerate(side.row_numbers)}
    left = share = 0.0
    numbers = [(article, number_of(article, meanings)) for article in ARTICLE.findall(html)]
    compare.say("rows taken apart that cannot be found", sum(number is None for _, number in numbers), 0)
    for article, number in numbers:
        if number is None:
            continue
        _, x = next(side.blocks(1, [place[number]]))
        a, n = model.encode(x)
        x0 = x - model.w["b_dec"] if model.cfg["pre_bias"] else x
        total = (x0**2).sum()
        said = float(re.search(r"<strong>([0-9.]+) %</strong> left over", article)[1])
        left = max(left, abs(said - 100 * ((x - model.decode(a, n)) ** 2).sum() / total))
        parts = 100 * n[0, 0] * a[0] * (model.values @ x0[0]) / total
        share = max([share, *(abs(float(p) - parts[int(j)]) for j, p in PART.findall(article))])
    compare.say("what is left over of a row (points of %)", left, 0.06)
    compare.say("what a latent adds to a row (points of %)", share, 0.06)


def opened(run):
    """The model of a run, its held-out rows within data.max_norm, and what they are."""
    config = tomllib.loads((run / "config.toml").read_text())
    _, held_out = split(config["data"])
    named = config["data"].get("held_out")
    meanings = Meanings(pathlib.Path(named if isinstance(named, str) else config["data"]["train"]), held_out.data)
    limit = config["data"].get("max_norm", "none")
    return Model.load(run / "model"), within(held_out, np.inf if limit == "none" else limit)[0], meanings


def main():
    run = pathlib.Path(sys.argv[1])
    html = (run / "reports/report.html").read_text()
    pieces = unpacked(html)
    model, side, meanings = opened(run)
    a = codes(model, side)
    m = pieces["meta"]["latents"]
    page, cards, rows = columns(pieces["columns"], m), together(pieces, "cards-"), together(pieces, "rows-")
    compare = Comparison()
    fired, live = (a != 0).sum(0), (a != 0).any(0)
    compare.say("rows", abs(pieces["meta"]["rows"] - len(a)), 0)
    compare.say("rows on which each latent fires", np.abs(page["fired"].astype(int) - fired).max(), max(2, 2e-3 * len(a)))
    mean = np.abs(a).sum(0) / np.maximum(fired, 1)
    compare.say("mean activation (relative)", (np.abs(page["mean"] - mean) / mean)[fired >= 10].max(), 2e-2)
    largest = np.abs(a).max(0)
    compare.say("largest activation (relative)", (np.abs(page["max"] - largest) / largest)[fired >= 3].max(), 2e-3)
    if side.labels is not None:
        by_class(compare, page, a, side.labels)
    decoder(compare, page, cards, model.values)
    plane(compare, page, model.values, live)
    apart(compare, html, model, side, meanings)
    examples(compare, cards, rows, a, side)
    compare_rows(compare, meanings, side, pieces, cards, rows, a, page["max"], html)
    sys.exit(bool(compare.wrong))


if __name__ == "__main__":
    main()
