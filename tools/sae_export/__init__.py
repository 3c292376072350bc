"""The parts of export_activations.py: documents, the model, and shards."""

import argparse
import pathlib
import sys

import torch

# The format of shards is written in one place, by the Python package of this repository.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "src"))
from dynamic_sae import DynamicSaeError  # noqa: E402

__all__ = ["TOOL", "Args", "DynamicSaeError", "ExportError", "Inputs", "check_writable"]

TOOL = "export_activations 1"

Args = argparse.Namespace
Inputs = dict[str, torch.Tensor]


class ExportError(Exception):
    """A mistake in the arguments or the data, told in one line."""


def check_writable(path: pathlib.Path | None) -> None:
    """Fails before hours of work if the directory of a file to write is not there."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: there is no directory {path.absolute().parent}")
