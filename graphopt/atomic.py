"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

from graphopt.errors import FULL, HostError, UsageError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Generator[Path, None, None]:
    """Yield a scratch path beside `path`; the file written there takes `path`'s place when the block ends.

    It is flushed to the disk and renamed over `path`, which keeps its old content until then. When the block
    raises (Ctrl-C included) the scratch file is removed and `path` is as it was. The scratch path has the same
    suffix as `path`.

    Raises:
        UsageError: `path` is a folder or a device, its folder does not exist, or the disk refuses.
        HostError: the disk is full.
    """
    target = check_writable(path)
    scratch = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}{target.suffix}")
    try:
        yield scratch
        _sync(scratch)
        os.replace(scratch, target)
        _sync(target.parent)
    except OSError as error:
        if error.filename not in (None, str(scratch), str(target.parent)):
            raise  # some other file of the caller's
        kind = HostError if error.errno in FULL else UsageError
        raise kind(f"can't write {path}: {error.strerror or error}.") from error
    finally:
        scratch.unlink(missing_ok=True)


def check_writable(path: str | Path) -> Path:
    """The file that writing `path` would replace (links followed). Long work asks before it starts.

    Raises:
        UsageError: `path` is a folder or a device, or its folder does not exist or may not be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UsageError(f"can't write {path}: it exists and is not a regular file. Name another output file.")
    if not target.parent.is_dir():
        raise UsageError(f"can't write {path}: there is no folder {target.parent}. Create it, or name another one.")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"can't write {path}: the folder {target.parent} is read-only. Name another one.")
    return target


def _sync(path: Path) -> None:
    """Have the operating system put `path` (a file, or a folder's entries) on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows can't open a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
