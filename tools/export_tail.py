#!/usr/bin/env python3
"""Write the rest of a Hugging Face model, from a hidden state on, as an ONNX file.

    pip install torch transformers safetensors numpy blake3 onnx        (onnxruntime, if installed, makes the check faster)
    python3 tools/export_tail.py --model gpt2 --modality text --layer 8 --context 128 gpt2-8.onnx

With such a file, a tail, other programs compute what a model makes of hidden states that were changed: without Python and
without knowing the model. docs/TAIL.md has the format, and commands for MiniLM, SmolLM2, CLIP and GPT-2.

--model, --gguf, --modality, --layer, --context, --class-texts, --class-prompts and --normalize mean the same as in
export_activations.py. Layers count hidden states as transformers does: 0 is the embedding, N follows block N. The last one
of a decoder is what follows its final norm, so its tail is the unembedding alone.

A tail is one of three kinds. Decoders (gpt2, llama, mistral, qwen2) give logits of the next token at every position.
Encoders of texts (bert, roberta, xlm-roberta, distilbert) pool the states of a document, by their mean over all tokens or,
with --pooling cls, by the class token; encoders of images (clip, clip_vision_model) project the class token. Without
--class-texts that embedding is the output, with unit norm if --normalize is given.

With --class-texts FILE, a JSON object {"class name": "text", ...}, an encoder becomes a classifier: unit embeddings times a
zero-shot head [classes, e], and for CLIP times exp(logit_scale). The head is, for each class, the mean over --class-prompts
of the unit-norm embeddings of its text, by CLIP's text tower or by the encoder itself. --head-mean says whether this mean is
scaled to unit norm again ("unit", the default, as export_activations.py does it) or stays as it is ("as-is", as the authors of
arXiv 2604.14925 have it). A mean that stays as it is makes logits smaller where prompts disagree.

Before anything is written, the file's form is checked, and its output is compared with the whole model's on random documents.
A file is written under another name, synced and renamed.
"""

import argparse
import json
import pathlib
import sys

import torch
import transformers

from sae_export import Args, ExportError
from sae_export.inputs import TextEncoder, load, load_model
from sae_export.reading import read_class_texts
from sae_export.states import activations, class_head
from sae_export.writing import write_file

try:
    import onnx
except ImportError:
    sys.exit("error: a tail is an ONNX file, and the package onnx is not installed: pip install onnx")

from sae_tail.check import Compared, compare
from sae_tail.families import find_family
from sae_tail.family import Decoder, Family, Plan
from sae_tail.graph import Graph


def check_arguments(args: Args) -> None:
    if args.modality == "vision" and args.context is not None:
        raise ExportError("--context is for text")
    if args.modality == "vision" and args.pooling is not None:
        raise ExportError("--pooling is for text; images have their class token")
    if args.class_texts is None and (args.class_prompts or args.head_mean is not None):
        raise ExportError("--class-prompts and --head-mean need --class-texts")
    if args.class_prompts and not all("{}" in prompt for prompt in args.class_prompts):
        raise ExportError('every --class-prompts needs a "{}" for the class text')
    if args.batch < 1:
        raise ExportError("--batch must be at least 1")
    if not args.out.parent.is_dir():
        raise ExportError(f"{args.out}: no directory {args.out.parent}")
    if args.out.is_dir():
        raise ExportError(f"{args.out} is a directory")
    if args.out.exists() and not args.overwrite:
        raise ExportError(f"{args.out} exists; choose another name or pass --overwrite")


class Complete:
    """A loader that refuses a checkpoint without weights that a tail has; transformers would draw them at random."""

    def __init__(self, loader: type):
        self.loader = loader

    def from_pretrained(self, name: str, **options: object) -> torch.nn.Module:
        model, info = self.loader.from_pretrained(name, output_loading_info=True, **options)
        missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)  # no tail has BERT's pooler
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}")
        return model


def open_family(args: Args) -> Family:
    """The model in its family."""
    config = load(transformers.AutoConfig, args)
    kind = find_family(config.model_type)
    if args.modality != kind.modality:
        raise ExportError(f"the tail of a model of type {config.model_type} is for --modality {kind.modality}")
    given = {"--pooling": args.pooling, "--normalize": args.normalize, "--class-texts": args.class_texts}
    wrong = [name for name, value in given.items() if value]
    if issubclass(kind, Decoder) and wrong:
        raise ExportError(f"the tail of a decoder ends in logits of tokens; leave out {' and '.join(wrong)}")
    loader = kind.loader
    if "CLIPVisionModelWithProjection" in (config.architectures or ()):
        loader = transformers.CLIPVisionModelWithProjection  # AutoModel would leave the projection out
    return kind(load_model(Complete(loader), args))


