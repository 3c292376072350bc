#!/usr/bin/env python3
"""Recompute the comparison of several runs from their files in numpy and scipy, and compare it with compare.json.

Usage:  python3 tools/check_compare.py runs/compare.json

Needs numpy, scipy, safetensors and Python 3.11. Recipes are grouped again from the configs, means and standard deviations are
taken again from the reports, the Pareto front by trying all pairs, and the latents of two runs are matched by scipy's
linear_sum_assignment on cosines in float64. Tolerances: numbers of reports 1e-12 relative; cosines 2e-5, because the
comparison's are float32; shares of pairs: the pairs whose cosine is that close to the bound. Two matchings may have the same
sum, so partners may differ in a thousandth of the pairs. A greedy matching is checked to be one to one, with the cosines of
its partners, and not above the optimum. Exits with 1 if something differs.
"""

import base64
import json
import pathlib
import sys
import tomllib
import zlib

import numpy as np
from safetensors.numpy import load_file
from scipy.optimize import linear_sum_assignment

CLOSE, RECURS, SAME = 2e-5, 0.7, 0.9
NUMBER = {"u32": "<u4", "i32": "<i4", "f32": "<f4"}
# Keys that change no number of a run.
FREE = {"run", "runs_dir", "seed", "training.log_every", "training.keep_checkpoints", "training.checkpoint_every",
        "training.checkpoint_minutes", "training.on_nonfinite", "training.on_collapse", "data.workers", "data.train", "data.held_out",
        "data.labels", "data.held_out_labels", "data.class_embeddings", "data.class_names", "data.true_concepts", "data.true_codes"}


class Checked:
    def __init__(self):
        self.wrong = 0

    def say(self, name, holds, words=""):
        self.wrong += not holds
        print(f"{name:<58} {words} {'ok' if holds else 'DIFFERS'}")

    def close(self, name, theirs, ours, bound):
        worst = float(np.max(np.abs(np.asarray(theirs, float) - np.asarray(ours, float)), initial=0))
        self.say(name, worst <= bound, f"largest difference {worst:.1e} (at most {bound:.1e})")


def unpacked(packed):
    """The columns, in their order."""
    raw, m = zlib.decompress(base64.b64decode(packed["data"]), -15), packed["rows"]
    return [np.frombuffer(raw, NUMBER[kind], m, 4 * m * i) for i, (_, kind) in enumerate(packed["columns"])]


def config(run):
    written, keys = tomllib.loads((run / "config.toml").read_text()), {}
    for name, value in written.items():
        keys |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return keys


def data_of(report):
    def identity(side):
        return [report[side].get(key) for key in ("rows", "left_out", "rows_blake3", "sample_blake3", "tensor", "layer")]
    return json.dumps([identity("train"), identity("held_out")])


def values(report):
    """The numbers of a report by name."""
    metrics = report["reconstruction"] + report["sparsity"]
    for section in ("criteria", "recovery"):
        metrics = metrics + (report.get(section) or {}).get("metrics", [])
    found = {metric["name"]: metric["value"] for metric in metrics if metric["value"] is not None}
    if report["top_n"]:
        for row in report["top_n"]["trained"]:
            found |= {f"top_n_on_{row['n']}": row["on"], f"top_n_off_{row['n']}": row["off"]}
    return found


