"""The cache directory: what is fetched or built once. Files appear in it whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Where fetched and built models lie: `$GRAPHOPT_CACHE`, else the user's cache directory."""
    return Path(os.environ.get("GRAPHOPT_CACHE") or platformdirs.user_cache_dir("graphopt"))


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there; nothing is left if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
        partial = Path(scratch) / path.name
        write(partial)
        partial.replace(path)
    return path


def built(name: str, write: Callable[[Path], None], *builders: str) -> Path:
    """The cached file `name`, made by `write` on first use.

    `builders` are the `__file__`s of the code that makes it: their hash is part of the place, so an edited
    builder never meets its own old output.
    """
    digest = hashlib.sha256(b"".join(Path(builder).read_bytes() for builder in builders)).hexdigest()[:12]
    path = cache_dir() / "built" / digest / name
    return path if path.exists() else write_whole(path, write)
