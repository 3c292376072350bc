#!/usr/bin/env python3
"""Recompute what a report says of the rest of the model (`sae-eval RUN --tail FILE`), in float64, without the Rust code.

    python3 tools/check_tail.py runs/a                                 (needs numpy, torch, transformers, onnx, blake3)
    python3 tools/check_tail.py runs/a --model MODEL --modality text   (the model itself in place of the tail)

Without --model the tail of the report is run by the package onnx with all weights in float64, or by onnxruntime in float32
if that is installed and --runtime is not "onnx". With --model, the torch model runs in float64 (norms and rotary positions of
Llama's kind in float32, as transformers computes them) with its hidden state replaced; --gguf, --class-texts, --class-prompts,
--head-mean and --pooling are those that export_tail.py was given. Without --class-texts the head of a classifier is the tail's.
tools/sae_report reads the data, and computes the dictionary in numpy.

Options of sae-eval that the report does not have are given again: --tail-ranked-on, --tail-class-embeddings, --rank-by and
--fire-threshold, unless the config's [eval.tail] or the report's top-n classification has them. --tail-max-norm is
optional: the report has the limit as a number, which is then compared. The first so many documents are taken as the report has.

Exits with 1 if a number differs by more than these tolerances:

- numbers of documents, tokens and rows: none;
- accuracies are counts of documents, and must be equal, except for documents in doubt: those whose two largest logits are
  within 1e-5 of the largest, or within 1 % in documents with a row in which rounding decides whether a latent that is not
  tiny is active (top-k and jumps; rows are encoded again, moved by 1e-5 of themselves, to find these). Where rounding
  decides which latents are the first n of a class, all of its documents are in doubt for this n. They are counted below;
- predictions kept among the first n: in the same way;
- CE and KL: 2e-5 nats. Single logits of SmolLM2 in float32 are off by up to 8e-5 (docs/TAIL.md), means over predictions by
  less; those of tiny models are off by 1e-7. Loss recovered: what three CE that are off by so much can make of it, which is
  much where the ablation costs little. Ends of intervals: as far as they move if every draw is off by so much;
- a limit of the norm: 1e-9 relative. Shares of counts: 1e-9.
"""

import argparse
import json
import pathlib
import sys
import time
import tomllib

import numpy as np
import torch
import transformers
from blake3 import blake3

from check_report import Comparison
from export_tail import embed_classes, open_family
from sae_export import ExportError
from sae_export.norms import parse_norm
from sae_export.reading import read_class_texts
from sae_report.data import Data, Side, embeddings, split, within
from sae_report.model import Model
from sae_report.tail import Documents, Ranking, Replaced, median_norm
from sae_report.tail_classes import Answers
from sae_report.tail_losses import KEPT, Losses, interval_with_bounds
from sae_tail.family import Decoder
from sae_tail.rest import Headed, OnnxRest, Tail, TorchRest, scaled

SHARE = 1e-9


class Progress:
    def __init__(self, documents):
        self.documents, self.done, self.started, self.told = documents, 0, time.time(), time.time()

    def __call__(self, more):
        self.done += more
        if time.time() - self.told > 10:
            self.told = time.time()
            rate = self.done / (self.told - self.started)
            print(f"{self.done} of {self.documents} documents, {rate:.1f} per second", file=sys.stderr)


