"""Computes the activations of a layer or module at chosen tokens, and runs no more of the model than that needs."""

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import Args, ExportError, Inputs


@dataclass
class Rows:
    """The rows of one document, and what they are."""

    values: torch.Tensor  # [k, d], f32
    positions: torch.Tensor | None = None  # [k], in the model's input; None if a row is not at one of them
    tokens: torch.Tensor | None = None  # [k], ids
    image: dict[str, object] | None = None  # of an image: how positions lie in it
    thumbnail: bytes | None = None


class Reached(Exception):
    """Ends a forward pass as soon as it reaches the wanted hidden state."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


def blocks_of(tower: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The model's blocks, if exactly one list of modules has as many as the model has layers."""
    layers = tower.config.num_hidden_layers
    lists = [m for m in tower.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    return lists[0] if len(lists) == 1 else None


def layer_states(tower: torch.nn.Module, layer: int) -> Callable[[Inputs], torch.Tensor]:
    """A function from model inputs to hidden state `layer` [batch, tokens, d].

    Hidden state N < L is the input of block N, so the pass ends there and costs N of the model's L blocks. The first
    batch is also computed with the whole model; if the two differ in one bit, the whole model is used throughout.
    """

    def whole(inputs: Inputs) -> torch.Tensor:
        return tower(**inputs, output_hidden_states=True).hidden_states[layer]

    blocks = blocks_of(tower)
    if blocks is None or layer == len(blocks):
        return whole

    def stop(_block: torch.nn.Module, positional: tuple, named: dict) -> None:
        raise Reached(positional[0] if positional else named["hidden_states"])

    def cut(inputs: Inputs) -> torch.Tensor | None:
        handle = blocks[layer].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            tower(**inputs)
        except Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        return None

    chosen: list[Callable[[Inputs], torch.Tensor]] = []

    def run(inputs: Inputs) -> torch.Tensor:
        if chosen:
            return chosen[0](inputs)
        expected, found = whole(inputs), cut(inputs)
        same = found is not None and torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)
        if not same:
            print(f"note: block {layer} does not get hidden state {layer}; all blocks run", file=sys.stderr)
        chosen.append(cut if same else whole)
        return expected

    return run


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
        return layer_states(tower, args.layer % (layers + 1))

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


def choose_tokens(hidden: torch.Tensor, keep: torch.Tensor, tokens: str) -> list[Rows]:
    """The rows of every document, from its states [batch, tokens, d] and a mask of the tokens that count."""
    if tokens == "all":
        return [Rows(states[mask], mask.nonzero()[:, 0]) for states, mask in zip(hidden, keep, strict=True)]
    some = keep.any(1)
    if tokens == "mean":
        rows = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
        return [Rows(rows[i : i + 1] if some[i] else rows[:0]) for i in range(len(rows))]
    last = keep.shape[1] - 1 - keep.flip(1).int().argmax(1)
    place = last if tokens == "last" else torch.zeros_like(last)
    rows = hidden[torch.arange(len(hidden)), place]
    return [Rows(rows[i : i + some[i]], place[i : i + some[i]]) for i in range(len(rows))]


def patch_grid(tokens: int, pixels: torch.Tensor, model: torch.nn.Module) -> dict[str, object]:
    """How the positions of an input lie in an image: patches come last, after a class token and any register tokens."""
    patch = getattr(getattr(model, "vision_model", model).config, "patch_size", None)
    if not isinstance(patch, int):
        raise ExportError("--tokens patches: the model's config has no patch_size")
    grid = [pixels.shape[-2] // patch, pixels.shape[-1] // patch]
    before = tokens - grid[0] * grid[1]
    if before < 0:
        raise ExportError(f"--tokens patches: {tokens} tokens are fewer than the image has patches")
    return {"grid": grid, "class_token": before > 0, "first_patch": before}


def features(model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    """Embeddings of the inputs, texts or images, in the shared space of a CLIP-like model."""
    output = (model.get_image_features if "pixel_values" in inputs else model.get_text_features)(**inputs)
    return getattr(output, "pooler_output", output)  # transformers before 5 return the tensor itself


def activations(args: Args, model: torch.nn.Module) -> Callable[[Inputs], list[Rows]]:
    """A function from model inputs to the rows of every document: f32, on the CPU."""
    if args.tokens == "embed":
        if not hasattr(model, "get_text_features" if args.modality == "text" else "get_image_features"):
            raise ExportError(f"--tokens embed: {args.model} has no projected embeddings (it is not CLIP-like)")

        def compute(inputs: Inputs) -> list[Rows]:
            return [Rows(row) for row in features(model, inputs).float().cpu()[:, None].unbind()]

    else:
        states = hidden_states(args, model)

        def compute(inputs: Inputs) -> list[Rows]:
            hidden = states(inputs).float().cpu()
            mask = inputs.get("attention_mask")
            keep = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
            if keep.shape != hidden.shape[:2]:
                raise ExportError(f"--hook {args.hook} gives {list(hidden.shape)} for {list(keep.shape)} tokens")
            image = image_grid(args, model, hidden.shape[1], inputs)
            if args.tokens == "patches":
                keep &= torch.arange(keep.shape[1]) >= image["first_patch"]
            if args.drop_first:
                keep[:, 0] = False
            rows = choose_tokens(hidden, keep, "all" if args.tokens == "patches" else args.tokens)
            for part in rows:
                part.image = image if part.positions is not None else None
            return rows

    def run(inputs: Inputs) -> list[Rows]:
        with torch.inference_mode():
            rows = compute(inputs)
            for part in rows if args.normalize else ():
                part.values = torch.nn.functional.normalize(part.values, dim=1)
        return rows

    return run


def image_grid(args: Args, model: torch.nn.Module, tokens: int, inputs: Inputs) -> dict[str, object] | None:
    """The grid of the patches, for images; None if the model has none and none are asked for."""
    if "pixel_values" not in inputs:
        return None
    try:
        return patch_grid(tokens, inputs["pixel_values"], model)
    except ExportError:
        if args.tokens == "patches":
            raise
        return None


def class_head(
    embed: Callable[[list[str]], torch.Tensor], texts: list[str], prompts: list[str], unit_mean: bool = True
) -> torch.Tensor:
    """Rows [C, d]: the mean over prompts of the unit-norm embeddings of the class texts, scaled to unit norm again or not."""
    unit = torch.nn.functional.normalize
    total = sum(unit(embed([prompt.replace("{}", text) for text in texts]), dim=1) for prompt in prompts)
    return unit(total, dim=1) if unit_mean else total / len(prompts)
