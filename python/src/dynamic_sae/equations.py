"""The model's equations (arXiv 2604.14925, section 3), once for numpy arrays and torch tensors.

    x0 = x - b_dec                                       [..., d]
    n  = s (||x0|| / s)^p                                [..., 1]   p = 1 where ||x0|| / s leaves [1/R, R]
    u  = x0 / n                                          [..., d]
    z  = t u W_Q W_K^T W_enc^T + b_enc                   [..., M]   W_enc = W_dec for attention
    a  = refined(select(z))                              [..., M]   sparse
    x_hat = b_dec + n (a W_dec) W_V                      [..., d]

Latents are handed out as ``n a``, in units of x, so that decoding is linear: ``x_hat = b_dec + (n a) W_dec W_V``.
"""

from typing import Any, Protocol, TypeVar

import numpy as np

from .saved import Config

Array = TypeVar("Array", bound=Any)  # a numpy array or a torch tensor
TINY = 1e-24  # below this a squared norm counts as this


class Library(Protocol):
    """What numpy and torch call by different names."""

    def largest(self, z: Any, k: int) -> Any:
        """The k largest entries of the last axis, largest first."""

    def exp(self, z: Any) -> Any:
        """e^z."""


class Numpy:
    """numpy's names."""

    def largest(self, z: np.ndarray, k: int) -> np.ndarray:
        return -np.sort(np.partition(-z, k - 1, axis=-1)[..., :k], axis=-1)

    def exp(self, z: np.ndarray) -> np.ndarray:
        return np.exp(z)


class Torch:
    """torch's names."""

    def largest(self, z: Any, k: int) -> Any:
        return z.topk(k, dim=-1).values

    def exp(self, z: Any) -> Any:
        return z.exp()


def row_norms(x0: Array, config: Config) -> Array:
    """``n [..., 1]``, the norm that rows ``x0 [..., d]`` are divided by."""
    s, p, largest = config.input_scale, config.norm_exponent, config.norm_range
    ratio = (x0 * x0).sum(axis=-1, keepdims=True).clip(min=TINY) ** 0.5 / s
    if largest is None:
        return s * ratio**p
    return s * ratio.clip(min=1 / largest, max=largest) ** (p - 1) * ratio


def sparsemax(z: Array, library: Library) -> Array:
    """The projection of the last axis onto the simplex (Martins & Astudillo 2016): ``max(z - tau, 0)``, of sum one."""
    width, sorted_at_first = z.shape[-1], 128
    k = min(width, sorted_at_first)
    while True:  # supports are small: a few of the largest entries are enough, unless a row takes all of them
        top = library.largest(z, k)
        largest = top[..., :1]
        s = top - largest  # sums stay small
        ranks = (s * 0 + 1).cumsum(-1)  # 1, 2, 3, ...
        support = 1 + ranks * s > s.cumsum(-1)
        size = support.sum(axis=-1, keepdims=True)
        if k == width or int(size.max()) < k:
            break
        k = min(width, 4 * k)
    tau = ((s * support).sum(axis=-1, keepdims=True) - 1) / size.clip(min=1) + largest  # a row with NaN has no support
    return (z - tau).clip(min=0)


def topk(z: Array, k: int, library: Library) -> Array:
    """Mask of the k largest entries of the last axis; of equal ones the lower index comes first."""
    smallest = library.largest(z, k)[..., -1:]
    above, equal = z > smallest, z == smallest
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(axis=-1, keepdims=True)))


def select(z: Array, weights: dict[str, Array], config: Config, library: Library) -> Array:
    """Latents ``a [..., M]`` of scores ``z [..., M]``, by the architecture's rule."""
    options, architecture = config.options, config.architecture
    if architecture in ("attention", "mlp_sparsemax"):
        p = sparsemax(z, library)
        return p if options["value"] == "probability" else z / config.scale * (p > 0)
    if architecture in ("relu", "attention_relu"):
        return z.clip(min=0)
    if architecture == "jumprelu":
        return z * (z > weights["threshold"])
    if architecture == "gated":
        shared = z - weights["b_gate"] if config.encoder_bias else z
        magnitude = library.exp(weights["r_mag"]) * shared + weights["b_mag"]
        return magnitude.clip(min=0) * (z > 0)
    if architecture in ("batch_topk", "matryoshka") and float(weights["threshold"][0]) != 0.0:
        return z * (z > weights["threshold"])
    return z.clip(min=0) * topk(z, options["k"], library)  # topk; batch_topk whose threshold was never measured


def scores(u: Array, weights: dict[str, Array], config: Config) -> Array:
    """``z [..., M]`` of rows ``u [..., d]``."""
    q = u
    if "W_Q" in weights:
        q = q @ weights["W_Q"]
    if "W_K" in weights:
        q = q @ weights["W_K"].T
    z = (q * config.scale) @ weights.get("W_enc", weights["W_dec"]).T
    bias = weights.get("b_gate", weights.get("b_enc"))
    return z if bias is None else z + bias


def combined(a: Array, weights: dict[str, Array]) -> Array:
    """``(a W_dec) W_V``, ``[..., d]``."""
    y = a @ weights["W_dec"]
    return y @ weights["W_V"] if "W_V" in weights else y


def refined(a: Array, u: Array, weights: dict[str, Array], steps: int) -> Array:
    """Latents after steps of steepest descent on ``||u - a V||^2`` over the support of a, each of exact length."""
    support = a != 0
    for _ in range(steps):
        residual = u - combined(a, weights)
        back = residual @ weights["W_V"].T if "W_V" in weights else residual
        slope = back @ weights["W_dec"].T * support
        moved = combined(slope, weights)
        length = (moved * residual).sum(axis=-1, keepdims=True) / (moved * moved).sum(axis=-1, keepdims=True).clip(min=TINY)
        a = a + length * slope
    return a


def encode(x: Array, weights: dict[str, Array], config: Config, library: Library) -> tuple[Array, Array]:
    """``(a [..., M], n [..., 1])`` of rows ``x [..., d]``."""
    x0 = x - weights["b_dec"] if "b_dec" in weights else x
    n = row_norms(x0, config)
    u = x0 / n
    a = select(scores(u, weights, config), weights, config, library)
    return refined(a, u, weights, config.refinement), n


def decode(latents: Array, weights: dict[str, Array]) -> Array:
    """``x_hat [..., d]`` of latents in units of x, ``[..., M]``: ``b_dec + (latents W_dec) W_V``."""
    x_hat = combined(latents, weights)
    return x_hat + weights["b_dec"] if "b_dec" in weights else x_hat
