"""The verdicts of a reduction, kept in a file, so that it can be taken up again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.debug.checks import Verdict
from graphopt.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir


class Verdicts:
    """Candidate -> verdict. With a path: a line of JSON each, after one that names the model and the check.

    The search is deterministic, so a second run asks for the same candidates and is answered from here.

    Raises:
        UsageError: the file is of another model or check, or is no such file.
    """

    def __init__(self, path: Path | None, model: ir.Model, label: str) -> None:
        self.path = path
        self.found: dict[str, Verdict] = {}
        if path is None:
            return
        from graphopt.atomic import check_writable
        from graphopt.graph.digest import digest

        check_writable(path)
        head = {"graphopt reduce": 1, "model": digest(model), "check": label}
        if path.exists() and path.stat().st_size:
            self._read(path, head)
        else:
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [row for row in map(_row, lines) if row is not None]  # an interrupted run leaves half a line
        if not rows or rows[0] != head:
            raise UsageError(f"{path} is not the state of this reduction: the model or the check is another one.")
        self.found = {row["candidate"]: Verdict(row["bad"], row["how"], row["message"]) for row in rows[1:]}
        if len(rows) != len(lines):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def get(self, key: str) -> Verdict | None:
        """The verdict of an earlier run, or of this one."""
        return self.found.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep it; on the disk at once."""
        self.found[key] = verdict
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"candidate": key, **dataclasses.asdict(verdict)}) + "\n")


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None  # pyright: ignore[reportUnknownVariableType]
