"""The report: one HTML page that shows what happened to a model. See `docs/reporting.md`."""

from __future__ import annotations

from pathlib import Path

from graphopt.report.evidence import Evidence, gather, of_artifact, of_result, with_errors


def write(evidence: Evidence, path: str | Path) -> Path:
    """Write the report to `path`, whole or not at all; returns the path.

    Raises:
        UsageError: `path` can't be written.
    """
    from graphopt.atomic import atomic_write
    from graphopt.report.page import page

    text = page(evidence)
    with atomic_write(path) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return Path(path)


__all__ = ["Evidence", "gather", "of_artifact", "of_result", "with_errors", "write"]
