"""Sliding windows over images: where they go, unfolding into columns, folding columns back.

Here images are (C, *space, N): with the samples last, what a window meets at one offset lies in long runs also where
the images are small, and copying it takes a third of the time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of `kernel` places along each axis of space; `begin` and `end` are what the input is padded by."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def trivial(self) -> bool:
        """One place, each place: what an unfolding leaves as it is."""
        ones = all(k == 1 for k in (*self.kernel, *self.strides))
        return ones and not any((*self.begin, *self.end))

    def out(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """How many places the window takes along each axis."""
        axes = zip(space, self.kernel, self.strides, self.begin, self.end, self.dilations, strict=True)
        return tuple((size + b + e - d * (k - 1) - 1) // s + 1 for size, k, s, b, e, d in axes)

    def places(self, out: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """Each offset within the window, and the index of what it meets in padded images."""
        for offset in itertools.product(*map(range, self.kernel)):
            axes = zip(offset, self.dilations, self.strides, out, strict=True)
            yield offset, (slice(None), *(slice(o * d, o * d + s * (n - 1) + 1, s) for o, d, s, n in axes))

    def padded(self, images: Array, fill: float = 0.0) -> Array:
        """`images` (of any strides) with their margins, in memory of their own."""
        c, *space, n = images.shape
        wide = self.margins(c, tuple(space), n, images.dtype, fill)
        wide[self._inside(tuple(space))] = images
        return wide

    def margins(self, c: int, space: tuple[int, ...], n: int, dtype: Any, fill: float = 0.0) -> Array:
        """Padded images that are `fill` everywhere."""
        sizes = [size + b + e for size, b, e in zip(space, self.begin, self.end, strict=True)]
        return np.full((c, *sizes, n), fill, dtype)

    def inner(self, wide: Array) -> Array:
        """What lies within the margins."""
        ends = zip(wide.shape[1:-1], self.begin, self.end, strict=True)
        return wide[self._inside(tuple(size - b - e for size, b, e in ends))]

    def _inside(self, space: tuple[int, ...]) -> tuple[Any, ...]:
        return (slice(None), *(slice(b, b + size) for b, size in zip(self.begin, space, strict=True)))


def turned(x: Array) -> Array:
    """(N, C, *space) as (C, *space, N), the same memory."""
    return np.moveaxis(x, 0, -1)


def unfold(window: Window, x: Array) -> Array:
    """(N, C, *space) -> (C * prod(kernel), prod(out) * N): column by column what the window meets."""
    n, c, *space = x.shape
    out = window.out(tuple(space))
    if window.trivial:
        return turned(x).reshape(c, -1)
    columns = np.empty((c, *window.kernel, *out, n), x.dtype)
    wide = window.padded(turned(x))
    for offset, place in window.places(out):
        columns[(slice(None), *offset)] = wide[place]
    return columns.reshape(c * math.prod(window.kernel), -1)


def fold(window: Window, columns: Array, x: Array) -> None:
    """The transpose of `unfold`: what a place gave to several columns comes back to it as their sum, into `x`."""
    n, c, *space = x.shape
    if window.trivial:
        turned(x)[:] = columns.reshape(c, *space, n)
        return
    out = window.out(tuple(space))
    columns = columns.reshape(c, *window.kernel, *out, n)
    wide = window.margins(c, tuple(space), n, x.dtype)
    for offset, place in window.places(out):
        wide[place] += columns[(slice(None), *offset)]
    turned(x)[:] = window.inner(wide)
