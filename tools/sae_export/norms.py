"""Limits of the norm of rows, as data.max_norm has them."""

import re

from . import ExportError


def parse_norm(given: str) -> tuple[float, bool]:
    """A number, and whether it counts medians: "1500" or "10x median"."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(x\s*median)?\s*", given)
    try:
        factor = float(match[1]) if match else -1.0
    except ValueError:
        factor = -1.0
    if not factor > 0:
        raise ExportError(f'{given}: expected a norm, such as 1500, or "10x median"')
    return factor, bool(match[2])