def embed_classes(args: Args, family: Family, texts: list[str]) -> torch.Tensor:
    """The zero-shot head [classes, e]."""
    tokens = "embed" if args.modality == "vision" else args.pooling or "mean"
    if args.modality == "vision" and not hasattr(family.model, "get_text_features"):
        raise ExportError(f"--class-texts: {args.model} is a vision tower alone, without one for texts")
    encoder = TextEncoder(args, family.model, args.context)
    own = argparse.Namespace(**{**vars(args), "tokens": tokens, "layer": -1, "hook": None, "drop_first": False})
    compute = activations(own, family.model)

    def embed(lines: list[str]) -> torch.Tensor:
        parts = [lines[at : at + args.batch] for at in range(0, len(lines), args.batch)]
        return torch.cat([row.values for part in parts for row in compute(encoder(part))])

    return class_head(embed, texts, args.class_prompts or ["{}"], unit_mean=args.head_mean != "as-is")


def make_plan(args: Args, family: Family, texts: dict[str, str] | None) -> Plan:
    layers, longest = family.layers, family.longest
    if not -layers - 1 <= args.layer <= layers:
        raise ExportError(f"--layer {args.layer}: {args.model} has layers 0..{layers}, or -{layers + 1}..-1")
    if args.context is not None and not 0 < args.context <= longest:
        raise ExportError(f"--context {args.context}: {args.model} takes 1 to {longest} tokens")
    head = embed_classes(args, family, list(texts.values())) if texts else None
    return Plan(args.layer % (layers + 1), args.context or longest, args.pooling or "mean", args.normalize, head)


def describe(args: Args, family: Family, plan: Plan, texts: dict[str, str] | None) -> dict[str, str]:
    """The file's metadata."""
    values = {
        "tail": "1",
        "kind": family.kind(plan),
        "model": args.model if args.gguf is None else args.gguf,
        "layer": str(plan.layer),
        "context": str(plan.context),
    }
    if texts:
        values["classes"] = json.dumps(list(texts), ensure_ascii=False)
    return {f"dynamic-sae.{name}": value for name, value in values.items()}


def export(args: Args) -> tuple[str, Compared]:
    """Writes the file; returns what it is, and how it compares with the model."""
    check_arguments(args)
    texts = read_class_texts(args.class_texts) if args.class_texts else None
    family = open_family(args)
    plan = make_plan(args, family, texts)
    graph = Graph(family.width, plan.context)
    data = graph.finish(*family.build(graph, plan), describe(args, family, plan, texts))
    compared = compare(data, family, plan)
    write_file(args.out, [data])
    facts = [family.kind(plan), f"layer {plan.layer} of {family.layers}", f"d {family.width}"]
    facts += [f"{family.layers - plan.layer} blocks", f"{graph.parameters / 1e6:.3g} M parameters"]
    facts += [f"{len(texts)} classes"] if texts else []
    return ", ".join([*facts, f"context {plan.context}", f"{len(data) / 1e6:.3g} MB"]), compared


def parse_arguments() -> Args:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Kinds of tails, types of models: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("out", type=pathlib.Path, metavar="OUT.onnx", help="file to write")
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model, instead of safetensors and tokenizer")
    option("--modality", required=True, choices=("text", "vision"))
    option("--layer", type=int, required=True, metavar="N", help="hidden state to begin with, negative from the end")
    option("--context", type=int, metavar="TOKENS", help="longest document (default: the model's longest)")
    option("--class-texts", type=pathlib.Path, metavar="FILE", help='JSON {"class name": "text", ...} for a classifier')
    option("--class-prompts", action="append", metavar="P", help='"a photo of a {}"; may be repeated (default "{}")')
    option("--head-mean", choices=("as-is", "unit"), help="the mean over prompts, with unit norm or not (default unit)")
    option("--pooling", choices=("mean", "cls"), help="of a text encoder's last states (default mean)")
    option("--normalize", action="store_true", help="scale embeddings to unit norm (a classifier does it anyway)")
    option("--batch", type=int, default=32, help="class texts per forward pass (default 32)")
    option("--device", default="cpu", help="torch device, such as cuda (default cpu)")
    option("--overwrite", action="store_true", help="replace OUT.onnx")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.inference_mode():
            facts, compared = export(args)
    except (ExportError, OSError, onnx.checker.ValidationError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.out}: {facts}")
    print(
        f"{compared.runtime} and torch differ by at most {compared.difference:.2g} on {compared.documents} x "
        f"{compared.tokens} random tokens (largest output {compared.largest:.3g})"
    )


if __name__ == "__main__":
    main()
