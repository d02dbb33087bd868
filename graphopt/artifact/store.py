"""Tensors laid end to end in one member, so that each can be used where it lies in the mapped file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from graphopt.artifact import zeros
from graphopt.artifact.container import ALIGNMENT, Content
from graphopt.packed import HALVES, from_bytes, nbytes_of
from graphopt.spill import let_go

WEIGHTS = "weights.bin"
"""What the program needs to run."""
GRAPH_WEIGHTS = "graphs.bin"
"""What only the graphs kept for inspection need; never touched by a run."""

Data = Callable[[], bytes | memoryview]


class Place(NamedTuple):
    """Where a piece lies in its member: from `offset` on, in `encoded` bytes where its zeros are left out."""

    offset: int
    encoded: int | None


class Store:
    """A member under construction: every piece `ALIGNMENT`-aligned, equal pieces stored once, without many zeros."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._places: dict[bytes, Place] = {}
        self._pieces: list[Data] = []

    def find(self, digest: bytes) -> Place | None:
        """The place of the piece with this SHA-256, if there is one."""
        return self._places.get(digest)

    def add(self, data: Data, itemsize: int, digest: bytes | None = None) -> Place:
        """The place of the bytes `data` gives, elements of `itemsize`; it is called again when they are written."""
        piece = data()
        digest = digest or hashlib.sha256(piece).digest()
        if digest not in self._places:
            encoded = zeros.encode(piece, itemsize)
            self._pieces.append(data if encoded is None else lambda: encoded)
            self._places[digest] = Place(self.nbytes, None if encoded is None else len(encoded))
            nbytes = len(piece if encoded is None else encoded)
            self.nbytes += nbytes + -nbytes % ALIGNMENT
        let_go(piece)
        return self._places[digest]

    def content(self) -> Content:
        """The member, padded to the alignment."""
        return Content(self.nbytes, self._write)

    def _write(self) -> Iterator[bytes | memoryview]:
        for data in self._pieces:
            piece = data()
            yield piece
            let_go(piece)
            yield bytes(-len(piece) % ALIGNMENT)


def view(data: memoryview, place: Place, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray[Any, Any]:
    """The array that lies at `place` in `data`, without a copy unless it is encoded or of 4 bits.

    Raises:
        ValueError: it reaches past the end, or is not what is encoded there.
    """
    whole = nbytes_of(dtype, shape)
    offset, nbytes = place.offset, whole if place.encoded is None else place.encoded
    if offset + nbytes > len(data):
        raise ValueError(f"a tensor of {nbytes} bytes at {offset} reaches past the end, {len(data)}")
    if place.encoded is None:
        return from_bytes(data[offset : offset + nbytes], dtype, shape)
    if whole > zeros.MOST * nbytes:
        raise ValueError(f"{nbytes} bytes can't encode {whole}")
    buffer = room(whole)
    zeros.decode(data[offset : offset + nbytes], buffer.view("u1" if dtype.name in HALVES else dtype))
    return from_bytes(buffer.data, dtype, shape)


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy whose data is `ALIGNMENT`-aligned."""
    copy = room(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def room(nbytes: int) -> np.ndarray[Any, Any]:
    """So many bytes, unset, `ALIGNMENT`-aligned."""
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes]
