"""Weighted operators as consumers: ``f(s·x + t)`` becomes f of x with other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.passes.batch_norm.affine import Affine, column, computed_operand
from graphopt.passes.batch_norm.plan import Plan, feed, insert_add
from graphopt.passes.batch_norm.producers import bias, gemm_bias, set_bias, set_gemm_bias
from graphopt.passes.batch_norm.reading import (
    Left,
    integer,
    integers,
    is_onnx,
    known,
    label,
    number,
    rank,
    same_channels,
    text,
)
from graphopt.passes.batch_norm.weights import multiply, rounded, weight

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def into_conv(plan: Plan, node: ir.Node, index: int, affine: Affine, axis: int) -> None:
    """``W'[o, i] = s[i]·W[o, i]``, ``b'[o] = b[o] + Σ W[o, i, ...]·t[i]``; zero padding would not get its t."""
    if index != 0 or axis != 1:
        raise Left(f"{label(node)} does not sum over the channels")
    w, groups = weight(node, 1), integer(node, "group", 1)
    outputs, inputs = w.array.shape[:2]
    same_channels(node, inputs * groups, affine.channels)
    if affine.shifts and _pads(node, w.array.shape[2:]):
        raise Left(f"{label(node)} pads with zeros, which the shift would have to reach")
    rows = [np.repeat(v.reshape(groups, inputs), outputs // groups, axis=0) for v in (affine.scale, affine.shift)]
    scale, shift = [(r[:1] if groups == 1 else r).reshape(-1, inputs, *(1,) * (w.array.ndim - 2)) for r in rows]
    multiply(plan, w, scale)
    moved = (w.array * shift).sum(axis=tuple(range(1, w.array.ndim)))
    set_bias(plan, node, w, bias(node, outputs) + moved)


def into_conv_transpose(plan: Plan, node: ir.Node, index: int, affine: Affine, axis: int) -> None:
    """``W'[i, o] = s[i]·W[i, o]``; a shift reaches every output alike only through 1x1 kernels with stride 1."""
    if index != 0 or axis != 1:
        raise Left(f"{label(node)} does not sum over the channels")
    w, groups = weight(node, 1), integer(node, "group", 1)
    inputs, outputs = w.array.shape[:2]
    same_channels(node, inputs, affine.channels)
    if affine.shifts and not _is_pointwise(node, w.array.shape[2:]):
        raise Left(f"{label(node)} spreads the shift unevenly over its output")
    multiply(plan, w, column(affine.scale, 0, w.array.ndim))
    moved = w.array * column(affine.shift, 0, w.array.ndim)
    moved = moved.sum(axis=tuple(range(2, w.array.ndim))).reshape(groups, -1, outputs).sum(axis=1).reshape(-1)
    set_bias(plan, node, w, bias(node, outputs * groups) + moved)


def into_gemm(plan: Plan, node: ir.Node, index: int, affine: Affine, axis: int) -> None:
    """``Y = α·(s·A + t)·B + β·C``: K is the axis of the channels; ``C' = β·C + α·t·B``, and alike for B and A."""
    flipped = [bool(integer(node, name, 0)) for name in ("transA", "transB")]
    if index > 1 or axis != (1 - index if not flipped[index] else index):
        raise Left(f"{label(node)} does not sum over the channels")
    w = weight(node, 1 - index)
    along = index if not flipped[1 - index] else 1 - index
    same_channels(node, w.array.shape[along], affine.channels)
    moved = number(node, "alpha", 1.0) * (w.array * column(affine.shift, along, 2)).sum(axis=along)
    beta_c = number(node, "beta", 1.0) * gemm_bias(node)
    multiply(plan, w, column(affine.scale, along, 2))
    set_gemm_bias(plan, node, w, beta_c + (moved if index == 0 else moved[:, None]))


def into_matmul(plan: Plan, node: ir.Node, index: int, affine: Affine, axis: int) -> None:
    """``(s·x + t)·B = x·(s·B) + t·B`` along the last axis of x, ``A·(s·x + t)`` along the one before it."""
    dims = rank(node.inputs[index])
    if dims < 2 or axis != (dims - 1 if index == 0 else dims - 2):
        raise Left(f"{label(node)} does not sum over the channels")
    w = weight(node, 1 - index)
    along = w.array.ndim - 1 if index == 1 or w.array.ndim == 1 else w.array.ndim - 2
    same_channels(node, w.array.shape[along], affine.channels)
    moved = (w.array * column(affine.shift, along, w.array.ndim)).sum(axis=along, keepdims=w.array.ndim > 2)
    if index == 1 and w.array.ndim == 2:
        moved = moved[:, None]
    multiply(plan, w, column(affine.scale, along, w.array.ndim))
    if affine.shifts:
        _shift(plan, node, moved, w.dtype)


ABSORBERS: dict[str, Callable[[Plan, ir.Node, int, Affine, int], None]] = {
    "Conv": into_conv,
    "ConvTranspose": into_conv_transpose,
    "Gemm": into_gemm,
    "MatMul": into_matmul,
}


def _shift(plan: Plan, node: ir.Node, array: Array, dtype: np.dtype[Any]) -> None:
    """Add `array` behind `node`: to the constant of the Add that is its only reader, else by a new Add."""
    out = node.outputs[0]
    uses = list(out.uses())
    if len(uses) == 1 and not out.is_graph_output() and is_onnx(uses[0].node, "Add"):
        add, other = uses[0].node, 1 - uses[0].idx
        operand = computed_operand(add)
        stored = known(add.inputs[other])
        if operand is not None and stored is not None and add.graph is node.graph:
            total = rounded(operand[1] + array, stored.dtype, f"constant of {label(add)}")
            plan.add(feed, add, other, total, f"{add.name}_folded")
            return
    plan.add(insert_add, node, rounded(array, dtype, f"shift of {label(node)}"))


def _pads(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    mode = text(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return any(k > 1 for k in kernel)
    return mode == "NOTSET" and any(integers(node, "pads"))


def _is_pointwise(node: ir.Node, kernel: tuple[int, ...]) -> bool:
    strides, extra = integers(node, "strides"), [*integers(node, "output_padding"), *integers(node, "output_shape")]
    return all(k == 1 for k in kernel) and all(s == 1 for s in strides) and not any(extra)
