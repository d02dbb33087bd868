"""Weighted operators as products of matrices: which rows of the input meet which rows of the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

ELEMENTS = 1 << 24
"""Most elements of the rows that are sampled for one layer."""


def data_index(node: ir.Node, index: int) -> int | str:
    """Which input of `node` is data when its weight is input `index`, or why it is no product of matrices here."""
    if node.op_type == "ConvTranspose":
        return "a transposed convolution is not treated"
    if node.op_type == "MatMul" and (index != 1 or _rank(node.inputs[1]) != 2):
        return "only a right operand of two axes is treated"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
        return "a Gemm with transA is not treated"
    return 0


def to_matrix(node: ir.Node, weight: Array) -> Array:
    """A weight as [groups, outputs of a group, K]: ``y = matrix @ row``."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    return (weight if node.attributes.get_int("transB", 0) else weight.T)[None]


def from_matrix(node: ir.Node, matrix: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `to_matrix`."""
    if node.op_type == "Conv":
        return matrix.reshape(shape)
    return matrix[0] if node.attributes.get_int("transB", 0) else matrix[0].T


def sample_rows(node: ir.Node, shape: tuple[int, ...], inputs: list[list[Array]], count: int, seed: int) -> list[Array]:
    """Rows [groups, at most `count`, K] in float64 of each of `inputs` (batches of the data operand), drawn at the
    same places of all of them. `shape` is the weight's.
    """
    rng = np.random.default_rng(seed)
    groups, _, k = to_matrix(node, np.empty(shape, np.int8)).shape
    count = max(1, min(count, ELEMENTS // (groups * k)))
    share = -(-count // len(inputs[0]))
    drawn: list[list[Array]] = [[] for _ in inputs]
    for batch in zip(*inputs, strict=True):
        views = [_rows(node, shape, array) for array in batch]
        places = int(np.prod(views[0].shape[: views[0].ndim // 2])) if node.op_type == "Conv" else len(views[0])
        chosen = np.sort(rng.choice(places, min(share, places), replace=False))
        for rows, view in zip(drawn, views, strict=True):
            rows.append(_pick(node, view, chosen))
    return [np.concatenate(rows, axis=1).astype(np.float64) for rows in drawn]


def _rows(node: ir.Node, shape: tuple[int, ...], x: Array) -> Array:
    """Conv: a view [n, out..., C, kernel...] of the padded input. Else [rows, K]."""
    if node.op_type != "Conv":
        return x.reshape(-1, x.shape[-1])
    kernel, rank = shape[2:], len(shape) - 2
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(node, x.shape[2:], extents, strides)
    x = np.pad(x, [(0, 0), (0, 0), *pads])
    view = np.lib.stride_tricks.sliding_window_view(x, extents, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    return np.moveaxis(view[tuple(steps)], 1, 1 + rank)


def _pick(node: ir.Node, rows: Array, chosen: Array) -> Array:
    """The chosen rows as [groups, rows, K]."""
    if node.op_type != "Conv":
        return rows[chosen][None]
    outer = rows.shape[: rows.ndim // 2]
    picked = rows[np.unravel_index(chosen, outer)]  # [rows, C, kernel...]
    groups = node.attributes.get_int("group", 1)
    return np.moveaxis(picked.reshape(len(chosen), groups, -1), 1, 0)


def _pads(node: ir.Node, sizes: tuple[int, ...], extents: list[int], strides: list[int]) -> list[tuple[int, int]]:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * len(sizes)
    if mode == "NOTSET":
        pads = list(node.attributes.get_ints("pads", [0] * 2 * len(sizes)))
        return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
    found: list[tuple[int, int]] = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()
