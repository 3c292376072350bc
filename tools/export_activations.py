#!/usr/bin/env python3
"""Run a Hugging Face model over texts or images and write its activations as shards.

    pip install torch transformers safetensors numpy blake3 pillow       (pillow for images only)

The two data sets of arXiv 2604.14925. CLIP ViT-B/16 on ImageNet, with a zero-shot head; the images lie in one folder
a class, and imagenet.json maps folder names to words, {"n01440764": "tench", ...}:

    python3 tools/export_activations.py --model openai/clip-vit-base-patch16 --modality vision --tokens embed \\
        --images imagenet/train --class-texts imagenet.json --class-prompts "a photo of a {}" data/clip-train

GPT-2 small, layer 8, on the first 128 tokens of every OpenWebText document, without the attention sink at position 0:

    python3 tools/export_activations.py --model gpt2 --modality text --layer 8 --context 128 --drop-first \\
        --text openwebtext.jsonl data/gpt2-layer8

A sentence encoder (mean pooled, unit norm), and another place in a model:

    python3 tools/export_activations.py --model sentence-transformers/all-MiniLM-L6-v2 --modality text \\
        --tokens mean --normalize --text glosses.jsonl data/minilm
    python3 tools/export_activations.py --model gpt2 --modality text --hook h.8.mlp --text corpus.txt data/gpt2-mlp8

Input is UTF-8 text, one document a line (.txt) or one object a line (.jsonl: "text", optional "label", a class number
or name), or a directory of images (one sub-folder a class, or flat and unlabelled). A document longer than --context
is cut, not split. Blank documents, and those without a token left after --drop-first, are skipped and counted.

Classes are the keys of --class-texts in their order or, without it, the sorted folder or label names. The zero-shot
head is, for each class, the mean over --class-prompts of the unit-norm embeddings of its text: by the text tower for
--tokens embed, otherwise in the very way the activations are made, which wants --tokens mean, cls or last.

Layers count hidden states as transformers does: 0 is the embedding, N follows block N, and the last is what the model
returns (for GPT-2 after the final norm; --hook h.11 is before it).

DST gets shard-00000.safetensors, ... with the tensors `activations` [n, d], `doc` i64 [n] (the position of the row's
document in the source, never decreasing) and `labels` i64 [n] where there are any; classes.json and
class_embeddings.safetensors (`weight` f32 [C, d]) where they apply; and at the very end index.json, which lists the
shards with their BLAKE3 hashes. Every file is written under another name, synced and renamed, so a directory with an
index.json is complete. Rows are streamed: memory is the model, one batch and one shard (--shard-mb).
"""

import argparse
import difflib
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from blake3 import blake3

TOOL = "export_activations 1"
DTYPES = {"f16": torch.float16, "f32": torch.float32, "bf16": torch.bfloat16}
FORMAT_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_CLASSES = 1_000_000  # a larger label is an id, not a class number

Args = argparse.Namespace
Inputs = dict[str, torch.Tensor]


class ExportError(Exception):
    """A mistake in the arguments or the data, told in one line."""


@dataclass(frozen=True)
class Document:
    number: int  # position in the source, skipped documents included
    name: str  # for messages
    content: str | pathlib.Path
    label: int | None


# ---- writing -------------------------------------------------------------------------------------------------------


