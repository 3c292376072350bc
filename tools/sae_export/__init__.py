"""The parts of export_activations.py: documents, the model, and shards."""

import argparse

import torch

TOOL = "export_activations 1"

Args = argparse.Namespace
Inputs = dict[str, torch.Tensor]


class ExportError(Exception):
    """A mistake in the arguments or the data, told in one line."""
