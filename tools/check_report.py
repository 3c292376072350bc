#!/usr/bin/env python3
"""Recompute a run's report from its files in numpy float64, and compare.

Usage:  python3 tools/check_report.py runs/quickstart        (needs numpy, safetensors; Python 3.11)

Independent of the Rust code: its own reading of the files, its own sort-based sparsemax, its own metrics.
Exits with 1 if a number differs by more than float32 rounding explains: metrics by 1e-4 relative, accuracies
by 0.002 (a row whose two best classes are within rounding of each other).
"""

import json
import pathlib
import sys
import tomllib

import numpy as np
from safetensors.numpy import load_file

METRIC_TOLERANCE = 1e-4
ACCURACY_TOLERANCE = 2e-3


def sparsemax(z):
    s = -np.sort(-z, axis=1)
    c = np.cumsum(s, axis=1)
    k = np.arange(1, z.shape[1] + 1)
    size = ((1 + k * s) > c).sum(1)
    tau = (np.take_along_axis(c, size[:, None] - 1, 1)[:, 0] - 1) / size
    return np.maximum(z - tau[:, None], 0)


class Model:
    def __init__(self, directory):
        self.cfg = json.loads((directory / "cfg.json").read_text())["model"]
        self.w = {k: v.astype(np.float64) for k, v in load_file(directory / "sae.safetensors").items()}

    def encode(self, x):
        cfg, w = self.cfg, self.w
        x0 = x - w["pre_bias"] if cfg["pre_bias"] else x
        s = cfg["input_scale"]
        n = s * (np.linalg.norm(x0, axis=1, keepdims=True) / s) ** cfg["norm_exponent"]
        q = x0 / n
        if cfg["query_projection"]:
            q = q @ w["w_q"]
        encoder = w.get("encoder", w["concepts"])
        keys = encoder @ w["w_k"] if cfg["key_projection"] else encoder
        z = q @ keys.T * cfg["scale"]
        if cfg["encoder_bias"]:
            z = z + w["encoder_bias"]
        return self.select(z), n

    def select(self, z):
        cfg, w, architecture = self.cfg, self.w, self.cfg["architecture"]
        if architecture in ("attention", "mlp_sparsemax"):
            p = sparsemax(z)
            return p if cfg["value"] == "probability" else z / cfg["scale"] * (p > 0)
        if architecture in ("relu", "attention_relu"):
            return np.maximum(z, 0)
        if architecture == "topk":
            kth = -np.partition(-z, cfg["k"] - 1, axis=1)[:, cfg["k"] - 1 : cfg["k"]]
            return np.maximum(z, 0) * (z >= kth)
        if architecture == "batch_topk":
            return z * (z > w["batch_threshold"][0])
        if architecture == "jumprelu":
            return z * (z > w["thresholds"])
        if architecture == "gated":
            magnitude = np.exp(w["magnitude_scale"]) * (z - w["encoder_bias"]) + w["magnitude_bias"]
            return np.maximum(magnitude, 0) * (z > 0)
        raise ValueError(architecture)

    def decode(self, a, n):
        values = self.w["concepts"] @ self.w["w_v"] if self.cfg["value_projection"] else self.w["concepts"]
        x_hat = n * (a @ values)
        return x_hat + self.w["pre_bias"] if self.cfg["pre_bias"] else x_hat


def chunks(n, size=1024):
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def reconstruction(x, x_hat):
    error = ((x - x_hat) ** 2).sum(1)
    square = (x**2).sum(1)
    norms = np.sqrt(square) * np.linalg.norm(x_hat, axis=1)
    fvu = error.sum() / ((x - x.mean(0)) ** 2).sum()
    return {
        "mse": error.sum() / x.size,
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "nmse_uncentred": error.sum() / square.sum(),
        "nmse_rowwise": (error[square > 0] / square[square > 0]).mean(),
        "cosine": np.divide((x * x_hat).sum(1), norms, out=np.zeros(len(x)), where=norms > 0).mean(),
        "zero_rows": (square == 0).sum(),
    }


def sparsity(active, positive):
    l0 = active.sum(1)
    dead = (active.sum(0) == 0).sum()
    return {
        "l0_mean": l0.mean(),
        "l0_median": np.percentile(l0, 50),
        "l0_p5": np.percentile(l0, 5),
        "l0_p95": np.percentile(l0, 95),
        "l0_positive_mean": positive.sum(1).mean(),
        "dead_fraction": dead / active.shape[1],
        "dead_latents": dead,
    }


