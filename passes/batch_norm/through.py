"""Operators that a map per channel passes unchanged: ``f(s·x + t) = s·f(x) + t``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from graphopt.passes.batch_norm.affine import Affine, column
from graphopt.passes.batch_norm.reading import VIEWS, Left, integer, integers, is_onnx, label, rank, same_channels
from graphopt.passes.random_ops import is_inference_dropout

if TYPE_CHECKING:
    import onnx_ir as ir

POOLS = ("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool")


def cross(node: ir.Node, axis: int, affine: Affine, *, forward: bool) -> tuple[int, Affine]:
    """The channel axis and the map on the other side of `node` (its output if `forward`, else its input 0).

    Raises:
        Left: the operator does not commute with the map.
    """
    if is_onnx(node, "Identity"):
        return axis, affine
    if is_onnx(node, "Dropout") and _is_inference(node):
        return axis, affine
    if is_onnx(node, "Transpose"):
        return _transpose(node, axis, forward), affine
    if is_onnx(node, *POOLS):
        return axis, _pool(node, axis, affine)
    if is_onnx(node, *VIEWS):
        return _view(node, axis, affine, forward)
    raise Left(f"{label(node)} does not commute with a map per channel")


def _is_inference(node: ir.Node) -> bool:
    mask_used = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return not mask_used and is_inference_dropout(node)


def _transpose(node: ir.Node, axis: int, forward: bool) -> int:
    perm = integers(node, "perm") or list(range(rank(node.inputs[0])))[::-1]
    return perm.index(axis) if forward else perm[axis]


def _pool(node: ir.Node, axis: int, affine: Affine) -> Affine:
    """Averages are linear and keep a shift unless zeros are averaged in; maxima keep a scale ≥ 0."""
    if axis > 1:
        raise Left(f"{label(node)} pools along the axis of the channels")
    if is_onnx(node, "MaxPool", "GlobalMaxPool"):
        bound = 0.0 if len(node.outputs) == 1 or not node.outputs[1].name else np.nextafter(0.0, 1.0)
        if (affine.scale < bound).any():
            raise Left(f"{label(node)} does not commute with a scale below zero")
    elif affine.shifts and integer(node, "count_include_pad", 0):
        raise Left(f"{label(node)} averages its zero padding in, and the map shifts")
    return affine


def _view(node: ir.Node, axis: int, affine: Affine, forward: bool) -> tuple[int, Affine]:
    """The dimensions behind the first are joined or split; the map must still vary along one of them alone."""
    value, other = node.inputs[0], node.outputs[0]
    here, there = [_static_tail(v) for v in ((value, other) if forward else (other, value))]
    if axis < 1 or here is None or there is None or math.prod(here) != math.prod(there):
        raise Left(f"{label(node)} changes the first axis, or its shape is unknown")
    same_channels(node, here[axis - 1], affine.channels)
    whole = [np.broadcast_to(column(v, axis - 1, len(here)), here).reshape(there) for v in (affine.scale, affine.shift)]
    for i, size in enumerate(there):
        rows = [np.moveaxis(w, i, 0).reshape(size, -1) for w in whole]
        if all((r == r[:, :1]).all() for r in rows):
            return i + 1, Affine(rows[0][:, 0], rows[1][:, 0])
    raise Left(f"{label(node)} joins channels whose maps differ")


def _static_tail(value: ir.Value | None) -> list[int] | None:
    """The dimensions from axis 1 on, when all are known and not empty."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    dims = [d for d in value.shape.dims[1:] if isinstance(d, int) and d > 0]
    return dims if len(dims) == len(value.shape) - 1 else None
