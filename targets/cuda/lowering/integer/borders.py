"""A convolution's border: which taps of its kernel lie inside the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.targets.npu.shapes import pads_before

Array = np.ndarray[Any, Any]


def numbers(node: ir.Node, name: str, rank: int) -> list[int]:
    """Strides or dilations."""
    return list(node.attributes.get_ints(name, [1] * rank))


def padding(node: ir.Node, kernel: Sequence[int]) -> list[int] | None:
    """What a Conv pads each axis with, all beginnings first; None where that depends on sizes that are open."""
    rank = len(kernel)
    strides, dilations = numbers(node, "strides", rank), numbers(node, "dilations", rank)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(node.attributes.get_ints("pads", [0] * 2 * rank))
    if mode == "VALID":
        return [0] * 2 * rank
    x, y = (_sizes(value) for value in (node.inputs[0], node.outputs[0]))
    if x is None or y is None:
        return None
    before = pads_before(node, x, y, tuple(kernel), tuple(strides), tuple(dilations))
    seen = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(y, strides, kernel, dilations, strict=True)]
    return [*before, *(max(whole - size - pad, 0) for whole, size, pad in zip(seen, x, before, strict=True))]


def taps_inside(node: ir.Node, weights: Array, pads: Sequence[int]) -> Array | None:
    """Sums of those of each channel's weights whose taps lie inside the image, int64, at each place of the result.

    [1, channels, 1...] where all do everywhere; None where that depends on sizes that are open.
    """
    rank = weights.ndim - 2
    total: Array = weights.sum(axis=1, dtype=np.int64)
    if not any(pads):
        return total.sum(axis=tuple(range(1, rank + 1)), keepdims=True)[None]
    x, y = (_sizes(value) for value in (node.inputs[0], node.outputs[0]))
    if x is None or y is None:
        return None
    strides, dilations = numbers(node, "strides", rank), numbers(node, "dilations", rank)
    for axis in range(rank):
        taps, places = np.arange(weights.shape[2 + axis])[:, None], np.arange(y[axis])[None]
        at = places * strides[axis] - pads[axis] + taps * dilations[axis]
        total = np.tensordot(total, ((at >= 0) & (at < x[axis])).astype(np.int64), axes=(1, 0))
    return total[None]


def border_table(node: ir.Node, weights: Array, pads: Sequence[int]) -> Array:
    """Sums of the weights of taps inside an image, int64 [1, channels, rows, columns], by `place` of the two axes."""
    total: Array = weights.sum(axis=1, dtype=np.int64)
    for size, dilation, before, after in zip(
        weights.shape[2:], numbers(node, "dilations", 2), pads[:2], pads[2:], strict=True
    ):
        taps = np.arange(size)[:, None, None] * dilation
        low, high = np.arange(before + 1)[:, None], np.arange(after + 1)[None]
        seen = (taps >= low) & ((size - 1) * dilation - taps >= high)
        total = np.tensordot(total, seen.reshape(size, -1).astype(np.int64), axes=(1, 0))
    return total[None]


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    """Height, width and so on, where they are known."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(size for size in list(value.shape)[2:] if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) - 2 else None
