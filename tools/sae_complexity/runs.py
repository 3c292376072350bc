"""Runs with the codes of their held-out rows: L0 of every row, and which runs differ in their seed alone."""

import json
import pathlib
import subprocess
import tomllib
from dataclasses import dataclass, field

import numpy as np

from sae_report.data import Side, split, tensors

from . import ComplexityError
from .ranks import spearman

NAMES = {
    "attention": "sparse attention",
    "attention_relu": "attention with ReLU",
    "mlp_sparsemax": "MLP with sparsemax",
    "relu": "ReLU",
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
}
CONSTANT = 0.99  # of rows with one L0: the rest says nothing


@dataclass
class Method:
    """Runs that differ in their seed alone, with L0 [rows] of each."""

    name: str
    architecture: str
    runs: list[str] = field(default_factory=list)
    l0: list[np.ndarray] = field(default_factory=list)

    def constant(self) -> bool:
        """Whether nearly all rows have the same L0 in some run."""
        return any(np.bincount(own).max() >= CONSTANT * len(own) for own in self.l0)

    def summary(self) -> dict[str, object]:
        pairs = [spearman(a, b) for i, a in enumerate(self.l0) for b in self.l0[:i]] if not self.constant() else []
        own = {"mean": np.mean, "sd": np.std, "p5": lambda v: np.percentile(v, 5), "p95": lambda v: np.percentile(v, 95)}
        l0 = {key: float(np.mean([of(values) for values in self.l0])) for key, of in own.items()}
        return {
            "name": self.name,
            "architecture": self.architecture,
            "runs": self.runs,
            "l0": l0,
            "between_seeds": float(np.mean(pairs)) if pairs else None,
            "constant": self.constant(),
        }


def config_of(run: pathlib.Path) -> dict:
    if not (run / "config.toml").is_file() or not (run / "model" / "cfg.json").is_file():
        raise ComplexityError(f"{run}: not the directory of a run that has ended (no config.toml, or no model/cfg.json)")
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


def encode(program: str, run: pathlib.Path, out: pathlib.Path, threads: int) -> None:
    """Let sae-eval write the codes; it goes on where it stopped, and leaves codes alone that are complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [program, "encode", str(run), str(out), "--held-out", "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ComplexityError(f"--sae-eval {program}: {error.strerror}") from error
    if done.returncode:
        raise ComplexityError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr.strip()}")


def read_l0(codes: pathlib.Path, rows: np.ndarray) -> tuple[np.ndarray, dict]:
    """The number of latents of every row of an encoding, and its index. `rows`: numbers of the run's held-out rows."""
    if not (codes / "index.json").is_file():
        raise ComplexityError(
            f"{codes}: no codes (index.json); --sae-eval PROGRAM makes them, or sae-eval encode RUN {codes} --held-out"
        )
    index = json.loads((codes / "index.json").read_text(encoding="utf-8"))
    options = index.get("options", {})
    if index.get("format") != "dynamic-sae.codes" or options.get("file_format") != "safetensors":
        raise ComplexityError(f"{codes}: not codes in safetensors")
    if options.get("latents") is not None or options.get("top") is not None:
        raise ComplexityError(f"{codes}: made with --latents or --top, so L0 cannot be told from it")
    stretches = [np.arange(first, end) for first, end in index.get("data_rows") or []]
    if not stretches or not np.array_equal(np.concatenate(stretches), rows):
        raise ComplexityError(f"{codes}: these are not the codes of the run's held-out rows (encode RUN {codes} --held-out)")
    offsets = [tensors(codes / shard["file"])["offsets"][1].astype(np.int64) for shard in index["shards"]]
    return np.concatenate([np.diff(own) for own in offsets]), index


def held_out(configs: dict[pathlib.Path, dict]) -> tuple[dict, Side, Side]:
    """`[data]` of the first run, with its two sides; all runs must hold out the same rows."""
    data = [config["data"] for config in configs.values()]
    for run, own in zip(configs, data, strict=True):
        if any(own.get(key) != data[0].get(key) for key in ("train", "held_out", "tensor", "layer", "drop_first_token")):
            raise ComplexityError(
                f"{run}: its data is not that of {next(iter(configs))}; compare runs on the same held-out rows"
            )
    return data[0], *split(data[0])


def limit_of(configs: dict[pathlib.Path, dict]) -> float:
    """The norm beyond which rows are left out: the lowest data.max_norm of the runs."""
    limits = [config["data"].get("max_norm", "none") for config in configs.values()]
    return min(np.inf if limit == "none" else float(limit) for limit in limits)


def methods(configs: dict[pathlib.Path, dict], l0: dict[pathlib.Path, np.ndarray]) -> list[Method]:
    """Runs of one recipe together. Recipes of one architecture get a run's name to tell them apart."""
    found: dict[str, Method] = {}
    for run, config in configs.items():
        recipe = json.dumps([config["data"].get("max_norm"), config["model"], config["training"]], sort_keys=True)
        architecture = config["model"]["architecture"]
        name = NAMES.get(architecture, architecture)
        own = found.setdefault(recipe, Method(name, architecture))
        own.runs.append(run.name)
        own.l0.append(l0[run])
    for method in found.values():
        if sum(other.architecture == method.architecture for other in found.values()) > 1:
            method.name = f"{NAMES.get(method.architecture, method.architecture)} ({method.runs[0]})"
    return list(found.values())
