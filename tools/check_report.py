#!/usr/bin/env python3
"""Recompute every number of a run's report from its files in numpy float64, and compare.

Usage:  python3 tools/check_report.py runs/quickstart
        python3 tools/check_report.py runs/quickstart --quiet      (only the differences)
        python3 tools/check_report.py runs/quickstart --report DIR     (a report of sae-eval --output DIR)
        python3 tools/check_report.py runs/quickstart --report DIR --model DIR     (of a checkpoint, exported)

Needs numpy and Python 3.11; pyarrow, too, where the data is Parquet or Arrow. It reads every format of docs/DATA.md
and makes the split again from the config. It is independent of the Rust code: it reads the files itself, and has its own
sort-based sparsemax, metrics, and random numbers for the model before training. Relative paths in the run's config.toml
are relative to the current directory. Exits with 1 if a number differs by more than these tolerances for rounding:

- metrics: 1e-4 relative, because the report's model computes in float32, and sums of products of 1,000 terms are off by
  1e-5;
- percentiles of L0, and dead latents: as metrics, or 1, because an activation may be within rounding of its threshold;
- histograms: 0.2 % of the counts, for the same reason, and their edges as metrics;
- accuracies: 0.002, or the share of the rows whose two best classes are within 1e-4 of each other;
- what latents say of classes: 0.002, or the share of the rows whose score is within 1e-3 of 0, or whose activation is
  within 1e-4 of the threshold. Entropies: as much, because rounding may decide whether a latent is counted. Latents may
  differ equally up to rounding: those of the report must be among the best up to 1e-4, and the probes are fitted on them
  (by Newton's method to the last digit, so the solver adds nothing to the tolerance). Intervals: twice as much;
- recovery: cosines 1e-5, their means 1e-4; the optimal assignment is compared by its sum, which two may share; F1 of
  single concepts 0.02, because one latent at its threshold may decide several rows of a rare concept;
- numbers of rows, including those left out by data.max_norm: none.
"""

import argparse
import base64
import json
import pathlib
import sys
import tomllib
import zlib

import numpy as np

from sae_report.classify import TopN
from sae_report.criteria import ACTIVATION_KS, CLOSE, KS, SPECIFIC, Criteria, entropies, interval, probe, single
from sae_report.data import Data, embeddings, split, whole, within
from sae_report.initial import training_mean, untrained
from sae_report.metrics import Totals
from sae_report.model import Model
from sae_report.recovery import Recovery

METRIC, COUNTED, ACCURACY = 1e-4, 2e-3, 2e-3
BY_ONE = ("l0_median", "l0_p5", "l0_p95", "dead_latents")


def evaluated(model, x):
    """Reconstructions of rows, their codes, and the factor that the decoder multiplies by."""
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


def firing(compare, packed, fired):
    """The rows on which each latent fires, which the report has packed."""
    theirs = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"]), -15), "<u4").astype(int)
    moved = np.abs(theirs - fired).sum() if len(theirs) == len(fired) else None
    ok = moved is not None and moved <= max(2, COUNTED * fired.sum())
    compare.say("firing of each latent", theirs.sum(), f"{fired.sum()}, {moved} elsewhere", ok)


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


def estimates(compare, metrics, name, columns, bound):
    metric = metrics.pop(name, {"value": None, "low": None, "high": None})
    for key, ours, tolerance in zip(("value", "low", "high"), interval(columns), (bound, 2 * bound, 2 * bound)):
        compare.number(name if key == "value" else f"{name}, {key}", metric[key], ours, 0, tolerance)


def means(compare, metrics, prefix, scores, ks):
    """Means over classes of `scores`, one list per class."""
    for i, k in enumerate(ks):
        bound = max(ACCURACY, np.mean([of[i].doubt for of in scores]))
        for kind, name in (("balanced", "balanced_accuracy"), ("f1", "f1")):
            columns = np.nanmean([getattr(of[i], kind) for of in scores], 0)
            estimates(compare, metrics, f"{prefix}_{k}_{name}", columns, bound)


