#!/usr/bin/env python3
"""Train short runs of all architectures on all formats and splits, evaluate them, and recompute every report.

Usage:  python3 tools/check_all_reports.py target/debug        (the folder of sae-train and sae-eval)

The data is part of the sample in data/wordnet_minilm, written in each format by numpy, pyarrow, datasets and safetensors
(sae-data/tests/python/requirements.txt). Programs built without the feature `parquet` get the rows of the Parquet files as
Arrow, and a message says so. Works in a temporary directory; exits with 1 at the first report that differs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data/wordnet_minilm"
ROWS, TOKENS, COLUMNS = 3000, 5, 96


def bf16(x):
    """Rounded to bfloat16, as its bits."""
    return ((x.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def save_bf16(path, name, x):
    """safetensors.numpy has no bfloat16."""
    bits = bf16(x)
    header = json.dumps({name: {"dtype": "BF16", "shape": x.shape, "data_offsets": [0, bits.nbytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())


def shards(path, x, labels):
    """Our format: three files of documents with three rows; the last document of a file continues in the next one."""
    path.mkdir()
    documents, entries = np.arange(len(x)) // 3, []
    for i, rows in enumerate(np.array_split(np.arange(len(x)), 3)):
        file = path / f"shard-{i:05}.safetensors"
        save_file({"activations": x[rows].astype(np.float16), "labels": labels[rows], "doc": documents[rows]}, file)
        entries.append({"file": file.name, "rows": len(rows), "bytes": file.stat().st_size, "blake3": "0" * 64})
    index = {"format": "dynamic-sae.shards", "version": 1, "rows": len(x), "width": x.shape[1], "dtype": "F16"}
    (path / "index.json").write_text(json.dumps(index | {"shards": entries, "metadata": {}}))


def saev(path, x, labels):
    """Two layers, of which the second is the data; each example has one class token, which has no label."""
    path.mkdir()
    examples = x.reshape(-1, TOKENS, x.shape[1])
    both = np.stack([-examples, examples], axis=1).astype("<f4")
    names = []
    for i, part in enumerate(np.array_split(both, 2)):
        (path / f"acts{i:06}.bin").write_bytes(part.tobytes())
        names.append({"name": f"acts{i:06}.bin", "n_examples": len(part)})
    content = labels.reshape(-1, TOKENS)[:, 1:]
    (path / "labels.bin").write_bytes(content.astype(np.uint8).tobytes())
    about = {"layers": [3, 7], "content_tokens_per_example": TOKENS - 1, "cls_token": True, "d_model": x.shape[1]}
    (path / "metadata.json").write_text(json.dumps(about | {"dtype": "float32"}))
    (path / "shards.json").write_text(json.dumps(names))


def columns(x, labels, examples):
    """A table whose rows each hold one row of x, or one example of several."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    if examples:
        rows = pa.ListArray.from_arrays(pa.array(np.arange(0, len(x) + 1, TOKENS, dtype=np.int32)), rows)
        labels = labels[::TOKENS]
    return pa.table({"x": rows, "label": pa.array(labels)})


def write(work, x, labels):
    """Writes every data set."""
    by_example, examples = labels[::TOKENS].copy(), x.reshape(-1, TOKENS, COLUMNS)
    save_file({"acts": x, "other": x[:4, None], "labels": labels}, work / "named.safetensors")
    save_bf16(work / "bf16.safetensors", "x", x)
    np.save(work / "x.npy", x)
    huge = x.copy()
    huge[::97] *= 300 + np.arange(len(huge[::97]), dtype=np.float32)[:, None]
    np.save(work / "huge.npy", huge)
    np.save(work / "labels.npy", labels)
    np.save(work / "by_example.npy", by_example)
    np.save(work / "held_out.npy", x[::-1][:700].copy() * np.float32(1.01))
    np.save(work / "held_out_labels.npy", labels[::-1][:700].copy())
    (work / "parts").mkdir()
    for i, part in enumerate(np.array_split(examples, 11)):
        np.save(work / f"parts/part-{i}.npy", part.astype(np.float16))
    shards(work / "shards", x, labels)
    saev(work / "saev", x, labels)
    for name, more in (("synthetic", ["--group", "4"]), ("overcomplete", ["--concepts", "300"])):
        arguments = ["--width", "96", "--concepts", "90", "--rows", "3000", "--held-out", "500", *more]
        subprocess.run([sys.executable, ROOT / "tools/synthetic_concepts.py", work / name, *arguments], check=True, stdout=subprocess.DEVNULL)
    for name, table, group in (("x", columns(x, labels, False), 800), ("examples", columns(x, labels, True), 150)):
        pq.write_table(table, work / f"{name}.parquet", row_group_size=group)
        feather.write_feather(table, work / f"{name}.arrow", compression="uncompressed")
    datasets.disable_progress_bars()
    datasets.Dataset(columns(x, labels, True)).save_to_disk(work / "cache", num_shards=2)