def toolkits(x, x_hat, a):
    """What each toolkit computes, by (owner, its own name); the whole set is one batch (docs/METRICS.md)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        e = x - x_hat
        error, square = (e**2).sum(1), (x**2).sum(1)
        norm, norm_hat, dot = np.sqrt(square), np.linalg.norm(x_hat, axis=1), (x * x_hat).sum(1)
        centred = ((x - x.mean(0)) ** 2).sum(1)
        bias = (norm_hat**2).mean() / dot.mean()
        cosine = (dot / (norm * norm_hat)).mean()
        l0, l1 = (a != 0).sum(1).mean(), np.abs(a).sum(1)
        explained = 1 - error.mean() / centred.mean()
        if centred.mean() < 1e-10:
            explained = float(error.mean() < 1e-10)
        by_owner = {
            "SAELens 6.54.12": {
                "mse": error.mean(),
                "explained_variance": explained,
                "explained_variance_legacy": (1 - error / centred).mean(),
                "cossim": cosine,
                "l0": l0,
                "l1": l1.mean(),
                "l2_ratio": (norm_hat / np.where(norm < 1e-4, 1, norm)).mean(),
                "relative_reconstruction_bias": bias,
            },
            "dictionary_learning 0.1.0": {
                "l2_loss": np.sqrt(error).mean(),
                "frac_variance_explained": 1 - e.var(0, ddof=1).sum() / x.var(0, ddof=1).sum(),
                "cossim": cosine,
                "l0": l0,
                "l1_loss": l1.mean(),
                "l2_ratio": (norm_hat / norm).mean(),
                "relative_reconstruction_bias": bias,
                "frac_alive": (a.sum(0) != 0).mean(),
            },
            "sparsify 1.3.3": {"fvu": error.sum() / centred.sum()},
            "openai/sparse_autoencoder 4965b94": {
                "normalized_mean_squared_error": (error / square).mean(),
                "normalized_mse": error.sum() / centred.sum(),
                "normalized_L1_loss": (l1 / norm).mean(),
                "dead (stats_last_nonzero)": (a <= 1e-3).all(0).mean(),
            },
            "Sparsemax-SAE 2192e4c (the paper's code)": {
                "metrics/explained_variance": 1 - error.sum() / square.sum(),
                "losses/mse_loss": 10 * (e**2 / norm[:, None]).mean(),
                "metrics/l0": (a > 0).sum(1).mean(),
                "sparsity/dead_features": ((a != 0).mean(0) < 1e-6).mean(),
            },
        }
    return {(owner, name): value for owner, metrics in by_owner.items() for name, value in metrics.items()}


def over_classes(prediction, labels):
    return np.mean([(prediction[labels == c] == c).mean() for c in np.unique(labels)])


def top_n(model, train, labels_train, x, a, n, labels, head, rows, threshold):
    classes = len(head)
    fired = np.zeros((classes, model.cfg["n_latents"]))
    mass = np.zeros_like(fired)
    for s in chunks(len(train)):
        codes, _ = model.encode(train[s])
        np.add.at(fired, labels_train[s], codes > threshold)
        np.add.at(mass, labels_train[s], np.abs(codes))
    order = np.stack([np.lexsort((np.arange(fired.shape[1]), -mass[c], -fired[c])) for c in range(classes)])
    unit = head / np.linalg.norm(head, axis=1, keepdims=True)

    def accuracy(codes):
        return over_classes((model.decode(codes, n) @ unit.T).argmax(1), labels)

    result = {}
    for row in rows:
        count = fired.shape[1] if row["n"] == "all" else int(row["n"])
        mask = np.zeros_like(fired)
        np.put_along_axis(mask, order[:, :count], 1, 1)
        result[row["n"]] = (accuracy(a * mask[labels]), accuracy(a * (1 - mask[labels])))
    return over_classes((x @ unit.T).argmax(1), labels), result


def evaluated(model, x):
    """Reconstructions of rows, their codes, and what the decoder multiplies by."""
    parts = [model.encode(x[s]) for s in chunks(len(x))]
    a, n = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    return model.decode(a, n), a, n


def main():
    run = pathlib.Path(sys.argv[1])
    report = json.loads((run / "reports" / "report.json").read_text())
    data = tomllib.loads((run / "config.toml").read_text())["data"]
    model = Model(run / "model")
    held_out = load_file(data["held_out"])
    x = held_out["activations"].astype(np.float64)
    x_hat, a, n = evaluated(model, x)
    wrong = 0

    def compare(name, theirs, ours, tolerance, relative=True):
        nonlocal wrong
        if theirs is None or not np.isfinite(ours):
            wrong += (theirs is None) == np.isfinite(ours)
            print(f"{name:<58} report {theirs} numpy {ours}")
            return
        off = abs(theirs - ours) / (max(abs(ours), 1e-12) if relative else 1)
        verdict = "ok" if off <= tolerance else "DIFFERS"
        wrong += verdict != "ok"
        print(f"{name:<58} report {theirs:<12.6g} numpy {ours:<12.6g} {verdict}")

    ours = reconstruction(x, x_hat) | sparsity(a != 0, a > 0)
    for metric in report["reconstruction"] + report["sparsity"]:
        compare(metric["name"], metric["value"], ours[metric["name"]], METRIC_TOLERANCE)
    others = toolkits(x, x_hat, a)
    for metric in report["toolkits"]:
        key = (metric["owner"], metric["name"])
        compare(f"{key[0].split()[0]}: {key[1]}", metric["value"], others.pop(key), METRIC_TOLERANCE)
    if others:
        wrong += len(others)
        print("not in the report:", *others)
    if report["top_n"]:
        train = load_file(data["train"])
        head = next(iter(load_file(data["class_embeddings"]).values())).astype(np.float64)
        original, rows = top_n(
            model, train["activations"].astype(np.float64), train["labels"], x, a, n, held_out["labels"],
            head, report["top_n"]["trained"], report["top_n"]["fire_threshold"],
        )
        compare("original", report["top_n"]["original_over_classes"], original, ACCURACY_TOLERANCE, False)
        for row in report["top_n"]["trained"]:
            for kind, value in zip(("on", "off"), rows[row["n"]]):
                compare(f"top-{row['n']} {kind}", row[kind], value, ACCURACY_TOLERANCE, False)
    print(f"{wrong} numbers differ" if wrong else "every number agrees")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