def criteria(compare, report, found):
    for key, codes in (("train", found.train), ("held_out", found.held_out), ("train_activations", found.train_x),
                       ("held_out_activations", found.held_out_x)):
        compare.number(f"criteria: {key} rows", report[key]["rows"], codes.n)
    labels = [entry["label"] for entry in report["per_class"]]
    compare.say("classes judged", len(labels), len(found.classes), labels == found.classes.tolist())
    if labels != found.classes.tolist():
        return
    probed, singles = [], []
    for i, (c, entry) in enumerate(zip(found.classes, report["per_class"])):
        name, differ = entry["class"], found.differences[i]
        compare.number(f"{name}: sampled training rows", entry["train_rows"], (found.train.labels == c).sum())
        compare.number(f"{name}: sampled held-out rows", entry["rows"], (found.held_out.labels == c).sum())
        chosen, rest = differ[entry["latents"]], np.delete(differ, entry["latents"])
        among = chosen.min() >= (1 - CLOSE) * rest.max(initial=-1) and (chosen[1:] <= (1 + CLOSE) * chosen[:-1]).all()
        compare.say(f"{name}: chosen latents", len(chosen), "the best", among and len(chosen) == min(max(KS), (differ >= 0).sum()))
        probed.append([probe(found.train, found.held_out, found.times, c, entry["latents"][:k]) for k in KS])
        for shown, scores in zip(entry["probes"], probed[-1], strict=True):
            bound = max(ACCURACY, scores.doubt)
            compare.number(f"{name}: probe of {shown['k']}", shown["balanced_accuracy"], scores.balanced[0], 0, bound)
            compare.number(f"{name}: F1 of {shown['k']}", shown["f1"], scores.f1[0], 0, bound)
        if entry["single_latent"] is None:
            compare.say(f"{name}: no latent", None, found.best_f1[i], found.best_f1[i] == 0)
            continue
        latent, threshold = entry["single_latent"], entry["single_threshold"]
        chosen = single(found.train, np.ones((1, found.train.n)), c, latent, threshold)
        bound = max(ACCURACY, chosen.doubt)
        compare.number(f"{name}: training F1 of its latent", float(chosen.f1[0]), found.best_f1[i], 0, bound)
        singles.append(single(found.held_out, found.times, c, latent, threshold))
        compare.number(f"{name}: F1 of its latent", entry["single_f1"], singles[-1].f1[0], 0, max(ACCURACY, singles[-1].doubt))
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    means(compare, metrics, "probe", probed, KS)
    means(compare, metrics, "activations_probe", found.activations(), ACTIVATION_KS)
    f1 = [scores.f1 for scores in singles] + [0 * found.times[:, 0]] * (len(labels) - len(singles))
    bound = max(ACCURACY, np.mean([scores.doubt for scores in singles]) if singles else 0)
    estimates(compare, metrics, "single_latent_f1", np.nanmean(f1, 0), bound)
    each = entropies(found.held_out, found.times)
    compare.number("latents with an entropy", report["entropy_latents"], len(each), METRIC, 1)
    if len(each):
        estimates(compare, metrics, "class_entropy_mean", np.nanmean(each, 0), ACCURACY)
        estimates(compare, metrics, "class_entropy_median", np.nanmedian(each, 0), ACCURACY)
        part = (each < SPECIFIC).sum(0) / np.isfinite(each).sum(0)
        estimates(compare, metrics, "class_entropy_specific", part, max(ACCURACY, 2 / len(each)))
    for name, metric in metrics.items():
        compare.say(name, metric["value"], None, metric["value"] is None)


