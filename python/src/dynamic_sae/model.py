"""Models to compute with: :func:`load` gives a ``torch.nn.Module``, or its numpy twin where torch is not installed."""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from . import equations, saved

if TYPE_CHECKING:
    import torch


class NumpySae:
    """A saved model in numpy. ``encode``, ``decode`` and calling it are those of the torch module.

    It computes in the type of the rows, in float32 at least: float64 rows are encoded in float64.
    """

    def __init__(self, config: saved.Config, weights: dict[str, np.ndarray]):
        self.config = config
        self.weights = weights

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Latents ``[..., M]`` of rows ``x [..., d]``, in units of x."""
        x = at_least_float32(x)
        a, n = equations.encode(x, self._weights_in(x.dtype), self.config, equations.Numpy())
        return a * n

    def row_norms(self, x: np.ndarray) -> np.ndarray:
        """``n [..., 1]``: ``encode(x) / row_norms(x)`` are the latents that ``sae-eval encode`` writes."""
        x = at_least_float32(x)
        x0 = x - self.weights["b_dec"] if "b_dec" in self.weights else x
        return equations.row_norms(x0, self.config)

    def _weights_in(self, dtype: np.dtype) -> dict[str, np.ndarray]:
        """The weights in the type of rows."""
        return {name: values.astype(dtype, copy=False) for name, values in self.weights.items()}

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """``x_hat [..., d]`` of latents ``[..., M]`` in units of x; linear, but for b_dec."""
        return equations.decode(latents, self.weights)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``x_hat [..., d]`` of rows ``x [..., d]``."""
        return self.decode(self.encode(x))

    def __repr__(self) -> str:
        return described(self)


def at_least_float32(x: np.ndarray) -> np.ndarray:
    """Rows in a type in which their norms can be summed: those of data sets are often float16."""
    x = np.asarray(x)
    return x.astype(np.result_type(x, np.float32), copy=False)


def described(sae: Any) -> str:
    """A model in a line."""
    config = sae.config
    return f"{type(sae).__name__}({config.architecture}, d_in={config.d_in}, n_latents={config.n_latents})"


def torch_class() -> type:
    """:class:`dynamic_sae.torch_model.TorchSae`; ImportError where torch is not installed."""
    from .torch_model import TorchSae

    return TorchSae


def load(path: str | pathlib.Path, device: "str | torch.device" = "cpu") -> Any:
    """The model of a run directory or of a saved model.

    Args:
        path: a run directory such as ``runs/quickstart``, or the directory of a saved model.
        device: torch device of the parameters.

    Returns:
        a ``torch.nn.Module`` (:class:`~dynamic_sae.torch_model.TorchSae`) with ``encode``, ``decode`` and ``forward``; without
        torch a :class:`NumpySae` with the same methods.

    Raises:
        DynamicSaeError: if the files are not those of a model.
    """
    config, weights = saved.read(path)
    try:
        module = torch_class()
    except ImportError:
        if str(device) != "cpu":
            raise
        return NumpySae(config, weights)
    return module(config, weights).to(device)
