"""Tensors laid end to end in one member, so that each can be used where it lies in the mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt.artifact.container import ALIGNMENT, Content

WEIGHTS = "weights.bin"
"""What the program needs to run."""
GRAPH_WEIGHTS = "graphs.bin"
"""What only the graphs kept for inspection need; never touched by a run."""

Data = Callable[[], bytes | memoryview]


class Store:
    """A member under construction: every piece `ALIGNMENT`-aligned, equal pieces stored once."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._offsets: dict[bytes, int] = {}
        self._pieces: list[Data] = []

    def find(self, digest: bytes) -> int | None:
        """The offset of the piece with this SHA-256, if there is one."""
        return self._offsets.get(digest)

    def add(self, data: Data, digest: bytes | None = None) -> int:
        """The offset of the bytes `data` gives; it is called again when they are written."""
        piece = data()
        digest = digest or hashlib.sha256(piece).digest()
        if digest not in self._offsets:
            self._offsets[digest] = self.nbytes
            self._pieces.append(data)
            self.nbytes += len(piece) + -len(piece) % ALIGNMENT
        return self._offsets[digest]

    def content(self) -> Content:
        """The member, padded to the alignment."""
        return Content(self.nbytes, self._write)

    def _write(self) -> Iterator[bytes | memoryview]:
        for data in self._pieces:
            piece = data()
            yield piece
            yield bytes(-len(piece) % ALIGNMENT)


def raw(array: np.ndarray[Any, Any]) -> memoryview:
    """The array's bytes in C order, without a copy where it lies so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def view(data: memoryview, offset: int, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray[Any, Any]:
    """The array that lies at `offset` in `data`, without a copy; ValueError when it reaches past the end."""
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if offset + nbytes > len(data):
        raise ValueError(f"a tensor of {nbytes} bytes at {offset} reaches past the end, {len(data)}")
    return np.frombuffer(data[offset : offset + nbytes], dtype).reshape(shape)
