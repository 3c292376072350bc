#!/usr/bin/env python3
"""Recompute every number of a run's report from its files in numpy float64, and compare.

Usage:  python3 tools/check_report.py runs/quickstart
        python3 tools/check_report.py runs/quickstart --quiet      (the differences alone)

Needs numpy and Python 3.11; pyarrow, too, where the data is Parquet or Arrow. Reads every format of docs/DATA.md and
makes the split again from the config. Independent of the Rust code: its own reading of the files, its own sort-based
sparsemax, its own metrics, its own random numbers for the model before training. Paths in the run's config.toml that are
relative are relative to the current directory. Exits with 1 if a number differs by more than rounding explains:

- metrics: 1e-4 relative, because the report's model computes in float32, and sums of products of 1,000 terms are off by
  1e-5;
- percentiles of L0, and dead latents: as metrics, or by 1: a latent within rounding of its threshold;
- histograms: 0.2 % of what is counted, for the same reason, and their edges as metrics;
- accuracies: 0.002, or the part of the rows whose two best classes are within 1e-4 of each other;
- numbers of rows, those left out by data.max_norm among them: not at all.
"""

import argparse
import json
import pathlib
import sys
import tomllib

import numpy as np

from sae_report.classify import TopN
from sae_report.data import embeddings, split, within
from sae_report.initial import training_mean, untrained
from sae_report.metrics import Totals
from sae_report.model import Model

METRIC, COUNTED, ACCURACY = 1e-4, 2e-3, 2e-3
BY_ONE = ("l0_median", "l0_p5", "l0_p95", "dead_latents")


def evaluated(model, x):
    """Reconstructions of rows, their codes, and what the decoder multiplies by."""
    a, n = model.encode(x)
    return model.decode(a, n), a, n


class Comparison:
    def __init__(self, quiet):
        self.quiet, self.wrong, self.seen = quiet, 0, 0

    def say(self, name, theirs, ours, ok):
        self.seen += 1
        self.wrong += not ok
        if not ok or not self.quiet:
            print(f"{name:<60} report {theirs!s:<14.14} numpy {ours!s:<14.14} {'ok' if ok else 'DIFFERS'}")

    def number(self, name, theirs, ours, relative=0.0, absolute=0.0):
        if theirs is None or ours is None or not np.isfinite(ours):
            self.say(name, theirs, ours, theirs is None and (ours is None or not np.isfinite(ours)))
            return
        bound = max(absolute, relative * max(abs(ours), 1e-12))
        self.say(name, theirs, float(ours), abs(theirs - ours) <= bound)

    def histogram(self, name, theirs, edges, counts):
        ok = len(theirs["edges"]) == len(edges) and np.allclose(theirs["edges"], edges, rtol=METRIC)
        moved = np.abs(np.subtract(theirs["counts"], counts)).sum() if ok else None
        ok = ok and moved <= max(2, COUNTED * counts.sum())
        self.say(name, sum(theirs["counts"]), f"{counts.sum()}, {moved} elsewhere", ok)


def metrics(compare, report, totals):
    ours = totals.reconstruction() | totals.sparsity()
    for metric in report["reconstruction"] + report["sparsity"]:
        name = metric["name"]
        compare.number(name, metric["value"], ours.pop(name), METRIC, 1 if name in BY_ONE else 0)
    others = totals.toolkits()
    for metric in report["toolkits"]:
        key = (metric["owner"], metric["name"])
        compare.number(f"{key[0].split()[0]}: {key[1]}", metric["value"], others.pop(key), METRIC)
    for name in [*ours, *others]:
        compare.say(name, "absent", "a number", False)
    for name, (edges, counts) in totals.histograms().items():
        compare.histogram(name, report[name], edges, counts)


def all_rows(compare, section, model, sides, limit):
    """The held-out rows together with those beyond the limit."""
    beyond = sides[1]
    if not beyond.rows or section is None:
        compare.say("rows beyond max_norm", section, beyond.rows or None, section is None and not beyond.rows)
        return
    mean = sum(x.sum(0) for side in sides for _, x in side.blocks(4096)) / sum(side.rows for side in sides)
    totals = Totals(mean, model.cfg["n_latents"])
    for side in sides:
        for _, x in side.blocks(model.block()):
            x_hat, a, _ = evaluated(model, x)
            totals.add(x, x_hat, a)
    ours = totals.reconstruction()
    compare.number("max_norm", section["max_norm"], limit, 1e-12)
    compare.number("rows beyond max_norm", section["left_out"], beyond.rows)
    for metric, name in zip(section["metrics"], ("fvu", "variance_share_top_0.1_percent"), strict=True):
        compare.number(f"all rows: {metric['name']}", metric["value"], ours[name], METRIC)