def recovery(compare, report, config, model, held_out, fired):
    pairs = [found["latent"] for found in report["matches"]]
    found = Recovery(model, embeddings(config["true_concepts"]), fired, pairs)
    compare.number("true concepts", report["concepts"], found.count)
    compare.number("latents alive", report["alive_latents"], found.alive, 0, 1)
    given = [j for j in pairs if j is not None]
    distinct = len(set(given)) == len(given) == min(found.count, len(model.values))
    compare.say("one latent per concept", len(given), len(set(given)), distinct or report["matching"] != "optimal")
    if report["matching"] == "optimal":
        compare.number("sum of cosines", float(found.matched.sum()), found.best_sum(), METRIC, 1e-4)
    for g, entry in enumerate(report["matches"]):
        if entry["latent"] is not None:
            compare.number(f"concept {g}: cosine", entry["cosine"], found.matched[g], 0, 1e-5)
    metrics = {metric["name"]: metric for metric in report["metrics"]}
    for name, ours in found.numbers.items():
        doubt = (1 + found.near) / found.count if name.startswith("recover") and found.near else 1e-4
        compare.number(name, metrics.pop(name)["value"], ours, 0, doubt)
    if report["held_out"]:
        codes = Data(config["true_codes"], {}, None)
        scores = found.firing(model, held_out, codes, report["held_out"]["bound"])
        for g, (entry, ours) in enumerate(zip(report["matches"], scores)):
            compare.number(f"concept {g}: F1", entry["firing_f1"], ours.f1[0], 0, 10 * ACCURACY)
        estimates(compare, metrics, "firing_f1", np.nanmean([of.f1 for of in scores], 0), ACCURACY)
    for name, metric in metrics.items():
        compare.say(name, metric["value"], None, False)


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
    parser.add_argument("--quiet", action="store_true", help="print only the differences")
    parser.add_argument("--report", type=pathlib.Path, help="the directory of the report; default: reports of the run")
    parser.add_argument("--model", type=pathlib.Path, help="the model that was evaluated; default: the run's")
    for name in ("labels", "held-out-labels", "class-embeddings"):
        parser.add_argument(f"--{name}", help=f"as it was given to sae-eval, in place of data.{name.replace('-', '_')}")
    args = parser.parse_args()
    report = json.loads(((args.report or args.run / "reports") / "report.json").read_text())
    if report.get("checkpoint_step") is not None and args.model is None:
        sys.exit(f"a report of a checkpoint: sae-train export {args.run} --checkpoint {report['checkpoint_step']}, then --model")
    if report["schema_version"] < 7:
        sys.exit(f"a report of schema version {report['schema_version']}; evaluate the run again")
    config = tomllib.loads((args.run / "config.toml").read_text())["data"]
    given = {k: getattr(args, k) for k in ("labels", "held_out_labels", "class_embeddings")}
    other = report.get("other_data", False)
    labels = given.pop("labels") if other else None  # with --data, they are those of the other rows
    config |= {k: v for k, v in given.items() if v}
    if other:
        held_out = whole(report["held_out"], config, labels)
        needed = bool(report["top_n"] or report["criteria"])
        train = split(config)[0] if needed else held_out
    else:
        needed, (train, held_out) = True, split(config)
    limit = config.get("max_norm", "none")
    limit = np.inf if limit == "none" else limit
    (train, train_beyond), (held_out, beyond) = within(train, limit), within(held_out, limit)
    compare = Comparison(args.quiet)
    for side, data, left_out in (("train", train, train_beyond), ("held_out", held_out, beyond)):
        if side == "train" and not needed:
            continue
        compare.number(f"{side}: rows", report[side]["rows"], data.rows)
        compare.number(f"{side}: rows left out", report[side]["left_out"], left_out.rows)
        compare.number(f"{side}: width", report[side]["width"], data.width)
    model = Model.load(args.model or args.run / "model")
    mean = sum(x.sum(0) for _, x in held_out.blocks(4096)) / held_out.rows
    totals = Totals(mean, model.cfg["n_latents"])
    head = embeddings(config["class_embeddings"]) if report["top_n"] else None
    judged = judge(model, train, held_out, head, report, totals)
    metrics(compare, report, totals)
    if "fired" in report:
        firing(compare, report["fired"], totals.fired)
    all_rows(compare, report["all_rows"], model, (held_out, beyond), limit)
    if judged:
        before = None
        if report["top_n"]["untrained"]:
            if (args.run / "start").exists():  # the run started from a saved model
                first = Model.load(args.run / "start")
            else:
                start = training_mean(train, held_out, config.get("check_rows"))
                first = untrained(model.cfg, model.seed, start)
            before = judge(first, train, held_out, head, report)
        classes(compare, report["top_n"], judged, before, train)
    if report["recovery"]:
        recovery(compare, report["recovery"], config, model, held_out, totals.fired)
    if report["criteria"]:
        criteria(compare, report["criteria"], Criteria(model, train, held_out, report["criteria"]))
    elif train.labels is not None and held_out.labels is not None:
        _, rows = np.unique(train.labels, return_counts=True)
        compare.say("criteria", report["criteria_missing"], f"{rows.max()} rows", rows.max() < 100 or len(rows) == 1)
    if compare.wrong:
        sys.exit(f"{args.run}: {compare.wrong} of {compare.seen} numbers differ")
    print(f"{args.run}: every number agrees ({compare.seen})")


if __name__ == "__main__":
    main()