def recipes(checked, comparison, runs, reports):
    groups = {}
    for i, run in enumerate(runs):
        own = {key: value for key, value in config(run).items() if key not in FREE}
        groups.setdefault(json.dumps(own, sort_keys=True, default=str) + data_of(reports[i]), []).append(i)
    checked.say("recipes", list(groups.values()) == [recipe["runs"] for recipe in comparison["recipes"]], f"{len(groups)}")
    for recipe in comparison["recipes"]:
        of = [values(reports[i]) for i in recipe["runs"]]
        worst, names = 0, set().union(*of)
        for name in names:
            known = np.array([value[name] for value in of if name in value])
            spread = recipe["spreads"][name]
            ours = [known.mean(), known.std(ddof=1) if len(known) > 1 else 0]
            theirs = [spread["mean"], spread["sd"] or 0]
            worst = max(worst, np.max(np.abs(np.subtract(ours, theirs))) / max(1, abs(ours[0])))
            worst = max(worst, float(len(known) != spread["runs"]), float((spread["sd"] is None) != (len(known) < 2)))
        checked.close(f"{recipe['name']}: {len(names)} means and spreads", worst, 0, 1e-12)
    configs = [config(runs[recipe["runs"][0]]) for recipe in comparison["recipes"]]
    keys = set().union(*configs) - FREE
    differ = {key for key in keys if any(c.get(key) != configs[0].get(key) for c in configs)}
    theirs = {difference["key"] for difference in comparison["differences"]}
    checked.say("keys of the configs that differ", differ <= theirs and theirs - differ <= {
        "training rows", "held-out rows", "started from", "steps raised"}, f"{len(differ)}")


def fronts(checked, comparison):
    for number, rows in enumerate(comparison["data_sets"]):
        places = {i: (r["spreads"]["fvu"]["mean"], r["spreads"]["l0_mean"]["mean"])
                  for i, r in enumerate(comparison["recipes"]) if r["data_set"] == number and "fvu" in r["spreads"]}
        beaten = {i for i, a in places.items() for b in places.values() if b[0] <= a[0] and b[1] <= a[1] and b != a}
        checked.say(f"Pareto front of {rows['path']}", set(rows["front"]) == places.keys() - beaten, f"{rows['front']}")


def costs(checked, comparison, runs, reports):
    for run, path, report in zip(comparison["runs"], runs, reports, strict=True):
        last = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
        keys = config(path)
        rate = keys["training.steps"] * keys["training.batch_size"] / last["seconds"]
        usage = path / "usage.json"
        memory = json.loads(usage.read_text())["peak_memory_bytes"] if usage.exists() else None
        ours = {"training_seconds": last["seconds"], "training_rows_per_second": rate, "training_peak_memory_bytes": memory,
                "evaluation_seconds": report["seconds"], "evaluation_peak_memory_bytes": report.get("peak_memory_bytes")}
        same = all(run["values"].get(k) == v or np.isclose(run["values"].get(k, np.nan), v, 1e-12) for k, v in ours.items() if v)
        checked.say(f"{run['name']}: time and memory", same)


def directions(run):
    model = json.loads((run / "model/cfg.json").read_text())["model"]
    weights = {name: np.asarray(value, np.float64) for name, value in load_file(run / "model/sae.safetensors").items()}
    rows = weights["W_dec"] @ weights["W_V"] if model["value_projection"] else weights["W_dec"]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def alive(report):
    fired = report.get("fired")
    return np.flatnonzero(unpacked(fired)[0]) if fired else np.arange(report["model"]["n_latents"])