class Run:
    """A run with its report's section, and the options that it was made with."""

    def __init__(self, args):
        self.args = args
        path = (args.report or args.run / "reports") / "report.json"
        self.report = json.loads(path.read_text())
        self.section = self.report.get("tail")
        if self.section is None:
            raise ExportError(f"{path}: it says nothing of the rest of the model; evaluate the run with --tail")
        if self.report.get("checkpoint_step") is not None and args.sae is None:
            raise ExportError(f"{path}: a report of a checkpoint; export it with sae-train export, then --sae")
        config = tomllib.loads((args.run / "config.toml").read_text())
        given = {"labels": args.labels, "held_out_labels": args.held_out_labels}
        self.config = config["data"] | {name: value for name, value in given.items() if value}
        self.asked = config.get("eval", {}).get("tail", {})
        self.model = Model.load(args.sae or args.run / "model")
        self.tail = Tail(args.tail or pathlib.Path(self.section["file"]))

    def option(self, name):
        given = getattr(self.args, f"tail_{name}")
        return given if given is not None else self.asked.get(name)

    def sides(self):
        """The training rows within max_norm, and all that are held out."""
        train, _ = split(self.config)
        limit = self.config.get("max_norm", "none")
        _, held_out = split(self.config | {"drop_first_token": False})
        return within(train, np.inf if limit == "none" else limit)[0], held_out

    def documents(self):
        """The documents that the report has."""
        named = pathlib.Path(self.args.tail_data or self.section["data"])
        held_out = self.config.get("held_out")
        own = pathlib.Path(held_out if isinstance(held_out, str) else self.config["train"])
        if self.args.tail_data is None and named.resolve() == own.resolve():
            side = self.sides()[1]
        else:
            data = Data(named, {}, None)
            side = Side(data, np.arange(data.rows))
        return Documents(named, side, self.section["documents"])

    def ranked_on(self):
        named = self.option("ranked_on")
        if named is None:
            side = self.sides()[0]
        else:
            data = Data(named, {}, None)
            side = Side(data, np.arange(data.rows))
        if side.data.labels is None:
            raise ExportError("the rows to rank latents on have no labels: --tail-ranked-on, as it was given to sae-eval")
        return side

    def rule(self):
        top_n = self.report.get("top_n") or {}
        rule = self.args.rank_by or top_n.get("rank_by") or "firing"
        threshold = self.args.fire_threshold if self.args.fire_threshold is not None else top_n.get("fire_threshold")
        return rule, 0.2 if threshold is None else threshold


def torch_rest(args, run):
    """The model itself; a classifier's head made again, or the tail's."""
    if args.layer is not None and args.layer != run.tail.layer:
        raise ExportError(f"--layer {args.layer}: the tail goes on from layer {run.tail.layer}")
    if args.modality is None:
        raise ExportError("--model needs --modality")
    family = open_family(args)
    head = None
    if run.tail.kind == "classifier" and args.class_texts is None:
        head = run.tail.head().astype(np.float64)
        print("the head is the tail's: with --class-texts it would be made again")
    elif run.tail.kind == "classifier":
        if not all("{}" in prompt for prompt in args.class_prompts or ()):
            raise ExportError('every --class-prompts needs a "{}" for the class text')
        texts = read_class_texts(args.class_texts)
        if list(texts) != run.tail.classes:
            raise ExportError(f"{args.class_texts}: its classes are not the tail's")
        head = scaled(family, embed_classes(args, family, list(texts.values())))
    if isinstance(family, Decoder) != (run.tail.kind == "decoder"):
        raise ExportError(f"the tail is a {run.tail.kind}, which {args.model} is not")
    return TorchRest(family, run.tail.layer, args, head)


def open_rest(args, run):
    """The rest of the model, and the names of its classes."""
    rest = torch_rest(args, run) if args.model else OnnxRest(run.tail, args.runtime)
    if run.tail.kind != "encoder":
        return rest, run.tail.classes
    named = run.option("class_embeddings")
    if named is None:
        raise ExportError("the tail gives embeddings: --tail-class-embeddings")
    head = embeddings(named)
    return Headed(rest, head), [str(number) for number in range(len(head))]


def facts(compare, run, documents, first_stays):
    """What is replaced, and what the report says of it."""
    section, tail = run.section, run.tail
    ours = {"kind": tail.kind, "model": tail.name, "layer": tail.layer, "blake3": blake3(tail.bytes).hexdigest()}
    for name, ours in ours.items():
        compare.say(name, section[name], ours, section[name] == ours)
    compare.say("documents", section["documents"], len(documents), section["documents"] == len(documents))
    if documents.available > len(documents):
        print(f"these are the first {len(documents)} of {documents.available} documents")
    compare.number("tokens", section["tokens"], int(documents.lengths.sum()))
    limit = section.get("max_norm")
    asked = run.option("max_norm")
    if asked is not None:
        compare.number("max_norm", limit, limit_of(asked, documents, first_stays), 1e-9)
    replaced = Replaced(first_stays, np.inf if limit is None else limit)
    replaced.measure(documents)
    compare.number("replaced rows", section["replaced"], replaced.count)
    compare.number("rows beyond max_norm", section["beyond_max_norm"], replaced.beyond)
    return replaced


