"""Sparse autoencoders with dynamic attention (arXiv 2604.14925), trained and evaluated by the programs of this package.

The programs ``sae-train``, ``sae-eval`` and ``sae-data`` come with it; this module opens what they write, and hands them what you
have in Python. Importing it imports neither torch nor scipy: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import DynamicSaeError

if TYPE_CHECKING:
    from .lm import evaluate_lm
    from .model import NumpySae, load
    from .reports import report
    from .sparse_codes import codes
    from .training import train
    from .writer import ActivationWriter

__all__ = ["ActivationWriter", "DynamicSaeError", "NumpySae", "__version__", "codes", "evaluate_lm", "load", "report", "train"]

HOMES = {
    "ActivationWriter": "writer", "NumpySae": "model", "codes": "sparse_codes", "evaluate_lm": "lm", "load": "model",
    "report": "reports", "train": "training",
}


def __getattr__(name: str) -> Any:
    """Loads a name when it is first used."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("dynamic-sae")
    if name in HOMES:
        value = getattr(importlib.import_module(f".{HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
