"""Rank correlations of weighted rows. A bootstrap draw is a weight per row, so nothing is copied or sorted again per draw."""

from collections.abc import Iterator, Sequence

import numpy as np

INTERVAL = (2.5, 97.5)  # per cent
GROUPS = 10


class Ordered:
    """A variable whose values were sorted once: its ranks under any weights then take linear time."""

    def __init__(self, values: np.ndarray):
        distinct, self.place = np.unique(np.asarray(values), return_inverse=True)
        self.distinct = len(distinct)

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """The rank of every row [n], where a row counts as often as its weight says. Equal values share the mean rank."""
        at = np.bincount(self.place, weights, self.distinct)
        return (np.cumsum(at) - at / 2)[self.place]


def rank_correlations(variables: Sequence[Ordered], weights: np.ndarray) -> np.ndarray:
    """Spearman's rho between all variables, [v, v]; NaN for one that is constant on the rows that have a weight."""
    ranks = np.stack([variable.ranks(weights) for variable in variables]) - weights.sum() / 2
    products = (ranks * weights) @ ranks.T
    spread = np.sqrt(np.diag(products))
    spread[spread <= 1e-9 * weights.sum()] = np.nan
    return products / np.outer(spread, spread)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(rank_correlations([Ordered(x), Ordered(y)], np.ones(len(x)))[0, 1])


def partial(xy: np.ndarray, xz: np.ndarray, yz: np.ndarray) -> np.ndarray:
    """The correlation of x and y given z, from the three correlations; NaN where z is x or y."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def unit_draws(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Weights [units]: first all units once, then `draws` bootstrap draws. The same seed gives the same draws."""
    yield np.ones(units)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(units, size=units), minlength=units).astype(float)


def correlations(variables: Sequence[np.ndarray], unit: np.ndarray, units: int, draws: int, seed: int) -> np.ndarray:
    """Spearman's rho between all variables on the rows as they are and in every draw, [draws + 1, v, v].

    `unit` [n] is the unit (document or row) of every row, one of 0..units. A draw takes whole units with replacement.
    """
    ordered = [Ordered(values) for values in variables]
    return np.stack([rank_correlations(ordered, weights[unit]) for weights in unit_draws(units, draws, seed)])


def told(values: np.ndarray) -> dict[str, float]:
    """The value on the rows as they are, and the interval of the draws behind it."""
    low, high = np.nanpercentile(values[1:], INTERVAL)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def tenths(values: np.ndarray) -> np.ndarray:
    """The group [n] of every row, from 0: tenths by the order of the values, fewer where equal values would be cut apart."""
    edges = np.unique(np.sort(values)[[-(-len(values) * i // GROUPS) - 1 for i in range(1, GROUPS)]])
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1]


def group_means(values: np.ndarray, group: np.ndarray, unit: np.ndarray, units: int, draws: int, seed: int) -> np.ndarray:
    """The mean [draws + 1, groups] of the values in every group; the groups stay as they are on all rows."""
    groups = int(group.max()) + 1
    place = unit * groups + group
    sums, counts = (np.bincount(place, w, units * groups).reshape(units, groups) for w in (values, None))
    rows = []
    for weights in unit_draws(units, draws, seed):
        count = weights @ counts
        rows.append(np.divide(weights @ sums, count, out=np.full(groups, np.nan), where=count > 0))
    return np.stack(rows)
