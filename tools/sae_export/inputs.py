"""A model and its inputs: loading, tokens of texts, pixels of images."""

import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers

from . import Args, ExportError, Inputs


def load(loader: type, args: Args, **options: object) -> Any:
    """`loader.from_pretrained`, with its errors in one line."""
    if args.gguf is not None:
        if not (pathlib.Path(args.model) / args.gguf).is_file():
            raise ExportError(f"--gguf {args.gguf}: no such file in the directory --model {args.model}")
        options["gguf_file"] = args.gguf
    try:
        return loader.from_pretrained(args.model, **options)
    except (OSError, ValueError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        name = args.model if args.gguf is None else f"{args.model} --gguf {args.gguf}"
        raise ExportError(f"--model {name}: {lines[0]}") from error


def load_model(loader: type, args: Args) -> torch.nn.Module:
    """The model on its device, in f32 and in evaluation mode. Weights of a GGUF file are unpacked to f32."""
    if args.gguf is not None:
        model = load(loader, args, dtype=torch.float32).eval()  # such a model refuses .float()
    else:
        model = load(loader, args).float().eval()
    model.config.use_cache = False  # the cache is for generating text
    try:
        return model.to(args.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ExportError(f"--device {args.device}: {str(error).splitlines()[0]}") from error


class TextEncoder:
    """Turns texts into tokens, at most `limit` per text, and tokens into right-padded model inputs."""

    def __init__(self, args: Args, model: torch.nn.Module, limit: int | None):
        self.tokenizer, self.device = load(transformers.AutoTokenizer, args), args.device
        tower = getattr(model, "text_model", model)
        longest = min(
            self.tokenizer.model_max_length, getattr(tower.config, "max_position_embeddings", sys.maxsize)
        )
        if limit is not None and not 0 < limit <= longest:
            raise ExportError(f"--context {limit}: {args.model} takes 1 to {longest} tokens")
        self.length = limit or longest
        if self.length == sys.maxsize or self.length > 1_000_000:
            raise ExportError(f"{args.model} has no longest input; set --context")

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"]

    def pad(self, tokens: list[list[int]]) -> Inputs:
        """`input_ids` and `attention_mask`, both [texts, longest]."""
        padding = self.tokenizer.pad_token_id or 0  # masked, so any token will do
        shape = (len(tokens), max(1, *map(len, tokens)))
        ids, mask = torch.full(shape, padding), torch.zeros(shape, dtype=torch.int64)
        for row, own in enumerate(tokens):
            ids[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
            mask[row, : len(own)] = 1
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def __call__(self, texts: list[str]) -> Inputs:
        return self.pad(self.tokens(texts))


class ImageEncoder:
    """Turns image files into model inputs; decodes and resizes on all cores."""

    def __init__(self, args: Args):
        try:
            from PIL import Image
        except ImportError as error:
            raise ExportError("--modality vision needs pillow: pip install pillow") from error
        self.image, self.device = Image, args.device
        self.processor = load(transformers.AutoImageProcessor, args)
        self.pool = ThreadPoolExecutor()

    def read(self, path: pathlib.Path) -> torch.Tensor:
        try:
            with self.image.open(path) as image:
                return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        except (OSError, SyntaxError, self.image.DecompressionBombError) as error:  # SyntaxError: PIL, of a broken PNG
            raise ExportError(f"{path}: not a readable image: {error}") from error

    def __call__(self, paths: list[pathlib.Path]) -> Inputs:
        return {"pixel_values": torch.cat(list(self.pool.map(self.read, paths))).to(self.device)}
