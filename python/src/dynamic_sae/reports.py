"""The report of a run, as ``sae-eval RUN`` writes it (docs/REPORT.md)."""

import json
import pathlib
from typing import Any

from .errors import DynamicSaeError

SCHEMA, FILE = "sae-eval-report", "report.json"


def report(path: str | pathlib.Path) -> dict[str, Any]:
    """``report.json`` of a run.

    Args:
        path: the run directory, or one that has a ``report.json``, such as ``RUN/reports/step-00000300``, or the file.

    Returns:
        the report; docs/METRICS.md has the definitions of what it measures.

    Raises:
        DynamicSaeError: if there is no report, or the file is none.
    """
    path = pathlib.Path(path)
    candidates = [path] if path.is_file() else [path / "reports" / FILE, path / FILE]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        if not path.exists():
            raise DynamicSaeError(f"{path}: there is no such directory")
        if (path / "config.toml").is_file():
            raise DynamicSaeError(f"{path}: this run has no report yet; make it with: sae-eval {path}")
        raise DynamicSaeError(f"{path}: neither a run nor a directory with a {FILE}; give the directory of a run")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DynamicSaeError(f"{file}: not valid JSON ({error}); make the report again with sae-eval RUN") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DynamicSaeError(f'{file}: key "schema" is not "{SCHEMA}"; this is not a report of sae-eval')
    return content
