"""Depthwise convolutions, one weight for each channel and offset: sums of shifted images, some channels at a time.

Each function writes its result into its last argument; images are (N, C, *space), weights (C, 1, *kernel).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from graphopt.training.window import Array, Window, turned

BLOCK = 1 << 15
"""About how many elements of an image are worked on at a time: a few such pieces stay in the cache."""


def conv(window: Window, x: Array, weight: Array, y: Array) -> None:
    """The depthwise convolution of x."""
    for block in _blocks(x):
        wide, factors = window.padded(turned(x[:, block])), _lined(weight[block])
        total = np.zeros((wide.shape[0], *y.shape[2:], len(x)), y.dtype)
        part = np.empty_like(total)
        for offset, place in window.places(y.shape[2:]):
            total += np.multiply(wide[place], factors[(slice(None), 0, *offset)], out=part)
        turned(y[:, block])[:] = total


def weight_gradient(window: Window, x: Array, dy: Array, dw: Array) -> None:
    """The gradient of its weights."""
    for block in _blocks(x):
        wide, outer = window.padded(turned(x[:, block])), np.ascontiguousarray(turned(dy[:, block]))
        part = np.empty_like(outer)
        for offset, place in window.places(dy.shape[2:]):
            np.multiply(wide[place], outer, out=part)
            dw[(block, 0, *offset)] = part.reshape(len(part), -1).sum(axis=1)


def input_gradient(window: Window, dy: Array, weight: Array, dx: Array) -> None:
    """The gradient of its input; also the transposed depthwise convolution."""
    for block in _blocks(dx):
        outer, factors = np.ascontiguousarray(turned(dy[:, block])), _lined(weight[block])
        wide = window.margins(len(outer), dx.shape[2:], len(dx), dx.dtype)
        part = np.empty_like(outer)
        for offset, place in window.places(dy.shape[2:]):
            wide[place] += np.multiply(outer, factors[(slice(None), 0, *offset)], out=part)
        turned(dx[:, block])[:] = window.inner(wide)


def _lined(weight: Array) -> Array:
    return weight.reshape(*weight.shape, *[1] * (weight.ndim - 1))


def _blocks(x: Array) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, len(x) * math.prod(x.shape[2:])))
    for start in range(0, x.shape[1], step):
        yield slice(start, min(x.shape[1], start + step))
