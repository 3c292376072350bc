"""Runs the blocks of a model from a hidden state on, with rows of this state replaced."""

import contextlib
from collections.abc import Iterator

import torch

from . import ExportError
from .states import blocks_of


class Splice:
    """Replaces hidden state `layer` of a tower: the decoder, encoder or vision tower that has the blocks.

    The blocks below return their input, since their result is replaced anyway. The last hidden state of an encoder is the
    result of its last block. That of a decoder comes after its final norm, so `head`, its unembedding, gets it at once.
    """

    def __init__(self, tower: torch.nn.Module, layer: int, head: torch.nn.Module | None = None):
        blocks = blocks_of(tower)
        if blocks is None or not 0 <= layer <= len(blocks):
            raise ExportError(f"layer {layer}: rows can be replaced at hidden states 0 to {len(blocks or [])}")
        self.below = blocks[:layer]
        if layer < len(blocks):
            self.entry = blocks[layer]
        else:
            self.entry = head if head is not None else blocks[-1]  # which returns its input, as those below it

    @contextlib.contextmanager
    def of(self, hidden: torch.Tensor) -> Iterator[None]:
        """Within it, the model goes on from `hidden` [batch, tokens, d], whatever its inputs are."""

        def replace(_module: torch.nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
            if positional:
                return (hidden, *positional[1:]), named
            return positional, named | {"hidden_states": hidden}

        handle = self.entry.register_forward_pre_hook(replace, with_kwargs=True)
        try:
            for block in self.below:
                block.forward = lambda hidden_states, *_, **__: hidden_states
            yield
        finally:
            handle.remove()
            for block in self.below:
                block.__dict__.pop("forward", None)
