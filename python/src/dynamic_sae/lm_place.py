"""A place in a language model: its rows are read there, and other rows are put there.

A place is the input of a module. If the module is one of the model's blocks, nothing but this input goes on from there, so the
blocks below need not run again when it is replaced. A model in which that does not hold is found by :meth:`Place.check`.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .errors import DynamicSaeError

Inputs = dict[str, torch.Tensor]
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_pre")  # TransformerLens' name of a block's input


class Reached(Exception):
    """Ends a forward pass as soon as it reaches the wanted place."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__()
        self.hidden = hidden


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The model's blocks, if exactly one list of modules has as many as the model has layers."""
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layers", None)
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == layers]
    return lists[0] if len(lists) == 1 else None


def input_of(positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The hidden states among the arguments of a module: the first, or that of this name."""
    return positional[0] if positional else named.get("hidden_states")


@contextlib.contextmanager
def replaced(entry: torch.nn.Module, below: Sequence[torch.nn.Module], hidden: torch.Tensor) -> Iterator[None]:
    """Within it, the module ``entry`` goes on from ``hidden [batch, tokens, d]``, whatever it is given.

    Args:
        entry: the module whose input is replaced.
        below: modules that need not run, since nothing but the replaced input depends on them: they return their input.
        hidden: what replaces it.
    """

    def replace(_module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if positional:
            return (hidden, *positional[1:]), named
        return positional, named | {"hidden_states": hidden}

    handle = entry.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        for block in below:
            block.forward = lambda hidden_states, *_, **__: hidden_states
        yield
    finally:
        handle.remove()
        for block in below:
            block.__dict__.pop("forward", None)


class Place:
    """The input of a module of a causal language model.

    Args:
        model: a causal language model of transformers, or a HookedTransformer of TransformerLens.
        hook: the path of the module, such as ``"model.layers.15"`` or ``"blocks.15.hook_resid_pre"``; or the number of a block,
            whose input is the hidden state of this number.
    """

    def __init__(self, model: torch.nn.Module, hook: str | int):
        self.model, self.hook = model, hook
        blocks = blocks_of(model)
        if isinstance(hook, int):
            if blocks is None or not 0 <= hook < len(blocks):
                remedy = "give the path of a module" if blocks is None else f"give one of 0 to {len(blocks) - 1}"
                raise DynamicSaeError(f"hook {hook}: no block of this model has this number (no block comes after its last "
                                      f"hidden state); {remedy}")
            self.entry = blocks[hook]
        else:
            self.entry = find_module(model, hook)
        number = next((i for i, block in enumerate(blocks or ()) if block is self.entry), None)
        if number is None and isinstance(hook, str) and (match := RESIDUAL.fullmatch(hook)):
            number = int(match[1])
        self.below: list[torch.nn.Module] = list(blocks[:number]) if blocks is not None and number is not None else []

    def read(self, inputs: Inputs) -> torch.Tensor:
        """What the place gets, ``[batch, tokens, d]``. The model runs no further."""

        def stop(_module: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise Reached(input_of(positional, named))

        handle = self.entry.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(**inputs)
        except Reached as reached:
            hidden = reached.hidden
            if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.shape[:2] != first(inputs).shape:
                raise DynamicSaeError(f"hook {self.hook}: this module does not get hidden states [batch, tokens, d]; give "
                                      "that of a block") from None
            return hidden
        finally:
            handle.remove()
        raise DynamicSaeError(f"hook {self.hook}: this module does not run for text; give that of a block")

    def logits(self, inputs: Inputs, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Logits ``[batch, tokens, vocabulary]``, with ``hidden [batch, tokens, d]`` at this place if it is given."""
        if hidden is None:
            return logits_of(self.model(**inputs))
        with replaced(self.entry, self.below, hidden):
            return logits_of(self.model(**inputs))

    def check(self, inputs: Inputs, mask: torch.Tensor, hidden: torch.Tensor) -> None:
        """Raises unless replacing the rows ``hidden`` by themselves gives the logits of the unchanged model."""
        whole = self.logits(inputs)[mask]
        for below in (self.below, []):
            self.below = below
            with contextlib.suppress(TypeError, ValueError, IndexError, AttributeError):
                spliced = self.logits(inputs, hidden)[mask]
                if torch.allclose(whole, spliced, rtol=1e-4, atol=1e-3):
                    return
        raise DynamicSaeError(f"hook {self.hook}: replacing x by itself does not give the model's own logits, so this place "
                              "cannot be spliced; give the input of a block")


def first(inputs: Inputs) -> torch.Tensor:
    """The token ids ``[batch, tokens]`` among the model's inputs, whatever their name is."""
    return next(iter(inputs.values()))


def logits_of(output: Any) -> torch.Tensor:
    """The logits of a model's output: transformers wraps them, TransformerLens does not."""
    return output if isinstance(output, torch.Tensor) else output.logits


def find_module(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module of this path."""
    modules = dict(model.named_modules())
    if not path or path not in modules:
        close = difflib.get_close_matches(path, modules, n=5, cutoff=0.3) or list(modules)[1:9]
        raise DynamicSaeError(f"hook {path}: this model has no such module; close: {', '.join(close)}")
    return modules[path]
