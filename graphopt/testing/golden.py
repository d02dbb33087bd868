"""Text that must stay as it is."""

from __future__ import annotations

from pathlib import Path


def assert_golden(text: str, path: Path, update: bool) -> None:
    """`text` equals the file at `path`; with `update` (pytest --update-golden) the file is written instead."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"{path} does not exist; run pytest --update-golden and read what it writes"
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}: see pytest --update-golden"
