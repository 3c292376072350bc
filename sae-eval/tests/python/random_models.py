"""Writes CLIP ViT-B/16 and GPT-2 small at random weights, images and texts: what docs/REPRODUCE.md was tried with.

    random_models.py OUT_DIR        (needs torch, transformers, tokenizers, numpy, pillow; 1.2 GB, half a minute)

OUT_DIR/clip and OUT_DIR/gpt2 are models with the tokenizer of tiny_models.py, OUT_DIR/images has 64 images in 8 folders,
OUT_DIR/classes.json the words of these, OUT_DIR/train.jsonl and OUT_DIR/heldout.jsonl texts.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from PIL import Image

import tiny_models

WORDS = tiny_models.WORDS[4:]
TEXT = dict(
    vocab_size=49408,
    hidden_size=512,
    num_attention_heads=8,
    num_hidden_layers=12,
    intermediate_size=2048,
    max_position_embeddings=77,
    bos_token_id=2,
    eos_token_id=3,
)
VISION = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, patch_size=16, image_size=224
)
PIXELS = dict(
    image_processor_type="CLIPImageProcessor",
    do_resize=True,
    size={"shortest_edge": 224},
    resample=3,
    do_center_crop=True,
    crop_size={"height": 224, "width": 224},
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
    do_convert_rgb=True,
)


def save(model: torch.nn.Module, path: pathlib.Path, longest: int) -> None:
    """With weights of standard deviation 0.02; norms begin as the identity."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "embedding" in name:
                parameter.normal_(0, 0.02, generator=draw)
            elif parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(path)
    tokenizer = tiny_models.tokenizer()
    tokenizer.model_max_length = longest
    tokenizer.save_pretrained(path)


def images(out: pathlib.Path) -> dict[str, str]:
    """64 noisy images, and the word of each of their 8 folders."""
    rng, words = np.random.default_rng(0), {}
    for number in range(64):
        kind = number % 8
        folder = out / f"n{kind:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        words[folder.name] = WORDS[kind]
        noise = rng.integers(0, 256, (1, 1, 3)) + rng.integers(-90, 90, (10 + kind, 12, 3))
        small = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        small.resize((500, 375), Image.BICUBIC).save(folder / f"{number:05d}.jpg")
    return words


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    clip = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=512)
    save(transformers.CLIPModel(clip), out / "clip", 77)
    (out / "clip" / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    save(transformers.GPT2LMHeadModel(transformers.GPT2Config()), out / "gpt2", 1024)
    (out / "classes.json").write_text(json.dumps(images(out / "images")))
    rng = np.random.default_rng(0)
    for name, count in (("train", 48), ("heldout", 8)):
        texts = (" ".join(rng.choice(WORDS, rng.integers(60, 300))) for _ in range(count))
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


if __name__ == "__main__":
    main()
