#!/usr/bin/env python3
"""Call the metrics of other toolkits on a fixed reconstruction, and keep or check what they return.

Usage:  python3 tools/metric_conformance.py [--check] [--openai DIR] [--paper DIR]
        python3 tools/metric_conformance.py --run runs/quickstart [--batch 128]

Needs torch, numpy and these packages, each imported as it is (versions are recorded):

    pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3

--openai and --paper are clones of github.com/openai/sparse_autoencoder and github.com/qyj-bkjx/Sparsemax-SAE. Neither
can be imported without a GPU or a data set, so single functions are taken out of their files and run unchanged.
Without the clones, --check skips their values, and they cannot be written.

Writes sae-model/src/stats/golden/toolkits.json, which the tests of sae-model compare with `ToolkitStats`: they
need neither Python nor torch. With --check it writes nothing, and exits with 1 if a value differs from that file.
Every value is also compared with the float64 formulas of sae_report/metrics.py.

With --run the packages see the held-out rows of an evaluated run, reconstructed by the numpy model of sae_report/model.py,
and their values are printed beside those of the report: as one batch, and over batches of --batch rows. Exits with 1
if a value of the one batch differs from the report's.
"""

import argparse
import ast
import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
import tomllib
import types

import numpy as np
import torch

from check_report import evaluated
from sae_report.data import split
from sae_report.metrics import toolkits
from sae_report.model import Model

GOLDEN = pathlib.Path(__file__).parent.parent / "sae-model/src/stats/golden/toolkits.json"
ROWS, WIDTH, LATENTS = 40, 6, 8
# The packages add at most 40 x 6 float32 terms of one sign, so each sum has a relative error of at most 240 x 6e-8;
# 1 - ratio keeps the error of the ratio, so the bound is absolute below 1.
TOLERANCE = 240 * 2**-24


def fixed_arrays():
    """Rows far from the origin, a reconstruction with a constant error, codes with all cases in which definitions differ.

    All values but 2^-11 are multiples of 1/64, so they are exact in float32 and short in JSON.
    """
    rng = np.random.default_rng(0)

    def grid(a):
        return np.round(a * 64) / 64

    x = grid(rng.normal(size=(ROWS, WIDTH)) * [1, 2, 0.5, 1, 1, 3] + [4, 0, -2, 0, 1, 0])
    x_hat = grid(0.9 * x + 0.3 * rng.normal(size=x.shape) + 0.25)
    a = grid(rng.exponential(size=(ROWS, LATENTS)) + 0.1) * (rng.random((ROWS, LATENTS)) < 0.4)
    a[:, 1] *= -1  # a gated score can be negative
    a[:, 2] = 0  # dead
    a[:, 3] = np.where(np.arange(ROWS) % 10 == 0, 2.0**-11, 0)  # fires, but never above 1e-3
    a[:, 4] = np.select([np.arange(ROWS) % 10 == 2, np.arange(ROWS) % 10 == 5], [1.0, -1.0])  # adds up to zero
    return [v.astype(np.float32) for v in (x, x_hat, a)]


class FixedSae(torch.nn.Module):
    """A dictionary whose answers are known: the packages' functions see its codes and reconstructions."""

    def __init__(self, x, x_hat, a):
        super().__init__()
        self.answers = {row.tobytes(): (f, y) for row, f, y in zip(x, a, x_hat)}
        self.device, self.dict_size, self.activation_dim = "cpu", a.shape[1], x.shape[1]
        metadata = types.SimpleNamespace(hook_name="blocks.0.hook_resid_post", hook_head_index=None)
        self.cfg = types.SimpleNamespace(metadata=metadata, d_sae=a.shape[1], multi_topk=False)
        self.W_skip, self.W_dec, self.seen = None, None, None

    def look_up(self, x, which):
        rows = x.reshape(-1, self.activation_dim).numpy()
        found = np.stack([self.answers[row.tobytes()][which] for row in rows])
        return torch.from_numpy(found).reshape(*x.shape[:-1], -1)

    def forward(self, x, output_features=True):  # dictionary_learning
        return self.look_up(x, 1), self.look_up(x, 0)


def saelens(x, x_hat, a, batch):
    from sae_lens.evals import get_sparsity_and_variance_metrics
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = FixedSae(x, x_hat, a)

    def encode(acts):
        sae.seen = acts
        return sae.look_up(acts, 0)

    sae.encode, sae.decode = encode, lambda _: sae.look_up(sae.seen, 1)
    parts = iter(torch.from_numpy(x).split(batch))
    hook = sae.cfg.metadata.hook_name
    model = types.SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {hook: next(parts)[None]}))
    store = types.SimpleNamespace(get_batch_tokens=lambda _: torch.zeros(1, batch, dtype=torch.long))
    metrics, _ = get_sparsity_and_variance_metrics(
        sae, model, store, ActivationScaler(), n_batches=len(x) // batch, compute_l2_norms=True,
        compute_sparsity_metrics=True, compute_variance_metrics=True, compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=1, model_kwargs={},
    )
    return {k: v for k, v in metrics.items() if k not in ("l2_norm_in", "l2_norm_out")}


