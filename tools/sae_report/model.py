"""A saved model in numpy float64: all architectures (sae-model/src/sae.rs has the equations)."""

import json

import numpy as np

from .data import tensors


def sparsemax(z):
    s = -np.sort(-z, axis=1)
    c = np.cumsum(s, axis=1)
    k = np.arange(1, z.shape[1] + 1)
    size = ((1 + k * s) > c).sum(1)
    tau = (np.take_along_axis(c, size[:, None] - 1, 1)[:, 0] - 1) / size
    return np.maximum(z - tau[:, None], 0)


def topk(z, k):
    kth = -np.partition(-z, k - 1, axis=1)[:, k - 1 : k]
    return np.maximum(z, 0) * (z >= kth)


class Model:
    def __init__(self, cfg, weights):
        self.own = cfg["architecture"]  # its switches
        self.architecture = self.own["name"]
        self.cfg, self.w = cfg, {k: np.asarray(v, np.float64) for k, v in weights.items()}
        w, encoder = self.w, self.w.get("W_enc", self.w["W_dec"])
        self.keys = encoder @ w["W_K"] if cfg["key_projection"] else encoder
        self.values = w["W_dec"] @ w["W_V"] if cfg["value_projection"] else w["W_dec"]

    @classmethod
    def load(cls, directory):
        saved = json.loads((directory / "cfg.json").read_text())
        model = cls(saved["model"], {k: v for k, (_, v) in tensors(directory / "sae.safetensors").items()})
        model.seed = saved["seed"]
        return model

    def block(self):
        """Rows per block: 64 MB of scores."""
        return max(16, (1 << 23) // self.cfg["n_latents"])

    def encode(self, x):
        """(codes [B, M], the factor [B, 1] that the decoder multiplies by)."""
        cfg, w = self.cfg, self.w
        x0 = x - w["b_dec"] if cfg["pre_bias"] else x
        s = cfg["input_scale"]
        norms = np.sqrt(np.maximum((x0**2).sum(1, keepdims=True), 1e-24))
        ratio = norms / s
        near = np.clip(ratio, 1 / cfg["norm_range"], cfg["norm_range"]) if cfg.get("norm_range") else ratio
        n = s * near ** (cfg["norm_exponent"] - 1) * ratio
        u = q = x0 / n
        if cfg["query_projection"]:
            q = q @ w["W_Q"]
        z = q @ self.keys.T * cfg["scale"]
        if cfg["encoder_bias"]:
            z = z + w["b_gate" if self.architecture == "gated" else "b_enc"]
        return self.refine(self.select(z), u), n

    def refine(self, a, u):
        """Steepest descent on |u - a V|^2 over the values of the selected latents, with exact steps."""
        support = a != 0
        for _ in range(self.own.get("refinement", 0)):
            residual = u - a @ self.values
            slope = residual @ self.values.T * support
            moved = slope @ self.values
            step = (slope**2).sum(1, keepdims=True) / np.maximum((moved**2).sum(1, keepdims=True), 1e-24)
            a = a + step * slope
        return a

    def select(self, z):
        cfg, own, w, architecture = self.cfg, self.own, self.w, self.architecture
        if architecture in ("attention", "mlp_sparsemax"):
            p = sparsemax(z)
            return p if own["value"] == "probability" else z / cfg["scale"] * (p > 0)
        if architecture in ("relu", "attention_relu"):
            return np.maximum(z, 0)
        if architecture == "topk":
            return topk(z, own["k"])
        if architecture in ("batch_topk", "matryoshka"):
            threshold = w["threshold"][0]  # 0: it was never measured
            return z * (z > threshold) if threshold else topk(z, own["k"])
        if architecture == "jumprelu":
            return z * (z > w["threshold"])
        if architecture == "gated":
            shared = z - w["b_gate"] if cfg["encoder_bias"] else z
            magnitude = np.exp(w["r_mag"]) * shared + w["b_mag"]
            return np.maximum(magnitude, 0) * (z > 0)
        raise ValueError(architecture)

    def decode(self, a, n):
        x_hat = n * (a @ self.values)
        return x_hat + self.w["b_dec"] if self.cfg["pre_bias"] else x_hat
