"""The parts of export_activations.py: documents, the model, and shards."""

import argparse
import pathlib

import torch

TOOL = "export_activations 1"

Args = argparse.Namespace
Inputs = dict[str, torch.Tensor]


class ExportError(Exception):
    """A mistake in the arguments or the data, told in one line."""


def check_writable(path: pathlib.Path | None) -> None:
    """Fails before hours of work if the directory of a file to write is not there."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: there is no directory {path.absolute().parent}")
