"""A saved model as a ``torch.nn.Module``."""

import numpy as np
import torch

from . import equations, model, saved

MEASURED = ("threshold",)  # not learned where it has one entry: a running mean of what batches did


class TorchSae(torch.nn.Module):
    """A sparse autoencoder of any architecture, differentiable, with the parameters' names of ``sae.safetensors``.

    Gradients flow through the selected latents; which latents are selected is fixed.

    Args:
        config: what the model computes.
        weights: its tensors, float32, by name.
    """

    def __init__(self, config: saved.Config, weights: dict[str, np.ndarray]):
        super().__init__()
        self.config = config
        for name, values in weights.items():
            tensor = torch.from_numpy(np.array(values))
            if name in MEASURED and tensor.numel() == 1:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, torch.nn.Parameter(tensor))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name."""
        return dict(self.named_parameters()) | dict(self.named_buffers())

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents ``[..., M]`` of rows ``x [..., d]``, in units of x."""
        a, n = equations.encode(x, self.weights, self.config, equations.Torch())
        return a * n

    def row_norms(self, x: torch.Tensor) -> torch.Tensor:
        """``n [..., 1]``: ``encode(x) / row_norms(x)`` are the latents that ``sae-eval encode`` writes."""
        weights = self.weights
        return equations.row_norms(x - weights["b_dec"] if "b_dec" in weights else x, self.config)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``x_hat [..., d]`` of latents ``[..., M]`` in units of x; linear, but for b_dec."""
        return equations.decode(latents, self.weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x_hat [..., d]`` of rows ``x [..., d]``."""
        return self.decode(self.encode(x))

    @property
    def directions(self) -> torch.Tensor:
        """What one unit of each latent adds to a row, ``[M, d]``: ``W_dec W_V``. For steering and for comparing dictionaries."""
        weights = self.weights
        return weights["W_dec"] @ weights["W_V"] if "W_V" in weights else weights["W_dec"]

    def __repr__(self) -> str:
        return model.described(self)