def dictionary_learning(x, x_hat, a, batch):
    from dictionary_learning.evaluation import evaluate

    parts = iter(torch.from_numpy(x).split(batch))
    return dict(evaluate(FixedSae(x, x_hat, a), parts, n_batches=len(x) // batch))


def sparsify(x, x_hat, a, batch):
    from sparsify import SparseCoder

    sae = FixedSae(x, x_hat, a)
    sae.encode = lambda acts: (sae.look_up(acts, 0), None, None)
    sae.decode = lambda *_: torch.from_numpy(x_hat)
    return {"fvu": SparseCoder.forward(sae, torch.from_numpy(x)).fvu.item()}


def function_of(path, name):
    """One function out of a source file, without the module's imports."""
    tree = ast.parse(path.read_text())
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    scope = {"torch": torch}
    exec(compile(ast.Module([found], []), str(path), "exec"), scope)
    return scope[name]


def openai(clone, x, x_hat, a):
    loss = clone / "sparse_autoencoder/loss.py"
    x, x_hat, a = map(torch.from_numpy, (x, x_hat, a))
    return {
        "normalized_mean_squared_error": function_of(loss, "normalized_mean_squared_error")(x_hat, x).item(),
        "normalized_L1_loss": function_of(loss, "normalized_L1_loss")(a, x).item(),
    }


def sparsemax_sae(clone, x, x_hat, a):
    trainer = clone / "src/sae_training/sae_trainer.py"
    x, x_hat, a = map(torch.from_numpy, (x, x_hat, a))
    cfg = types.SimpleNamespace(class_token=True, dead_feature_threshold=1e-6)  # the default of train_sae_vit.py
    state = types.SimpleNamespace(
        cfg=cfg, act_freq_scores=(a.abs() > 0).float().sum(0), n_frac_active_tokens=len(x),  # as train_step counts
        n_forward_passes_since_fired=torch.zeros(a.shape[1]), ghost_grad_neuron_mask=torch.zeros(a.shape[1]),
    )
    metrics = function_of(trainer, "_calculate_metrics")(state, a, x_hat, x)
    dead = function_of(trainer, "_calculate_sparsity_metrics")(state)["sparsity/dead_features"]
    return {k: metrics[k] for k in ("metrics/explained_variance", "metrics/l0")} | {"sparsity/dead_features": dead}


def cases(args):
    x, x_hat, a = fixed_arrays()
    zero = x.copy()
    zero[7] = 0
    constant = np.repeat(x[:1], ROWS, 0)
    for name, case_x, case_x_hat, batch in (
        ("one batch", x, x_hat, ROWS),
        ("four batches of ten", x, x_hat, 10),
        ("row 7 of x is zero", zero, x_hat, ROWS),
        ("constant x", constant, np.repeat(x_hat[:1], ROWS, 0), ROWS),
        ("constant x, exact", constant, constant, ROWS),
    ):
        # rows are looked up by content, so equal rows must have equal codes
        arrays = (case_x, case_x_hat, np.repeat(a[:1], ROWS, 0) if name.startswith("constant") else a)
        values = packages(args, arrays, batch)
        if batch == ROWS:
            compare_with_formulas(name, arrays, values)
        yield {"name": name, "batch": batch, "values": finite(values)}


def finite(values):
    """JSON has no NaN and no infinity: both become null."""
    return {k: finite(v) if isinstance(v, dict) else (v if math.isfinite(v) else None) for k, v in values.items()}


def close(a, b, tolerance=TOLERANCE):
    if a is None or b is None:
        return a is b
    return abs(a - b) <= tolerance * max(1, abs(b))


def compare_with_formulas(case, arrays, values):
    formulas = {(owner.split()[0], name): v for (owner, name), v in toolkits(*(v.astype(np.float64) for v in arrays)).items()}
    formulas = {k: float(v) if np.isfinite(v) else None for k, v in formulas.items()}
    largest = 0
    for owner, metrics in finite(values).items():
        for name, value in metrics.items():
            formula = formulas[owner, name]
            assert close(value, formula), f"{case}: {owner} {name} is {value}, the formula gives {formula}"
            if value is not None:
                largest = max(largest, abs(value - formula) / max(1, abs(formula)))
    print(f"{case}: the packages and the formulas in float64 differ by at most {largest:.1e}")


def packages(args, arrays, batch):
    values = {"SAELens": saelens(*arrays, batch), "dictionary_learning": dictionary_learning(*arrays, batch)}
    if batch == len(arrays[0]):
        values["sparsify"] = sparsify(*arrays, batch)
        if args.openai:
            values["openai/sparse_autoencoder"] = openai(args.openai, *arrays)
        if args.paper:
            values["Sparsemax-SAE"] = sparsemax_sae(args.paper, *arrays)
    return values


def beside_report(args):
    report = json.loads((args.run / "reports/report.json").read_text())
    data = tomllib.loads((args.run / "config.toml").read_text())["data"]
    x = next(split(data)[1].blocks(sys.maxsize))[1]  # all rows at once: the packages' functions need them so
    x_hat, a, _ = evaluated(Model.load(args.run / "model"), x)
    arrays = [v.astype(np.float32) for v in (x, x_hat, a)]
    whole = finite(packages(args, arrays, len(x)))
    cut = [v[: len(x) // args.batch * args.batch] for v in arrays]
    batches = finite(packages(args, cut, args.batch))
    wrong, largest = 0, 0
    if len(cut[0]) < len(x):
        print(f"note: the batches leave out the last {len(x) - len(cut[0])} of {len(x)} rows")
    print(f"{'':<60} {'report':>12} {'one batch':>12} {'batches of ' + str(args.batch):>16}")
    for metric in report["toolkits"]:
        owner, name = metric["owner"].split()[0], metric["name"]
        theirs, batched = (v.get(owner, {}).get(name) for v in (whole, batches))
        # the report's reconstruction is float32, this one is float64, rounded; an entry may be 0 in one of them
        differs = name in whole.get(owner, {}) and not close(metric["value"], theirs, 1e-4)
        if theirs is not None and not differs:
            largest = max(largest, abs(metric["value"] - theirs) / max(1, abs(theirs)))
        wrong += differs
        shown = [f"{v:.6f}" if v is not None else "-" for v in (metric["value"], theirs, batched)]
        print(f"{owner + ': ' + name:<60} {shown[0]:>12} {shown[1]:>12} {shown[2]:>16} {'DIFFERS' * differs}")
    print(f"{wrong} values differ" if wrong else f"the packages' values are the report's; largest difference {largest:.1e}")
    return wrong


def versions(args):
    packages = ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")
    try:
        found = {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; see the top of this file for what to install")
    for name, clone in (("openai/sparse_autoencoder", args.openai), ("qyj-bkjx/Sparsemax-SAE", args.paper)):
        if clone:
            head = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
            found[name] = head.stdout.strip()
    return found


def check(fresh, kept):
    wrong = 0
    for name in ("x", "x_hat", "activations"):
        wrong += fresh[name] != kept[name]
    for theirs, ours in zip(kept["cases"], fresh["cases"], strict=True):
        for owner, metrics in ours["values"].items():
            for name, value in metrics.items():
                was = theirs["values"].get(owner, {}).get(name)
                if not close(value, was):
                    wrong += 1
                    print(f"{ours['name']}: {owner} {name} is {value}, was {was}")
    for name, version in fresh["versions"].items():
        if kept["versions"].get(name) != version:
            print(f"note: {name} is {version}, the file was written with {kept['versions'].get(name)}")
    print("something differs" if wrong else "every value is the one in the file")
    return wrong


def as_json(golden):
    """JSON with one line per row of an array."""
    def array(name):
        return f'  "{name}": [\n' + ",\n".join("    " + json.dumps(row) for row in golden[name]) + "\n  ]"

    rest = json.dumps({k: golden[k] for k in ("versions", "cases")}, indent=2)
    return "{\n" + ",\n".join(array(k) for k in ("x", "x_hat", "activations")) + "," + rest[1:] + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    parser.add_argument("--openai", type=pathlib.Path, help="clone of openai/sparse_autoencoder")
    parser.add_argument("--paper", type=pathlib.Path, help="clone of qyj-bkjx/Sparsemax-SAE")
    parser.add_argument("--run", type=pathlib.Path, help="an evaluated run: print the packages' values beside its report")
    parser.add_argument("--batch", type=int, default=128, help="with --run, rows per batch")
    args = parser.parse_args()
    if args.run:
        sys.exit(beside_report(args) > 0)
    if not args.check and not (args.openai and args.paper):
        parser.error("to write the file, all of its sources are needed: give --openai and --paper")
    arrays = dict(zip(("x", "x_hat", "activations"), (v.tolist() for v in fixed_arrays())))
    golden = arrays | {"versions": versions(args), "cases": list(cases(args))}
    if args.check:
        sys.exit(check(golden, json.loads(GOLDEN.read_text())) > 0)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(as_json(golden))
    print(f"written: {GOLDEN}")


if __name__ == "__main__":
    main()