# name, [data], [model], arguments of sae-eval
RUNS = [
    ("attention", {"train": "named.safetensors", "tensor": "acts"}, {"architecture": "attention"}, []),
    ("paper", {"train": "x.parquet", "held_out": {"rows": [100, 900]}}, {"preset": "paper"}, ["--top-n", "1,3,256"]),
    ("released", {"train": "cache"}, {"preset": "released"}, ["--rank-by", "threshold"]),
    ("attention_relu", {"train": "x.npy", "labels": "labels.npy", "held_out": {"rows": [1000, 1500]}},
     {"architecture": "attention_relu"}, []),
    ("outliers", {"train": "huge.npy", "labels": "labels.npy"}, {"architecture": "attention"}, []),
    ("outliers_in", {"train": "huge.npy", "labels": "labels.npy", "max_norm": "none"}, {"architecture": "topk", "k": 8}, []),
    ("outliers_some", {"train": "huge.npy", "labels": "labels.npy", "max_norm": 150.0}, {"architecture": "relu"}, []),
    ("mlp_sparsemax", {"train": "shards", "held_out": {"fraction": 0.2, "seed": 3}, "drop_first_token": True},
     {"architecture": "mlp_sparsemax"}, []),
    ("relu", {"train": "examples.parquet"}, {"architecture": "relu"}, ["--rank-by", "threshold"]),
    ("topk", {"train": "cache", "drop_first_token": True}, {"architecture": "topk", "k": 16}, []),
    ("batch_topk", {"train": "saev", "layer": 7, "drop_first_token": True, "held_out": {"fraction": 0.3}},
     {"architecture": "batch_topk", "k": 16}, []),
    ("matryoshka", {"train": "saev", "layer": 7, "drop_first_token": True},
     {"architecture": "matryoshka", "k": 16, "parts": [0.25, 0.5]}, []),
    ("jumprelu", {"train": "parts", "labels": "by_example.npy", "drop_first_token": True, "held_out": {"rows": [7, 801]}},
     {"architecture": "jumprelu"}, ["--rank-by", "threshold", "--fire-threshold", "1.5"]),
    ("gated", {"train": "bf16.safetensors", "held_out": "held_out.npy", "labels": "labels.npy",
               "held_out_labels": "held_out_labels.npy"}, {"architecture": "gated", "value_projection": True}, []),
    ("synthetic", {"train": "synthetic/train.safetensors", "held_out": "synthetic/heldout.safetensors",
                   "true_concepts": "synthetic/true_concepts.safetensors", "true_codes": "synthetic/true_codes.safetensors",
                   "max_norm": "1.3x median"},
     {"architecture": "attention", "value_projection": True}, []),
    ("more_concepts", {"train": "overcomplete/train.safetensors", "held_out": "overcomplete/heldout.safetensors",
                       "true_concepts": "overcomplete/true_concepts.safetensors"}, {"architecture": "topk", "k": 8}, []),
]
PATHS = ("train", "labels", "held_out_labels", "true_concepts", "true_codes")


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def config(work, data, model):
    data = {k: str(work / v) if k in PATHS or (k == "held_out" and isinstance(v, str)) else v for k, v in data.items()}
    if "true_concepts" not in data:
        data["class_embeddings"] = str(work / "classes.safetensors")
    parts = {
        "data": data,
        "model": model | {"n_latents": 256},
        "training": {"steps": 30, "batch_size": 256, "warmup_steps": 5, "validate_every": 30},
    }
    lines = [f"runs_dir = {toml(str(work / 'runs'))}"]
    for section, keys in parts.items():
        lines += [f"[{section}]"] + [f"{k} = {toml(v)}" for k, v in keys.items()]
    return "\n".join(lines) + "\n"


