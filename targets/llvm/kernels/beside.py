"""Output columns side by side in one vector, for convolutions to few channels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from graphopt.targets.llvm.kernels.window import Conv


def columns(c: Conv, lanes: int) -> int:
    """How many output columns to compute side by side, as further channels of one: see `wide`.

    With few channels most of a vector would be empty: 8 of 16 lanes are with 8 channels, 15 with 1. Columns beside each
    other share the kernel's columns that both see; the others are multiplied by zeros. Worth it where that wastes less.
    """
    if c.group > 1 or c.dilations[1] > 1:
        return 1

    def price(p: int) -> int:
        return max(-(-c.ow // p) * -(-c.co * p // lanes), 8) * (c.kernel[1] + (p - 1) * c.strides[1])

    best = min(range(1, min(lanes, c.ow) + 1), key=price)
    return best if price(best) < 0.9 * price(1) else 1


def wide(c: Conv, p: int) -> Conv:
    """`c` with `p` output columns as one of ``p * co`` channels, by a kernel wide enough for all of them.

    The result has the same bytes: [N, OH, OW, CO] is [N, OH, OW/p, p * CO]. If `p` does not divide OW, the last column
    has channels that don't exist.
    """
    if p == 1:
        return c
    step, missing = c.strides[1], -c.ow % p
    top, left, bottom, right = c.pads
    return dataclasses.replace(
        c,
        co=c.co * p,
        kernel=(c.kernel[0], c.kernel[1] + (p - 1) * step),
        strides=(c.strides[0], step * p),
        pads=(top, left, bottom, right + missing * step),
    )


def widen(weight: np.ndarray[Any, Any], p: int, stride: int) -> np.ndarray[Any, Any]:
    """The weights of `wide`: [CO, CI, KH, KW] -> [p * CO, CI, KH, KW + (p-1) * stride], each column's moved along."""
    co, ci, kh, kw = weight.shape
    widened = np.zeros((p, co, ci, kh, kw + (p - 1) * stride), weight.dtype)
    for column in range(p):
        widened[column, ..., column * stride : column * stride + kw] = weight
    return widened.reshape(p * co, ci, kh, -1)
