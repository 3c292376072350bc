"""Runs the blocks of a model from a hidden state on, with rows of this state replaced."""

import contextlib
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "src"))
from dynamic_sae.lm_place import replaced  # noqa: E402

from . import ExportError  # noqa: E402
from .states import blocks_of  # noqa: E402


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

    def of(self, hidden: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Within it, the model goes on from `hidden` [batch, tokens, d], whatever its inputs are."""
        return replaced(self.entry, self.below, hidden)
