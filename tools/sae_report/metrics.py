"""Metrics of reconstruction and sparsity, ours and other toolkits', from sums over blocks of rows."""

import numpy as np


class Totals:
    """Sums over all rows, which come in blocks; `mean` is the mean of all rows (docs/METRICS.md has the formulas)."""

    def __init__(self, mean, latents):
        self.mean, self.s, self.n, self.latents = mean, {}, 0, latents
        self.l0, self.residual = [], np.zeros(len(mean))
        self.squares, self.distances = [], []
        self.fired = np.zeros(latents, np.int64)
        self.mass, self.strong = np.zeros(latents), np.zeros(latents, bool)

    def add(self, x, x_hat, a):
        with np.errstate(divide="ignore", invalid="ignore"):
            e = x - x_hat
            error, square, square_hat = (e**2).sum(1), (x**2).sum(1), (x_hat**2).sum(1)
            norm, norm_hat, dot = np.sqrt(square), np.sqrt(square_hat), (x * x_hat).sum(1)
            centred, norms, l1 = ((x - self.mean) ** 2).sum(1), np.sqrt(square) * np.sqrt(square_hat), np.abs(a).sum(1)
            sums = {
                "error": error, "error_norm": np.sqrt(error), "square": square, "square_hat": square_hat, "dot": dot,
                "centred": centred, "error_by_square": error / square, "error_by_norm": error / norm,
                "error_by_centred": error / centred, "rowwise": error[square > 0] / square[square > 0],
                "zero_rows": square == 0, "cosine_raw": dot / norms,
                "cosine": np.divide(dot, norms, out=np.zeros(len(x)), where=norms > 0),
                "ratio": norm_hat / norm, "ratio_guarded": norm_hat / np.where(norm < 1e-4, 1, norm),
                "l1": l1, "l1_by_norm": l1 / norm, "positive": (a > 0).sum(1),
            }
        for name, values in sums.items():
            self.s[name] = self.s.get(name, 0) + values.sum()
        self.n += len(x)
        self.squares.append(square)
        self.distances.append(centred)
        self.residual += e.sum(0)
        self.l0.append((a != 0).sum(1))
        self.fired += (a != 0).sum(0)
        self.mass += a.sum(0)
        self.strong |= (a > 1e-3).any(0)

    def variance_share(self):
        """The share of the variance in the 0.1 % of rows with the largest norms; of equal norms the first rows."""
        squares, distances = np.concatenate(self.squares), np.concatenate(self.distances)
        largest = np.argsort(-squares, kind="stable")[: -(-len(squares) // 1000)]
        return distances[largest].sum() / distances.sum()

    def reconstruction(self):
        s, n = self.s, self.n
        with np.errstate(divide="ignore", invalid="ignore"):
            fvu = np.float64(s["error"]) / s["centred"]
            return {
                "mse": s["error"] / (n * len(self.mean)),
                "fvu": fvu,
                "explained_variance": 1 - fvu,
                "nmse_uncentred": s["error"] / s["square"],
                "nmse_rowwise": np.float64(s["rowwise"]) / (n - s["zero_rows"]),
                "cosine": s["cosine"] / n,
                "zero_rows": s["zero_rows"],
                "variance_share_top_0.1_percent": self.variance_share(),
            }

    def sparsity(self):
        l0, dead = np.concatenate(self.l0), (self.fired == 0).sum()
        return {
            "l0_mean": l0.mean(),
            "l0_median": np.percentile(l0, 50),
            "l0_p5": np.percentile(l0, 5),
            "l0_p95": np.percentile(l0, 95),
            "l0_positive_mean": self.s["positive"] / self.n,
            "dead_fraction": dead / self.latents,
            "dead_latents": dead,
        }

    def histograms(self):
        """name -> (edges, counts)."""
        by_l0 = np.bincount(np.concatenate(self.l0))
        step = max(1, -(-len(by_l0) // 40))
        counts = np.add.reduceat(by_l0, np.arange(0, len(by_l0), step))
        edges = np.concatenate([[0], 10 ** (np.arange(25) / 4 - 6)])
        place = np.clip(np.searchsorted(edges * (1 - 1e-12), self.fired / self.n, "right") - 1, 0, 24)
        return {
            "l0_histogram": (np.arange(len(counts) + 1) * step, counts),
            "firing_frequency_histogram": (edges, np.bincount(place, minlength=25)),
        }

    def toolkits(self):
        """Each toolkit's metrics, by (owner, the toolkit's name); the whole set is one batch."""
        s, n = {k: np.float64(v) for k, v in self.s.items()}, self.n
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = 1 - s["error"] / s["centred"]
            if s["centred"] / n < 1e-10:
                explained = float(s["error"] / n < 1e-10)
            shared = {
                "cossim": s["cosine_raw"] / n,
                "l0": self.fired.sum() / n,
                "relative_reconstruction_bias": s["square_hat"] / s["dot"],
            }
            residual = s["error"] - (self.residual**2).sum() / n
            by_owner = {
                "SAELens 6.54.12": shared | {
                    "mse": s["error"] / n,
                    "explained_variance": explained,
                    "explained_variance_legacy": 1 - s["error_by_centred"] / n,
                    "l1": s["l1"] / n,
                    "l2_ratio": s["ratio_guarded"] / n,
                },
                "dictionary_learning 0.1.0": shared | {
                    "l2_loss": s["error_norm"] / n,
                    "frac_variance_explained": 1 - residual / s["centred"],
                    "l1_loss": s["l1"] / n,
                    "l2_ratio": s["ratio"] / n,
                    "frac_alive": (self.mass != 0).mean(),
                },
                "sparsify 1.3.3": {"fvu": s["error"] / s["centred"]},
                "openai/sparse_autoencoder 4965b94": {
                    "normalized_mean_squared_error": s["error_by_square"] / n,
                    "normalized_mse": s["error"] / s["centred"],
                    "normalized_L1_loss": s["l1_by_norm"] / n,
                    "dead (stats_last_nonzero)": (~self.strong).mean(),
                },
                "Sparsemax-SAE 2192e4c (the paper's code)": {
                    "metrics/explained_variance": 1 - s["error"] / s["square"],
                    "losses/mse_loss": 10 * s["error_by_norm"] / (n * len(self.mean)),
                    "metrics/l0": s["positive"] / n,
                    "sparsity/dead_features": (self.fired / n < 1e-6).mean(),
                },
            }
        return {(owner, name): value for owner, metrics in by_owner.items() for name, value in metrics.items()}


def toolkits(x, x_hat, a):
    """The toolkits' metrics of whole arrays."""
    totals = Totals(x.mean(0), a.shape[1])
    totals.add(x, x_hat, a)
    return totals.toolkits()
