"""Recovery of known concepts: an independent assignment, and F1 of latents as detectors."""

import numpy as np

from .criteria import Scores, draws, kept

RECOVERED = 0.9


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def largest_sum(gain):
    """The largest sum of one entry per row of `gain` in different columns (Kuhn-Munkres); no more rows than columns."""
    rows, columns = gain.shape
    cost = np.zeros((rows + 1, columns + 1))
    cost[1:, 1:] = -gain
    u, v, row_of = np.zeros(rows + 1), np.zeros(columns + 1), np.zeros(columns + 1, int)
    for row in range(1, rows + 1):
        row_of[0], at = row, 0
        least, before, done = np.full(columns + 1, np.inf), np.zeros(columns + 1, int), np.zeros(columns + 1, bool)
        while row_of[at]:
            done[at] = True
            rest = cost[row_of[at]] - u[row_of[at]] - v
            closer = ~done & (rest < least)
            least[closer], before[closer] = rest[closer], at
            following = np.where(done, np.inf, least)
            following[0] = np.inf
            to = int(following.argmin())
            delta = following[to]
            u[row_of[done]] += delta
            v[done] -= delta
            least[~done] -= delta
            at = to
        while at:
            row_of[at] = row_of[before[at]]
            at = before[at]
    chosen = np.flatnonzero(row_of[1:])
    return gain[row_of[1:][chosen] - 1, chosen].sum()


class Recovery:
    """The numbers of the section; `pairs` has the report's latent, or None, for each concept."""

    def __init__(self, model, concepts, fired, pairs):
        self.cosines = unit(concepts) @ unit(model.values).T
        self.pairs, self.count = pairs, len(concepts)
        self.matched = np.array([0 if j is None else self.cosines[g, j] for g, j in enumerate(pairs)])
        recovered = (self.matched > RECOVERED).sum()
        self.near = (np.abs(self.matched - RECOVERED) < 1e-5).sum()
        self.alive = int((fired > 0).sum())
        self.numbers = {
            "mmcs": self.cosines.max(1).mean(),
            "mcc": self.matched.mean(),
            "recovered": recovered / self.count,
            "recovery_f1": 2 * recovered / (self.count + self.alive),
        }

    def best_sum(self):
        return largest_sum(self.cosines if self.count <= self.cosines.shape[1] else self.cosines.T)

    def firing(self, model, held_out, codes, bound):
        """Scores of each concept's latent as its detector."""
        rows = kept(held_out.rows, bound)
        times, said, truth = draws(len(rows)), [], []
        latents = [0 if j is None else j for j in self.pairs]
        there = np.array([j is not None for j in self.pairs])
        for some, x in held_out.blocks(model.block(), rows):
            said.append((model.encode(x)[0][:, latents] != 0) & there)
            truth.append(codes.read(held_out.row_numbers[some]) != 0)
        nobody = np.zeros(len(rows), bool)
        with np.errstate(invalid="ignore"):
            return [Scores(s, t, times, nobody) for s, t in zip(np.concatenate(said).T, np.concatenate(truth).T)]
