"""Large arrays that are made while compiling, kept in a file without a name instead of in memory."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LARGE = 1 << 25
"""Bytes from which an array is worth a file."""


class Spilled(np.memmap[Any, Any]):
    """An array in a file of our own; read only."""


def spilled(array: Array) -> Array:
    """`array`, or where it is large the same in a file that goes with the last use of it.

    Raises:
        OSError: there is no room for it.
    """
    if array.nbytes < LARGE or array.dtype.isbuiltin != 1:
        return array
    with tempfile.TemporaryFile(prefix="graphopt-") as file:
        for start in range(0, len(array), step := max(1, LARGE * len(array) // array.nbytes)):
            file.write(np.ascontiguousarray(array[start : start + step]).data)
        file.flush()
        return Spilled(file, array.dtype, "r", shape=array.shape)


def let_go(data: bytes | memoryview) -> None:
    """Give back the memory of a spilled array's pages, if `data` is one's; they are read again when used again."""
    owner: Any = data.obj if isinstance(data, memoryview) else None
    ours = False
    while isinstance(owner, np.ndarray):
        ours = ours or isinstance(owner, Spilled)
        owner = owner.base
    if ours and isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
