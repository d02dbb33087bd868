"""Tensors that are mostly zeros, stored as which elements are not, and those: exact, and as much smaller as they are.

A bit for each element, the first one highest, padded to whole bytes, then the elements that are not zero, in order.
Zero is what has only zero bits: negative zeros and everything else come back bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WORTH = 0.75
"""Part of its size that a tensor may keep at most: what is not encoded is used where it lies in the file."""
SMALL = 1024
"""Bytes under which nothing is gained."""
MOST = 128
"""Times its encoding that a tensor is at most: a bit for each element of 16 bytes."""
_CHUNK = 1 << 23


def encode(data: bytes | memoryview, itemsize: int) -> bytes | None:
    """The elements of `itemsize` bytes in `data` without the zeros, or None where that is not worth it."""
    if len(data) < SMALL:
        return None
    items = _items(np.frombuffer(data, np.uint8), itemsize)
    used = np.empty(len(items), bool)
    for start in range(0, len(items), _CHUNK):
        part = slice(start, start + _CHUNK)
        used[part] = items[part] != 0 if items.ndim == 1 else items[part].any(axis=1)
    if len(items) / 8 + np.count_nonzero(used) * itemsize > WORTH * len(data):
        return None
    return np.packbits(used).tobytes() + items[used].tobytes()


def decode(data: memoryview, out: Array) -> None:
    """Write the elements that `data` encodes into the contiguous array `out`.

    Raises:
        ValueError: they are of another number.
    """
    items = _items(out.reshape(-1).view(np.uint8), out.itemsize)
    bits = -(-len(items) // 8)
    if len(data) < bits:
        raise ValueError(f"{len(data)} bytes hold no bit for each of {len(items)} elements")
    used = np.unpackbits(np.frombuffer(data[:bits], np.uint8), count=len(items)).astype(bool)
    values = data[bits:]
    if len(values) != np.count_nonzero(used) * out.itemsize:
        raise ValueError(f"{len(values)} bytes are not {np.count_nonzero(used)} elements of {out.itemsize} bytes")
    items[...] = 0
    items[used] = _items(np.frombuffer(values, np.uint8), out.itemsize)


def _items(data: Array, itemsize: int) -> Array:
    """The bytes as unsigned integers of `itemsize`, or as rows of bytes where there is no such integer."""
    return data.view(f"u{itemsize}") if itemsize in (1, 2, 4, 8) else data.reshape(-1, itemsize)