def spoiled(report):
    """Copies of a report with one number of each kind changed a little, and what was changed."""
    if report["recovery"]:
        recovery = {
            "recovery": lambda r: r["recovery"]["metrics"][0].update(value=r["recovery"]["metrics"][0]["value"] + 0.001),
            "firing": lambda r: r["recovery"]["metrics"][-1].update(high=r["recovery"]["metrics"][-1]["high"] + 0.01),
            "concepts": lambda r: r["recovery"].update(concepts=r["recovery"]["concepts"] + 1),
            "matches": lambda r: r["recovery"]["matches"][3].update(cosine=r["recovery"]["matches"][3]["cosine"] - 0.001),
        }
        yield from changed(report, recovery)
        return
    changes = {
        "reconstruction": lambda r: r["reconstruction"][1].update(value=r["reconstruction"][1]["value"] * 1.001),
        "sparsity": lambda r: r["sparsity"][0].update(value=r["sparsity"][0]["value"] + 0.1),
        "toolkits": lambda r: r["toolkits"][-2].update(value=r["toolkits"][-2]["value"] * 0.99),
        "l0_histogram": lambda r: r["l0_histogram"]["counts"].reverse(),
        "firing_frequency_histogram": lambda r: r["firing_frequency_histogram"]["counts"].reverse(),
        "trained": lambda r: r["top_n"]["trained"][0].update(on=r["top_n"]["trained"][0]["on"] + 0.05),
        "untrained": lambda r: r["top_n"]["untrained"][2].update(off=r["top_n"]["untrained"][2]["off"] + 0.05),
        "per_class": lambda r: r["top_n"]["per_class"][0].update(rows=r["top_n"]["per_class"][0]["rows"] + 1),
        "all_rows": lambda r: r["all_rows"]["metrics"][0].update(value=r["all_rows"]["metrics"][0]["value"] * 1.001),
        "variance_share": lambda r: r["all_rows"]["metrics"][1].update(value=r["all_rows"]["metrics"][1]["value"] * 0.999),
        "probes": lambda r: r["criteria"]["metrics"][2].update(value=r["criteria"]["metrics"][2]["value"] + 0.02),
        "intervals": lambda r: r["criteria"]["metrics"][8].update(low=r["criteria"]["metrics"][8]["low"] - 0.02),
        "entropy": lambda r: r["criteria"]["metrics"][-3].update(value=r["criteria"]["metrics"][-3]["value"] + 0.01),
        "criteria of a class": lambda r: r["criteria"]["per_class"][0].update(rows=r["criteria"]["per_class"][0]["rows"] + 1),
        "held_out": lambda r: r["held_out"].update(rows=r["held_out"]["rows"] - 1),
    }
    yield from changed(report, changes)


def changed(report, changes):
    for what, change in changes.items():
        copy = json.loads(json.dumps(report))
        change(copy)
        yield what, copy


def train(program, name, work, data, model):
    """Trains on `data`, or on the same rows as Arrow if they are Parquet and the program cannot read it."""
    path = work / f"{name}.toml"
    path.write_text(config(work, data, model))
    done = subprocess.run([program, path], capture_output=True, text=True)
    if done.returncode and "--features parquet" in done.stderr:
        print(f"SKIPPED Parquet: {name} reads the same rows as Arrow, {program.name} was built without the feature")
        return train(program, name, work, data | {"train": data["train"].replace(".parquet", ".arrow")}, model)
    return done


def must_differ(run):
    """Exits unless check_report.py finds each wrong number: a check that cannot fail proves nothing."""
    path = run / "reports/report.json"
    for what, report in spoiled(json.loads(path.read_text())):
        path.write_text(json.dumps(report))
        done = subprocess.run([sys.executable, ROOT / "tools/check_report.py", run], capture_output=True, text=True)
        if done.returncode != 1 or "1 of" not in done.stderr:
            sys.exit(f"a wrong number in {what} was not found\n{done.stdout}{done.stderr}")
    print("a wrong number is found in every section")


def main():
    programs = pathlib.Path(sys.argv[1]).resolve()
    sample = load_file(SAMPLE / "train.safetensors")
    x = np.ascontiguousarray(sample["activations"][:ROWS, :COLUMNS].astype(np.float32))
    labels = sample["labels"][:ROWS].astype(np.int64)
    classes = next(iter(load_file(SAMPLE / "class_embeddings.safetensors").values()))[:, :COLUMNS]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        write(work, x, labels)
        save_file({"classes": np.ascontiguousarray(classes.astype(np.float32))}, work / "classes.safetensors")
        for name, data, model, arguments in RUNS:
            run = work / "runs" / name
            evaluate = [programs / "sae-eval", run, *arguments]
            check = [sys.executable, ROOT / "tools/check_report.py", run, "--quiet"]
            for step in (
                lambda: train(programs / "sae-train", name, work, data, model),
                lambda: subprocess.run(evaluate, capture_output=True, text=True),
                lambda: subprocess.run(check, capture_output=True, text=True),
            ):
                done = step()
                if done.returncode:
                    sys.exit(f"{name}: {done.args[0]} ended with {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
            print(done.stdout.strip().replace(str(run), name), flush=True)
        must_differ(work / "runs" / "outliers")
        must_differ(work / "runs" / "synthetic")
    print(f"{len(RUNS)} runs in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
