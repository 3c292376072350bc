"""All numbers: rho of L0 with every measure, given the norm, between methods, and mean L0 per tenth, with intervals."""

from collections.abc import Iterator

import numpy as np

from .measures import Found, Measure
from .ranks import correlations, group_means, partial, tenths, told
from .runs import Method

NORM = "norm of the row"
FLAT = 1e-3  # standard deviation of norms over their mean; below it their order is that of rounding errors


def norm_varies(norms: np.ndarray) -> bool:
    return bool(norms.std() > FLAT * norms.mean())


def analyse(methods: list[Method], found: Found, norms: np.ndarray, draws: int, seed: int) -> list[dict]:
    """One entry per measure; the last is the norm, which models see, unless it hardly varies."""
    with_norm = norm_varies(norms)
    measures = [*found.measures, Measure(NORM, norms)] if with_norm else found.measures
    units = int(found.unit.max()) + 1
    entries: dict[str, dict] = {}
    for some, rows in same_rows(measures):
        variables = [own[rows] for method in methods for own in method.l0]
        variables += [measure.values[rows] for measure in some] + ([norms[rows]] if with_norm else [])
        rho = correlations(variables, found.unit[rows], units, draws, seed)
        runs = sum(len(method.l0) for method in methods)
        for i, measure in enumerate(some):
            entry = {"name": measure.name, "control": measure.name == NORM, "complex": measure.complex, "rows": int(rows.sum())}
            entry |= of_measure(methods, rho, runs + i, len(variables) - 1 if with_norm else None, measure.name == NORM)
            entry["tenths"] = by_tenth(methods, measure.values[rows], rows, found.unit[rows], units, draws, seed)
            entries[measure.name] = entry
    return [entries[measure.name] for measure in measures]


def same_rows(measures: list[Measure]) -> Iterator[tuple[list[Measure], np.ndarray]]:
    """Measures that have values on the same rows, with these rows, so that L0 is ranked once for all of them."""
    groups: dict[bytes, list[Measure]] = {}
    for measure in measures:
        groups.setdefault(np.isfinite(measure.values).tobytes(), []).append(measure)
    for some in groups.values():
        yield some, np.isfinite(some[0].values)


def of_measure(methods: list[Method], rho: np.ndarray, measure: int, norm: int | None, control: bool) -> dict:
    """Of one measure, from the correlations [draws + 1, v, v] between all variables; runs come first among these."""
    own, given, per_run, at = {}, {}, {}, 0
    for method in methods:
        runs = slice(at, at + len(method.l0))
        at = runs.stop
        own[method.name] = rho[:, runs, measure].mean(1)
        per_run[method.name] = rho[0, runs, measure].tolist()
        if norm is not None and not control:
            given[method.name] = partial(rho[:, runs, measure], rho[:, runs, norm], rho[:, measure, norm][:, None]).mean(1)
    entry = {"methods": {name: {"rho": told(values), "runs": per_run[name]} for name, values in own.items()}}
    for name, values in given.items():
        entry["methods"][name]["given_norm"] = told(values)
    entry["differences"] = differences(own)
    entry["differences_given_norm"] = differences(given)
    return entry


def differences(rho: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """|rho| of the first method minus |rho| of each other. The signs are those on the rows as they are, also in draws."""
    if not rho:
        return {}
    strength = {name: values * np.sign(values[0]) for name, values in rho.items()}
    first = next(iter(strength.values()))
    return {name: told(first - values) for name, values in list(strength.items())[1:]}


def by_tenth(
    methods: list[Method], values: np.ndarray, rows: np.ndarray, unit: np.ndarray, units: int, draws: int, seed: int
) -> list[dict]:
    group = tenths(values)
    means = {
        method.name: group_means(np.mean([own[rows] for own in method.l0], axis=0), group, unit, units, draws, seed)
        for method in methods
    }
    found, before = [], 0
    for i in range(int(group.max()) + 1):
        inside = values[group == i]
        middle = (before + len(inside) / 2) / len(values)
        before += len(inside)
        l0 = {name: told(own[:, i]) for name, own in means.items()}
        about = {
            "rows": len(inside),
            "from": float(inside.min()),
            "to": float(inside.max()),
            "median": float(np.median(inside)),
        }
        found.append(about | {"middle": middle, "l0": l0})
    return found
