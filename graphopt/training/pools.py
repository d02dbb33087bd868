"""Max and average pooling of images (N, C, *space), and their gradients, each written into the last argument."""

from __future__ import annotations

import numpy as np

from graphopt.training.window import Array, Window, turned


def max_pool(window: Window, x: Array, y: Array) -> None:
    """The largest of each window."""
    wide, largest = window.padded(turned(x), -np.inf), _empty(y)
    largest[:] = -np.inf
    for _, place in window.places(y.shape[2:]):
        np.maximum(largest, wide[place], out=largest)
    turned(y)[:] = largest


def max_pool_gradient(window: Window, x: Array, y: Array, dy: Array, dx: Array) -> None:
    """What the largest of each window gets; of several equal ones the first."""
    wide, largest, outer = window.padded(turned(x), -np.inf), _empty(y), _empty(dy)
    largest[:], outer[:] = turned(y), turned(dy)
    total = np.zeros_like(wide)
    part = np.empty_like(outer)
    for _, place in window.places(y.shape[2:]):
        hit = wide[place] == largest
        total[place] += np.multiply(outer, hit, out=part)
        outer -= part
    turned(dx)[:] = window.inner(total)


def average_pool(window: Window, include_pad: bool, x: Array, y: Array) -> None:
    """The mean of each window: of what of it lies inside or, with `include_pad`, of all its places."""
    wide, total = window.padded(turned(x)), _empty(y)
    total[:] = 0
    for _, place in window.places(y.shape[2:]):
        total += wide[place]
    turned(y)[:] = total / _counts(window, include_pad, x.shape[2:], y.shape[2:])


def average_pool_gradient(window: Window, include_pad: bool, dy: Array, dx: Array) -> None:
    """The transpose of `average_pool`."""
    part = turned(dy) / _counts(window, include_pad, dx.shape[2:], dy.shape[2:])
    total = window.margins(dx.shape[1], dx.shape[2:], len(dx), dx.dtype)
    for _, place in window.places(dy.shape[2:]):
        total[place] += part
    turned(dx)[:] = window.inner(total)


def _empty(like: Array) -> Array:
    return np.empty(turned(like).shape, like.dtype)


def _counts(window: Window, include_pad: bool, space: tuple[int, ...], out: tuple[int, ...]) -> Array:
    wide = window.padded(np.ones((1, *space, 1), np.float32), 1.0 if include_pad else 0.0)
    counts = np.zeros((1, *out, 1), np.float32)
    for _, place in window.places(out):
        counts += wide[place]
    return counts