def write_file(path: pathlib.Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write under a temporary name, sync, rename. Returns the size and the BLAKE3 hash."""
    temporary = path.with_name(path.name + ".tmp")
    size, digest = 0, blake3()
    with temporary.open("wb") as file:
        for part in parts:
            digest.update(part)
            size += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)  # the rename itself
    os.close(directory)
    return size, digest.hexdigest()


def write_json(path: pathlib.Path, value: object) -> None:
    write_file(path, [(json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()])


def safetensors_parts(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """A safetensors file in pieces, without a copy of the data (safetensors.torch.save_file makes one)."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps all aligned
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": FORMAT_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for _, tensor in ordered:
        yield memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


def remove_export(directory: pathlib.Path) -> None:
    """Remove what this tool wrote, the index first, so that what is left never looks complete."""
    for pattern in ("index.json", "shard-*.safetensors", "classes.json", "class_embeddings.safetensors", "*.tmp"):
        for path in directory.glob(pattern):
            path.unlink()


class ShardWriter:
    """Collects rows and writes a shard whenever the next document does not fit into the current one."""

    def __init__(self, directory: pathlib.Path, dtype: torch.dtype, shard_bytes: int, labelled: bool):
        self.directory, self.dtype, self.shard_bytes, self.labelled = directory, dtype, shard_bytes, labelled
        self.shards: list[dict[str, object]] = []
        self.rows = 0  # in finished shards
        self.used = 0  # in the current one
        self.buffer: torch.Tensor | None = None  # [capacity, d], allocated at the first document
        remove_export(directory)

    def add(self, document: Document, rows: torch.Tensor) -> None:
        """Append the rows [k, d], f32, of one document."""
        if not rows.isfinite().all():
            raise ExportError(f"{document.name}: an activation is not finite")
        stored = rows.to(self.dtype)
        if not stored.isfinite().all():
            raise ExportError(
                f"{document.name}: activation {rows.abs().max():.4g} does not fit {FORMAT_NAMES[self.dtype]}; "
                "use --dtype bf16 or f32"
            )
        if self.buffer is None:
            row_bytes = rows.shape[1] * self.dtype.itemsize + (16 if self.labelled else 8)
            capacity = max(1, self.shard_bytes // row_bytes)
            self.buffer = torch.empty((capacity, rows.shape[1]), dtype=self.dtype)
            self.doc = torch.empty(capacity, dtype=torch.int64)
            self.labels = torch.empty(capacity, dtype=torch.int64)
        capacity = len(self.buffer)
        if self.used + len(stored) > capacity and len(stored) <= capacity:
            self._write_shard()
        while len(stored):  # more than one round only for a document larger than a shard
            part = stored[: capacity - self.used]
            place = slice(self.used, self.used + len(part))
            self.buffer[place] = part
            self.doc[place] = document.number
            if self.labelled:
                self.labels[place] = document.label
            self.used += len(part)
            stored = stored[len(part) :]
            if self.used == capacity:
                self._write_shard()

    def _write_shard(self) -> None:
        if self.used == 0:
            return
        tensors = {"activations": self.buffer[: self.used], "doc": self.doc[: self.used]}
        if self.labelled:
            tensors["labels"] = self.labels[: self.used]
        name = f"shard-{len(self.shards):05}.safetensors"
        size, digest = write_file(self.directory / name, safetensors_parts(tensors, {"tool": TOOL}))
        self.shards.append({"file": name, "rows": self.used, "bytes": size, "blake3": digest})
        self.rows += self.used
        self.used = 0

    def finish(self, metadata: dict[str, str]) -> None:
        """Write the last shard and the index."""
        self._write_shard()
        if self.buffer is None:
            raise ExportError("the input has no document to export")
        index = {"format": "dynamic-sae.shards", "version": 1, "rows": self.rows, "width": self.buffer.shape[1]}
        index |= {"dtype": FORMAT_NAMES[self.dtype], "shards": self.shards, "metadata": metadata}
        write_json(self.directory / "index.json", index)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_texts(path: pathlib.Path) -> Iterator[tuple[int, str, str, int | str | None]]:
    """Number, name for messages, text and label of every document that is not blank."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                name, text, label = f"{path}, line {number + 1}", line.rstrip("\r\n"), None
                if path.suffix == ".jsonl" and text.strip():
                    record = json.loads(text)
                    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                        raise ExportError(f'{name}: expected an object with a string "text"')
                    text, label = record["text"], record.get("label")
                    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
                        raise ExportError(f"{name}: a label is a class number or a class name, not {label!r}")
                if text.strip():
                    yield number, name, text, label
    except json.JSONDecodeError as error:
        raise ExportError(f"{name}: not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: not UTF-8 ({error.reason})") from error


def text_labels(path: pathlib.Path) -> set[int | str]:
    """All labels of a text file (read once for them); empty where it has none."""
    found: set[int | str] = set()
    unlabelled = None
    for _, name, _, label in read_texts(path) if path.suffix == ".jsonl" else ():
        if label is None:
            unlabelled = unlabelled or name
        else:
            found.add(label)
        if found and unlabelled:
            raise ExportError(f"{unlabelled} has no label, but other documents have (--labels off ignores them)")
    return found


def list_images(directory: pathlib.Path) -> list[tuple[pathlib.Path, str | None]]:
    """All images with the name of their class folder (None in a flat directory), in sorted order."""

    def images(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
        return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)

    flat: list[tuple[pathlib.Path, str | None]] = [(path, None) for path in images(directory.iterdir())]
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    found = [(path, folder.name) for folder in folders for path in images(folder.rglob("*"))]
    if flat and found:
        raise ExportError(f"{directory} has images both beside and inside sub-folders; keep one layout")
    if not flat and not found:
        raise ExportError(f"{directory} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return flat or found


def read_class_texts(path: pathlib.Path) -> dict[str, str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path}: not JSON: {error}") from error
    if not isinstance(texts, dict) or not texts or not all(isinstance(text, str) for text in texts.values()):
        raise ExportError(f'{path}: expected an object {{"class name": "text", ...}}')
    return texts


def class_names(labels: set[int | str], texts: dict[str, str] | None) -> list[str]:
    """The classes in the order of their numbers: the keys of the class texts, or what the labels name."""
    numbers = {label for label in labels if isinstance(label, int)}
    names = {label for label in labels if isinstance(label, str)}
    if numbers and names:
        raise ExportError(f"labels mix numbers and names, such as {min(numbers)} and {min(names)!r}")
    if numbers and not 0 <= min(numbers) <= max(numbers) < (len(texts) if texts else MAX_CLASSES):
        limit = f"the {len(texts)} classes of --class-texts" if texts else f"0..{MAX_CLASSES - 1}"
        raise ExportError(f"labels {min(numbers)}..{max(numbers)} are not within {limit}")
    if texts is None:
        return sorted(names) or [str(number) for number in range(max(numbers, default=-1) + 1)]
    if missing := sorted(names - texts.keys()):
        raise ExportError(f"--class-texts has no text for {len(missing)} classes, such as {missing[0]!r}")
    return list(texts)


def find_documents(args: Args, texts: dict[str, str] | None) -> tuple[Iterator[Document], list[str], bool]:
    """The documents, the class names (empty where there are no classes), and whether the documents have labels."""
    if args.modality == "text":
        if args.text.suffix not in (".txt", ".jsonl"):
            raise ExportError(f"--text {args.text}: expected a .txt or .jsonl file")
        if not args.text.is_file():
            raise ExportError(f"--text {args.text}: no such file")
        found = text_labels(args.text) if args.labels == "on" else set()
        source = read_texts(args.text)
    else:
        if not args.images.is_dir():
            raise ExportError(f"--images {args.images}: no such directory")
        images = list_images(args.images)
        found = {folder for _, folder in images if folder is not None} if args.labels == "on" else set()
        source = ((number, str(path), path, folder) for number, (path, folder) in enumerate(images))
    classes = class_names(found, texts)
    position = {name: i for i, name in enumerate(classes)}
    documents = (
        Document(number, name, content, position.get(label, label) if found else None)
        for number, name, content, label in source
    )
    return documents, classes, bool(found)


# ---- the model -----------------------------------------------------------------------------------------------------


def load(loader: type, args: Args) -> Any:
    """`loader.from_pretrained`, with its errors in one line."""
    try:
        return loader.from_pretrained(args.model)
    except (OSError, ValueError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"--model {args.model}: {lines[0]}") from error


def text_encoder(args: Args, model: torch.nn.Module, limit: int | None) -> Callable[[list[str]], Inputs]:
    """A function from texts to right-padded model inputs of at most `limit` tokens."""
    tokenizer = load(transformers.AutoTokenizer, args)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, so any token will do
    tower = getattr(model, "text_model", model)
    longest = min(tokenizer.model_max_length, getattr(tower.config, "max_position_embeddings", sys.maxsize))
    if limit is not None and not 0 < limit <= longest:
        raise ExportError(f"--context {limit}: {args.model} takes 1 to {longest} tokens")
    length = limit or longest
    if length == sys.maxsize or length > 1_000_000:
        raise ExportError(f"{args.model} has no longest input; set --context")

    def encode(texts: list[str]) -> Inputs:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {name: batch[name].to(args.device) for name in ("input_ids", "attention_mask")}

    return encode


def image_encoder(args: Args) -> Callable[[list[pathlib.Path]], Inputs]:
    """A function from image files to model inputs; decodes and resizes on all cores."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ExportError("--modality vision needs pillow: pip install pillow") from error
    processor = load(transformers.AutoImageProcessor, args)
    pool = ThreadPoolExecutor()

    def read(path: pathlib.Path) -> torch.Tensor:
        try:
            with Image.open(path) as image:
                return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises SyntaxError on a broken PNG
            raise ExportError(f"{path}: not a readable image: {error}") from error

    def encode(paths: list[pathlib.Path]) -> Inputs:
        return {"pixel_values": torch.cat(list(pool.map(read, paths))).to(args.device)}

    return encode


def find_module(model: torch.nn.Module, path: str) -> torch.nn.Module:
    modules = dict(model.named_modules())
    if path not in modules or not path:
        close = difflib.get_close_matches(path, modules, n=5, cutoff=0.3)
        raise ExportError(f"--hook {path}: no such module; close: {', '.join(close) or ', '.join(list(modules)[1:9])}")
    return modules[path]


def hidden_states(args: Args, model: torch.nn.Module) -> Callable[[Inputs], torch.Tensor]:
    """A function from model inputs to the activations [batch, tokens, d] of the chosen layer or module."""
    tower = getattr(model, "text_model" if args.modality == "text" else "vision_model", model)
    if args.hook is None:
        layers = tower.config.num_hidden_layers
        if not -layers - 1 <= args.layer <= layers:
            raise ExportError(f"--layer {args.layer}: {args.model} has layers 0..{layers}, or -{layers + 1}..-1")

        def layer(inputs: Inputs) -> torch.Tensor:
            return tower(**inputs, output_hidden_states=True).hidden_states[args.layer]

        return layer

    captured: list[torch.Tensor] = []

    def capture(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        captured.append(output[0] if isinstance(output, (tuple, list)) else output)

    find_module(model, args.hook).register_forward_hook(capture)

    def run(inputs: Inputs) -> torch.Tensor:
        captured.clear()
        tower(**inputs)
        if not captured:
            raise ExportError(f"--hook {args.hook}: the module does not run for {args.modality} input")
        if not isinstance(captured[-1], torch.Tensor) or captured[-1].ndim != 3:
            shape = list(getattr(captured[-1], "shape", [])) or type(captured[-1]).__name__
            raise ExportError(f"--hook {args.hook} gives {shape}, not [batch, tokens, width]")
        return captured[-1]

    return run


def choose_tokens(hidden: torch.Tensor, keep: torch.Tensor, tokens: str) -> list[torch.Tensor]:
    """The rows [k, d] of every document, from its states [batch, tokens, d] and a mask of the tokens that count."""
    if tokens == "all":
        return [states[mask] for states, mask in zip(hidden, keep, strict=True)]
    some = keep.any(1)
    if tokens == "cls":
        rows = hidden[:, 0]
    elif tokens == "last":
        last = keep.shape[1] - 1 - keep.flip(1).int().argmax(1)
        rows = hidden[torch.arange(len(hidden)), last]
    else:
        rows = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
    return [rows[i : i + 1] if some[i] else rows[:0] for i in range(len(rows))]


def patch_mask(mask: torch.Tensor, pixels: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Keeps the patches, which come last, after a class token and any register tokens."""
    patch = getattr(getattr(model, "vision_model", model).config, "patch_size", None)
    if not isinstance(patch, int):
        raise ExportError("--tokens patches: the model's config has no patch_size")
    before = mask.shape[1] - (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
    if before < 0:
        raise ExportError(f"--tokens patches: {mask.shape[1]} tokens are fewer than the image has patches")
    return mask & (torch.arange(mask.shape[1]) >= before)


def features(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Embeddings in the shared space of a CLIP-like model, of whichever of texts and images the inputs hold."""
    output = (model.get_image_features if "pixel_values" in inputs else model.get_text_features)(**inputs)
    return getattr(output, "pooler_output", output)  # transformers before 5 return the tensor itself


def activations(args: Args, model: torch.nn.Module) -> Callable[[Inputs], list[torch.Tensor]]:
    """A function from model inputs to the rows of every document: f32, on the CPU."""
    if args.tokens == "embed":
        if not hasattr(model, "get_text_features" if args.modality == "text" else "get_image_features"):
            raise ExportError(f"--tokens embed: {args.model} has no projected embeddings (it is not CLIP-like)")

        def compute(inputs: Inputs) -> Iterable[torch.Tensor]:
            return features(model, inputs).float().cpu()[:, None].unbind()

    else:
        states = hidden_states(args, model)

        def compute(inputs: Inputs) -> Iterable[torch.Tensor]:
            hidden = states(inputs).float().cpu()
            mask = inputs.get("attention_mask")
            keep = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
            if keep.shape != hidden.shape[:2]:
                raise ExportError(f"--hook {args.hook} gives {list(hidden.shape)} for {list(keep.shape)} tokens")
            if args.tokens == "patches":
                keep = patch_mask(keep, inputs["pixel_values"], model)
            if args.drop_first:
                keep[:, 0] = False
            return choose_tokens(hidden, keep, "all" if args.tokens == "patches" else args.tokens)

    def run(inputs: Inputs) -> list[torch.Tensor]:
        with torch.inference_mode():
            rows = list(compute(inputs))
        return [torch.nn.functional.normalize(part, dim=1) for part in rows] if args.normalize else rows

    return run


def class_head(embed: Callable[[list[str]], torch.Tensor], texts: list[str], prompts: list[str]) -> torch.Tensor:
    """Unit rows [C, d]: the mean over prompts of the unit-norm embeddings of the class texts."""
    unit = torch.nn.functional.normalize
    return unit(sum(unit(embed([prompt.replace("{}", text) for text in texts]), dim=1) for prompt in prompts), dim=1)


# ---- the export ----------------------------------------------------------------------------------------------------


def batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def ahead(items: Iterable, work: Callable) -> Iterator:
    """`map(work, items)`, the next result in the making while the caller uses the current one."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for item in items:
            pending, ready = pool.submit(work, item), pending
            if ready:
                yield ready.result()
        if pending:
            yield pending.result()


def check_arguments(args: Args) -> None:
    wanted, other = (args.text, args.images) if args.modality == "text" else (args.images, args.text)
    if wanted is None or other is not None:
        source = "--text FILE" if args.modality == "text" else "--images DIR"
        raise ExportError(f"--modality {args.modality} reads {source}")
    if args.modality == "vision" and args.context is not None:
        raise ExportError("--context is for text")
    if args.modality == "text" and args.tokens == "patches":
        raise ExportError("--tokens patches is for images")
    if args.tokens == "embed" and (args.layer is not None or args.hook is not None):
        raise ExportError("--tokens embed is the model's output; leave out --layer and --hook")
    if args.drop_first and args.tokens in ("cls", "patches", "embed"):
        raise ExportError(f"--drop-first has no meaning with --tokens {args.tokens}")
    if args.class_prompts and not all("{}" in prompt for prompt in args.class_prompts):
        raise ExportError('every --class-prompts needs a "{}" for the class text')
    shared = ("mean", "cls", "last", "embed") if args.modality == "text" else ("embed",)
    if (args.class_prompts or args.class_texts) and args.tokens not in shared:
        raise ExportError(
            f"a class head needs --tokens {', '.join(shared)}: one row for a text, in the activations' space"
        )
    for name in ("batch", "shard_mb", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} must be at least 1")
    if args.dst.exists() and not args.dst.is_dir():
        raise ExportError(f"{args.dst} is not a directory")
    if args.dst.is_dir() and any(args.dst.iterdir()) and not args.overwrite:
        raise ExportError(f"{args.dst} is not empty; choose another directory or pass --overwrite")


def describe(args: Args, model: torch.nn.Module, documents: int) -> dict[str, str]:
    """What the index says about the origin of the rows."""
    place = "embed" if args.tokens == "embed" else f"hook {args.hook}" if args.hook else f"layer {args.layer}"
    values = {
        "model": args.model,
        "revision": getattr(model.config, "_commit_hash", None),
        "modality": args.modality,
        "place": place,
        "tokens": args.tokens,
        "normalize": str(args.normalize).lower(),
        "drop_first": str(args.drop_first).lower(),
        "context": args.context,
        "source": args.text or args.images,
        "documents": documents,
        "tool": TOOL,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def export(args: Args) -> None:
    check_arguments(args)
    if args.layer is None and args.hook is None:
        args.layer = -1
    texts = read_class_texts(args.class_texts) if args.class_texts else None
    documents, classes, labelled = find_documents(args, texts)
    with_head = bool(args.class_prompts or args.class_texts)
    if with_head and not classes:
        raise ExportError("a class head needs classes: labels in the input, or --class-texts")

    model = load(transformers.AutoModel, args).float().eval()
    try:
        model.to(args.device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ExportError(f"--device {args.device}: {str(error).splitlines()[0]}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        raise ExportError(f"--model {args.model}: encoder-decoder models are not supported")
    encode_texts = text_encoder(args, model, args.context) if args.modality == "text" or with_head else None
    encode = encode_texts if args.modality == "text" else image_encoder(args)
    compute = activations(args, model)

    args.dst.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(args.dst, DTYPES[args.dtype], args.shard_mb << 20, labelled)
    if classes:
        write_json(args.dst / "classes.json", classes)
    if with_head:

        def embed(lines: list[str]) -> torch.Tensor:
            rows = [row for part in batched(lines, args.batch) for row in compute(encode_texts(part))]
            if empty := [line for line, row in zip(lines, rows, strict=True) if len(row) == 0]:
                raise ExportError(f"--drop-first leaves no token of the class text {empty[0]!r}")
            return torch.cat(rows)

        head = class_head(embed, list(texts.values()) if texts else classes, args.class_prompts or ["{}"])
        write_file(args.dst / "class_embeddings.safetensors", safetensors_parts({"weight": head}, {"tool": TOOL}))

    exported = rows = seen = 0
    start = told = time.monotonic()

    def prepare(batch: list[Document]) -> tuple[list[Document], Inputs]:
        return batch, encode([document.content for document in batch])

    for batch, inputs in ahead(batched(itertools.islice(documents, args.limit), args.batch), prepare):
        for document, part in zip(batch, compute(inputs), strict=True):
            if len(part):
                writer.add(document, part)
                exported += 1
                rows += len(part)
        seen = batch[-1].number + 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{exported} documents, {rows} rows, {rows / (told - start):.0f} rows/s", file=sys.stderr, flush=True)
    writer.finish(describe(args, model, exported))
    print(
        f"{args.dst}: {rows} rows from {exported} documents in {len(writer.shards)} shards, {len(classes)} classes; "
        f"{seen - exported} empty documents skipped"
    )


def parse_arguments() -> Args:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Examples and formats: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("dst", type=pathlib.Path, metavar="DST", help="directory to write")
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--modality", required=True, choices=("text", "vision"))
    option("--text", type=pathlib.Path, metavar="FILE", help=".txt or .jsonl, one document a line")
    option("--images", type=pathlib.Path, metavar="DIR", help="one sub-folder a class, or flat")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--layer", type=int, metavar="N", help="hidden state, negative from the end (default -1)")
    place.add_argument("--hook", metavar="MODULE", help="dotted path of a module whose output to take instead")
    tokens = ("all", "cls", "last", "mean", "patches", "embed")
    option("--tokens", choices=tokens, default="all", help="which rows; embed: a CLIP-like model's projected embedding")
    option("--drop-first", action="store_true", help="leave out position 0")
    option("--normalize", action="store_true", help="scale rows to unit norm")
    option("--labels", choices=("on", "off"), default="on", help="write labels where the input has them (default on)")
    option("--class-texts", type=pathlib.Path, metavar="FILE", help='JSON {"class name": "text", ...} for a class head')
    option("--class-prompts", action="append", metavar="P", help='"a photo of a {}"; may be repeated (default "{}")')
    option("--context", type=int, metavar="TOKENS", help="cut documents to this length (default: the model's longest)")
    option("--limit", type=int, metavar="N", help="only the first N documents that are not blank")
    option("--dtype", choices=tuple(DTYPES), default="f16", help="of the activations (default f16)")
    option("--batch", type=int, default=32, help="documents a forward pass (default 32)")
    option("--device", default="cpu", help="torch device, such as cuda (default cpu)")
    option("--shard-mb", type=int, default=512, metavar="MB", help="size of a shard (default 512)")
    option("--overwrite", action="store_true", help="replace an earlier export in DST")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        export(args)
    except (ExportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