def summary(checked, name, theirs, cosines):
    """Compares a matching with the optimal one, whose cosines these are."""
    greedy = theirs["matching"] == "greedy"
    checked.say(f"{name}: pairs", theirs["pairs"] == len(cosines), f"{len(cosines)}")
    if greedy:
        checked.say(f"{name}: greedy is not above the optimum", theirs["mean_cosine"] <= cosines.mean() + CLOSE,
                    f"{theirs['mean_cosine']:.4f} of {cosines.mean():.4f}")
        return
    checked.close(f"{name}: mean cosine", theirs["mean_cosine"], cosines.mean(), CLOSE)
    for key, bound in (("recur", RECURS), ("same", SAME)):
        doubt = (np.abs(cosines - bound) < CLOSE).mean() + 2 / len(cosines)
        checked.close(f"{name}: {key}", theirs[key], (cosines >= bound).mean(), doubt)
    falling = np.sort(cosines)[::-1]
    curve = falling[np.arange(101) * (len(falling) - 1) // 100]
    checked.close(f"{name}: curve", np.mean(theirs["curve"]), curve.mean(), 1e-3)


def stability(checked, comparison, runs, reports):
    for of in comparison["stability"]:
        recipe = comparison["recipes"][of["recipe"]]
        living = [alive(reports[i]) for i in of["runs"]]
        checked.say(f"{recipe['name']}: latents alive", of["alive"] == [len(a) for a in living], f"{of['alive']}")
        rows = [directions(runs[i])[a] for i, a in zip(of["runs"], living)]
        latent, fired, recurs, mean, *others = unpacked(of["latents"])
        known = []
        for pair in of["pairs"]:
            a, b = (of["runs"].index(run) for run in pair["runs"])
            cosines = rows[a] @ rows[b].T
            row, column = linear_sum_assignment(cosines, maximize=True)
            name = " and ".join(comparison["runs"][run]["name"] for run in pair["runs"])
            summary(checked, name, pair, cosines[row, column])
            if a == 0:
                partner = others[2 * b - 1]
                place = np.full(reports[of["runs"][b]]["model"]["n_latents"], -1)
                place[living[b]] = np.arange(len(living[b]))
                theirs = partner[living[0]]
                has = theirs >= 0
                checked.say(f"{name}: one to one", len(set(theirs[has])) == has.sum() == pair["pairs"] and (place[theirs[has]] >= 0).all())
                own = np.where(has, cosines[np.arange(len(theirs)), place[theirs]], np.nan)
                checked.close(f"{name}: cosines of the partners", others[2 * b - 2][living[0]][has], own[has], CLOSE)
                if pair["matching"] == "optimal":
                    ours = np.full(len(theirs), -1)
                    ours[row] = living[b][column]
                    checked.say(f"{name}: partners", (ours != theirs).mean() <= 1e-3, f"{(ours != theirs).sum()} differ")
                known.append(own)
        known = np.array(known)
        count = (known >= RECURS).sum(0)
        doubt = (np.abs(known - RECURS) < CLOSE).any(0)
        checked.say(f"{recipe['name']}: which latents recur", ((count == recurs[living[0]]) | doubt).all(), f"{(count == len(known)).sum()} in all")
        partnered = np.isfinite(known).any(0)
        checked.close(f"{recipe['name']}: mean cosine by latent", mean[living[0]][partnered], np.nanmean(known[:, partnered], 0), CLOSE)
        dead = np.setdiff1d(latent, living[0])
        checked.say(f"{recipe['name']}: dead latents are told apart", (recurs[dead] == -1).all() and np.isnan(mean[dead]).all(), f"{len(dead)}")
        if "fired" in reports[of["runs"][0]]:
            checked.say(f"{recipe['name']}: firing", (fired == unpacked(reports[of["runs"][0]]["fired"])[0]).all())
        draws = np.random.default_rng(1)
        drawn = [draws.standard_normal((len(a), rows[0].shape[1])) for a in living[:2]]
        drawn = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in drawn]
        cosines = drawn[0] @ drawn[1].T
        best = cosines[linear_sum_assignment(cosines, maximize=True)].mean()
        checked.close(f"{recipe['name']}: random directions (other draws)", of["random"]["mean_cosine"], best, 0.02)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    comparison = json.loads(pathlib.Path(sys.argv[1]).read_text())
    if comparison["schema"] != "sae-eval-comparison" or comparison["schema_version"] != 1:
        sys.exit("this reads schema sae-eval-comparison 1")
    runs = [pathlib.Path(run["path"]) for run in comparison["runs"]]
    reports = [json.loads((run / "reports/report.json").read_text()) for run in runs]
    checked = Checked()
    recipes(checked, comparison, runs, reports)
    fronts(checked, comparison)
    costs(checked, comparison, runs, reports)
    stability(checked, comparison, runs, reports)
    print(f"{checked.wrong} differences")
    sys.exit(checked.wrong > 0)


if __name__ == "__main__":
    main()
