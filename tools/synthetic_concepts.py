#!/usr/bin/env python3
"""Write activations that are sparse sums of known concepts, and a config that trains on them and measures recovery.

Usage:  python3 tools/synthetic_concepts.py data/synthetic
        cargo run -p sae-train -- data/synthetic/synthetic.toml
        cargo xtask eval runs/synthetic

Needs numpy. Row i is x_i = sum_g s_ig c_g + noise: G concepts c_g of norm 1 in d dimensions (G may be above d), strengths
s_ig uniform in [0.5, 1.5) if the row contains the concept and 0 otherwise, and normal noise. A share p_g of the rows
contains concept g. p_g is proportional to (g + 1)^-power, at most 1/2, with `active` concepts per row on average. With
--group n, n neighbouring concepts occur together: a group is open in three times as many rows as its most frequent
concept (at most in all), and its concepts occur only where it is open; the shares p_g stay the same.

Writes train.safetensors, heldout.safetensors (activations, float32), true_concepts.safetensors [G, d], true_codes.safetensors
[held-out rows, G] (float16) and synthetic.toml. The same arguments give the same bytes with the same numpy.
"""

import argparse
import json
import pathlib

import numpy as np

NAMES = {"float32": "F32", "float16": "F16"}
BLOCK = 4096


def save(path, name, rows, width, dtype, blocks):
    """A safetensors file of one tensor, written block by block."""
    dtype = np.dtype(dtype)
    size = rows * width * dtype.itemsize
    header = json.dumps({name: {"dtype": NAMES[dtype.name], "shape": [rows, width], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype.newbyteorder("<")).tobytes())


def frequencies(concepts, power, active):
    """Share of the rows that contain each concept: a power law, at most 1/2."""
    shares = (np.arange(concepts) + 1.0) ** -power
    parts = np.zeros(concepts)
    for _ in range(100):  # what is cut off at 1/2 goes to the others
        free = parts < 0.5
        if not free.any():
            raise SystemExit(f"--active {active}: at most half of the {concepts} concepts; choose fewer")
        parts[free] = np.minimum(0.5, shares[free] * (active - parts[~free].sum()) / shares[free].sum())
        if abs(parts.sum() - active) < 1e-9:
            break
    return parts


def codes(rng, rows, parts, group):
    """Strengths [rows, G]."""
    present = rng.random((rows, len(parts)))
    if group > 1:
        of = np.arange(len(parts)) // group
        often = np.array([parts[of == g].max() for g in range(of[-1] + 1)])
        open_part = np.minimum(1, 3 * often)
        is_open = rng.random((rows, len(open_part))) < open_part
        present = (present < parts / open_part[of]) & is_open[:, of]
    else:
        present = present < parts
    return np.where(present, rng.uniform(0.5, 1.5, present.shape), 0).astype(np.float16)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    for name, kind, default, about in (
        ("width", int, 64, "d"),
        ("concepts", int, 256, "G"),
        ("rows", int, 60_000, "training rows"),
        ("held-out", int, 4_000, "held-out rows"),
        ("active", float, 8, "concepts per row, on average"),
        ("power", float, 0.8, "exponent of the power law of frequencies; 0: all alike"),
        ("group", int, 1, "neighbouring concepts that occur together"),
        ("noise", float, 0.02, "standard deviation of each element"),
        ("latents", int, 512, "M of the config"),
        ("seed", int, 0, "of all random numbers"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{about} (default: {default})")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    concepts = rng.standard_normal((args.concepts, args.width))
    concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
    parts = frequencies(args.concepts, args.power, args.active)
    out = args.directory
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", args.rows), ("heldout", args.held_out)):
        sizes = [min(BLOCK, rows - at) for at in range(0, rows, BLOCK)]
        seeds = rng.spawn(len(sizes))
        made = lambda: (codes(r, n, parts, args.group) for r, n in zip(seeds, sizes))  # noqa: E731
        strengths = list(made()) if name == "heldout" else made()
        noise = rng.spawn(len(sizes))
        rows_of = (s.astype(np.float64) @ concepts + args.noise * r.standard_normal((len(s), args.width))
                   for s, r in zip(strengths, noise))
        save(out / f"{name}.safetensors", "activations", rows, args.width, np.float32, rows_of)
        if name == "heldout":
            save(out / "true_codes.safetensors", "codes", rows, args.concepts, np.float16, strengths)
    save(out / "true_concepts.safetensors", "concepts", args.concepts, args.width, np.float32, [concepts])
    paths = {key: json.dumps(str(out / f"{file}.safetensors")) for key, file in (
        ("train", "train"), ("held_out", "heldout"), ("true_concepts", "true_concepts"), ("true_codes", "true_codes"))}
    lines = ['run = "synthetic"', "", "[data]", *(f"{k} = {v}" for k, v in paths.items()),
             "", "[model]", f"n_latents = {args.latents}", "", "[training]", "steps = 1500", "batch_size = 1024"]
    (out / "synthetic.toml").write_text("\n".join(lines) + "\n")
    print(f"{out}: {args.concepts} concepts, {parts.sum():.1f} per row, each in {parts.min():.1e} to {parts.max():.1e} of the rows")


if __name__ == "__main__":
    main()