def limit_of(asked, documents, first_stays):
    """A number, a multiple of the median, or None for "none"."""
    if asked == "none":
        return None
    factor, of_median = parse_norm(str(asked))
    return factor * (median_norm(documents, first_stays) if of_median else 1.0)


def compare_losses(compare, section, losses):
    ours = losses.metrics()
    for metric in section["metrics"]:
        columns, off = ours.pop(metric["name"], (np.full(2, np.nan), np.zeros(2)))
        for end, (number, bound) in zip(("value", "low", "high"), interval_with_bounds(columns, off), strict=True):
            name = metric["name"] if end == "value" else f"{metric['name']}, {end}"
            compare.number(name, metric[end], number, 0, bound)
    for name in ours:
        compare.say(name, "absent", "a number", False)
    rows = list(losses.by_position())
    compare.say("ranges of positions", len(section["by_position"]), len(rows), len(section["by_position"]) == len(rows))
    for row, (start, end, predictions, own) in zip(section["by_position"], rows):
        name = f"positions {row['from']} to {row['to']}"
        said = (row["from"], row["to"], row["predictions"])
        compare.say(f"{name}: predictions", said, (start, end, predictions), said == (start, end, predictions))
        for key, (number, bound) in own.items():
            compare.number(f"{name}: {key}", row[key], number, 0, bound)
    near = ", ".join(f"{losses.near(n)} of the first {n}" for n in KEPT)
    print(f"in doubt: {near}; {losses.fragile} documents have a row in which rounding chooses latents")


def compare_classes(compare, classes, answers, names):
    def mean(name, theirs, version):
        number, doubt = answers.over_classes(version)
        compare.number(name, theirs, number, 0, doubt + SHARE)

    mean("clean", classes["clean"], 0)
    number, doubt = answers.over_documents(0)
    compare.number("clean over documents", classes["clean_over_documents"], number, 0, doubt + SHARE)
    ns = [*map(str, answers.ns), "all"]
    for at, row in enumerate(classes["top_n"]):
        mean(f"first {row['n']} on", row["on"], 1 + 2 * at)
        mean(f"first {row['n']} off", row["off"], 2 + 2 * at)
    ranked = answers.ranking.first
    ours = [name for c, name in enumerate(names) if c not in ranked]
    theirs = classes.get("unranked", [])
    compare.say("classes without a ranking", len(theirs), len(ours), theirs == ours)
    there = np.flatnonzero(answers.documents)
    same = [row["class"] for row in classes["per_class"]] == [names[c] for c in there]
    compare.say("classes with documents", len(classes["per_class"]), len(there), same)
    for row, c in zip(classes["per_class"], there):
        name = row["class"]
        compare.number(f"{name}: documents", row["documents"], int(answers.documents[c]))
        versions = [("clean", row["clean"])]
        compare.say(f"{name}: curves", len(row["on"]), len(ns), len(row["on"]) == len(row["off"]) == len(ns))
        for n, on, off in zip(ns, row["on"], row["off"]):
            versions += [(f"{n} on", on), (f"{n} off", off)]
        for version, (which, theirs) in enumerate(versions):
            number, doubt = (each[c] for each in answers.of(version))
            compare.number(f"{name}: {which}", theirs, number, 0, doubt + SHARE)
    doubt = sum(map(len, answers.ranking.doubt.values()))
    print(f"in doubt: {answers.near_ties()} answers of {answers.documents.sum() * len(answers.right)} are near ties; "
          f"{doubt} of {len(ranked) * len(answers.ns)} choices of the first n; "
          f"{answers.fragile} documents have a row in which rounding chooses latents")