def classes(compare, top_n, judged, before, train):
    def mean(name, theirs, accuracy):
        compare.number(name, theirs, accuracy.over_classes(), 0, max(ACCURACY, accuracy.doubt_over_classes()))

    mean("original over classes", top_n["original_over_classes"], judged.original)
    compare.number("original over rows", top_n["original_over_rows"], judged.original.over_rows(), 0, ACCURACY)
    for which, model in (("trained", judged), ("untrained", before)):
        if top_n[which] is None:
            continue
        for row, (on, off) in zip(top_n[which], model.rows, strict=True):
            for kind, accuracy in (("on", on), ("off", off)):
                mean(f"{which}, top-{row['n']} {kind}", row[kind], accuracy)
    for c, entry in enumerate(top_n["per_class"]):
        label = entry["class"]
        compare.number(f"{label}: held-out rows", entry["rows"], int(judged.full.rows[c]))
        compare.number(f"{label}: training rows", entry["train_rows"], int((train.labels == c).sum()))
        for kind, theirs, accuracy in (("activations", entry["original"], judged.original_all),
                                       ("reconstructions", entry["reconstructed"], judged.full)):
            bound = max(ACCURACY, accuracy.doubt(c))
            compare.number(f"{label}: {kind}", theirs, accuracy.by_class().get(c), 0, bound)
    unranked = [e["class"] for c, e in enumerate(top_n["per_class"]) if c not in judged.ranked]
    compare.say("classes without training rows", top_n["unranked"], unranked, top_n["unranked"] == unranked)


def judge(model, train, held_out, head, report, totals=None):
    """One pass over the held-out rows: the totals and top-n classification of `model`."""
    top_n, judged = report["top_n"], None
    if top_n:
        names = [row["n"] for row in top_n["trained"]]
        judged = TopN(model, train, head, names, top_n["rank_by"], top_n["fire_threshold"])
    for some, x in held_out.blocks(model.block()):
        x_hat, a, n = evaluated(model, x)
        if totals is not None:
            totals.add(x, x_hat, a)
        if judged:
            judged.add(x, a, n, held_out.labels[some])
    return judged


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="the directory of an evaluated run")
    parser.add_argument("--quiet", action="store_true", help="print the differences alone")
    for name in ("labels", "held-out-labels", "class-embeddings"):
        parser.add_argument(f"--{name}", help=f"as it was given to sae-eval, in place of data.{name.replace('-', '_')}")
    args = parser.parse_args()
    report = json.loads((args.run / "reports" / "report.json").read_text())
    if report["schema_version"] < 6:
        sys.exit(f"a report of schema version {report['schema_version']}; evaluate the run again")
    config = tomllib.loads((args.run / "config.toml").read_text())["data"]
    given = {k: getattr(args, k) for k in ("labels", "held_out_labels", "class_embeddings")}
    config |= {k: v for k, v in given.items() if v}
    train, held_out = split(config)
    limit = config.get("max_norm", "none")
    limit = np.inf if limit == "none" else limit
    (train, train_beyond), (held_out, beyond) = within(train, limit), within(held_out, limit)
    compare = Comparison(args.quiet)
    for side, data, left_out in (("train", train, train_beyond), ("held_out", held_out, beyond)):
        compare.number(f"{side}: rows", report[side]["rows"], data.rows)
        compare.number(f"{side}: rows left out", report[side]["left_out"], left_out.rows)
        compare.number(f"{side}: width", report[side]["width"], data.width)
    model = Model.load(args.run / "model")
    mean = sum(x.sum(0) for _, x in held_out.blocks(4096)) / held_out.rows
    totals = Totals(mean, model.cfg["n_latents"])
    head = embeddings(config["class_embeddings"]) if report["top_n"] else None
    judged = judge(model, train, held_out, head, report, totals)
    metrics(compare, report, totals)
    all_rows(compare, report["all_rows"], model, (held_out, beyond), limit)
    if judged:
        before = None
        if report["top_n"]["untrained"]:
            start = training_mean(train, held_out, config.get("check_rows"))
            before = judge(untrained(model.cfg, model.seed, start), train, held_out, head, report)
        classes(compare, report["top_n"], judged, before, train)
    if compare.wrong:
        sys.exit(f"{args.run}: {compare.wrong} of {compare.seen} numbers differ")
    print(f"{args.run}: every number agrees ({compare.seen})")


if __name__ == "__main__":
    main()