def labelled(run, documents, names):
    """Fails if the documents cannot be judged by this tail."""
    if run.tail.kind == "decoder":
        if documents.ids is None:
            raise ExportError("the documents do not say which tokens they have")
    elif documents.labels is None or not np.isin(documents.labels, np.arange(len(names))).all():
        raise ExportError(f"the documents have no labels, or others than those of the tail's {len(names)} classes")


def check(args):
    run = Run(args)
    compare = Comparison(args.quiet)
    documents = run.documents()
    widths = {"the tail": run.tail.width, "the documents": documents.data.width, "the dictionary": run.model.cfg["d_in"]}
    if len(set(widths.values())) > 1:
        raise ExportError("; ".join(f"{name}: width {width}" for name, width in widths.items()))
    first_stays = run.tail.kind == "decoder" or run.config.get("drop_first_token", False)
    replaced = facts(compare, run, documents, first_stays)
    rest, names = open_rest(args, run)
    labelled(run, documents, names)
    print(f"{len(documents)} documents; {rest.about}")
    progress = Progress(len(documents))
    if run.tail.kind == "decoder":
        losses = Losses(documents, run.model, rest, replaced, progress)
        compare_losses(compare, run.section, losses)
    else:
        classes = run.section["classes"]
        ns = [int(row["n"]) for row in classes["top_n"] if row["n"] != "all"]
        ranking = Ranking.on(run.model, run.ranked_on(), ns, *run.rule())
        answers = Answers(documents, run.model, rest, replaced, ns, ranking, len(names), progress)
        compare_classes(compare, classes, answers, names)
    if compare.wrong:
        sys.exit(f"{args.run}: {compare.wrong} of {compare.seen} numbers differ")
    print(f"{args.run}: every number agrees ({compare.seen})")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Tolerances and options: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("run", type=pathlib.Path, metavar="RUN", help="the directory of an evaluated run")
    option("--quiet", action="store_true", help="print only the differences")
    option("--report", type=pathlib.Path, metavar="DIR", help="the directory of the report; default: reports of the run")
    option("--sae", type=pathlib.Path, metavar="DIR", help="the dictionary that was evaluated; default: the run's")
    for name in ("labels", "held-out-labels"):
        option(f"--{name}", help=f"as it was given to sae-eval, in place of data.{name.replace('-', '_')}")
    option("--tail", type=pathlib.Path, metavar="FILE", help="the tail, if it is not where the report says")
    option("--tail-data", type=pathlib.Path, metavar="PATH", help="the documents, if they are not where the report says")
    option("--tail-ranked-on", metavar="PATH", help="as it was given to sae-eval; default: the training rows")
    option("--tail-class-embeddings", metavar="PATH", help="as it was given to sae-eval")
    option("--tail-max-norm", metavar="NORM", help="as it was given to sae-eval, to compare the limit")
    option("--rank-by", choices=("firing", "threshold"), help="as it was given to sae-eval")
    option("--fire-threshold", type=float, metavar="T", help="as it was given to sae-eval")
    option("--runtime", choices=("onnx", "onnxruntime"), help="what runs the tail; default: onnxruntime, if it is installed")
    option("--model", help="run this model in torch in place of the tail: a name on the hub, or a directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--modality", choices=("text", "vision"))
    option("--layer", type=int, metavar="N", help="as it was given to export_tail.py; default: the tail's")
    option("--context", type=int, metavar="TOKENS", help="longest class text (default: the model's longest)")
    option("--class-texts", type=pathlib.Path, metavar="FILE", help="makes the head of a classifier again")
    option("--class-prompts", action="append", metavar="P")
    option("--head-mean", choices=("as-is", "unit"))
    option("--pooling", choices=("mean", "cls"))
    option("--batch", type=int, default=32, help="class texts per forward pass (default 32)")
    option("--device", default="cpu", help="torch device, such as cuda (default cpu)")
    return parser.parse_args()


def main():
    args = parse_arguments()
    args.normalize = False  # the largest similarity is the same one
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.inference_mode():
            check(args)
    except (ExportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
